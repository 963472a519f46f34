"""Steps masks: the four policies, their laws at every number of steps, and bins."""

from __future__ import annotations

import subprocess
import sys
from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedit_cli.errors import InputError
from cachedit_cli.terms.mask import POLICIES, bins_of, steps_mask

AT_28 = {
    "slow": "1111111101110011100110010001",
    "medium": "1111110110001100011000110001",
    "fast": "1111110100010000100000100001",
    "ultra": "1111001000001000000100000001",
}
STEPS = st.integers(1, 5000)


def text(bits: list[int]) -> str:
    return "".join(map(str, bits))


def runs(bits: list[int], bit: int) -> list[int]:
    return [len(list(run)) for value, run in groupby(bits) if value == bit]


def check_shape(policy: str, steps: int) -> int:
    """Check the laws of one mask and return how many steps it computes."""
    bits = steps_mask(total_steps=steps, mask_policy=policy)
    assert len(bits) == steps
    assert set(bits) <= {0, 1}
    assert bits[0] == bits[-1] == 1
    longest_at_28 = max(map(len, AT_28[policy].split("1")))
    assert max(runs(bits, 0), default=0) <= longest_at_28 * steps / 28 + 1
    assert runs(bits, 1)[0] == max(runs(bits, 1))
    return sum(bits)


@pytest.mark.parametrize(("policy", "computed"), [("slow", 18), ("medium", 15), ("fast", 11), ("ultra", 8)])
def test_policies_at_28_steps_are_exactly_the_published_masks(policy: str, computed: int) -> None:
    bits = steps_mask(total_steps=28, mask_policy=policy)
    assert text(bits) == AT_28[policy]
    assert sum(bits) == computed


def test_policies_are_listed_from_most_to_fewest_computed_steps() -> None:
    assert POLICIES == ("slow", "medium", "fast", "ultra")


def test_medium_is_the_default_policy() -> None:
    assert steps_mask(total_steps=28) == steps_mask(total_steps=28, mask_policy="medium")


def test_every_law_holds_for_every_number_of_steps_up_to_1000() -> None:
    before = [0] * len(POLICIES)
    for steps in range(1, 1001):
        computed = [check_shape(policy, steps) for policy in POLICIES]
        assert computed == sorted(computed, reverse=True), steps
        assert all(old <= new for old, new in zip(before, computed, strict=True)), steps
        before = computed


@given(st.sampled_from(POLICIES), STEPS)
def test_any_mask_has_the_shape_of_its_policy(policy: str, steps: int) -> None:
    check_shape(policy, steps)


@given(STEPS)
def test_a_slower_policy_never_computes_fewer_steps(steps: int) -> None:
    computed = [sum(steps_mask(total_steps=steps, mask_policy=policy)) for policy in POLICIES]
    assert all(slower >= faster for slower, faster in pairwise(computed))


@given(st.sampled_from(POLICIES), STEPS, STEPS)
def test_more_steps_never_mean_fewer_computed_steps(policy: str, one: int, other: int) -> None:
    few, many = (sum(steps_mask(total_steps=steps, mask_policy=policy)) for steps in sorted((one, other)))
    assert few <= many


def test_few_and_many_steps_keep_the_look_of_a_policy() -> None:
    drawn = {steps: text(steps_mask(total_steps=steps, mask_policy="fast")) for steps in (1, 2, 3, 4, 6, 8, 14, 50)}
    assert drawn == {
        1: "1",
        2: "11",
        3: "111",
        4: "1111",
        6: "111001",
        8: "11101001",
        14: "11110100010001",
        50: "11111111111010010000100001000001000001000001000001",
    }


def test_bins_alternate_with_compute_first_and_are_truncated_at_the_steps() -> None:
    bits = steps_mask(compute_bins=[6, 1, 1, 1, 1], cache_bins=[1, 2, 5, 5, 5], total_steps=28)
    assert text(bits) == "1111110100100000100000100000"
    assert text(steps_mask([6, 1, 1, 1, 1], [1, 2, 5, 5, 5], 9)) == "111111010"


def test_bins_without_a_number_of_steps_are_laid_out_in_full() -> None:
    assert text(steps_mask(compute_bins=[2, 1, 1], cache_bins=[3, 0])) == "1100011"
    assert text(steps_mask(compute_bins=(2, 1), cache_bins=(3, 2))) == "11000100"


