"""One unit of blocks: follows a walk through it, asks the rules, and writes a row for the log.

Knows tensors and the order of block calls. Does not know which generation or branch it is in (``clock`` says so),
how it is attached to the blocks (``install``), or why to reuse (``decide``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from ..audit import Mean, Score
from ..patches import Call
from ..snapshots import Calibration
from ..stopwatch import Stopwatch
from ..terms.config import CacheConfig
from ..terms.pattern import Slot, Streams
from ..terms.stats import DecisionLog, Reset, Row
from .clock import Tick
from .decide import Verdict, View, by_rule

__all__ = ["Context", "Pass", "Runner", "States", "Unit"]

States = dict[str, Any]


@dataclass(frozen=True)
class Unit:
    """What a runner is told of its blocks.

    Attributes:
        name: Name of the context in log and tables.
        streams: What the blocks take and return.
        slots: Where each block finds the carried streams among its arguments.
        ratio: Divides two sums over a sample, of which several processes may hold parts.
        total: Makes sums over a part of the sample sums over all of it.
    """

    name: str
    streams: Streams
    slots: Sequence[dict[str, Slot]]
    ratio: Callable[[Tensor, Tensor], Tensor]
    total: Callable[[Tensor], Tensor]

    @property
    def count(self) -> int:
        return len(self.slots)


@dataclass
class Context:
    """Stored state of one unit in one branch of one generation."""

    like: tuple[object, ...] = ()  # shape, dtype and device of the states that went in
    k: int = 0  # steps so far
    cached: int = 0
    in_a_row: int = 0
    planned: int = 0  # steps that the mask had planned to compute so far
    held: int = 0  # bytes, as of the last step that changed them

    @property
    def nbytes(self) -> int:
        return 0

    @property
    def history(self) -> bool:
        return self.k > 0

    @property
    def ahead(self) -> int:
        """Steps computed beyond those that were planned."""
        return self.k - self.cached - self.planned


ContextT = TypeVar("ContextT", bound=Context)


@dataclass
class Pass(Generic[ContextT]):
    """One walk through a unit's blocks."""

    tick: Tick
    context: ContextT
    entry: States  # streams before the first block
    watch: Stopwatch
    view: View
    verdict: Verdict | None = None
    diff: float | None = None
    threshold: float | None = None
    audit: Score | Mean | None = None
    used: tuple[str, float] | None = None  # calibrator of the forecast that was made, and how far it reaches
    computed: int = 0
    saved: int = 0
    learned: bool = False  # what is kept has changed


def _likeness(states: States) -> tuple[object, ...]:
    return tuple((s.shape, s.dtype, s.device) if isinstance(s, Tensor) else None for s in states.values())


