"""What a report says, before it is drawn: numbers as people read them, strips, sheets of text, sentences.

Knows decision logs and masks; knows no tables of rich, no torch and no files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .terms.stats import BranchStats, ContextInfo, ContextStats, Row, percentile

__all__ = [
    "CACHED",
    "COMPUTED",
    "PRUNED",
    "Sheet",
    "describe",
    "differences",
    "differences_of",
    "headline",
    "human_bytes",
    "labels",
    "mask_counts",
    "mask_strip",
    "number",
    "settings_text",
    "steps_sheet",
    "strip",
    "summary",
    "why_nothing_cached",
]

COMPUTED, CACHED, PRUNED = "█", "·", "▒"
_NONE = "-"
_SHARES = {"min": 0.0, "P25": 0.25, "P50": 0.5, "P75": 0.75, "P95": 0.95, "max": 1.0}


@dataclass(frozen=True)
class Sheet:
    """A table of texts.

    Attributes:
        columns: Their names.
        rows: A text for each column.
        words: So many columns from the left hold words, the others numbers.
        headed: The first column is a heading over the rows that leave it empty.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int
    headed: bool = False

    def markdown(self) -> str:
        """Return a GitHub table."""
        rule = ["---" if place < self.words else "---:" for place in range(len(self.columns))]
        lines = (self.columns, rule, *self.rows)
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


# ---- numbers


def number(value: float | None, places: int = 3) -> str:
    """Return a number with so many decimals, more only where nothing else would be left of it."""
    if value is None:
        return _NONE
    if value and abs(value) < 10**-places:
        return f"{value:.1g}"
    return f"{value:.{places}f}"


