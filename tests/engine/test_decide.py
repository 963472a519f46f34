"""The rules, in order: of those that fire, the first one is the reason."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from cachedit_cli.engine.decide import Verdict, View, by_difference, by_rule
from cachedit_cli.terms.config import DBCacheConfig

FREE = DBCacheConfig(max_warmup_steps=0)  # no rule fires
STATIC = replace(FREE, steps_computation_policy="static")
VIEW = View(k=5, step=5, history=True, cached=0, in_a_row=0)
RULES = ("no-history", "warmup", "mask", "max-cached", "max-continuous", "threshold")


@pytest.mark.parametrize("fires", list(itertools.product([False, True], repeat=len(RULES))), ids=str)
def test_of_the_rules_that_fire_the_first_is_the_reason(fires: tuple[bool, ...]) -> None:
    no_history, warmup, mask, max_cached, max_continuous, threshold = fires
    config = DBCacheConfig(
        max_warmup_steps=6 if warmup else 0,
        max_cached_steps=2 if max_cached else -1,
        max_continuous_cached_steps=1 if max_continuous else -1,
        residual_diff_threshold=0.0 if threshold else 0.08,
    )
    view = replace(VIEW, history=not no_history, cached=2, in_a_row=1)
    expected = next((("compute", reason) for reason, fired in zip(RULES, fires, strict=True) if fired), None)
    assert by_rule(config, [1] * 6 if mask else None, view) == expected


@pytest.mark.parametrize(
    ("warmup", "interval", "computed"),
    [(0, 1, []), (4, 1, [0, 1, 2, 3]), (4, 2, [0, 2]), (5, 3, [0, 3]), (1, 5, [0]), (20, 4, [0, 4])],
)
def test_warm_up_computes_every_nth_of_its_steps(warmup: int, interval: int, computed: list[int]) -> None:
    config = DBCacheConfig(max_warmup_steps=warmup, warmup_interval=interval)
    verdicts = [by_rule(config, None, replace(VIEW, k=k)) for k in range(7)]
    assert [k for k, verdict in enumerate(verdicts) if verdict == ("compute", "warmup")] == computed
    assert all(verdict is None for k, verdict in enumerate(verdicts) if k not in computed)


def test_a_mask_cuts_warm_up_to_its_leading_ones() -> None:
    mask = [1, 1, 0, 0, 1, 0]
    reasons = [by_rule(replace(FREE, max_warmup_steps=8), mask, replace(VIEW, k=k, step=k)) for k in range(6)]
    assert reasons == [("compute", "warmup")] * 2 + [None, None, ("compute", "mask"), None]


def test_a_static_mask_reuses_at_once_whatever_the_caps_say() -> None:
    config = replace(STATIC, max_cached_steps=0, max_continuous_cached_steps=0, residual_diff_threshold=0.0)
    mask = [1, 0, 0, 1]
    verdicts = [by_rule(config, mask, replace(VIEW, k=k, step=k, cached=9, in_a_row=9)) for k in range(4)]
    assert verdicts == [("compute", "mask"), ("reuse", "mask"), ("reuse", "mask"), ("compute", "mask")]


def test_a_mask_counts_steps_of_the_generation_and_warm_up_those_of_the_branch() -> None:
    """A branch that joins late has its own warm-up, and the mask's bit of the step that the generation is in."""
    config = replace(FREE, max_warmup_steps=1)
    assert by_rule(config, [1, 1, 0, 1], replace(VIEW, k=0, step=2)) == ("compute", "warmup")
    assert by_rule(config, [1, 1, 0, 1], replace(VIEW, k=1, step=3)) == ("compute", "mask")
    assert by_rule(config, [1, 1, 0, 1], replace(VIEW, k=1, step=2)) is None


def test_steps_beyond_the_mask_are_computed() -> None:
    assert by_rule(STATIC, [1, 0], replace(VIEW, k=2, step=2)) == ("compute", "mask")


@pytest.mark.parametrize(("limit", "cached", "fires"), [(-1, 99, False), (0, 0, True), (2, 1, False), (2, 2, True)])
def test_caps_fire_when_they_are_reached(limit: int, cached: int, fires: bool) -> None:
    total = by_rule(replace(FREE, max_cached_steps=limit), None, replace(VIEW, cached=cached))
    row = by_rule(replace(FREE, max_continuous_cached_steps=limit), None, replace(VIEW, in_a_row=cached))
    assert total == (("compute", "max-cached") if fires else None)
    assert row == (("compute", "max-continuous") if fires else None)


@pytest.mark.parametrize(
    ("threshold", "verdict"),
    [
        (-1.0, ("compute", "threshold")),
        (0.0, ("compute", "threshold")),
        (1e-9, None),
        (0.999, None),
        (1.0, ("reuse", "threshold")),
        (math.inf, ("reuse", "threshold")),
    ],
)
def test_thresholds_outside_of_0_to_1_need_no_measurement(threshold: float, verdict: Verdict | None) -> None:
    assert by_rule(replace(FREE, residual_diff_threshold=threshold), None, VIEW) == verdict


@pytest.mark.parametrize(
    ("diff", "decision"),
    [
        (0.0, "reuse"),
        (0.0799, "reuse"),
        (0.08, "compute"),
        (0.5, "compute"),
        (math.nan, "compute"),
        (math.inf, "compute"),
        (-math.inf, "compute"),
    ],
)
def test_a_difference_is_reused_only_below_the_threshold_and_only_if_finite(diff: float, decision: str) -> None:
    assert by_difference(diff, 0.08) == (decision, "threshold")
