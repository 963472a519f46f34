"""Block lists that nobody registered: what one forward shows of them, what `auto` makes of it, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cachedit_cli import DBCacheConfig, refresh_context
from cachedit_cli.api import cached
from cachedit_cli.detect import Found, choose
from cachedit_cli.engine.install import Installation, installed
from cachedit_cli.errors import InputError
from cachedit_cli.terms.block_adapter import BlockAdapter
from cachedit_cli.terms.pattern import ForwardPattern, Streams, as_streams
from cachedit_cli.trace import Trace, Watch, candidates
from tests.tiny import PATTERNS, STYLES, TinyTransformer, computing, controls_like, run, snapshot, times, walk
from tests.tiny import adapter as by_hand
from tests.tiny_models import TINY, tensors

P0, P1, P2, P3, P4, P5 = PATTERNS
EAGER = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.5)

#: Tiny models of which a forward shows more, or less, than their adapters use, and why.
OTHERWISE = {
    "cosmos25_transfer": "its text is a pair of tensors, of which the pattern's name knows nothing",
    "flux3": "also lists of the text alone, and of the image alone",
    "kandinsky5": "also the text's own list",
    "kandinsky6": "also the text's own lists",
    "lumina2": "also the refiners, which have two blocks in real models",
    "motif_video_decoder": "the last blocks run on other states, which its adapter knows",
    "sd3_skip_layers": "the third forward of a step leaves blocks out, the first ones do not",
    "z_image": "also the refiners, which have two blocks in real models",
    "z_image_controlnet": "also the refiners, which have two blocks in real models",
}


def watched(model: nn.Module, *args: Any, pattern: Streams | None = None, **kwargs: Any) -> Found:
    found: list[Found] = []
    traces = [Trace(each) for each in candidates(model, pattern)]
    Watch(model, traces, lambda: found.append(choose(traces, pattern)))
    with torch.no_grad():
        model(*args, **kwargs)
    return found[0]


def patterns(found: Found) -> dict[str, str]:
    return {candidate.path: str(streams) for candidate, streams in found.fitting}


# ------------------------------------------------------------------------------------- what one forward shows of a list


@pytest.mark.parametrize("name", [name for name in TINY if name not in OTHERWISE])
@pytest.mark.filterwarnings("ignore")
def test_one_forward_shows_what_the_adapter_says(name: str) -> None:
    tiny = TINY[name]
    if not tiny.available:
        pytest.skip(f"this diffusers has no {tiny.class_name}")
    found = watched(tiny.build(), **tiny.inputs())
    assert patterns(found) == {entry.path: str(as_streams(entry.pattern)) for entry in tiny.adapter.lists}
    assert found.alternate is tiny.adapter.alternate


@pytest.mark.parametrize("name", OTHERWISE)
@pytest.mark.filterwarnings("ignore")
def test_where_it_shows_something_else_the_adapters_lists_are_not_given_another_meaning(name: str) -> None:
    tiny = TINY[name]
    if not tiny.available:
        pytest.skip(f"this diffusers has no {tiny.class_name}")
    found = watched(tiny.build(), **tiny.inputs())
    for entry in tiny.adapter.lists:
        streams = {each.path: streams for each, streams in found.fitting}.get(entry.path)
        assert streams is None or streams.returns == as_streams(entry.pattern).returns


@pytest.mark.parametrize("style", [style for style in STYLES if "odd" not in style and style != "variadic"])
@pytest.mark.parametrize("pattern", [P0, P1, P2, P3])
def test_a_pattern_is_seen_however_blocks_are_called(style: str, pattern: ForwardPattern) -> None:
    found = watched(TinyTransformer(pattern, style=style), walk(1)[0], 500.0, torch.ones(1, 3, 8))
    carried = {path: (streams.main, streams.returns) for (each, streams) in found.fitting for path in (each.path,)}
    assert carried == {"blocks": ("hidden_states", pattern.value.returns)}


@pytest.mark.parametrize("style", ["odd names", "odd keywords"])
def test_states_of_other_names_are_found(style: str) -> None:
    model = TinyTransformer(P1, style=style)
    assert patterns(watched(model, walk(1)[0], 500.0, torch.ones(1, 3, 8))) == {"blocks": "x, y -> y, x"}


def test_a_residual_after_every_block_does_not_hide_what_they_hand_on() -> None:
    model = TinyTransformer(P0, more=4, more_pattern=P2)
    found = watched(model, walk(1)[0], 500.0, torch.ones(1, 3, 8), controls_like(model))
    assert patterns(found) == {"blocks": "Pattern_0", "more": "Pattern_2"}


class Block(nn.Module):
    """Changes a state by what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, state: Tensor, other: Tensor | None = None) -> Tensor:
        mixed: Tensor = state + 0.1 * torch.tanh(self.mix(state if other is None else state + other))
        return mixed


