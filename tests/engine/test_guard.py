"""The guard computes instead of reusing a forecast that cannot be right, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cachedit_cli.engine.install import install
from cachedit_cli.terms.config import (
    CalibratorConfig,
    DBCacheConfig,
    DBPruneConfig,
    TaylorSeerCalibratorConfig,
)
from cachedit_cli.terms.pattern import ForwardPattern
from tests.test_calibrators import Recursion
from tests.tiny import TinyTransformer, adapter, computing, context, run, walk
from tests.told import told

MASK = "110100101000"
RANDOMS = st.lists(st.floats(-2, 2), min_size=4, max_size=4).map(torch.tensor)


def static(mask: str, **changes: Any) -> DBCacheConfig:
    return DBCacheConfig(Fn_compute_blocks=0, steps_computation_mask=mask, steps_computation_policy="static", **changes)


def reference(
    changes: Sequence[Tensor], starts: Sequence[Tensor], mask: str, order: int, absolute: bool
) -> tuple[list[tuple[str, str]], float]:
    """Return decisions and reasons of a loop that takes each forecast's norm, and how near one came to a limit."""
    found, nearest = [], math.inf
    recursion, last, kept = Recursion(order), 0.0, 0
    for step, (change, start, bit) in enumerate(zip(changes, starts, mask, strict=True)):
        verdict = ("compute", "mask") if bit == "1" else ("reuse", "mask")
        if not kept:
            verdict = ("compute", "no-history")
        elif bit == "0" and order and kept > 1:  # one snapshot can only be held
            forecast = recursion.forecast(step)
            size = float((forecast - start if absolute else forecast).abs().sum())
            nearest = min(nearest, abs(size - 0.5 * last), abs(size - 2 * last))
            if not (math.isfinite(size) and 0.5 * last <= size <= 2 * last):
                verdict = ("compute", "guard")
        if verdict[0] == "compute":
            recursion.update(step, (start + change if absolute else change).double())
            last, kept = float(change.double().abs().sum()), kept + 1
        found.append(verdict)
    return found, nearest


@given(
    changes=st.lists(RANDOMS, min_size=len(MASK), max_size=len(MASK)),
    starts=st.lists(RANDOMS, min_size=len(MASK), max_size=len(MASK)),
    bits=st.lists(st.integers(0, 1), min_size=len(MASK) - 1, max_size=len(MASK) - 1),
    order=st.integers(0, 3),
    target=st.sampled_from(["residual", "hidden_states"]),
)
@settings(deadline=None, derandomize=True, max_examples=150)
def test_it_computes_exactly_where_the_forecasts_norm_leaves_a_half_to_twice_the_last_ones(
    changes: list[Tensor], starts: list[Tensor], bits: list[int], order: int, target: Any
) -> None:
    mask = "1" + "".join(map(str, bits))
    expected, nearest = reference(changes, starts, mask, order, target == "hidden_states")
    assume(nearest > 1e-3)
    series = TaylorSeerCalibratorConfig(taylorseer_order=max(order, 1), calibrator_cache_type=target)
    calibrator = series if order else CalibratorConfig(calibrator_cache_type=target)
    shaped = [[each.reshape(1, 2, 2) for each in part] for part in (changes, starts)]
    made = told({"a": shaped[0]}, static(mask), calibrator, starts=shaped[1])
    found = [(row.decision, row.reason) for row in made.rows["a"]]
    warm = len(mask) - len(mask.lstrip("1"))
    assert [(d, "mask" if r == "warmup" else r) for d, r in found] == expected
    assert all(reason in ("no-history", "warmup") for _, reason in found[: min(warm, 8)])


def rough(pace: float = 1.0, **changes: Any) -> list[tuple[str, str]]:
    """Return what is decided on a path on which a series of the second order explodes."""
    model = TinyTransformer(ForwardPattern.Pattern_1)
    config = DBCacheConfig(**{"Fn_compute_blocks": 1, "max_warmup_steps": 3, "residual_diff_threshold": 1.0, **changes})
    with install(adapter(model), config, TaylorSeerCalibratorConfig(taylorseer_order=3)) as cache:
        run(model, walk(12, pace=pace))
    return [(row.decision, row.reason) for row in cache.log.generation()]


def test_it_stands_above_threshold_mask_and_caps_and_can_be_turned_off() -> None:
    assert ("compute", "guard") in rough()
    assert ("compute", "guard") not in rough(audit=False)
    assert ("compute", "guard") in rough(steps_computation_mask="111000000000", steps_computation_policy="static")
    limited = rough(max_cached_steps=1)
    assert sum(decision == "reuse" for decision, _ in limited) <= 1


def test_a_forecast_that_is_not_finite_is_computed_instead() -> None:
    """What was learned overflows in the series, though every step of the model is finite."""
    big = torch.full((1, 2, 2), 3e38)
    made = told({"a": [big, -big, big, big]}, static("1101"), TaylorSeerCalibratorConfig())
    assert [row.reason for row in made.rows["a"]] == ["no-history", "warmup", "guard", "mask"]
    assert all(bool(output.isfinite().all()) for output in made.outputs["a"])