def test_bins_replace_the_policy() -> None:
    assert steps_mask([1], [1], 2, mask_policy="slow") == [1, 0]


@given(st.lists(st.integers(1, 9), min_size=2, max_size=20), st.integers(1, 60))
def test_bins_and_masks_are_each_others_inverse(lengths: list[int], steps: int) -> None:
    compute, cache = lengths[0::2], lengths[1::2]
    bits = steps_mask(compute, cache)
    assert bins_of(bits) == (compute, cache)
    if steps <= len(bits):
        assert steps_mask(compute, cache, steps) == bits[:steps]


def test_bins_of_a_mask_without_cached_steps_have_no_cached_run() -> None:
    assert bins_of([1, 1, 1]) == ([3], [])


@pytest.mark.parametrize("bits", [[], [0, 1], [1, 2], [1, -1]])
def test_what_is_no_mask_has_no_bins(bits: list[int]) -> None:
    with pytest.raises(InputError) as caught:
        bins_of(bits)
    assert str(caught.value) == "a mask is a list of 0 and 1 that begins with 1: its first step has nothing to reuse"


@pytest.mark.parametrize(
    ("compute", "cache", "steps", "message"),
    [
        ([6, 1], [1, 2], 28, "compute_bins and cache_bins sum to 10, but there are 28 steps"),
        ([6, 1], None, 7, "cache_bins: missing; compute_bins needs it"),
        (None, [6, 1], 7, "compute_bins: missing; cache_bins needs it"),
        ([], [1], 1, "compute_bins: empty; give the length of at least one run"),
        ([1], [], 1, "cache_bins: empty; give the length of at least one run"),
        ([6, -1], [1, 2], 5, "compute_bins[1]: -1 is not a whole number >= 0"),
        ([6, 1], [1, -2], 5, "cache_bins[1]: -2 is not a whole number >= 0"),
        ([6, 1.0], [1, 2], 5, "compute_bins[1]: 1.0 is not a whole number >= 0"),
        ([6, True], [1, 2], 5, "compute_bins[1]: True is not a whole number >= 0"),
        ([6, 1], ["1", 2], 5, "cache_bins[0]: '1' is not a whole number >= 0"),
        ("61", [1, 2], 5, "compute_bins: '61' is not a list of whole numbers"),
        ([6, 1], 3, 5, "cache_bins: 3 is not a list of whole numbers"),
        ([0, 6], [1, 2], 5, "compute_bins[0]: 0, but the first step has nothing to reuse; begin with at least 1"),
        (
            [6, 1, 1],
            [1],
            5,
            "compute_bins has length 3 and cache_bins 1; they alternate, compute first, "
            "so compute_bins has as many as cache_bins or one more",
        ),
        (
            [6],
            [1, 1],
            5,
            "compute_bins has length 1 and cache_bins 2; they alternate, compute first, "
            "so compute_bins has as many as cache_bins or one more",
        ),
        ([6, 1], [1, 2], 0, "total_steps: 0 is not a whole number >= 1"),
    ],
)
def test_wrong_bins_are_refused_with_the_place_and_the_reason(
    compute: list[int] | None, cache: list[int] | None, steps: int, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        steps_mask(compute, cache, steps)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("policy", "steps", "message"),
    [
        ("fats", 28, "mask_policy: unknown policy 'fats' (did you mean 'fast'?)"),
        ("Ultra", 28, "mask_policy: unknown policy 'Ultra' (did you mean 'ultra'?)"),
        ("x", 28, "mask_policy: unknown policy 'x' (it is one of slow, medium, fast, ultra)"),
        ("fast", 0, "total_steps: 0 is not a whole number >= 1"),
        ("fast", -3, "total_steps: -3 is not a whole number >= 1"),
        ("fast", 2.5, "total_steps: 2.5 is not a whole number >= 1"),
        ("fast", True, "total_steps: True is not a whole number >= 1"),
        ("fast", None, "total_steps: the policy 'fast' needs the number of steps, for example 28"),
    ],
)
def test_wrong_policies_and_steps_are_refused(policy: str, steps: int | None, message: str) -> None:
    with pytest.raises(InputError) as caught:
        steps_mask(mask_policy=policy, total_steps=steps)
    assert str(caught.value) == message


def test_masks_need_no_torch() -> None:
    code = "import sys, cachedit_cli.terms.mask as mask; mask.steps_mask(total_steps=9); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