class Twice(Block):
    """Also returns something that no other block takes."""

    def forward(self, state: Tensor, other: Tensor | None = None) -> Any:
        after = super().forward(state, other)
        return after, after.mean(1, keepdim=True)


Loop = Callable[[nn.ModuleList, Tensor], Tensor]


class Mine(nn.Module):
    """A transformer of nobody's: loops as it is told."""

    def __init__(self, loop: Loop, block: type[Block] = Block, count: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.steps = nn.ModuleList(block() for _ in range(count))
        self.loop = loop

    def forward(self, sample: Tensor, timestep: Any = None) -> Tensor:
        return self.loop(self.steps, sample)


def in_a_row(blocks: nn.ModuleList, state: Tensor) -> Tensor:
    for block in blocks:
        state = block(state)
    return state


def backwards(blocks: nn.ModuleList, state: Tensor) -> Tensor:
    for block in reversed(blocks):
        state = block(state)
    return state


def twice(blocks: nn.ModuleList, state: Tensor) -> Tensor:
    return in_a_row(blocks, in_a_row(blocks, state))


def apart(blocks: nn.ModuleList, state: Tensor) -> Tensor:
    total: Tensor = sum(block(state) for block in blocks)
    return total


def last_aside(blocks: nn.ModuleList, state: Tensor) -> Tensor:
    aside = state
    for block in blocks:
        state, aside = block(state)
    return state + aside


def collected(blocks: nn.ModuleList, state: Tensor) -> Tensor:
    asides = []
    for block in blocks:
        state, aside = block(state)
        asides.append(aside)
    return state + torch.stack(asides).sum(0)


def test_a_value_that_only_the_last_block_is_asked_for_is_pattern_4() -> None:
    (entry,) = watched(Mine(last_aside, Twice), walk(1)[0]).fitting
    assert entry[1] == Streams(("state",), ("state", "encoder_hidden_states"))


@pytest.mark.parametrize(
    ("loop", "block", "reason"),
    [
        (backwards, Block, "its blocks are called in the order 4, 3, 2, 1, 0, not once each in a row"),
        (twice, Block, "its blocks are called in the order 0, 1, 2, 3, 4, 0, 1, ..., not once each in a row"),
        (apart, Block, "what its blocks return is not what the next ones take"),
        (lambda blocks, state: state, Block, "the forward did not call it"),
        (collected, Twice, "the model keeps value 2 of every block, so that none can be left out"),
    ],
)
def test_a_list_that_cannot_be_cached_is_left_out_with_the_reason(loop: Loop, block: type[Block], reason: str) -> None:
    found = watched(Mine(loop, block), walk(1)[0])
    assert (found.fitting, found.reasons) == ((), {"steps": reason})


def test_a_short_list_is_left_out_where_a_longer_one_fits() -> None:
    model = TinyTransformer(P0, blocks=5, more=3)
    found = watched(model, walk(1)[0], 500.0, torch.ones(1, 3, 8))
    assert patterns(found) == {"blocks": "Pattern_0"}
    assert found.as_lines() == ["blocks: 5 blocks, Pattern_0", "more: left out: its 3 blocks save little"]


def test_watching_leaves_nothing_behind() -> None:
    model = Mine(in_a_row)
    before = snapshot(model)
    watched(model, walk(1)[0])
    assert snapshot(model) == before


# ------------------------------------------------------------------------------------------------ `auto` in the caching


def rows(cache: Installation) -> list[tuple[Any, ...]]:
    return [(row.generation, row.step, row.context, row.branch, row.decision, row.computed) for row in cache.log.rows]


@pytest.mark.parametrize("pattern", [P0, P1, P2, P3])
def test_auto_decides_and_computes_as_if_the_lists_had_been_named(pattern: ForwardPattern) -> None:
    model, samples = TinyTransformer(pattern, more=4), walk(8)
    before = snapshot(model)
    with cached(by_hand(model), EAGER) as named:
        expected = run(model, samples)
    with cached(BlockAdapter(transformer=model, auto=True), EAGER) as found, computing() as blocks:
        result = run(model, samples)
    assert rows(found) == rows(named)
    assert len(blocks) < 8 * 9
    for ours, theirs in zip(result, expected, strict=True):
        assert torch.equal(ours, theirs)
    assert snapshot(model) == before


@pytest.mark.parametrize("name", [name for name in TINY if name != "sd3_skip_layers"])
@pytest.mark.filterwarnings("ignore")
def test_what_auto_reuses_at_constant_input_is_what_would_be_computed(name: str) -> None:
    """With every class of diffusers, as if nobody had registered it."""
    tiny = TINY[name]
    if not tiny.available:
        pytest.skip(f"this diffusers has no {tiny.class_name}")
    model, inputs = tiny.build(), tiny.inputs()
    always = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=0, residual_diff_threshold=1.0, num_inference_steps=4)
    with torch.no_grad():
        expected = list(tensors(model(**inputs)))
        with cached(BlockAdapter(transformer=model, auto=True), always) as cache:
            for _ in range(4):
                for ours, theirs in zip(tensors(model(**inputs)), expected, strict=True):
                    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert sum(row.saved for row in cache.log.rows) > 0


