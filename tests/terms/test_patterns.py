"""Where streams are found in calls and outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cachedit_cli.errors import InputError
from cachedit_cli.terms.pattern import ForwardPattern, Slot, Streams, as_streams, find_slots, pack, unpack

H, E = "hidden_states", "encoder_hidden_states"
BOTH = Streams((H, E), (H, E))


def by_name(hidden_states: Any, encoder_hidden_states: Any, temb: Any) -> None: ...
def by_name_elsewhere(temb: Any, encoder_hidden_states: Any, hidden_states: Any) -> None: ...
def by_keyword(*, temb: Any, encoder_hidden_states: Any, hidden_states: Any) -> None: ...
def one_by_keyword(hidden_states: Any, *, encoder_hidden_states: Any) -> None: ...
def by_place(x: Any, y: Any, vec: Any) -> None: ...
def half_by_name(hidden_states: Any, prompt: Any) -> None: ...
def only_positional(x: Any, y: Any, /) -> None: ...
def variadic(*args: Any) -> None: ...
def one_and_variadic(x: Any, *rest: Any) -> None: ...


# A call, and how it is read: every row calls with 'h' and 'e' as the model would.
CALLS: list[tuple[Callable[..., None], tuple[str, ...], dict[str, str]]] = [
    (by_name, ("h", "e", "t"), {}),
    (by_name, ("h",), {E: "e", "temb": "t"}),
    (by_name, (), {"temb": "t", E: "e", H: "h"}),
    (by_name_elsewhere, ("t", "e", "h"), {}),
    (by_name_elsewhere, ("t",), {H: "h", E: "e"}),
    (by_keyword, (), {H: "h", E: "e", "temb": "t"}),
    (one_by_keyword, ("h",), {E: "e"}),
    (by_place, ("h", "e", "t"), {}),
    (by_place, ("h",), {"vec": "t", "y": "e"}),
    (by_place, (), {"x": "h", "y": "e", "vec": "t"}),
    (half_by_name, ("h", "e"), {}),
    (half_by_name, (), {"prompt": "e", H: "h"}),
    (only_positional, ("h", "e"), {}),
    (variadic, ("h", "e", "t"), {}),
    (one_and_variadic, ("h", "e"), {}),
]


@pytest.mark.parametrize(("forward", "args", "kwargs"), CALLS)
def test_streams_are_found_by_name_or_place_and_read_from_any_call(
    forward: Callable[..., None], args: tuple[str, ...], kwargs: dict[str, str]
) -> None:
    slots = find_slots(forward, BOTH)
    assert {name: slot.read(args, kwargs) for name, slot in slots.items()} == {H: "h", E: "e"}


def test_a_bound_method_has_no_place_for_self() -> None:
    class Block:
        def forward(self, x: Any, y: Any) -> None: ...

    assert find_slots(Block().forward, BOTH) == {H: Slot("x", 0), E: Slot("y", 1)}


def test_streams_that_are_not_returned_need_no_slot() -> None:
    assert list(find_slots(by_name, ForwardPattern.Pattern_2.value)) == [H]


def test_a_keyword_only_argument_is_never_read_from_a_place() -> None:
    assert find_slots(by_keyword, BOTH)[H].read(("a", "b", "c"), {}) is None


def test_an_argument_left_out_reads_as_none() -> None:
    assert find_slots(by_name, BOTH)[E].read(("h",), {}) is None


def test_a_block_without_a_place_for_a_stream_is_an_error_that_names_both() -> None:
    def forward(x: Any) -> None: ...

    with pytest.raises(InputError) as caught:
        find_slots(forward, BOTH)
    assert str(caught.value) == "forward(x) has no place for 'encoder_hidden_states', which Pattern_0 takes"


@pytest.mark.parametrize(
    ("pattern", "takes", "returns"),
    [
        (ForwardPattern.Pattern_0, (H, E), (H, E)),
        (ForwardPattern.Pattern_1, (H, E), (E, H)),
        (ForwardPattern.Pattern_2, (H, E), (H,)),
        (ForwardPattern.Pattern_3, (H,), (H,)),
        (ForwardPattern.Pattern_4, (H,), (H, E)),
        (ForwardPattern.Pattern_5, (H,), (E, H)),
    ],
)
def test_the_six_patterns_are_those_of_the_specification(
    pattern: ForwardPattern, takes: tuple[str, ...], returns: tuple[str, ...]
) -> None:
    streams = as_streams(pattern)
    assert (streams.takes, streams.returns) == (takes, returns)
    assert streams.main == H
    assert streams.carried == tuple(name for name in takes if name in returns)
    assert str(streams) == pattern.name
    assert as_streams(streams) is streams


def test_streams_of_their_own_names_say_what_they_are() -> None:
    streams = Streams(("x", "context"), ("x",))
    assert str(streams) == "x, context -> x"
    assert streams.carried == ("x",)


@pytest.mark.parametrize(("takes", "returns"), [((), (H,)), ((H,), ()), ((H, E), (E,))])
def test_streams_have_to_return_what_they_take_first(takes: tuple[str, ...], returns: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="the first one taken has to be returned"):
        Streams(takes, returns)


OUTPUTS: list[tuple[Any, tuple[str, ...], dict[str, Any]]] = [
    ("h", (H,), {H: "h"}),
    (("h",), (H,), {H: "h"}),
    (("h", "e"), (H, E), {H: "h", E: "e"}),
    (("e", "h"), (E, H), {H: "h", E: "e"}),
    (["e", "h"], (E, H), {H: "h", E: "e"}),
    (("h", None), (H, E), {H: "h", E: None}),
    (("h", "e", "weights"), (H, E), {H: "h", E: "e"}),
    (("h",), (H, E), {H: "h", E: None}),
    ("h", (H, E), {H: "h", E: None}),
]


@pytest.mark.parametrize(("output", "names", "values"), OUTPUTS)
def test_outputs_are_taken_apart_and_put_together_in_the_same_form(
    output: Any, names: tuple[str, ...], values: dict[str, Any]
) -> None:
    assert unpack(output, names) == values
    again = pack(values, names, output)
    assert again == output
    assert type(again) is type(output)


def test_what_a_block_returns_besides_its_streams_is_kept() -> None:
    assert pack({H: "new", E: "e"}, (E, H), ("old e", "old h", "weights")) == ("e", "new", "weights")
