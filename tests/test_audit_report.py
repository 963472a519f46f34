"""What people and programs are told of the audit."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from rich.console import Console

from cachedit_cli import report
from cachedit_cli.audit_report import errors_by_distance, errors_sheet, judged
from cachedit_cli.terms.stats import ContextInfo, ContextStats, Row, collect
from tests.test_report import guided, shown

NAMES = "transformer.blocks", "transformer.more"


def info(name: str, **settings: object) -> ContextInfo:
    return ContextInfo(name, "Toy", "Block", "Pattern_1", 4, {"residual_diff_threshold": 0.3, **settings})


def calls(*errors: float, context: str = NAMES[0], branch: str = "cond", start: int = 0) -> list[Row]:
    """Return a call for each error: two computed steps, the second audited, and two reused ones."""
    rows = []
    for generation, error in enumerate(errors, start):
        rows += [
            Row(generation, 0, context, branch, "compute", "no-history", computed=4),
            Row(generation, 1, context, branch, "compute", "warmup", computed=4, audit=error, distance=1.0),
            *(
                Row(generation, at, context, branch, "reuse", "mask", saved=3, computed=1, distance=at - 1.0)
                for at in (2, 3)
            ),
        ]
        rows[-3].audits = {"hold": error}
    return rows


def stats(rows: Iterable[Row], *infos: ContextInfo) -> list[ContextStats]:
    return collect(rows, infos or (info(NAMES[0]), info(NAMES[1])))


def test_one_call_has_its_estimate_and_verdict_in_a_line() -> None:
    told = judged(guided())
    assert told is not None
    assert (told.line, told.warning) == ("estimated error 0.11: small differences", None)


def test_several_calls_are_told_by_the_worst_of_them() -> None:
    rows = calls(0.01, 0.2, 0.02)
    told = judged(stats(rows))
    assert told is not None
    assert told.line == "estimated error 0.006 to 0.12: at worst visible differences, most in call 1"
    assert told.warning is None


def test_damage_is_said_with_its_place_and_the_setting_to_change() -> None:
    rows = calls(0.9) + calls(0.01, context=NAMES[1])
    text = shown(report.stats_table(stats(rows)))
    assert text.endswith(
        "estimated error 0.28: probably damaged\n"
        "most of it in cond of blocks: lower cache.residual_diff_threshold (now 0.3)"
    )
    markdown = report.stats_markdown(stats(rows))
    assert markdown.endswith(
        "Estimated error 0.28: probably damaged.\n"
        "**Most of it in cond of blocks: lower cache.residual_diff_threshold (now 0.3).**\n"
    )


def test_damage_is_highlighted_on_a_terminal_and_nothing_else_is() -> None:
    def drawn(error: float) -> str:
        console = Console(force_terminal=True, color_system="standard", width=100)
        with console.capture() as caught:
            console.print(report.stats_table(stats(calls(error))))
        return caught.get()

    assert "\x1b[1;31mestimated error" in drawn(0.9)
    assert "\x1b[1;31m" not in drawn(0.01)


def test_of_many_calls_it_is_said_how_many_are_damaged() -> None:
    told = judged(stats(calls(0.9, 0.01, 0.8, 0.02)))
    assert told is not None
    assert told.line == "estimated error 0.006 to 0.55: 2 of 4 calls probably damaged, most in call 0"
    assert told.warning is not None


def test_nothing_is_estimated_where_nothing_was_reused_and_unknown_where_nothing_was_audited() -> None:
    computed = [Row(0, step, "blocks", "", "compute", "warmup", computed=4) for step in range(3)]
    assert judged(collect(computed)) is None
    unaudited = [*computed, Row(0, 3, "blocks", "", "reuse", "mask", computed=1, saved=3, distance=1.0)]
    told = judged(collect(unaudited))
    assert told is not None
    assert told.line == "estimated error unknown: no forecast was checked"


def test_errors_are_means_by_calibrator_and_distance() -> None:
    audited: list[tuple[float | None, dict[str, float | None] | None]] = [
        (None, None),
        (1.0, {"hold": 0.1, "b": 0.5}),
        (3.0, {"hold": 0.3, "b": None}),
        (1.0, {"hold": 0.2, "b": 0.7}),
    ]
    rows = [
        Row(0, step, "blocks", "", "compute", "warmup", audits=audits, distance=distance)
        for step, (distance, audits) in enumerate(audited)
    ]
    found = errors_by_distance(rows)
    assert found == {"hold": {1.0: pytest.approx(0.15), 3.0: 0.3}, "b": {1.0: pytest.approx(0.6)}}
    sheet = errors_sheet(collect(rows)[0].branches[0])
    assert sheet is not None
    assert list(sheet.columns) == ["audited error at distance", "1", "3"]
    assert [list(line) for line in sheet.rows] == [["hold", "0.150", "0.300"], ["b", "0.600", "-"]]


def test_distances_of_pruned_blocks_are_rounded_to_steps() -> None:
    rows = [
        Row(0, step, "blocks", "", "compute", "threshold", audits={"hold": error}, distance=distance)
        for step, (distance, error) in enumerate([(1.25, 0.2), (1.375, 0.4), (2.6, 0.5)])
    ]
    sheet = errors_sheet(collect(rows)[0].branches[0])
    assert sheet is not None
    assert (list(sheet.columns)[1:], list(sheet.rows[0])) == (["1", "3"], ["hold", "0.300", "0.500"])


def test_json_has_an_estimate_for_each_call_and_the_errors_of_each_branch() -> None:
    facts = json.loads(json.dumps(report.stats_json(stats(calls(0.01, 0.9)))))
    first, second = facts["estimates"]
    assert (first["generation"], first["damaged"], first["advice"]) == (0, False, None)
    assert second == {
        "generation": 1,
        "error": second["error"],
        "verdict": "probably damaged",
        "damaged": True,
        "context": NAMES[0],
        "branch": "cond",
        "advice": "lower cache.residual_diff_threshold (now 0.3)",
    }
    assert facts["contexts"][0]["branches"][0]["audits"] == {"hold": {"1.0": pytest.approx(0.455)}}
