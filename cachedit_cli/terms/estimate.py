"""How far a run is probably from the same run without caching: an estimate from its own log, without any baseline.

On a computed step the log holds the relative error of the forecast that would have been used at that distance. The
steps reused since the last computed one took forecasts over shorter distances, whose errors are taken in proportion.
What DBPrune leaves out counts with its share of the blocks, and with what the next blocks that it computes would have
missed. An error made early is carried through more of the remaining steps and weighs more. The sum ranks runs as their
true errors do (docs/experiments.md has the rank correlations and what else was tried); it is no error of a picture in
any unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .stats import ContextInfo, Row

__all__ = ["DAMAGED", "Estimate", "estimate"]

#: From here on a picture is probably damaged; fitted on the bundled model (docs/experiments.md).
DAMAGED = 0.25

_VERDICTS = (
    (0.05, "hardly to be told from the uncached result"),
    (0.12, "small differences"),
    (DAMAGED, "visible differences"),
    (math.inf, "probably damaged"),
)


@dataclass(frozen=True)
class Estimate:
    """What the audits come to.

    Attributes:
        error: Mean relative error of what the steps took for the blocks' work, computed steps counting as 0, summed
            over the branches; None where nothing was audited.
        worst: Context and branch with the largest part in it; None without an error.
        advice: The setting to change, where the result is probably damaged.
    """

    error: float | None
    worst: tuple[str, str] | None = None
    advice: str | None = None

    @property
    def damaged(self) -> bool:
        """Whether the result is probably damaged."""
        return self.error is not None and self.error >= DAMAGED

    @property
    def verdict(self) -> str:
        """The error in words."""
        if self.error is None:
            return "unknown: no forecast was checked"
        return next(words for below, words in _VERDICTS if self.error < below)


def estimate(rows: Iterable[Row], contexts: Iterable[ContextInfo] = ()) -> Estimate:
    """Return the estimate for the rows of one generation."""
    parts: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        parts.setdefault((row.context, row.branch), []).append(row)
    errors: dict[tuple[str, str], float] = {}
    for part, mine in parts.items():
        found = _of_branch(mine)
        if found is None:
            return Estimate(None)
        errors[part] = found
    if not errors:
        return Estimate(None)
    calls = {part: sum(row.computed + row.saved for row in mine) for part, mine in parts.items()}
    # Branches add up; several lists of one branch share its work.
    work: dict[str, int] = {}
    for (_, branch), count in calls.items():
        work[branch] = work.get(branch, 0) + count
    shares = {part: errors[part] * calls[part] / max(work[part[1]], 1) for part in errors}
    worst = max(shares, key=lambda part: shares[part])
    total = sum(shares.values())
    advice = None
    if total >= DAMAGED:
        advice = _advice(parts[worst], next((info for info in contexts if info.name == worst[0]), None))
    return Estimate(total, worst if total else None, advice)


def _of_branch(rows: Sequence[Row]) -> float | None:
    """Return the weighted mean error of a branch's steps; None where something was reused that nothing tells about."""
    steps = len(rows)
    weights = [1 - place / (2 * steps) for place in range(steps)]
    total, waiting = 0.0, list[tuple[Row, float]]()
    known: tuple[float, float] | None = None  # last audited error, and its distance
    for row, weight in zip(rows, weights, strict=True):
        if row.saved:
            waiting.append((row, weight * (1.0 if row.decision == "reuse" else row.saved / (row.saved + row.computed))))
        if row.decision == "compute" and row.audit is not None and row.distance:
            known = row.audit, row.distance
            total += sum(weight * _scaled(known, reused) for reused, weight in waiting)
            waiting.clear()
    alone = sum(not row.saved for row in rows) == 1  # then there was nothing to audit, else nobody did
    for row, weight in waiting:
        error = _scaled(known, row) if known is not None else row.diff if alone else None
        if error is None:
            return None
        total += weight * error
    return total / sum(weights)


def _scaled(known: tuple[float, float], reused: Row) -> float:
    error, distance = known
    if reused.decision == "compute":  # pruned in part: each block has distances of its own
        return error
    return error * (reused.distance or distance) / distance


def _advice(rows: Sequence[Row], info: ContextInfo | None) -> str:
    """Return which setting to change, by what the worst branch shows."""
    settings = info.settings if info is not None else {}
    calibrator = (settings.get("calibrator") or {}).get("type", "hold")
    used = [row.audit for row in rows if row.audit is not None and row.audits]
    held = [row.audits["hold"] for row in rows if row.audit is not None and row.audits and row.audits.get("hold")]
    if calibrator == "taylorseer" and len(used) == len(held) and sum(value or 0 for value in held) < sum(used):
        return "set calibrator to {type: auto}: repeating the last change would have missed less than the series did"
    if settings.get("budget") is not None or settings.get("speedup") is not None:
        return "ask for a larger cache.budget (or a smaller cache.speedup)"
    if settings.get("steps_computation_mask") is not None:
        return "take a cache.steps_computation_mask with more computed steps, or the policy dynamic"
    return f"lower cache.residual_diff_threshold (now {settings.get('residual_diff_threshold', 'unknown')})"
