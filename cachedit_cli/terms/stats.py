"""The decision log: one row a step, context and branch, as plain data, and what can be read from it.

Knows no torch, no files and no tables. Everything that reports (summary, stats, compare, tune) reads only this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

__all__ = ["BranchStats", "ContextInfo", "ContextStats", "DecisionLog", "Reset", "Row", "collect", "percentile"]

Decision = Literal["compute", "reuse"]


class Scalar(Protocol):
    """A number that may still be on its way from a device."""

    def item(self) -> float: ...


class Audited(Protocol):
    """Errors of forecasts that may still be on their way from a device."""

    @property
    def distance(self) -> float: ...

    @property
    def used(self) -> str: ...

    def error_of_used(self) -> float | None: ...

    def errors(self) -> dict[str, float | None]: ...


@dataclass(slots=True)
class Row:
    """What one context did in one step of one branch. Unknown is None."""

    generation: int
    step: int
    context: str
    branch: str
    decision: Decision
    reason: str
    diff: float | None = None  # relative L1 difference that was measured
    threshold: float | None = None  # what it was compared with
    audit: float | None = None  # relative L1 error of the forecast that a computed step could have used
    audits: dict[str, float | None] | None = None  # the same of each calibrator that was tried, by name
    calibrator: str | None = None  # what made the forecast, or would have
    distance: float | None = None  # steps that the forecast reaches, from the last computed one
    computed: int = 0  # block calls made
    saved: int = 0  # block calls not made (reused or pruned)
    ms: float | None = None  # from the first block's call to the last block's return
    bytes: int = 0  # held by this context and branch after the step


@dataclass(slots=True)
class Reset:
    """Stored state that was dropped, and why."""

    generation: int
    step: int
    context: str
    branch: str
    reason: str


@dataclass(slots=True)
class ContextInfo:
    """One cached unit of blocks: what it is and the settings in force."""

    name: str  # path of the block list, 'transformer.transformer_blocks'; joined lists are linked with '+'
    model: str  # class of the transformer
    block: str  # class of the blocks
    pattern: str  # 'Pattern_1', or 'x -> x' where a model names its streams otherwise
    blocks: int
    settings: dict[str, Any] = field(default_factory=dict)  # cache and calibrator settings as plain data
    notes: list[str] = field(default_factory=list)  # settings that were adapted to this model


@dataclass
class DecisionLog:
    """Rows in the order in which they happened, for any number of generations."""

    contexts: list[ContextInfo] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    resets: list[Reset] = field(default_factory=list)
    listener: Callable[[Row], None] | None = None  # told of each row as it happens
    # Shown what was computed: context, branch, step, the middle's change of the denoised stream, and the front's where
    # it is compared. The tensors are the cache's own: to be read, and not to be changed.
    observer: Callable[[str, str, int, Any, Any], None] | None = None
    _pending: list[tuple[Row, Audited | None, Scalar | None]] = field(default_factory=list, repr=False)

    def add(self, row: Row, audit: Audited | None = None, ms: Scalar | None = None) -> None:
        """Append a row; audited errors and a time still on a device are fetched when the log is read."""
        self.rows.append(row)
        if audit is not None or ms is not None:
            self._pending.append((row, audit, ms))
        if self.listener is not None:
            self.listener(row)

    def settle(self) -> None:
        """Fetch the numbers that were left on the device."""
        for row, audit, ms in self._pending:
            if audit is not None:
                row.audit, row.audits = audit.error_of_used(), audit.errors()
                row.distance, row.calibrator = audit.distance, audit.used
            if ms is not None:
                row.ms = float(ms.item())
        self._pending.clear()

    def generation(self, number: int | None = None) -> list[Row]:
        """Return the rows of one generation, the last by default."""
        self.settle()
        if number is None:
            number = self.rows[-1].generation if self.rows else 0
        return [row for row in self.rows if row.generation == number]

    def clear(self) -> None:
        """Forget all rows and resets; the contexts stay."""
        self.rows.clear()
        self.resets.clear()
        self._pending.clear()

    def as_dict(self) -> dict[str, Any]:
        """Return contexts, rows and resets as plain data for JSON."""
        self.settle()
        return {
            "contexts": [asdict(info) for info in self.contexts],
            "rows": [asdict(row) for row in self.rows],
            "resets": [asdict(reset) for reset in self.resets],
        }


@dataclass(slots=True)
class BranchStats:
    """One branch of one context over one generation."""

    name: str
    rows: list[Row]

    @property
    def steps(self) -> int:
        return len(self.rows)

    @property
    def cached_steps(self) -> list[int]:
        """Steps whose middle blocks were all reused."""
        return [row.step for row in self.rows if row.decision == "reuse"]

    @property
    def pruned_steps(self) -> list[int]:
        """Steps in which at least one block, but not the middle as a whole, was pruned."""
        return [row.step for row in self.rows if row.decision == "compute" and row.saved]

    @property
    def pruned_blocks(self) -> dict[int, int]:
        """Pruned blocks per step; empty for DBCache."""
        return {row.step: row.saved for row in self.rows if row.decision == "compute" and row.saved}

    @property
    def residual_diffs(self) -> dict[int, float]:
        """Measured difference per step, where one was measured."""
        return {row.step: row.diff for row in self.rows if row.diff is not None}


@dataclass(slots=True)
class ContextStats:
    """One context over one generation; the second branch is what the spec calls the CFG steps."""

    name: str
    info: ContextInfo | None
    branches: list[BranchStats]

    @property
    def rows(self) -> list[Row]:
        return [row for branch in self.branches for row in branch.rows]

    @property
    def cached_steps(self) -> list[int]:
        return self.branches[0].cached_steps if self.branches else []

    @property
    def residual_diffs(self) -> dict[int, float]:
        return self.branches[0].residual_diffs if self.branches else {}

    @property
    def pruned_steps(self) -> list[int]:
        return self.branches[0].pruned_steps if self.branches else []

    @property
    def pruned_blocks(self) -> dict[int, int]:
        return self.branches[0].pruned_blocks if self.branches else {}

    @property
    def cfg_cached_steps(self) -> list[int]:
        return self.branches[1].cached_steps if len(self.branches) > 1 else []

    @property
    def cfg_residual_diffs(self) -> dict[int, float]:
        return self.branches[1].residual_diffs if len(self.branches) > 1 else {}

    @property
    def cfg_pruned_steps(self) -> list[int]:
        return self.branches[1].pruned_steps if len(self.branches) > 1 else []

    @property
    def cfg_pruned_blocks(self) -> dict[int, int]:
        return self.branches[1].pruned_blocks if len(self.branches) > 1 else {}

    @property
    def block_calls(self) -> int:
        """Block calls that the model would make without caching."""
        return sum(row.computed + row.saved for row in self.rows)

    @property
    def saved(self) -> int:
        return sum(row.saved for row in self.rows)

    @property
    def saved_share(self) -> float:
        """Block calls saved, 0 to 1; the pruned ratio of DBPrune."""
        return self.saved / self.block_calls if self.block_calls else 0.0

    @property
    def seconds(self) -> float | None:
        times = [row.ms for row in self.rows if row.ms is not None]
        return sum(times) / 1000 if times else None


def collect(rows: Iterable[Row], contexts: Iterable[ContextInfo] = ()) -> list[ContextStats]:
    """Group the rows of one generation by context and branch, in the order of first appearance.

    Where the settings say that guidance is computed first, the branch that is first in a step with two is the second.
    """
    rows, infos = list(rows), {info.name: info for info in contexts}
    grouped: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        grouped.setdefault(row.context, {}).setdefault(row.branch, []).append(row)
    found = []
    for name, branches in grouped.items():
        info = infos.get(name)
        stats = ContextStats(name, info, [BranchStats(branch, mine) for branch, mine in branches.items()])
        if info is not None and info.settings.get("cfg_compute_first"):
            first = _first_of_two(row for row in rows if row.context == name)
            stats.branches.sort(key=lambda branch: branch.name == first)
        found.append(stats)
    return found


def _first_of_two(rows: Iterable[Row]) -> str | None:
    """Return the branch that comes first in the first step with more than one."""
    before: Row | None = None
    for row in rows:
        if before is not None and row.step == before.step and row.branch != before.branch:
            return before.branch
        before = row
    return None


def percentile(values: Iterable[float], share: float) -> float | None:
    """Return the percentile (share from 0 to 1) by linear interpolation; None for no values."""
    ordered = sorted(values)
    if not ordered:
        return None
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)
