"""Budgets: as many computed steps as were asked for, where an error profile or a mask's shape puts them."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedit_cli.errors import InputError
from cachedit_cli.terms.budget import budget_for, budget_mask, computed_steps, resampled
from cachedit_cli.terms.mask import POLICIES, shaped, steps_mask

MASKS = st.lists(st.integers(0, 1), max_size=40).map(lambda bits: [1, *bits])


@given(st.integers(1, 80), st.data())
def test_a_budget_is_spent_to_the_step_whatever_places_it(steps: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, steps))
    profile = data.draw(st.none() | st.lists(st.floats(0, 10), min_size=1, max_size=40))
    shape = data.draw(st.none() | st.sampled_from(POLICIES) | MASKS)
    mask = budget_mask(count, steps, profile, shape)
    assert (len(mask), sum(mask), mask[0]) == (steps, count, 1)


@given(st.integers(2, 9), st.data())
def test_a_profile_places_the_steps_as_trying_every_mask_would(steps: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, steps))
    profile = data.draw(st.lists(st.floats(0.01, 10), min_size=steps, max_size=steps))

    def cost(mask: list[int]) -> float:
        total, distance = 0.0, 0
        for bit, weight in zip(mask, profile, strict=True):
            distance = 0 if bit else distance + 1
            total += weight * distance**2
        return total

    every = (
        [1, *(int(place in chosen) for place in range(1, steps))]
        for chosen in itertools.combinations(range(1, steps), count - 1)
    )
    assert cost(budget_mask(count, steps, profile)) == pytest.approx(min(map(cost, every)))


def test_a_flat_profile_spreads_the_steps_evenly() -> None:
    assert budget_mask(4, 12, [1.0]) == [1, 0, 0] * 4


@pytest.mark.parametrize("policy", POLICIES)
def test_a_budget_of_as_many_steps_as_a_policy_computes_is_that_policy(policy: str) -> None:
    bits = steps_mask(mask_policy=policy, total_steps=28)
    assert shaped(policy, 28, sum(bits)) == shaped(bits, 28, sum(bits)) == shaped(None, 28, sum(bits)) == bits


def test_a_shape_that_only_leads_stays_one() -> None:
    assert shaped([1, 1, 1, 0, 0, 0], 8, 4) == [1, 1, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(("budget", "steps", "expected"), [(14, 28, 14), (0.5, 28, 14), (0.01, 28, 1), (1.0, 9, 9)])
def test_a_budget_is_a_number_or_a_share(budget: float, steps: int, expected: int) -> None:
    assert computed_steps(budget, steps) == expected


def test_more_steps_than_there_are_is_an_error_that_names_both() -> None:
    with pytest.raises(InputError, match="budget: 30 steps are to be computed, but there are only 28"):
        computed_steps(30, 28)


@given(st.floats(1, 20), st.integers(1, 100), st.floats(0.05, 0.99))
def test_a_speedup_gets_the_most_computed_steps_that_reach_it(speedup: float, steps: int, share: float) -> None:
    def reached(count: int) -> float:
        return steps / (count + (steps - count) * (1 - share))

    if speedup > reached(1):
        with pytest.raises(InputError, match=r"speedup: .* cannot be reached: a reused step saves .* at the most"):
            budget_for(speedup, steps, share)
        return
    count = budget_for(speedup, steps, share)
    assert reached(count) >= speedup * (1 - 1e-6)
    assert count == steps or reached(count + 1) < speedup * (1 + 1e-6)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=20), st.integers(1, 50))
def test_a_profile_over_other_steps_keeps_its_ends_and_its_range(profile: list[float], steps: int) -> None:
    found = resampled(profile, steps)
    assert len(found) == steps
    assert min(profile) - 1e-9 <= min(found) <= max(found) <= max(profile) + 1e-9
    assert found[0] == profile[0]
    if steps > 1:
        assert math.isclose(found[-1], profile[-1], abs_tol=1e-9)
    assert resampled(profile, len(profile)) == profile
