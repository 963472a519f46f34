"""Recipes in files, under files, and under options: every way of naming one wrongly gets one clear message."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedit_cli.errors import InputError
from cachedit_cli.recipe import Override, load, text

HEAD = "version: 1\nmodel: {id: demo}\ngenerate: {prompt: a}\n"  # three lines of a valid recipe
LISTED = "`cachedit recipes` lists them; a path has a '/' or ends in .yaml"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def said_of(source: str | Path, overrides: Sequence[str | Override] = ()) -> str:
    with pytest.raises(InputError) as error:
        load(source, overrides)
    return str(error.value)


def message(content: str, overrides: Sequence[str | Override] = ()) -> str:
    """Return what is said of a recipe in the file r.yaml."""
    Path("r.yaml").write_text(content)
    return said_of("r.yaml", overrides)


def test_a_file_that_cannot_be_read() -> None:
    os.mkdir("folder")
    Path("mine").write_text(HEAD)
    assert said_of("nowhere.yaml") == "nowhere.yaml: there is no such file"
    assert said_of("mine/r.yaml") == "mine/r.yaml: cannot be read: Not a directory"
    assert said_of("./folder") == "folder: is a folder (name one recipe file in it)"
    assert said_of(Path("folder")) == "folder: is a folder (name one recipe file in it)"
    assert said_of("x" * 300 + ".yaml") == f"{'x' * 300}.yaml: cannot be read: File name too long"
    assert said_of("a\0/b") == "'a\\x00/b' cannot be the name of a file"


def test_an_unknown_name_leads_to_the_known_ones() -> None:
    Path("mine").write_text(HEAD)
    Path("demo").write_text("not looked at")
    assert said_of("demp") == f"no bundled recipe is called 'demp' (did you mean 'demo'?; {LISTED})"
    assert said_of("zzz") == f"no bundled recipe is called 'zzz' ({LISTED})"
    assert said_of("") == f"no bundled recipe is called '' ({LISTED})"
    assert said_of("mine") == f"no bundled recipe is called 'mine' (write './mine' for the file of this name; {LISTED})"
    assert load("./mine").name == "mine"
    assert load("demo").name == "demo"
    with pytest.raises(InputError, match="no bundled recipe is called 'demp'"):
        text("demp")


# -------------------------------------------------------------------------------------------------------------- extends


def test_an_error_in_the_parent_names_its_file_and_comes_after_those_of_the_child() -> None:
    os.mkdir("base")
    Path("base/low.yaml").write_text(HEAD + "cache:\n  Fn_compute_block: 1\n  audit: 5\n  max_warmup_steps: x\n")
    assert message("extends: base/low.yaml\ncache: {audit: 7, type: DBCash}\n").splitlines() == [
        "r.yaml:2:16: cache.audit: 7 is not true or false",
        "r.yaml:2:25: cache.type: 'DBCash' is unknown (did you mean 'DBCache'?)",
        "base/low.yaml:5:3: cache.Fn_compute_block: unknown key (did you mean 'Fn_compute_blocks'?)",
        "base/low.yaml:7:21: cache.max_warmup_steps: 'x' is not a whole number",
    ]


@pytest.mark.parametrize(
    ("extends", "expected"),
    [
        ("demp", f"r.yaml:1:10: extends: no bundled recipe is called 'demp' (did you mean 'demo'?; {LISTED})"),
        ("./nowhere.yaml", "r.yaml:1:10: extends: nowhere.yaml: there is no such file"),
        ("./r.yaml", "r.yaml:1:10: extends: recipes extend each other in a circle: r.yaml -> r.yaml"),
        ("b.yaml", "c.yaml:1:10: extends: recipes extend each other in a circle: b.yaml -> c.yaml -> b.yaml"),
        ("[demo]", "r.yaml:1:10: extends: a list is not text (a bundled name, or a path relative to this file)"),
        ("", "r.yaml:1:9: extends: nothing (null) is not text (a bundled name, or a path relative to this file)"),
        ("./v.yaml", "v.yaml:1:10: version: this cachedit reads version 1 of the recipe format, not 3"),
        ("./e.yaml", "e.yaml: is empty (`cachedit recipes show demo` prints a recipe to start from)"),
        ("./s.yaml", "s.yaml:1:1: not valid YAML: a tab cannot indent YAML (use spaces)"),
    ],
)
def test_a_recipe_that_cannot_be_extended(extends: str, expected: str) -> None:
    for name, content in {
        "b": "extends: c.yaml\n",
        "c": "extends: ./b.yaml\n",
        "v": "version: 3\n",
        "e": "",
        "s": "\tversion: 1",
    }.items():
        Path(f"{name}.yaml").write_text(content)
    assert message(f"extends: {extends}\n") == expected


def test_a_circle_through_a_link_is_found() -> None:
    Path("b.yaml").write_text("extends: ./link.yaml\n")
    os.symlink("r.yaml", "link.yaml")
    assert message("extends: ./b.yaml\n") == (
        "b.yaml:1:10: extends: recipes extend each other in a circle: r.yaml -> b.yaml -> r.yaml"
    )


# -------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("cache.max_warmup_step=3", "cache.max_warmup_step: unknown key (did you mean 'max_warmup_steps'?)"),
        ("cache.max_warmup_steps=-1", "cache.max_warmup_steps: -1 is not a whole number >= 0"),
        ("cache.residual_diff_threshold=", "cache.residual_diff_threshold: nothing (null) is not a number"),
        ("generate.prompt=a: b", "generate.prompt: a mapping is not text"),
        ("generate.prompt=[1", "not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("generate={prompt: a, prompt: b}", "prompt: the key is given twice"),
        ("model.id.part=1", "model.id: a mapping is not text"),
        ("blocks.0.pattern=1", "blocks.0: no such entry (blocks is no list with entries)"),
        ("generate.seeds=[1, 2, -3]", "generate.seeds.2: -3 is too small (at least 0)"),
        ("version=2", "version: this cachedit reads version 1 of the recipe format, not 2"),
        ("adapter=flix", "adapter: no adapter is called 'flix' (did you mean 'flux'?)"),
        ("extends=demo", "extends: only a file can extend another"),
        ("cache", "is not KEY=VALUE, as in cache.residual_diff_threshold=0.12"),
        ("cache..type=none", "'cache..type' is not a key, which is names with dots between them"),
        ("=1", "'' is not a key, which is names with dots between them"),
    ],
)
def test_an_error_of_an_option_names_the_option(override: str, expected: str) -> None:
    assert message(HEAD, [override]) == f"--set {override}: {expected}"


def test_a_list_has_only_the_entries_that_it_has() -> None:
    blocks = HEAD + "blocks: [{path: transformer.a, pattern: 1}, {path: transformer.b, pattern: 1}]\n"
    assert message(blocks, ["blocks.2.pattern=1"]) == (
        "--set blocks.2.pattern=1: blocks.2: no such entry (the list ends with 1)"
    )
    assert message(blocks, ["blocks.-1.pattern=1"]) == (
        "--set blocks.-1.pattern=1: blocks: a mapping is not a list (put it in square brackets)"
    )


def test_other_options_are_named_as_they_are() -> None:
    steps = Override("--steps", "generate.num_inference_steps", 0)
    assert message(HEAD, [steps]) == "--steps: generate.num_inference_steps: 0 is too small (at least 1)"
    prompt = Override("--prompt", "generate.prompt", "\udcff")
    assert message(HEAD, [prompt]) == "--prompt: holds half a character (a lone surrogate), which no file can hold"


def test_errors_of_files_and_options_come_together() -> None:
    said = message(HEAD + "naem: a\n", ["cache.audit=5", "generate.sed=1"])
    assert said.splitlines() == [
        "r.yaml:4:1: naem: unknown key (did you mean 'name'?)",
        "--set cache.audit=5: cache.audit: 5 is not true or false",
        "--set generate.sed=1: generate.sed: unknown key (did you mean 'seed'?)",
    ]


# ------------------------------------------------------------------------------------------------------------- anything

PIECES = st.sampled_from(
    [
        "version: 1",
        "model:",
        "  id: demo",
        "cache: &a",
        "  <<: *a",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ": ",
        "? ",
        "!!int ",
        "\t",
        "'",
        '"',
        ">",
        "%",
        "---",
        "...",
        "#",
        "\\u",
        "1e999",
        "0x1f",
        "~",
        "extends: demo",
        "blocks:",
        " - path: a.b",
        "generate: {prompt: x}",
        "\ufeff",
        "\x85",
        "\u2028",
        "\n",
        "\n",
        "\n",
        "\n  ",
    ]
)


def outcome(source: str, overrides: Sequence[str] = ()) -> str:
    """Return a message, empty if there is nothing to complain of."""
    try:
        return "" if load(source, overrides).resolved() else "nothing"
    except InputError as error:
        return str(error)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.lists(PIECES).map("".join), st.text(), st.binary().map(lambda raw: raw.decode("latin-1"))))
def test_any_text_is_a_recipe_or_an_input_error(content: str) -> None:
    Path("any.yaml").write_bytes(content.encode("utf-8", "surrogatepass"))
    lines = outcome("any.yaml").splitlines()
    assert all(line.startswith(("any.yaml:", "... and ")) for line in lines)


@settings(max_examples=200, deadline=None)
@given(st.lists(PIECES).map("".join))
def test_any_option_is_taken_or_an_input_error(override: str) -> None:
    lines = outcome("demo", [override, f"cache.{override}", f"generate.extra={override}"]).splitlines()
    assert all(line.startswith("--set ") for line in lines)