def test_a_list_that_takes_turns_with_another_follows_the_others_guard() -> None:
    class Turns(TinyTransformer):
        def forward(self, hidden_states: Tensor, timestep: Any = None, *_: Any) -> Tensor:
            h, temb = hidden_states, self.embed(timestep)
            for mine, other in zip(self.blocks, self.more, strict=True):
                h = other(mine(h, None, temb), None, temb)
            return h

    model = Turns(ForwardPattern.Pattern_3, blocks=3, more=3)
    config = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=3, residual_diff_threshold=1.0)
    with (
        install(adapter(model, alternate=True), config, TaylorSeerCalibratorConfig(taylorseer_order=3)) as cache,
        computing() as labels,
    ):
        run(model, walk(12, pace=1.0))
    lists: dict[str, list[tuple[str, str]]] = {}
    for row in cache.log.generation():
        lists.setdefault(row.context, []).append((row.decision, row.reason))
    first, second = lists.values()
    assert first == second
    assert ("compute", "guard") in first
    assert len(labels) == sum(row.computed for row in cache.log.rows)


def test_branches_that_share_a_difference_have_a_guard_each() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(1, 2, 2, generator=generator) + 1
    calm, wild = [base + 0.01 * step for step in range(8)], [base * (-1.0) ** step for step in range(8)]
    config = DBCacheConfig(
        Fn_compute_blocks=1,
        max_warmup_steps=2,
        residual_diff_threshold=0.9,
        cfg_diff_compute_separate=False,
        steps_computation_mask="11000000",
    )
    made = told({"cond": calm, "uncond": wild}, config, TaylorSeerCalibratorConfig())
    assert {row.reason for row in made.rows["cond"]} == {"no-history", "warmup", "threshold"}
    assert "guard" in {row.reason for row in made.rows["uncond"]}
    assert [row.diff for row in made.rows["cond"]] == [row.diff for row in made.rows["uncond"]]


def test_other_states_in_the_middle_of_a_run_are_forecast_from_nothing_of_before() -> None:
    """Another size drops scores and snapshots together: what is held again is one snapshot, and needs no guard."""
    model = TinyTransformer(ForwardPattern.Pattern_1)
    samples = walk(6, pace=1.0) + walk(6, pace=1.0, tokens=4)
    config = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=3, residual_diff_threshold=1.0)
    with install(adapter(model), config, TaylorSeerCalibratorConfig(taylorseer_order=2)) as cache:
        run(model, samples, context())
    rows = cache.log.generation()
    assert [reset.reason for reset in cache.log.resets] == ["shape"]
    assert (rows[6].decision, rows[6].reason, rows[6].audit) == ("compute", "no-history", None)
    assert (rows[7].decision, rows[7].distance) == ("reuse", 1.0)
    assert all(row.audit is None or math.isfinite(row.audit) for row in rows)


# ---- block by block


@pytest.mark.parametrize("audit", [True, False])
def test_pruned_blocks_whose_forecasts_cannot_be_right_are_computed(audit: bool) -> None:
    """The step's reason is the guard's where no block was left to prune."""
    model = TinyTransformer(ForwardPattern.Pattern_3)
    config = DBPruneConfig(max_warmup_steps=3, Fn_compute_blocks=4, residual_diff_threshold=1.0, audit=audit)
    with install(adapter(model), config, TaylorSeerCalibratorConfig(taylorseer_order=3)) as cache:
        run(model, walk(12, pace=1.0))
    guarded = [row for row in cache.log.generation() if row.reason == "guard"]
    assert bool(guarded) is audit
    assert all((row.decision, row.saved) == ("compute", 0) for row in guarded)
    assert sum(row.saved for row in cache.log.rows) > 0


def test_scores_of_a_pruned_step_that_failed_are_not_told_of_the_next_one() -> None:
    model, calm = TinyTransformer(ForwardPattern.Pattern_3), walk(6)
    config = DBPruneConfig(max_warmup_steps=9, Fn_compute_blocks=1)
    with install(adapter(model), config) as cache:
        run(model, calm)
        expected = [row.audit for row in cache.log.generation()]
        model.every()[3].error = RuntimeError("lost")
        with pytest.raises(RuntimeError, match="lost"):
            run(model, calm)
        model.every()[3].error = None
        run(model, calm)
        assert [row.audit for row in cache.log.generation()] == expected


def test_scores_of_a_pruned_forward_that_left_out_the_last_block_are_not_told_of_the_next_one() -> None:
    class Short(TinyTransformer):
        short = False

        def forward(self, hidden_states: Tensor, timestep: Any = None, *_: Any) -> Tensor:
            for block in self.every()[: 3 if self.short else 5]:
                hidden_states = block(hidden_states, None, self.embed(timestep))
            return hidden_states

    model, samples = Short(ForwardPattern.Pattern_3), walk(4)
    config = DBPruneConfig(max_warmup_steps=9, Fn_compute_blocks=1, num_inference_steps=4)
    found = []
    for short in (True, False):
        with install(adapter(model), config) as cache, torch.no_grad():
            for step, sample in enumerate(samples):
                model.short = short and step == 2
                model(sample, 1000.0 - step)
            found.append(cache.log.generation())
    hurt, whole = found
    assert (hurt[2].reason, hurt[2].computed) == ("warmup", 3)
    # The blocks that were left out had their distances doubled; no score of the short step is in the mean.
    assert hurt[3].distance == pytest.approx((2 * 1 + 2 * 2) / 4)
    assert whole[3].distance == 1.0
