"""What the audit says of a run, before it is drawn: the estimate of its error in a line, and errors by distance.

Knows decision logs and the estimate; knows no tables of rich, no torch and no files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .figures import Sheet, labels, number
from .terms.estimate import Estimate, estimate
from .terms.stats import BranchStats, ContextStats, Row

__all__ = ["Judged", "errors_by_distance", "errors_sheet", "estimates_json", "judged"]


@dataclass(frozen=True)
class Judged:
    """The estimate of one or several pipeline calls, for people.

    Attributes:
        line: How large the error probably is, and what that means.
        warning: Where most of it comes from and what to change, if a result is probably damaged; else None.
    """

    line: str
    warning: str | None


def _estimates(stats: Sequence[ContextStats]) -> dict[int, Estimate]:
    """Return an estimate for each generation in which something was reused."""
    rows: dict[int, list[Row]] = {}
    for row in (row for context in stats for row in context.rows):
        rows.setdefault(row.generation, []).append(row)
    infos = [context.info for context in stats if context.info is not None]
    return {number: estimate(mine, infos) for number, mine in sorted(rows.items()) if any(row.saved for row in mine)}


def judged(stats: Sequence[ContextStats]) -> Judged | None:
    """Return the estimate of the call, or of the worst of several; None where nothing was reused."""
    found = _estimates(stats)
    if not found:
        return None
    known = {call: each for call, each in found.items() if each.error is not None}
    if not known:
        return Judged(f"estimated error {next(iter(found.values())).verdict}", None)
    call, worst = max(known.items(), key=lambda item: item[1].error or 0.0)
    line = f"estimated error {number(worst.error, 2)}: {worst.verdict}"
    if len(found) > 1:
        least = min(each.error or 0.0 for each in known.values())
        damaged = sum(each.damaged for each in known.values())
        share = f"{damaged} of {len(found)} calls {worst.verdict}" if damaged else f"at worst {worst.verdict}"
        line = f"estimated error {number(least, 2)} to {number(worst.error, 2)}: {share}, most in call {call}"
    if worst.advice is None or worst.worst is None:
        return Judged(line, None)
    context, branch = worst.worst
    name = labels(entry.name for entry in stats)[context]
    return Judged(line, f"most of it in {branch} of {name}: {worst.advice}" if branch else f"{name}: {worst.advice}")


def estimates_json(stats: Sequence[ContextStats]) -> list[dict[str, Any]]:
    """Return the estimates as plain data, one for each generation in which something was reused."""
    return [
        {
            "generation": generation,
            "error": found.error,
            "verdict": found.verdict,
            "damaged": found.damaged,
            "context": found.worst[0] if found.worst else None,
            "branch": found.worst[1] if found.worst else None,
            "advice": found.advice,
        }
        for generation, found in _estimates(stats).items()
    ]


def errors_by_distance(rows: Iterable[Row]) -> dict[str, dict[float, float]]:
    """Return the mean audited error of each calibrator that was tried, by the steps that its forecasts reached."""
    found: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        for name, error in (row.audits or {}).items():
            if error is not None and row.distance is not None:
                found.setdefault(name, {}).setdefault(row.distance, []).append(error)
    return {
        name: {distance: sum(errors) / len(errors) for distance, errors in sorted(known.items())}
        for name, known in found.items()
    }


def errors_sheet(branch: BranchStats) -> Sheet | None:
    """Return a row per calibrator, a column per distance; None where nothing was audited.

    Distances of blocks that are pruned one by one are means, and are rounded to whole steps.
    """
    rows = [row for row in branch.rows if row.distance is not None]
    found = errors_by_distance(_rounded(row) for row in rows)
    if not found:
        return None
    distances = sorted({distance for known in found.values() for distance in known})
    columns = ["audited error at distance", *(f"{distance:g}" for distance in distances)]
    lines = [[name, *(number(known.get(distance)) for distance in distances)] for name, known in found.items()]
    return Sheet(columns, lines, words=1)


def _rounded(row: Row) -> Row:
    return replace(row, distance=float(max(1, round(row.distance or 1))))
