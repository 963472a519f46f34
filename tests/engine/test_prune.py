"""DBPrune against a plain loop that decides block by block."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cachedit_cli.engine.install import install
from cachedit_cli.terms.config import DBPruneConfig, TaylorSeerCalibratorConfig
from cachedit_cli.terms.pattern import ForwardPattern
from cachedit_cli.terms.stats import collect
from tests.reference import prune_reference
from tests.tiny import PATTERNS, STYLES, TinyTransformer, adapter, computing, context, run, times, walk


@st.composite
def settings_of_a_run(draw: st.DrawFn) -> tuple[int, int, DBPruneConfig]:
    """Draw a number of blocks, a number of steps, and settings that fit them."""
    blocks, steps = draw(st.integers(1, 8)), draw(st.integers(3, 8))
    mask = draw(st.none() | st.lists(st.integers(0, 1), min_size=steps - 1, max_size=steps - 1).map(lambda m: [1, *m]))
    policy: Literal["static", "dynamic"] = draw(st.sampled_from(("static", "dynamic")))
    config = DBPruneConfig(
        Fn_compute_blocks=draw(st.integers(0, min(blocks, 2))),
        Bn_compute_blocks=draw(st.integers(0, min(blocks, 2))),
        residual_diff_threshold=draw(st.sampled_from([0.0, 1.0]) | st.floats(0.01, 0.4)),
        max_warmup_steps=draw(st.integers(0, 3)),
        warmup_interval=draw(st.integers(1, 2)),
        max_cached_steps=draw(st.integers(-1, 3)),
        max_continuous_cached_steps=draw(st.integers(-1, 3)),
        steps_computation_mask=mask,
        steps_computation_policy=policy,
        enable_dynamic_prune_threshold=draw(st.booleans()),
        max_dynamic_prune_threshold=draw(st.none() | st.floats(0.01, 1.0)),
        dynamic_prune_threshold_relax_ratio=draw(st.floats(0.5, 3.0)),
        non_prune_block_ids=draw(st.lists(st.integers(0, 9), max_size=2)),
    )
    return blocks, steps, config


@given(
    drawn=settings_of_a_run(),
    pattern=st.sampled_from(PATTERNS),
    style=st.sampled_from(sorted(STYLES)),
    seed=st.integers(0, 5),
    pace=st.floats(0.0, 0.3),
)
@hypothesis_settings(max_examples=400, deadline=None, derandomize=True)
def test_pruning_decides_and_computes_as_a_plain_loop_does(
    drawn: tuple[int, int, DBPruneConfig], pattern: ForwardPattern, style: str, seed: int, pace: float
) -> None:
    blocks, steps, config = drawn
    model = TinyTransformer(pattern, blocks, style, seed=seed)
    samples, encoder, schedule = walk(steps, seed, pace), context(seed), times(steps)
    expected, story = prune_reference(model, samples, encoder, schedule, config)
    assume(all(step.margin > 1e-5 for step in story))
    with install(adapter(model), config) as cache, computing() as computed:
        outputs = run(model, samples, encoder, schedule)
    rows = cache.log.generation()
    assert computed == [label for step in story for label in step.blocks]
    assert [(row.computed, row.saved) for row in rows] == [
        (len(step.blocks), blocks - len(step.blocks)) for step in story
    ]
    assert [row.reason for row in rows] == [step.reason for step in story]
    assert [row.diff for row in rows] == [
        None if step.diff is None else pytest.approx(step.diff, rel=1e-4, abs=1e-6) for step in story
    ]
    for output, wanted in zip(outputs, expected, strict=True):
        assert torch.allclose(output, wanted, atol=1e-6)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_front_back_and_named_blocks_are_always_computed(pattern: ForwardPattern) -> None:
    model = TinyTransformer(pattern, 7)
    config = DBPruneConfig(
        Fn_compute_blocks=2,
        Bn_compute_blocks=1,
        non_prune_block_ids=[4],
        max_warmup_steps=0,
        residual_diff_threshold=1.0,
    )
    with install(adapter(model), config) as cache, computing() as blocks:
        run(model, walk(3))
    assert blocks == [f"a{i}" for i in range(7)] + ["a0", "a1", "a4", "a6"] * 2
    stats = collect(cache.log.generation())[0]
    assert stats.cached_steps == []
    assert stats.pruned_blocks == {1: 3, 2: 3}
    assert stats.saved_share == pytest.approx(6 / 21)


@pytest.mark.parametrize(
    ("highest", "pruned"),
    [
        (None, True),  # up to twice the threshold
        (0.5, True),
        (0.019, False),  # the relaxed threshold, 1.95 %, is above
    ],
)
def test_a_relaxed_threshold_is_used_below_its_limit_only(highest: float | None, pruned: bool) -> None:
    """Every block's input moves by the same 1.5 %: pruned under a threshold of 1 % only where that is relaxed."""
    model = TinyTransformer(ForwardPattern.Pattern_3, 3)
    sample = torch.ones(1, 6, 8)
    config = DBPruneConfig(
        Fn_compute_blocks=0,
        max_warmup_steps=1,
        residual_diff_threshold=0.01,
        enable_dynamic_prune_threshold=True,
        max_dynamic_prune_threshold=highest,
        dynamic_prune_threshold_relax_ratio=1.3,
    )
    for block in model.every():
        torch.nn.init.zeros_(block.mix)
    with install(adapter(model), config) as cache:
        run(model, [sample, sample * 1.015], schedule=[0.0, -1e-6])
    # The first block has no difference before it and is compared with the plain threshold.
    assert cache.log.rows[-1].saved == (2 if pruned else 0)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_constant_input_is_pruned_without_a_difference(pattern: ForwardPattern) -> None:
    model, samples, schedule = TinyTransformer(pattern), walk(1) * 5, [500.0] * 5
    plain = run(model, samples, schedule=schedule)
    config = DBPruneConfig(Fn_compute_blocks=1, max_warmup_steps=1, num_inference_steps=5)
    with install(adapter(model), config) as cache:
        outputs = run(model, samples, schedule=schedule)
    assert [row.saved for row in cache.log.rows] == [0, 4, 4, 4, 4]
    for output, expected in zip(outputs, plain, strict=True):
        assert torch.allclose(output, expected, atol=1e-6)


def test_a_calibrator_forecasts_the_change_of_pruned_blocks() -> None:
    """Order 1, by hand: the block's input plus its last change plus the difference of the last two."""
    model, samples = TinyTransformer(ForwardPattern.Pattern_3, 2), walk(4)
    states: list[torch.Tensor] = []
    handle = model.blocks[0].register_forward_hook(lambda module, args, output: states.append(output))
    plain = run(model, samples)
    handle.remove()
    changes = [output - state for output, state in zip(plain, states, strict=True)]
    wanted = states[3] + changes[2] + (changes[2] - changes[1])
    config = DBPruneConfig(
        Fn_compute_blocks=1, max_warmup_steps=0, steps_computation_mask="1110", steps_computation_policy="static"
    )
    with install(adapter(model), config, TaylorSeerCalibratorConfig(taylorseer_order=1)) as cache:
        outputs = run(model, samples)
    assert cache.log.rows[-1].saved == 1
    assert torch.allclose(outputs[3], wanted, atol=1e-5)