class Runner(ABC, Generic[ContextT]):
    """Follows the calls of a unit's blocks and keeps a context per branch. What to reuse is its subclasses' matter."""

    def __init__(self, unit: Unit, config: CacheConfig, calibration: Calibration, log: DecisionLog) -> None:
        self.unit = unit
        self.config = config
        self._calibration = calibration
        self._log = log
        self.mask: Sequence[int] | None = None  # of this generation
        self.own_steps = False  # the mask counts the context's own steps, not the pipeline's
        self.leader: Runner[ContextT] | None = None  # whose decision is shared
        self.before: Runner[ContextT] | None = None  # of the transformer that took this generation's steps so far
        self._contexts: dict[tuple[str, int], ContextT] = {}
        self._tick: Tick | None = None  # None outside of a forward
        self._pass: Pass[ContextT] | None = None
        self._passes = 0  # walks through the blocks in this forward

    @abstractmethod
    def wrap(self, index: int, inner: Call) -> Call:
        """Return the call that stands in for block ``index``'s own call ``inner``."""

    @abstractmethod
    def _new_context(self) -> ContextT:
        """Return a context that knows nothing."""

    # ---- once a forward

    def plan(self, mask: Sequence[int] | None, own_steps: bool) -> None:
        """Take the mask of this generation; one that comes in its middle is charged with what was computed so far."""
        self.mask, self.own_steps = mask, own_steps
        for context in self._contexts.values():
            context.planned = sum(mask[: context.k]) if mask is not None else context.k

    def begin(self, tick: Tick) -> None:
        """A forward of the transformer starts."""
        self._tick, self._passes = tick, 0

    def end(self) -> None:
        """The forward returned."""
        self._close()
        self._tick = None

    def missed(self, tick: Tick) -> None:
        """Count a forward that ran before the blocks were wrapped: it computed all of them, and nothing was learned."""
        context = self._contexts[(tick.branch, 0)] = self._new_context()
        context.k = context.planned = 1
        row = Row(tick.generation, tick.step, self.unit.name, tick.branch, "compute", "no-history")
        row.computed = self.unit.count
        self._log.add(row)

    def drop(self, generation: int, step: int, reason: str | None) -> None:
        """Forget all branches and a forward in progress; a reason goes into the log."""
        for (branch, _), context in self._contexts.items():
            if reason is not None and context.history:
                self._log.resets.append(Reset(generation, step, self.unit.name, branch, reason))
        self._contexts.clear()
        self._tick = self._pass = None

    @property
    def saves(self) -> float:
        """Part of the blocks that a reused step leaves out."""
        return max(0, self.unit.count - self.config.Fn_compute_blocks - self.config.Bn_compute_blocks) / self.unit.count

    @property
    def nbytes(self) -> int:
        """Bytes kept between steps."""
        return sum(context.nbytes for context in self._contexts.values())

    @property
    def verdict(self) -> Verdict | None:
        """What was decided in the walk in progress."""
        return self._pass.verdict if self._pass is not None else None

    # ---- once a walk through the blocks

    def _open(self, entry: States) -> None:
        tick = self._tick
        if tick is None:
            return
        self._close()
        key = (tick.branch, self._passes)
        self._passes += 1
        context = self._contexts.get(key)
        like = _likeness(entry)
        if context is not None and context.like != like:
            if context.history:
                self._log.resets.append(Reset(tick.generation, tick.step, self.unit.name, tick.branch, "shape"))
            fresh = self._new_context()
            fresh.k, fresh.cached, fresh.planned = context.k, context.cached, context.planned
            context = self._contexts[key] = fresh
        elif context is None:
            context = self._contexts[key] = self._new_context()
            earlier = self.before._contexts.get(key) if self.before is not None else None
            context.planned = -earlier.ahead if earlier is not None else 0
        context.like = like
        main = entry[self.unit.streams.main]
        watch = Stopwatch(main.device if isinstance(main, Tensor) else None)
        step = context.k if self.own_steps else tick.step
        view = View(context.k, step, context.history, context.cached, context.in_a_row, context.ahead)
        now = self._pass = Pass(tick, context, entry, watch, view)
        now.verdict = by_rule(self.config, self.mask, view) if self.leader is None else None
        if now.verdict is not None and now.verdict.reason == "threshold":
            now.threshold = self.config.residual_diff_threshold

    def _close(self) -> None:
        now = self._pass
        if now is None:
            return
        self._pass = None
        context, tick, verdict = now.context, now.tick, now.verdict or Verdict("compute", "incomplete")
        row = Row(tick.generation, tick.step, self.unit.name, tick.branch, verdict.decision, verdict.reason)
        row.diff, row.threshold, row.computed, row.saved = now.diff, now.threshold, now.computed, now.saved
        if now.used is not None:
            row.calibrator, row.distance = now.used
        if now.learned:
            context.held = context.nbytes
        row.bytes = context.held
        reused = now.saved > 0
        context.k += 1
        context.cached += reused
        context.planned += self.mask is None or now.view.step >= len(self.mask) or self.mask[now.view.step]
        context.in_a_row = context.in_a_row + 1 if reused else 0
        if now.watch.on_device:
            self._log.add(row, now.audit, now.watch)
        else:
            row.ms = now.watch.item()
            self._log.add(row, now.audit)