def test_the_first_forward_counts_as_computed_and_is_not_learned_from() -> None:
    model, samples = TinyTransformer(P1), walk(4)
    always = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=0, residual_diff_threshold=1.0)
    with cached(BlockAdapter(transformer=model, auto=True), always) as cache:
        run(model, samples)
        run(model, samples)
    assert [(row.decision, row.reason, row.computed, row.saved) for row in cache.log.rows] == [
        *[("compute", "no-history", 5, 0)] * 2,
        *[("reuse", "threshold", 1, 4)] * 2,
        ("compute", "no-history", 5, 0),  # the second generation begins as any other
        *[("reuse", "threshold", 1, 4)] * 3,
    ]


def test_auto_with_never_reusing_changes_nothing() -> None:
    model, samples = Mine(in_a_row), walk(3)
    plain = [model(sample) for sample in samples]
    never = DBCacheConfig(Fn_compute_blocks=1, residual_diff_threshold=0.0, max_warmup_steps=0)
    with cached(BlockAdapter(transformer=model, auto=True), never):
        result = [model(sample, time) for sample, time in zip(samples, times(3), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(plain, result, strict=True))


def test_auto_measures_again_after_a_refresh() -> None:
    model, samples = TinyTransformer(P1), walk(4)
    with cached(BlockAdapter(transformer=model, auto=True), EAGER):
        run(model, samples)
        refresh_context(model, DBCacheConfig(Fn_compute_blocks=2, max_warmup_steps=2, residual_diff_threshold=1.0))
        run(model, samples)
        now = installed(model)
        assert now is not None
        assert now.log.contexts[0].settings["Fn_compute_blocks"] == 2
        assert [row.computed for row in now.log.rows] == [5, 5, 1, 1, 5, 5, 2, 2]


def test_auto_keeps_to_a_pattern_that_is_given() -> None:
    model, samples = TinyTransformer(P0, more=4, more_pattern=P2), walk(3)
    with cached(BlockAdapter(transformer=model, auto=True, forward_pattern=P2), EAGER) as cache:
        run(model, samples)
    assert [(info.name, info.pattern) for info in cache.log.contexts] == [
        ("transformer.blocks", "Pattern_2"),
        ("transformer.more", "Pattern_2"),
    ]


def test_what_auto_leaves_out_is_noted() -> None:
    model = TinyTransformer(P0, more=2)
    with cached(BlockAdapter(transformer=model, auto=True), EAGER) as cache:
        assert cache.log.contexts == []
        run(model, walk(2))
    assert cache.log.contexts[0].notes == ["more is left out: its 2 blocks save little"]


def test_two_transformers_are_found_one_by_one() -> None:
    first, second = TinyTransformer(P0), TinyTransformer(P3, seed=1)
    with cached(BlockAdapter(transformer=[first, second], auto=True), EAGER) as cache:
        run(first, walk(2))
        assert [info.name for info in cache.log.contexts] == ["transformer.blocks"]
        run(second, walk(4)[2:], schedule=times(4)[2:])
        assert [info.name for info in cache.log.contexts] == ["transformer.blocks", "transformer_2.blocks"]


def test_a_model_in_which_nothing_fits_is_refused_with_a_reason_for_each_list_and_left_alone() -> None:
    model = Mine(apart)
    before = snapshot(model)
    with cached(BlockAdapter(transformer=model, auto=True), EAGER):
        with pytest.raises(InputError) as caught:
            model(walk(1)[0], 500.0)
        assert str(caught.value) == (
            "Mine: no block list can be cached:\n  steps: what its blocks return is not what the next ones take"
        )
        assert snapshot(model) == before
        model(walk(1)[0], 400.0)


def test_a_model_without_lists_is_refused_at_once() -> None:
    model = Mine(in_a_row, count=1)
    with pytest.raises(InputError, match=r"^Mine: no list of blocks could be cached$"):
        cached(BlockAdapter(transformer=model, auto=True), EAGER).__enter__()
    assert installed(model) is None


def test_settings_that_do_not_fit_what_was_found_end_the_forward() -> None:
    model = TinyTransformer(P1)
    with cached(BlockAdapter(transformer=model, auto=True), DBCacheConfig(Fn_compute_blocks=9)):
        with pytest.raises(InputError, match="Fn_compute_blocks"):
            run(model, walk(1))
        assert installed(model) is None


# ----------------------------------------------------------------------------------------------- patterns named by hand


@pytest.mark.parametrize(
    ("true", "said", "message", "right"),
    [
        (
            P1,
            P0,
            "Pattern_0 says that blocks return hidden_states as value 1, but they take one of shape (1, 6, 8), and "
            "what they return there is of shape (1, 3, 8)",
            "Pattern_1",
        ),
        (
            P1,
            P3,
            "Pattern_3 says that blocks return hidden_states as value 1, but they take one of shape (1, 6, 8), and "
            "what they return there is of shape (1, 3, 8)",
            "Pattern_1",
        ),
        (
            P5,
            P4,
            "Pattern_4 says that blocks return hidden_states as value 1, but they take one of shape (1, 6, 8), and "
            "what they return there is of shape (1, 1, 8)",
            "Pattern_5",
        ),
        (
            P2,
            P1,
            "Pattern_1 says that blocks return hidden_states as value 2, but they take one of shape (1, 6, 8), and "
            "what they return there is no tensor",
            "Pattern_2",
        ),
        (P3, P0, "Pattern_0 says that blocks return 2 values, but they return 1", "Pattern_2"),
        (
            P0,
            P3,
            "Pattern_3 says that blocks return 1 value, but they also return encoder_hidden_states as value 2, "
            "which the next block takes",
            "Pattern_0",
        ),
    ],
)
def test_a_pattern_that_the_first_forward_contradicts_is_refused_and_the_right_one_named(
    true: ForwardPattern, said: ForwardPattern, message: str, right: str
) -> None:
    model = TinyTransformer(true)
    wrong = BlockAdapter(transformer=model, blocks=model.blocks, forward_pattern=said)
    with cached(wrong, EAGER), pytest.raises(InputError) as caught:
        run(model, walk(1))
    assert str(caught.value).removeprefix("TinyTransformer: ") == (
        f"transformer.blocks: {message}; {right} fits what they return"
    )
    fits = BlockAdapter(transformer=model, blocks=model.blocks, forward_pattern=ForwardPattern[right])
    with cached(fits, EAGER):
        run(model, walk(1))


def test_named_streams_that_are_contradicted_are_named_in_the_right_order() -> None:
    model = TinyTransformer(P1)
    streams = Streams(("hidden_states", "encoder_hidden_states"), ("hidden_states", "encoder_hidden_states"))
    renamed = Streams(("a", "b"), ("a", "b"))
    for said, right in ((streams, "Pattern_1"), (renamed, "a, b -> b, a")):
        wrong = BlockAdapter(transformer=model, blocks=model.blocks, forward_pattern=said)
        with cached(wrong, EAGER), pytest.raises(InputError, match=f"; {right} fits what they return$"):
            run(model, walk(1))


def test_states_of_one_shape_in_the_other_order_are_told_apart() -> None:
    model = TinyTransformer(P1)
    wrong = BlockAdapter(transformer=model, blocks=model.blocks, forward_pattern=P0)
    with cached(wrong, EAGER):
        with pytest.raises(InputError, match="but the next block takes value 2 for it; Pattern_1 fits"):
            run(model, walk(1), torch.ones(1, 6, 8))
        assert installed(model) is None
