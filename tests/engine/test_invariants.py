"""What must hold whatever is cached: never reusing is exact, all is restored, reuse is what a plain loop says."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cachedit_cli.engine.install import install, installed
from cachedit_cli.errors import InputError
from cachedit_cli.terms.config import CacheConfig, DBCacheConfig, DBPruneConfig, TaylorSeerCalibratorConfig
from cachedit_cli.terms.functor import PatchFunctor
from cachedit_cli.terms.pattern import ForwardPattern
from cachedit_cli.terms.stats import Row
from tests.reference import reference
from tests.tiny import (
    PATTERNS,
    STYLES,
    Announcing,
    TinyTransformer,
    adapter,
    computing,
    context,
    controls_like,
    run,
    snapshot,
    times,
    walk,
)

SPLITS = [(1, 0), (1, 1), (2, 1)]
patterns = pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
styles = pytest.mark.parametrize("style", STYLES)
splits = pytest.mark.parametrize(("front", "back"), SPLITS)
QUICK = hypothesis_settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


def fitting(pattern: ForwardPattern, style: str) -> TinyTransformer:
    return TinyTransformer(pattern, style=style)


def same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def eager(**changes: Any) -> DBCacheConfig:
    """Return settings that reuse whatever comes after the first step."""
    base = {"Fn_compute_blocks": 1, "max_warmup_steps": 0, "residual_diff_threshold": 1.0}
    return DBCacheConfig(**{**base, **changes})


# ---- never reusing


@patterns
@styles
@splits
@pytest.mark.parametrize("kind", [DBCacheConfig, DBPruneConfig])
def test_a_threshold_of_zero_changes_no_bit_and_no_order(
    pattern: ForwardPattern, style: str, front: int, back: int, kind: type[CacheConfig]
) -> None:
    model, samples = fitting(pattern, style), walk(4)
    with computing() as plain_blocks:
        plain = run(model, samples)
    config = kind(Fn_compute_blocks=front, Bn_compute_blocks=back, max_warmup_steps=0, residual_diff_threshold=0.0)
    with install(adapter(model), config) as cache, computing() as blocks:
        outputs = run(model, samples)
    assert same(outputs, plain)
    assert blocks == plain_blocks
    assert [(row.decision, row.computed, row.saved) for row in cache.log.rows] == [("compute", 5, 0)] * 4


@patterns
@pytest.mark.parametrize(("front", "back"), [(5, 0), (4, 1), (3, 2), (5, 5), (3, 4)])
@pytest.mark.parametrize("kind", [DBCacheConfig, DBPruneConfig])
def test_front_and_back_that_leave_no_middle_change_no_bit(
    pattern: ForwardPattern, front: int, back: int, kind: type[CacheConfig]
) -> None:
    model, samples = TinyTransformer(pattern), walk(4)
    plain = run(model, samples)
    config = kind(Fn_compute_blocks=front, Bn_compute_blocks=back, max_warmup_steps=0, residual_diff_threshold=1.0)
    with install(adapter(model), config) as cache, computing() as blocks:
        assert same(run(model, samples), plain)
    assert len(blocks) == 20
    assert all(row.decision == "compute" and row.saved == 0 for row in cache.log.rows)


@patterns
def test_additions_between_blocks_change_nothing_while_computing(pattern: ForwardPattern) -> None:
    model, samples = TinyTransformer(pattern), walk(4)
    controls = controls_like(model)
    plain = run(model, samples, controls=controls)
    with install(adapter(model), eager(residual_diff_threshold=0.0)):
        assert same(run(model, samples, controls=controls), plain)


# ---- what stays behind


@patterns
def test_nothing_stays_behind_after_use(pattern: ForwardPattern) -> None:
    model = Announcing(pattern, more=2)
    before = snapshot(model)
    with install(adapter(model), eager()) as cache:
        assert snapshot(model) != before
        run(model, walk(4))
        assert cache.nbytes > 0
    assert snapshot(model) == before
    assert cache.nbytes == 0
    assert installed(model) is None


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
@pytest.mark.parametrize("kind", [DBCacheConfig, DBPruneConfig])
def test_nothing_stays_behind_after_an_exception_in_a_block(error: BaseException, kind: type[CacheConfig]) -> None:
    model = Announcing(ForwardPattern.Pattern_1)
    before = snapshot(model)
    broken = model.every()[3]
    config = kind(Fn_compute_blocks=1, max_warmup_steps=0, residual_diff_threshold=0.05)
    with install(adapter(model), config):
        run(model, walk(2))
        broken.error = error
        with pytest.raises(type(error)):
            run(model, walk(3))
    broken.error = None
    assert snapshot(model) == before


def test_after_an_exception_the_next_generation_is_as_in_a_fresh_process() -> None:
    model, samples = TinyTransformer(ForwardPattern.Pattern_1), walk(6, seed=2)
    with install(adapter(model), eager()) as cache:
        fresh = run(model, samples)
        model.every()[0].error = ValueError("broken")
        with pytest.raises(ValueError, match="broken"):
            run(model, walk(1, seed=3), schedule=[5.0])
        model.every()[0].error = None
        # Later in the schedule than anything before: only the exception can tell that this is a new start.
        later = [time / 1000 for time in times(6)]
        with computing() as blocks:
            outputs = run(model, samples, schedule=later)
    alone = TinyTransformer(ForwardPattern.Pattern_1)
    with install(adapter(alone), eager()):
        assert same(outputs, run(alone, samples, schedule=later))
    assert not same(outputs, fresh)
    assert blocks[:5] == ["a0", "a1", "a2", "a3", "a4"]
    assert [reset.reason for reset in cache.log.resets] == ["error"]


def test_an_exception_in_mid_generation_is_told_in_the_log() -> None:
    model = TinyTransformer(ForwardPattern.Pattern_1)
    with install(adapter(model), eager(max_warmup_steps=9)) as cache:
        run(model, walk(2), schedule=[9.0, 8.0])
        model.every()[2].error = ValueError("broken")
        with pytest.raises(ValueError, match="broken"):
            run(model, walk(1), schedule=[7.0])
    assert [(reset.context, reset.step, reset.reason) for reset in cache.log.resets] == [
        ("transformer.blocks", 2, "error")
    ]


class Failing(PatchFunctor):
    """Changes something, then fails."""

    def apply(self, transformer: torch.nn.Module) -> torch.nn.Module:
        vars(transformer)["mark"] = 1
        raise ValueError("functor")


def test_a_failing_install_changes_nothing() -> None:
    model = Announcing(ForwardPattern.Pattern_1, more=2)
    before = snapshot(model)
    with pytest.raises(InputError, match="Fn_compute_blocks is 6, but the block lists have 5 and 2 blocks"):
        install(adapter(model), eager(Fn_compute_blocks=6))
    assert snapshot(model) == before
    twice = replace(adapter(model), blocks=[model.blocks, model.blocks])
    with pytest.raises(InputError, match="a block of it is in another list too"):
        install(twice, eager())
    assert snapshot(model) == before
    with pytest.raises(ValueError, match="functor"):
        install(replace(adapter(model), patch_functor=Failing()), eager())
    assert "mark" not in vars(model)
    assert snapshot(model) == before


def test_removing_twice_is_removing_once() -> None:
    model = TinyTransformer(ForwardPattern.Pattern_1)
    before = snapshot(model)
    cache = install(adapter(model), eager())
    cache.remove()
    cache.remove()
    assert snapshot(model) == before


# ---- reusing


@patterns
@styles
@splits
@pytest.mark.parametrize("controlled", [False, True])
@pytest.mark.parametrize("threshold", [0.08, 1.0])
def test_constant_input_reused_equals_full_computation(
    pattern: ForwardPattern, style: str, front: int, back: int, controlled: bool, threshold: float
) -> None:
    model, samples = fitting(pattern, style), walk(1) * 4
    schedule, controls = [500.0, 500.0, 500.0, 500.0], controls_like(model) if controlled else None
    plain = run(model, samples, schedule=schedule, controls=controls)
    config = eager(
        Fn_compute_blocks=front, Bn_compute_blocks=back, residual_diff_threshold=threshold, num_inference_steps=4
    )
    with install(adapter(model), config) as cache, computing() as blocks:
        outputs = run(model, samples, schedule=schedule, controls=controls)
    assert [row.decision for row in cache.log.rows] == ["compute", "reuse", "reuse", "reuse"]
    assert len(blocks) == 5 + 3 * (front + back)
    for output, expected in zip(outputs, plain, strict=True):
        assert torch.allclose(output, expected, atol=1e-6)


@patterns
@pytest.mark.parametrize("order", [1, 2])
def test_constant_input_with_taylorseer_equals_full_computation(pattern: ForwardPattern, order: int) -> None:
    model, samples, schedule = TinyTransformer(pattern), walk(1) * 8, [500.0] * 8
    controls = controls_like(model)
    plain = run(model, samples, schedule=schedule, controls=controls)
    config = eager(max_warmup_steps=3, num_inference_steps=8)
    with install(adapter(model), config, TaylorSeerCalibratorConfig(taylorseer_order=order)):
        outputs = run(model, samples, schedule=schedule, controls=controls)
    for output, expected in zip(outputs, plain, strict=True):
        assert torch.allclose(output, expected, atol=1e-5)


@st.composite
def settings_of_a_run(draw: st.DrawFn) -> tuple[int, int, DBCacheConfig]:
    """Draw a number of blocks, a number of steps, and settings that fit them."""
    blocks, steps = draw(st.integers(1, 5)), draw(st.integers(3, 9))
    mask = draw(st.none() | st.lists(st.integers(0, 1), min_size=steps - 1, max_size=steps - 1).map(lambda m: [1, *m]))
    policy: Literal["static", "dynamic"] = draw(st.sampled_from(("static", "dynamic")))
    threshold = draw(st.sampled_from([0.0, 1.0]) | st.floats(0.01, 0.6))
    needs_front = not (mask is not None and policy == "static") and 0 < threshold < 1
    config = DBCacheConfig(
        Fn_compute_blocks=draw(st.integers(1 if needs_front else 0, blocks)),
        Bn_compute_blocks=draw(st.integers(0, blocks)),
        residual_diff_threshold=threshold,
        max_warmup_steps=draw(st.integers(0, 5)),
        warmup_interval=draw(st.integers(1, 3)),
        max_cached_steps=draw(st.integers(-1, 4)),
        max_continuous_cached_steps=draw(st.integers(-1, 3)),
        steps_computation_mask=mask,
        steps_computation_policy=policy,
    )
    return blocks, steps, config


@given(
    drawn=settings_of_a_run(),
    pattern=st.sampled_from(PATTERNS),
    style=st.sampled_from(sorted(STYLES)),
    seed=st.integers(0, 5),
    pace=st.floats(0.0, 0.4),
    controlled=st.booleans(),
)
@hypothesis_settings(QUICK, max_examples=300)
def test_hold_decides_and_computes_as_a_plain_loop_does(
    drawn: tuple[int, int, DBCacheConfig],
    pattern: ForwardPattern,
    style: str,
    seed: int,
    pace: float,
    controlled: bool,
) -> None:
    blocks, steps, config = drawn
    model = TinyTransformer(pattern, blocks, style, seed=seed)
    samples, encoder, schedule = walk(steps, seed, pace), context(seed), times(steps)
    controls = controls_like(model) if controlled else None
    expected, story = reference(model, samples, encoder, schedule, config, controls)
    assume(all(step.margin > 1e-5 for step in story))
    with install(adapter(model), config) as cache, computing() as computed:
        outputs = run(model, samples, encoder, schedule, controls)
    rows = cache.log.generation()
    assert [(row.step, row.decision, row.reason) for row in rows] == [
        (k, step.decision, step.reason) for k, step in enumerate(story)
    ]
    assert [row.diff for row in rows] == [
        None if step.diff is None else pytest.approx(step.diff, rel=1e-4, abs=1e-6) for step in story
    ]
    assert computed == [label for step in story for label in step.blocks]
    for output, wanted in zip(outputs, expected, strict=True):
        assert torch.allclose(output, wanted, atol=1e-6)
    check_books(rows, blocks, len(computed))


def check_books(rows: Sequence[Row], blocks: int, computed: int) -> None:
    """Computed and saved calls add up, and each row says why."""
    assert all(row.computed + row.saved == blocks for row in rows)
    assert sum(row.computed for row in rows) == computed
    reasons = {"no-history", "warmup", "mask", "max-cached", "max-continuous", "threshold", "no-middle"}
    assert {row.reason for row in rows} <= reasons
    assert all((row.decision == "reuse") == (row.saved > 0) for row in rows)


# ---- when in doubt, compute


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", [DBCacheConfig, DBPruneConfig])
def test_input_that_is_not_finite_is_computed(poison: float, kind: type[CacheConfig]) -> None:
    model, samples = TinyTransformer(ForwardPattern.Pattern_1), walk(6, pace=0.0)
    samples[3] = samples[3].clone()
    samples[3][0, 0, 0] = poison
    config = kind(Fn_compute_blocks=1, max_warmup_steps=0, residual_diff_threshold=0.9)
    with install(adapter(model), config) as cache:
        outputs = run(model, samples)
    assert [row.saved > 0 for row in cache.log.rows] == [False, True, True, False, False, True]
    assert all(math.isfinite(row.audit) for row in cache.log.generation() if row.audit is not None)
    assert bool(outputs[5].isfinite().all())


def test_a_front_that_changes_nothing_is_computed() -> None:
    """A difference of 0 / 0 is no reason to reuse."""
    model = TinyTransformer(ForwardPattern.Pattern_3)
    torch.nn.init.zeros_(model.every()[0].mix)
    with install(adapter(model), eager(residual_diff_threshold=0.5)) as cache:
        run(model, walk(4), schedule=[0.0] * 4)
    assert [row.decision for row in cache.log.rows] == ["compute"] * 4


Mode: Any = TorchDispatchMode  # its methods have no types
SYNCING = {"aten::_local_scalar_dense", "aten::item", "aten::equal", "aten::is_nonzero"}


class Syncs(Mode):
    """Counts the operations that would wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name in SYNCING:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def syncs_per_step(model: TinyTransformer, samples: Sequence[Tensor], encoder: Tensor) -> list[int]:
    counts = []
    for sample, time in zip(samples, times(len(samples)), strict=True):
        with Syncs() as syncs:
            run(model, [sample], encoder, [time])
        counts.append(sum(syncs.counts.values()))
    return counts


