"""Schedules: prices against forecasts made on vectors, and the best ones against trying every mask."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedit_cli.calibrators import CANDIDATES, Calibrator, Hold, TaylorSeer
from cachedit_cli.landscape import Landscape, Part
from cachedit_cli.schedule import Costs, best_schedules, price, profile, simulated

SEEDS = st.integers(0, 10_000)


def path(seed: int, steps: int, size: int = 5) -> numpy.ndarray:
    """Return changes that wander, a row a step."""
    rng = numpy.random.default_rng(seed)
    return numpy.cumsum(rng.normal(size=(steps, size)), 0) + 1


def landscape(*paths: numpy.ndarray) -> Landscape:
    found = Landscape(len(paths[0]), 1)
    for place, each in enumerate(paths):
        found.parts[("blocks", str(place))] = Part(each @ each.T, numpy.zeros((len(each), len(each))))
    return found


def stretches(
    paths: Sequence[numpy.ndarray], mask: Sequence[int], calibrator: Calibrator, weights: Sequence[float]
) -> list[float]:
    """Return what each stretch of reused steps costs, with forecasts made on the vectors themselves."""
    computed: list[int] = []
    found: list[float] = []
    for step, bit in enumerate(mask):
        if bit:
            computed.insert(0, step)
            found.append(0.0)
            continue
        for each in paths:
            kept = computed[: calibrator.depth]
            forecast = sum(w * each[past] for w, past in zip(calibrator.weights(kept, step), kept, strict=True))
            found[-1] += weights[step] * float(((each[step] - forecast) ** 2).sum())
    return found


def masks(steps: int, computed: int) -> list[tuple[int, ...]]:
    places = itertools.combinations(range(1, steps), computed - 1)
    return [tuple(int(step == 0 or step in chosen) for step in range(steps)) for chosen in places]


@given(SEEDS, st.sampled_from(CANDIDATES), st.lists(st.integers(0, 1), min_size=5, max_size=9))
@settings(max_examples=60, deadline=None)
def test_a_price_is_the_squared_error_of_the_forecasts(seed: int, calibrator: Calibrator, bits: list[int]) -> None:
    mask = [1, *bits]
    paths = [path(seed, len(mask)), path(seed + 1, len(mask))]
    weights = list(numpy.random.default_rng(seed).uniform(0.1, 3, len(mask)))
    wanted = sum(stretches(paths, mask, calibrator, weights)) / len(mask)
    assert price(Costs(landscape(*paths), calibrator, weights), mask) == pytest.approx(wanted, rel=1e-6, abs=1e-9)


@given(SEEDS, st.sampled_from([Hold(), TaylorSeer(1), TaylorSeer(1, damping=0.5)]))
@settings(max_examples=25, deadline=None)
def test_the_least_sum_is_that_of_every_mask_tried(seed: int, calibrator: Calibrator) -> None:
    steps, weights = 7, [1.0, 2.0, 0.5, 1.0, 1.0, 3.0, 1.0]
    paths = [path(seed, steps)]
    found = best_schedules(Costs(landscape(*paths), calibrator, weights), "sum")
    assert sorted(found) == list(range(1, steps + 1))
    for computed, schedule in found.items():
        assert (schedule.mask[0], schedule.computed) == (1, computed)
        least = min(sum(stretches(paths, mask, calibrator, weights)) for mask in masks(steps, computed))
        assert schedule.price * steps == pytest.approx(least, rel=1e-6, abs=1e-9)


@given(SEEDS, st.sampled_from([Hold(), TaylorSeer(1)]))
@settings(max_examples=25, deadline=None)
def test_minimax_is_the_lexicographic_least_of_every_mask_tried(seed: int, calibrator: Calibrator) -> None:
    steps, weights = 7, [1.0] * 7
    paths = [path(seed, steps)]
    found = best_schedules(Costs(landscape(*paths), calibrator, weights), "minimax")
    for computed, schedule in found.items():
        every = [sorted(stretches(paths, mask, calibrator, weights), reverse=True) for mask in masks(steps, computed)]
        mine = sorted(stretches(paths, schedule.mask, calibrator, weights), reverse=True)
        assert mine == pytest.approx(min(every), rel=1e-6, abs=1e-9)


def test_more_computed_steps_never_cost_more() -> None:
    costs = Costs(landscape(path(3, 12)), Hold(), [1.0] * 12)
    prices = [schedule.price for _, schedule in sorted(best_schedules(costs, "sum").items())]
    assert prices == sorted(prices, reverse=True)
    assert prices[-1] == 0


def test_a_part_that_runs_in_some_steps_only_costs_in_those() -> None:
    """As the second of two transformers, which computes its first step whatever the mask says."""
    late = path(1, 6)
    alike = late @ late.T
    alike[:3] = alike[:, :3] = numpy.nan
    found = Landscape(6, 1, {("blocks", "late"): Part(alike, numpy.zeros((6, 6)))})
    costs = Costs(found, Hold(), [1.0] * 6)
    assert price(costs, [1, 0, 0, 1, 0, 0]) * 6 == pytest.approx(
        float(((late[4] - late[3]) ** 2).sum() + ((late[5] - late[3]) ** 2).sum())
    )
    assert price(costs, [1, 0, 0, 0, 0, 0]) == 0


def test_thresholds_are_simulated_step_by_step_and_a_branch_that_computes_is_enough() -> None:
    moved = numpy.full((5, 5), 0.0)
    for earlier, later in itertools.combinations(range(5), 2):
        moved[earlier, later] = 0.1 * (later - earlier)
    quick = Part(numpy.eye(5), 3 * moved)
    slow = Part(numpy.eye(5), moved)
    found = Landscape(5, 1, {("blocks", "slow"): slow})
    assert simulated(found, 0.15, 1) == [1, 0, 1, 0, 1]
    assert simulated(found, 0.25, 2) == [1, 1, 0, 0, 1]
    found.parts[("blocks", "quick")] = quick
    assert simulated(found, 0.25, 1) == [1, 1, 1, 1, 1]


def test_a_profile_is_high_where_the_path_turns() -> None:
    straight = numpy.linspace(0, 1, 12)[:, None] * numpy.array([[1.0, 2.0]]) + 1
    bent = straight.copy()
    bent[8:, 0] += 5
    found = profile(landscape(bent), TaylorSeer(1), [1.0] * 12)
    assert sum(found) / len(found) == pytest.approx(1.0, abs=1e-3)
    assert max(range(12), key=found.__getitem__) in (8, 9, 10)
    assert found[5] == 0