def human_bytes(count: int | None) -> str:
    """Return a size in the unit a person would choose."""
    if count is None:
        return _NONE
    power = min(max(count.bit_length() - 1, 0) // 10, 4)
    return f"{count} bytes" if power == 0 else f"{count / 1024**power:.1f} {'KMGT'[power - 1]}iB"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _share(rows: Sequence[Row]) -> float:
    calls = sum(row.computed + row.saved for row in rows)
    return sum(row.saved for row in rows) / calls if calls else 0.0


def _seconds(rows: Iterable[Row]) -> float | None:
    times = [row.ms for row in rows if row.ms is not None]
    return sum(times) / 1000 if times else None


def settings_text(settings: Mapping[str, Any]) -> str:
    """Return settings in a line, their type first; what is None is not set and left out."""
    parts = []
    for key, value in settings.items():
        if value is None or key == "type":
            continue
        if isinstance(value, Mapping):
            parts.append(f"{key} {settings_text(value)}")
        elif key == "steps_computation_mask" and not isinstance(value, str):
            parts.append(f"{key} {''.join(map(str, value))}")
        else:
            parts.append(f"{key} {', '.join(map(str, value)) or 'none' if isinstance(value, (list, tuple)) else value}")
    kind = settings.get("type")
    listed = ", ".join(parts)
    return listed if kind is None else f"{kind} ({listed})" if listed else str(kind)


# ---- strips


def strip(rows: Iterable[Row], steps: int | None = None) -> str:
    """Return a mark per row: computed, cached, or pruned in part; blank up to ``steps`` for what is still to come."""
    marks = "".join(CACHED if row.decision == "reuse" else PRUNED if row.saved else COMPUTED for row in rows)
    return marks.ljust(steps or 0)


def mask_strip(bits: Iterable[int]) -> str:
    """Return a mark per bit of a steps mask."""
    return "".join(COMPUTED if bit else CACHED for bit in bits)


def mask_counts(bits: Sequence[int]) -> str:
    """Return how many steps a mask computes and may reuse."""
    cached = len(bits) - sum(bits)
    return f"{len(bits)} steps: {sum(bits)} computed, {cached} cached ({_percent(cached / len(bits))})"


# ---- sheets


def labels(names: Iterable[str]) -> dict[str, str]:
    """Return the names of contexts without what they all begin with, ``transformer.``."""
    known = list(names)
    parts = [part for name in known for part in name.split(" + ")]
    start = "transformer."
    if not all(part.startswith(start) for part in parts):
        return {name: name for name in known}
    return {name: " + ".join(part.removeprefix(start) for part in name.split(" + ")) for name in known}


def describe(info: ContextInfo) -> str:
    """Return what a context is, in a line."""
    return f"{info.model}, {info.blocks} blocks ({info.block}), {info.pattern}"


def summary(stats: Sequence[ContextStats]) -> Sheet:
    """Return steps, computed, cached, block calls saved and seconds, a row per context and branch."""
    pruned = any(branch.pruned_steps for context in stats for branch in context.branches)
    columns = ["context", "branch", "steps", "computed", "cached", "pruned", "calls saved", "seconds"]
    rows = []
    for context, branch in _branches(stats):
        computed = branch.steps - len(branch.cached_steps) - len(branch.pruned_steps)
        rows.append([*_names(stats, context, branch), *_row(branch.rows, computed)])
    if len(rows) > 1:
        every = [row for context in stats for row in context.rows]
        rows.append(["all", "", *_row(every, sum(row.decision == "compute" and not row.saved for row in every))])
    return Sheet(*_without("pruned" if not pruned else "", columns, rows), words=2, headed=True)


def _row(rows: Sequence[Row], computed: int) -> list[str]:
    cached = sum(row.decision == "reuse" for row in rows)
    counts = [len(rows), computed, cached, len(rows) - computed - cached]
    return [*map(str, counts), _percent(_share(rows)), number(_seconds(rows), 2)]


def _without(name: str, columns: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    if name not in columns:
        return columns, rows
    place = columns.index(name)
    return columns[:place] + columns[place + 1 :], [row[:place] + row[place + 1 :] for row in rows]


def differences_of(rows: Iterable[Row]) -> dict[str, float | None]:
    """Return the percentiles of the measured differences, all None if there are none."""
    measured = [row.diff for row in rows if row.diff is not None and math.isfinite(row.diff)]
    return {name: percentile(measured, share) for name, share in _SHARES.items()}


def differences(stats: Sequence[ContextStats]) -> Sheet | None:
    """Return the percentiles of the differences, a row per context and branch; None if none was measured."""
    found = [differences_of(branch.rows) for _, branch in _branches(stats)]
    if all(shares["max"] is None for shares in found):
        return None
    rows = [
        [*_names(stats, context, branch), str(len(branch.cached_steps)), *map(number, shares.values())]
        for (context, branch), shares in zip(_branches(stats), found, strict=True)
    ]
    return Sheet(["context", "branch", "cached steps", *_SHARES], rows, words=2, headed=True)


def steps_sheet(branch: BranchStats) -> Sheet:
    """Return a row per step: what was decided, why, what was measured, and what a forecast was or would have been."""
    columns = ["step", "decision", "reason", "calibrator", "difference", "distance", "audit", "ms"]
    rows = []
    for row in branch.rows:
        pruned = row.decision == "compute" and row.saved > 0
        decision = f"pruned {row.saved} of {row.computed + row.saved}" if pruned else row.decision
        diff = number(row.diff)
        if row.diff is not None and row.threshold is not None:
            diff += f" {'<' if row.diff < row.threshold else '≥'} {number(row.threshold)}"
        distance = _NONE if row.distance is None else f"{row.distance:.3g}"
        measured = [row.calibrator or _NONE, diff, distance, number(row.audit), number(row.ms, 1)]
        rows.append([str(row.step), decision, row.reason, *measured])
    return Sheet(columns, rows, words=4)


def _branches(stats: Sequence[ContextStats]) -> list[tuple[ContextStats, BranchStats]]:
    return [(context, branch) for context in stats for branch in context.branches]


def _names(stats: Sequence[ContextStats], context: ContextStats, branch: BranchStats) -> list[str]:
    again = branch is not context.branches[0]
    return ["" if again else labels(entry.name for entry in stats)[context.name], branch.name]


# ---- sentences


def headline(stats: Sequence[ContextStats], seconds: float | None = None) -> str:
    """Return what was saved in one line; ``seconds`` is the whole generation's wall time."""
    rows = [row for context in stats for row in context.rows]
    calls = sum(row.computed + row.saved for row in rows)
    saved = f"saved {sum(row.saved for row in rows)} of {calls} block calls ({_percent(_share(rows))})"
    return saved if seconds is None else f"{saved} in {number(seconds, 2)} s"


def why_nothing_cached(stats: Sequence[ContextStats]) -> str | None:
    """Return the cause and what to change if no block call was saved; None if one was."""
    rows = [row for context in stats for row in context.rows]
    if not rows:
        return "nothing was cached: no cached block was called"
    if any(row.saved for row in rows):
        return None
    # The rule that comes last in the order of the rules is the one that stood in the way once the others had not.
    reached = {row.reason for row in rows}
    settings = [context.info.settings for context in stats if context.info is not None]
    cause = next((text for reason, text in _CAUSES if reason in reached), f"every step computed ({rows[-1].reason})")
    if "threshold" in reached:
        cause = _threshold_cause([row for row in rows if row.reason == "threshold"], settings)
    elif reached == {"no-history"} and len({row.step for row in rows}) > 1:
        cause = "what was stored never fitted the next step: its shape, dtype, device or batch had changed"
    return f"nothing was cached: {cause}"


_CAUSES = (
    ("guard", "no forecast was sound enough; choose the calibrator hold"),
    ("max-continuous", "cache.max_continuous_cached_steps is 0; raise it, -1 is no limit"),
    ("max-cached", "cache.max_cached_steps is 0; raise it, -1 is no limit"),
    ("budget", "the budget, or what the speed-up allows, is every step; lower cache.budget or raise cache.speedup"),
    ("mask", "the steps mask computes every step that is no warm-up; choose a faster policy or more cached steps"),
    ("warmup", "every step was a warm-up step; lower cache.max_warmup_steps or take more steps"),
    ("no-middle", "no block lies between front and back; lower cache.Fn_compute_blocks or cache.Bn_compute_blocks"),
    ("no-history", "the first step always computes, and there was no other"),
)


def _threshold_cause(rows: Sequence[Row], settings: Sequence[Mapping[str, Any]]) -> str:
    shared = [float(value) for entry in settings if (value := entry.get("residual_diff_threshold")) is not None]
    measured = [(row.diff, row.threshold) for row in rows if row.diff is not None and math.isfinite(row.diff)]
    if not measured:
        if min(shared, default=1.0) <= 0:
            return "cache.residual_diff_threshold is not above 0, so every step computes; 0.08 is a start"
        return "no difference could be measured, because the model's values are not finite"
    diff, threshold = min(measured, key=lambda pair: pair[0])
    limit = max(shared, default=None) if threshold is None else threshold
    against = "" if limit is None else f", the threshold {limit:g}"
    return (
        f"the smallest difference was {number(diff)}{against}; raise cache.residual_diff_threshold "
        f"above {_rounded_up(diff):g}, or let a static steps mask decide"
    )


def _rounded_up(value: float) -> float:
    """Return the next number with two digits."""
    if value <= 0:
        return 0.01
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / unit) * unit
