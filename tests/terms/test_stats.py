"""The decision log and what is read from it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from cachedit_cli.terms.stats import (
    BranchStats,
    ContextInfo,
    ContextStats,
    DecisionLog,
    Reset,
    Row,
    collect,
    percentile,
)

INFO = ContextInfo("blocks", "Toy", "Block", "Pattern_1", 4, {"Fn_compute_blocks": 1})


@dataclass
class OnDevice:
    """A scalar that counts how often it is fetched."""

    value: float
    fetched: int = 0

    def item(self) -> float:
        self.fetched += 1
        return self.value


@dataclass
class Audit:
    """An audited error that counts how often it is fetched."""

    error: float | None
    fetched: int = 0
    distance: float = 2.0
    used: str = "hold"

    def error_of_used(self) -> float | None:
        return self.error

    def errors(self) -> dict[str, float | None]:
        self.fetched += 1
        return {"hold": self.error, "taylorseer 1": 0.5}


def computed(step: int, branch: str = "cond", context: str = "blocks", generation: int = 0) -> Row:
    return Row(generation, step, context, branch, "compute", "warmup", computed=4, ms=10.0)


def reused(step: int, branch: str = "cond", context: str = "blocks", diff: float | None = 0.05) -> Row:
    return Row(0, step, context, branch, "reuse", "threshold", diff=diff, threshold=0.08, computed=1, saved=3, ms=2.5)


def pruned(step: int, saved: int, branch: str = "cond") -> Row:
    return Row(0, step, "blocks", branch, "compute", "threshold", diff=0.1, computed=4 - saved, saved=saved)


# ---- log


def test_rows_stay_in_the_order_in_which_they_happened_and_the_listener_hears_each() -> None:
    heard: list[Row] = []
    log = DecisionLog(listener=heard.append)
    rows = [computed(0), computed(0, "uncond"), reused(1)]
    for row in rows:
        log.add(row)
    assert log.rows == heard == rows


def test_a_late_audit_error_is_fetched_once_and_only_when_the_log_is_read() -> None:
    log, late = DecisionLog(), Audit(0.25)
    row = computed(0)
    log.add(row, audit=late)
    assert (row.audit, late.fetched) == (None, 0)
    log.settle()
    log.settle()
    assert (row.audit, late.fetched) == (0.25, 1)
    assert (row.audits, row.calibrator, row.distance) == ({"hold": 0.25, "taylorseer 1": 0.5}, "hold", 2.0)


def test_an_audit_error_that_is_not_finite_is_unknown() -> None:
    log = DecisionLog()
    log.add(computed(0), audit=Audit(None))
    assert log.as_dict()["rows"][0]["audit"] is None


def test_a_time_still_on_the_device_is_fetched_with_or_without_an_audit_error() -> None:
    log = DecisionLog()
    log.add(Row(0, 0, "blocks", "", "compute", "warmup"), ms=OnDevice(3.5))
    log.add(Row(0, 1, "blocks", "", "compute", "warmup"), Audit(0.25), OnDevice(4.5))
    log.settle()
    assert [(row.audit, row.ms) for row in log.rows] == [(None, 3.5), (0.25, 4.5)]


def test_a_generation_is_picked_by_number_and_the_last_is_the_default() -> None:
    log = DecisionLog()
    assert log.generation() == []
    late = Audit(0.5)
    log.add(computed(0, generation=3))
    log.add(computed(1, generation=3), audit=late)
    log.add(computed(0, generation=4))
    assert [row.step for row in log.generation(3)] == [0, 1]
    assert late.fetched == 1
    assert log.generation() == [log.rows[2]]
    assert log.generation(9) == []


def test_clearing_forgets_what_happened_but_not_the_contexts_nor_the_listener() -> None:
    heard: list[Row] = []
    late = Audit(0.5)
    log = DecisionLog([INFO], listener=heard.append)
    log.add(computed(0), audit=late)
    log.resets.append(Reset(0, 0, "blocks", "cond", "new shape"))
    log.clear()
    assert (log.rows, log.resets, log.contexts) == ([], [], [INFO])
    log.settle()
    assert late.fetched == 0
    log.add(reused(1))
    assert len(heard) == 2


def test_the_log_as_plain_data_survives_json_and_is_a_copy() -> None:
    log = DecisionLog([INFO], [computed(0), reused(1)], [Reset(0, 0, "blocks", "cond", "new shape")])
    plain = log.as_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["contexts"] == [
        {
            "name": "blocks",
            "model": "Toy",
            "block": "Block",
            "pattern": "Pattern_1",
            "blocks": 4,
            "settings": {"Fn_compute_blocks": 1},
            "notes": [],
        }
    ]
    assert plain["rows"][1] == {
        "generation": 0,
        "step": 1,
        "context": "blocks",
        "branch": "cond",
        "decision": "reuse",
        "reason": "threshold",
        "diff": 0.05,
        "threshold": 0.08,
        "audit": None,
        "audits": None,
        "calibrator": None,
        "distance": None,
        "computed": 1,
        "saved": 3,
        "ms": 2.5,
        "bytes": 0,
    }
    assert plain["resets"] == [
        {"generation": 0, "step": 0, "context": "blocks", "branch": "cond", "reason": "new shape"}
    ]
    plain["contexts"][0]["settings"]["Fn_compute_blocks"] = 9
    assert INFO.settings == {"Fn_compute_blocks": 1}


# ---- statistics


def test_rows_are_grouped_by_context_and_branch_in_the_order_of_first_appearance() -> None:
    rows = [
        computed(0, "uncond", "b"),
        computed(0, "cond", "a"),
        computed(0, "cond", "b"),
        reused(1, "uncond", "b"),
    ]
    stats = collect(rows, [ContextInfo("a", "Toy", "Block", "Pattern_1", 4)])
    assert [(context.name, [branch.name for branch in context.branches]) for context in stats] == [
        ("b", ["uncond", "cond"]),
        ("a", ["cond"]),
    ]
    assert [context.info is None for context in stats] == [True, False]
    assert stats[0].branches[0].rows == [rows[0], rows[3]]
    assert stats[0].rows == [rows[0], rows[3], rows[2]]


def test_nothing_that_happened_has_no_statistics() -> None:
    assert collect([]) == []
    assert collect([], [INFO]) == []


def test_a_branch_tells_cached_from_pruned_steps_and_where_a_difference_was_measured() -> None:
    branch = BranchStats("cond", [computed(0), pruned(1, 2), reused(2), reused(3, diff=None), pruned(4, 1)])
    assert branch.steps == 5
    assert branch.cached_steps == [2, 3]
    assert branch.pruned_steps == [1, 4]
    assert branch.pruned_blocks == {1: 2, 4: 1}
    assert branch.residual_diffs == {1: 0.1, 2: 0.05, 4: 0.1}


def test_the_first_branch_is_the_context_and_the_second_is_its_guidance() -> None:
    (stats,) = collect(
        [
            computed(0),
            computed(0, "uncond"),
            reused(1),
            pruned(1, 1, "uncond"),
            reused(2),
            reused(2, "uncond", diff=0.07),
        ]
    )
    assert stats.cached_steps == [1, 2]
    assert stats.residual_diffs == {1: 0.05, 2: 0.05}
    assert (stats.pruned_steps, stats.pruned_blocks) == ([], {})
    assert stats.cfg_cached_steps == [2]
    assert stats.cfg_residual_diffs == {1: 0.1, 2: 0.07}
    assert (stats.cfg_pruned_steps, stats.cfg_pruned_blocks) == ([1], {1: 1})


def test_without_guidance_there_are_no_guidance_steps() -> None:
    (stats,) = collect([computed(0), pruned(1, 3)])
    assert (stats.pruned_steps, stats.pruned_blocks) == ([1], {1: 3})
    assert (stats.cfg_cached_steps, stats.cfg_residual_diffs) == ([], {})
    assert (stats.cfg_pruned_steps, stats.cfg_pruned_blocks) == ([], {})


def test_a_context_without_branches_is_empty_throughout() -> None:
    stats = ContextStats("blocks", None, [])
    assert (stats.cached_steps, stats.residual_diffs, stats.pruned_steps, stats.pruned_blocks) == ([], {}, [], {})
    assert (stats.block_calls, stats.saved, stats.saved_share, stats.seconds) == (0, 0, 0.0, None)


def test_block_calls_and_seconds_are_summed_over_all_branches() -> None:
    (stats,) = collect([computed(0), computed(0, "uncond"), reused(1), pruned(1, 2, "uncond")])
    assert (stats.block_calls, stats.saved) == (16, 5)
    assert stats.saved_share == 5 / 16
    assert stats.seconds == 0.0225  # a pruned row has no time here


# ---- percentiles


def test_percentiles_are_interpolated_linearly() -> None:
    values = [4.0, 1.0, 3.0, 2.0]
    assert [percentile(values, share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)] == [1.0, 1.75, 2.5, 3.25, 4.0]
    assert percentile([7.0], 0.95) == 7.0
    assert percentile([], 0.5) is None


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_percentiles_lie_between_the_extremes_and_never_fall(values: list[float], one: float, other: float) -> None:
    low, high = (percentile(values, share) for share in sorted((one, other)))
    assert low is not None
    assert high is not None
    slack = 1e-9 * max(1.0, max(map(abs, values)))
    assert min(values) - slack <= low <= high + slack <= max(values) + 2 * slack


def test_statistics_need_no_torch() -> None:
    code = "import sys, cachedit_cli.terms.stats; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
