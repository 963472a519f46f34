"""The estimate of a run's error, against sums by hand, and the advice that it gives."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedit_cli.terms.estimate import DAMAGED, Estimate, estimate
from cachedit_cli.terms.stats import ContextInfo, Row

MORE = "with more computed steps, or the policy dynamic"


def rows(pattern: str, audits: dict[int, float], context: str = "blocks", branch: str = "", **facts: Any) -> list[Row]:
    """Return a branch of computed (#), reused (.) and half pruned (+) steps, with the audits of some of them."""
    made, last = [], 0
    for step, mark in enumerate(pattern):
        saved = {"#": 0, ".": 3, "+": 2}[mark]
        row = Row(
            0, step, context, branch, "reuse" if mark == "." else "compute", "mask", computed=4 - saved, saved=saved
        )
        row.audit = audits.get(step)
        if mark == "." or row.audit is not None:
            row.distance = float(step - last)
        last = step if mark == "#" else last
        for name, value in facts.items():
            setattr(row, name, value)
        made.append(row)
    return made


def weights(steps: int) -> list[float]:
    return [1 - step / (2 * steps) for step in range(steps)]


def error(*parts: list[Row]) -> float | None:
    return estimate([row for part in parts for row in part]).error


def test_a_reused_step_takes_its_share_of_what_the_next_computed_one_missed() -> None:
    w = weights(6)
    found = error(rows("##..#.", {1: 0.1, 4: 0.6}))
    # Steps 2 and 3 reach 1 and 2 of the 3 steps whose forecast missed 0.6; step 5 goes on at that rate.
    assert found == pytest.approx((w[2] * 0.2 + w[3] * 0.4 + w[5] * 0.2) / sum(w))


def test_computed_steps_cost_nothing() -> None:
    assert error(rows("####", {1: 0.5, 2: 0.5, 3: 0.5})) == 0.0


def test_steps_at_the_end_go_on_with_the_last_audit() -> None:
    w = weights(5)
    assert error(rows("##...", {1: 0.1})) == pytest.approx((w[2] * 0.1 + w[3] * 0.2 + w[4] * 0.3) / sum(w))


def test_a_step_that_is_pruned_in_part_counts_with_its_share_of_the_blocks() -> None:
    """By the audit of the step itself, else of the next one that has one; their distances are unknown."""
    w = weights(5)
    found = error(rows("##+++", {1: 0.9, 3: 0.4, 4: 0.2}))
    assert found == pytest.approx((w[2] * 0.5 * 0.4 + w[3] * 0.5 * 0.4 + w[4] * 0.5 * 0.2) / sum(w))


def test_branches_add_up_and_lists_of_a_branch_share_its_work() -> None:
    a, b = (rows("##..#.", {1: 0.1, 4: error}, branch=branch) for error, branch in ((0.6, "cond"), (0.3, "uncond")))
    assert error(a, b) == pytest.approx((error(a) or 0) + (error(b) or 0))
    long, short = rows("##..#.", {1: 0.1, 4: 0.6}, "long", computed=9), rows("##..#.", {1: 0.1, 4: 0.3}, "short")
    calls = [sum(row.computed + row.saved for row in part) for part in (long, short)]
    expected = ((error(long) or 0) * calls[0] + (error(short) or 0) * calls[1]) / sum(calls)
    assert error(long, short) == pytest.approx(expected)


def test_the_worst_part_is_named() -> None:
    calm, wild = rows("##..#.", {1: 0.1, 4: 0.1}, branch="cond"), rows("##..#.", {1: 0.1, 4: 0.9}, branch="uncond")
    assert estimate(calm + wild).worst == ("blocks", "uncond")
    assert estimate(rows("####", {1: 0.5})).worst is None


def test_without_audits_nothing_is_known_unless_there_was_only_one_computed_step() -> None:
    assert estimate([]) == Estimate(None)
    assert error(rows("##..#.", {})) is None
    assert estimate(rows("##..#.", {})).verdict == "unknown: no forecast was checked"
    w = weights(3)
    assert error(rows("#..", {}, diff=0.2)) == pytest.approx(0.2 * (w[1] + w[2]) / sum(w))


def test_one_branch_of_which_nothing_is_known_leaves_the_whole_unknown() -> None:
    assert error(rows("##..#.", {1: 0.1, 4: 0.1}, branch="cond"), rows("##..#.", {}, branch="uncond")) is None


@given(
    marks=st.lists(st.sampled_from("#.+"), min_size=1, max_size=20),
    errors=st.lists(st.floats(0, 2), min_size=22, max_size=22),
    worse=st.floats(1, 3),
)
@settings(deadline=None)
def test_larger_audits_never_make_a_smaller_estimate(marks: list[str], errors: list[float], worse: float) -> None:
    pattern = "##" + "".join(marks)
    audited = {step: errors[step] for step, mark in enumerate(pattern) if step and mark != "."}
    small, large = (error(rows(pattern, {step: f * e for step, e in audited.items()})) for f in (1.0, worse))
    assert small is not None
    assert large is not None
    assert math.isfinite(large)
    assert 0 <= small <= large * (1 + 1e-9)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (0.0, "hardly to be told from the uncached result"),
        (0.0499, "hardly to be told from the uncached result"),
        (0.05, "small differences"),
        (0.12, "visible differences"),
        (DAMAGED, "probably damaged"),
        (9.0, "probably damaged"),
    ],
)
def test_verdicts_are_plain_words(found: float, words: str) -> None:
    assert Estimate(found).verdict == words
    assert Estimate(found).damaged is (words == "probably damaged")


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"residual_diff_threshold": 0.3}, "lower cache.residual_diff_threshold (now 0.3)"),
        ({"steps_computation_mask": [1, 0]}, f"take a cache.steps_computation_mask {MORE}"),
        ({"budget": 4, "steps_computation_mask": "fast"}, "ask for a larger cache.budget (or a smaller cache.speedup)"),
        ({"speedup": 3.0}, "ask for a larger cache.budget (or a smaller cache.speedup)"),
        (
            {"budget": 4, "calibrator": {"type": "taylorseer"}},
            "set calibrator to {type: auto}: repeating the last change would have missed less than the series did",
        ),
    ],
)
def test_damage_comes_with_the_setting_to_change(settings: dict[str, Any], advice: str) -> None:
    made = rows("##..#.", {1: 0.5, 4: 2.0})
    for row in made:
        row.audits = {"hold": 0.4, "taylorseer 1": row.audit} if row.audit is not None else None
    context = ContextInfo("blocks", "Toy", "Block", "Pattern_1", 4, settings)
    found = estimate(made, [context])
    assert (found.damaged, found.advice) == (True, advice)
    harmless = estimate(rows("##..#.", {1: 0.01, 4: 0.01}), [context])
    assert (harmless.damaged, harmless.advice) == (False, None)