@patterns
def test_static_masks_and_warm_up_wait_for_no_device(pattern: ForwardPattern) -> None:
    model, encoder = TinyTransformer(pattern), context()
    config = eager(Fn_compute_blocks=0, steps_computation_mask="110010", steps_computation_policy="static")
    with install(adapter(model), config) as cache:
        assert syncs_per_step(model, walk(6), encoder) == [0] * 6
    assert [row.decision for row in cache.log.rows].count("reuse") == 3


@patterns
def test_a_measured_decision_waits_exactly_once(pattern: ForwardPattern) -> None:
    model, encoder = TinyTransformer(pattern), context()
    with install(adapter(model), eager(residual_diff_threshold=0.2, max_warmup_steps=3)) as cache:
        assert syncs_per_step(model, walk(8, pace=0.2), encoder) == [0, 0, 0, 1, 1, 1, 1, 1]
    assert {row.decision for row in cache.log.rows[3:]} == {"compute", "reuse"}


def test_pruning_waits_once_for_every_block_that_it_compares() -> None:
    model, encoder = TinyTransformer(ForwardPattern.Pattern_1), context()
    config = DBPruneConfig(Fn_compute_blocks=1, Bn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.2)
    with install(adapter(model), config):
        assert syncs_per_step(model, walk(4), encoder) == [0, 0, 3, 3]


# ---- users' objects


def test_configs_and_inputs_are_left_as_they_were() -> None:
    model, samples, encoder = TinyTransformer(ForwardPattern.Pattern_1), walk(5), context()
    config, calibrator = eager(), TaylorSeerCalibratorConfig()
    before = copy.deepcopy((config, calibrator, samples, encoder))
    with install(adapter(model), config, calibrator):
        run(model, samples, encoder)
    assert (config, calibrator) == before[:2]
    assert same([*samples, encoder], [*before[2], before[3]])


@patterns
def test_what_a_model_is_given_back_on_a_reused_step_can_be_changed_in_place(pattern: ForwardPattern) -> None:
    """A loop that adds to what blocks return must not reach into what is stored."""
    model, samples = TinyTransformer(pattern), walk(6)
    with install(adapter(model), eager()):
        wanted = run(model, samples)
    with install(adapter(model), eager()), torch.no_grad():
        for sample, time, expected in zip(samples, times(6), wanted, strict=True):
            output = model(sample, time, context())
            assert torch.equal(output, expected)
            output.add_(1.0)
