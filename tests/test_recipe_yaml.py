"""YAML with positions: what values are read, and that trees laid over each other keep where each was written."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedit_cli.recipe_yaml import Mark, Node, merge, node_of, parse, plain, put


def read(text: str) -> Any:
    tree, problems = parse(text, "f.yaml")
    assert problems == []
    assert tree is not None
    return plain(tree)


def keep_all(at: object, base: object, over: object) -> set[str]:
    return set()


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("12", 12),
        ("-3", -3),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("1e-3", 0.001),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
        ("'12'", "12"),
        ("! 12", "12"),
        ("!!str 12", "12"),
        ("!!float 1", 1.0),
        ("|\n  two\n  lines\n", "two\nlines\n"),
    ],
)
def test_scalars_are_read_as_yaml_1_2_reads_them(written: str, value: object) -> None:
    found = read(f"key: {written}")["key"]
    assert found == value
    assert type(found) is type(value)


def test_nan_is_read() -> None:
    assert math.isnan(read("key: .nan")["key"])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc<:- ", max_size=3), inner, max_size=3),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(st.text("abcd", max_size=3), VALUES, max_size=4))
def test_what_yaml_writes_is_read_again(value: dict[str, Any]) -> None:
    # With tags: bare scalars are written for YAML 1.1.
    assert read(yaml.safe_dump(value, default_style='"', allow_unicode=True)) == value


def test_an_alias_is_a_copy_and_a_merge_key_lies_below_the_own_keys() -> None:
    text = """\
one: &one {a: 1, b: 1}
two: &two {b: 2, c: 2}
all: {<<: [*one, *two], d: 3}
own: {b: 4, <<: *two}
same: *one
text: {"<<": 5}
"""
    assert read(text) == {
        "one": {"a": 1, "b": 1},
        "two": {"b": 2, "c": 2},
        "all": {"a": 1, "b": 1, "c": 2, "d": 3},
        "own": {"b": 4, "c": 2},
        "same": {"a": 1, "b": 1},
        "text": {"<<": 5},
    }


def test_every_value_and_key_knows_its_place() -> None:
    tree, _ = parse("a:\n  - b\n  - {c: d}\n", "f.yaml")
    assert tree == Node(
        {
            "a": Node(
                [
                    Node("b", Mark("f.yaml", 2, 5)),
                    Node({"c": Node("d", Mark("f.yaml", 3, 9), Mark("f.yaml", 3, 6))}, Mark("f.yaml", 3, 5)),
                ],
                Mark("f.yaml", 2, 3),
                Mark("f.yaml", 1, 1),
            )
        },
        Mark("f.yaml", 1, 1),
    )


def test_a_merged_tree_keeps_the_places_of_both() -> None:
    lower, upper = (
        node_of({"a": {"b": 1, "c": 2}, "d": [1]}, Mark("low")),
        node_of({"a": {"c": 3}, "d": []}, Mark("up")),
    )
    merged = merge(lower, upper, keep_all)
    assert plain(merged) == {"a": {"b": 1, "c": 3}, "d": []}
    assert {key: str(node.mark) for key, node in merged.value["a"].value.items()} == {"b": "low", "c": "up"}


@settings(deadline=None)
@given(VALUES, VALUES, VALUES)
def test_layers_can_be_merged_in_any_grouping(one: Any, two: Any, three: Any) -> None:
    low, middle, high = (node_of({"a": value}, Mark(str(n))) for n, value in enumerate((one, two, three)))
    left = merge(merge(low, middle, keep_all), high, keep_all)
    if isinstance(two, dict) or not isinstance(three, dict):
        # Unless the middle layer hides a mapping from one above that the upper one would be merged with.
        assert plain(left) == plain(merge(low, merge(middle, high, keep_all), keep_all))


@settings(deadline=None)
@given(VALUES)
def test_a_value_that_is_put_can_be_found_and_nothing_else_changes(value: Any) -> None:
    before = node_of({"a": {"b": [{"c": 1}, {"c": 2}]}, "d": 4}, Mark("f"))
    after = put(before, ["a", "b", "1", "c"], node_of(value, Mark("--set")), keep_all)
    assert plain(after) == {"a": {"b": [{"c": 1}, {"c": value}]}, "d": 4}
    assert plain(before) == {"a": {"b": [{"c": 1}, {"c": 2}]}, "d": 4}
