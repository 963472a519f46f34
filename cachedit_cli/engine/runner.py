"""One cached unit of blocks: front, decision, middle computed or forecast, back.

Knows tensors and the order of block calls. Does not know which generation or branch it is in (``clock`` says so),
how it is attached to the blocks (``install``), or why to reuse (``decide``).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ..errors import RunError
from .clock import Tick
from .config import CacheConfig
from .decide import Verdict, View, by_difference, by_rule
from .pattern import Slot, Streams, pack, unpack
from .snapshots import Calibration, Snapshots, l1
from .stats import DecisionLog, Reset, Row

__all__ = ["Apart", "BlockCache", "Call", "Context", "Pass", "Runner", "Stopwatch", "Unit"]

Call = Callable[..., Any]
States = dict[str, Any]


@dataclass(frozen=True)
class Unit:
    """What a runner is told of its blocks.

    Attributes:
        name: Name of the context in log and tables.
        streams: What the blocks take and return.
        slots: Where each block finds the carried streams among its arguments.
    """

    name: str
    streams: Streams
    slots: Sequence[dict[str, Slot]]

    @property
    def count(self) -> int:
        return len(self.slots)


class Stopwatch:
    """Milliseconds from its making to ``stop``: by events on CUDA, which does not wait, else by the wall clock."""

    def __init__(self, device: torch.device | None) -> None:
        self._events: list[torch.Event] = []
        self.on_device = device is not None and device.type == "cuda"
        self._started = self._stopped = time.perf_counter()
        if self.on_device:
            self._mark()

    def _mark(self) -> None:
        event = torch.Event("cuda", enable_timing=True)
        event.record()
        self._events.append(event)

    def stop(self) -> None:
        self._stopped = time.perf_counter()
        if self.on_device:
            self._mark()

    def item(self) -> float:
        """Return the milliseconds; waits for the device where there is one."""
        if len(self._events) == 2:
            self._events[1].synchronize()
            return float(self._events[0].elapsed_time(self._events[1]))
        return (self._stopped - self._started) * 1000


@dataclass
class Context:
    """Stored state of one unit in one branch of one generation."""

    like: tuple[object, ...] = ()  # shape, dtype and device of the states that went in
    k: int = 0  # steps so far
    cached: int = 0
    in_a_row: int = 0
    held: int = 0  # bytes, as of the last step that changed them

    @property
    def nbytes(self) -> int:
        return 0

    @property
    def history(self) -> bool:
        return self.k > 0


ContextT = TypeVar("ContextT", bound=Context)


@dataclass
class Pass(Generic[ContextT]):
    """One walk through a unit's blocks."""

    tick: Tick
    context: ContextT
    entry: States  # streams before the first block
    watch: Stopwatch
    verdict: Verdict | None = None
    diff: float | None = None
    threshold: float | None = None
    audit: Tensor | None = None
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
        context.k = 1
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
            fresh.k, fresh.cached = context.k, context.cached
            context = self._contexts[key] = fresh
        elif context is None:
            context = self._contexts[key] = self._new_context()
        context.like = like
        main = entry[self.unit.streams.main]
        watch = Stopwatch(main.device if isinstance(main, Tensor) else None)
        now = self._pass = Pass(tick, context, entry, watch)
        step = context.k if self.own_steps else tick.step
        view = View(context.k, step, context.history, context.cached, context.in_a_row)
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
        if now.learned:
            context.held = context.nbytes
        row.bytes = context.held
        reused = now.saved > 0
        context.k += 1
        context.cached += reused
        context.in_a_row = context.in_a_row + 1 if reused else 0
        if now.watch.on_device:
            self._log.add(row, now.audit, now.watch)
        else:
            row.ms = now.watch.item()
            self._log.add(row, now.audit)


@dataclass
class BlockContext(Context):
    """What DBCache keeps."""

    snapshots: Snapshots = field(default_factory=lambda: Snapshots(Calibration(), ""))
    front: Tensor | None = None  # change over the front blocks at the last computed step
    front_norm: Tensor | None = None
    form: Any = None  # how a middle block packs its output: None in place of each stream, further items kept

    @property
    def nbytes(self) -> int:
        return self.snapshots.nbytes + (self.front.nbytes if self.front is not None else 0)

    @property
    def history(self) -> bool:
        return bool(self.snapshots)


def _copied(states: States, names: Sequence[str]) -> States:
    return {name: s.clone() if isinstance(s := states.get(name), Tensor) else s for name in names}


class Apart:
    """Keeps states from what a model does to them in place later on, with copies only where one was seen to do so.

    The first time they are copied and watched; where nothing changed them, references are enough from then on.
    """

    def __init__(self) -> None:
        self._copies: bool | None = None
        self._watched: list[tuple[Tensor, int | None]] = []

    def keep(self, states: States) -> States:
        tensors = [state for state in states.values() if isinstance(state, Tensor)]
        self._watched = [(tensor, None if tensor.is_inference() else tensor._version) for tensor in tensors]
        return states if self._copies is False else _copied(states, tuple(states))

    def intact(self) -> bool:
        """Return whether what was kept is still what it was; tensors of inference mode count as changed."""
        changed = any(version is None or tensor._version != version for tensor, version in self._watched)
        self._watched = []
        intact = self._copies is not False or not changed
        self._copies = changed or bool(self._copies)
        return intact


class BlockCache(Runner[BlockContext]):
    """DBCache: the front blocks are computed and compared, the middle is computed or forecast, the back is computed."""

    def __init__(self, unit: Unit, config: CacheConfig, calibration: Calibration, log: DecisionLog) -> None:
        super().__init__(unit, config, calibration, log)
        self._front = config.Fn_compute_blocks
        self._end = max(unit.count - config.Bn_compute_blocks, self._front)  # of the middle, exclusive
        self._base: States = {}  # streams after the front, in this pass
        self._held: Any = None  # what skipped blocks return; None while blocks are computed
        self._forecast: Any = None  # what the last skipped block returns
        self._apart = Apart()
        self._shared: tuple[int, int, float] | None = None  # generation, step and difference of the first branch
        static = config.steps_computation_mask is not None and config.steps_computation_policy == "static"
        self._measures = self._front > 0 and not static and 0 < config.residual_diff_threshold < 1

    def _new_context(self) -> BlockContext:
        return BlockContext(snapshots=Snapshots(self._calibration, self.unit.streams.main))

    def drop(self, generation: int, step: int, reason: str | None) -> None:
        super().drop(generation, step, reason)
        self._base, self._held, self._forecast, self._shared = {}, None, None, None

    def end(self) -> None:
        if self._held is not None:
            raise RunError(
                f"{self.unit.name}: the model left out the last of the blocks that were to be reused, so that the "
                "forecast could not be put in; run this model without caching, or with a PatchFunctor"
            )
        super().end()

    # ---- the calls that stand in for the blocks' own

    def wrap(self, index: int, inner: Call) -> Call:
        last = index == self.unit.count - 1
        if index == self._end - 1 and index >= self._front:
            call = self._last_middle(last, inner)
        elif self._front <= index < self._end:
            call = self._middle(inner)
        else:
            call = self._edge(index == self._front - 1, last, inner)
        return self._head(self.unit.slots[index], call) if index == 0 else call

    def _head(self, slots: dict[str, Slot], call: Call) -> Call:
        def head(*args: Any, **kwargs: Any) -> Any:
            self._open({name: slot.read(args, kwargs) for name, slot in slots.items()})
            now = self._pass
            if now is not None and self._front == 0:
                self._settle(now, now.entry, None)
            return call(*args, **kwargs)

        return head

    def _edge(self, decides: bool, last: bool, inner: Call) -> Call:
        returns = self.unit.streams.returns

        def edge(*args: Any, **kwargs: Any) -> Any:
            output = inner(*args, **kwargs)
            now = self._pass
            if now is not None:
                now.computed += 1
                if decides:
                    self._settle(now, unpack(output, returns), output)
                if last:
                    now.watch.stop()
            return output

        return edge

    def _middle(self, inner: Call) -> Call:
        def middle(*args: Any, **kwargs: Any) -> Any:
            now = self._pass
            if now is None:
                return inner(*args, **kwargs)
            if self._held is not None:
                now.saved += 1
                return self._held
            now.computed += 1
            return inner(*args, **kwargs)

        return middle

    def _last_middle(self, last: bool, inner: Call) -> Call:
        def last_middle(*args: Any, **kwargs: Any) -> Any:
            now = self._pass
            if now is None:
                return inner(*args, **kwargs)
            if self._held is None:
                now.computed += 1
                output = inner(*args, **kwargs)
                self._learn(now, output)
            else:
                now.saved += 1
                output, self._held, self._forecast = self._forecast, None, None
            self._base = {}
            if last:
                now.watch.stop()
            return output

        return last_middle

    # ---- deciding and learning

    def _settle(self, now: Pass[BlockContext], state: States, output: Any) -> None:
        """Decide what happens to the middle, ``state`` being the streams in front of it."""
        context, main = now.context, self.unit.streams.main
        if self._front == self._end:
            now.verdict = Verdict("compute", "no-middle")
            return
        residual = None
        if self.leader is not None:
            now.verdict = self._shared_verdict(context, self.leader)
        elif self._measures:
            with torch.no_grad():
                residual = self._sparse(state[main]) - self._sparse(now.entry[main])
                if now.verdict is None:
                    self._measure(now, residual)
        if now.verdict is not None and now.verdict.decision == "reuse":
            # The forecast is made now: what the loop does in place to the held states cannot reach it.
            returns = self.unit.streams.returns
            self._forecast = pack(context.snapshots.forecast(state, context.k), returns, context.form)
            self._held = output if output is not None else pack(_copied(state, returns), returns, context.form)
            return
        self._base = self._apart.keep(state)
        if residual is not None:
            context.front, context.front_norm = residual, l1(residual)

    def _sparse(self, state: Tensor) -> Tensor:
        stride = self.config.diff_token_stride
        return state if stride == 1 or state.ndim < 2 else state[..., ::stride, :]

    def _shared_verdict(self, context: BlockContext, leader: Runner[BlockContext]) -> Verdict:
        shared = leader.verdict
        if shared is None or (shared.decision == "reuse" and not context.history):
            raise RunError(
                f"{self.unit.name}: does not take turns with {leader.unit.name}; cache only one of the lists"
            )
        return shared

    def _measure(self, now: Pass[BlockContext], residual: Tensor) -> None:
        """Compare the front residual with the one of the last computed step."""
        context, tick, threshold = now.context, now.tick, self.config.residual_diff_threshold
        takes = not self.config.cfg_diff_compute_separate and not self.config.cfg_compute_first and tick.index > 0
        if takes and self._shared is not None:
            generation, step, diff = self._shared
            if (generation, step) == (tick.generation, tick.step):
                now.diff, now.threshold, now.verdict = diff, threshold, by_difference(diff, threshold)
                return
        if context.front is None or context.front_norm is None or context.front.shape != residual.shape:
            now.verdict = Verdict("compute", "no-history")
            return
        diff = float((l1(context.front - residual) / context.front_norm).item())
        now.diff, now.threshold, now.verdict = diff, threshold, by_difference(diff, threshold)
        self._shared = (tick.generation, tick.step, diff)

    def _learn(self, now: Pass[BlockContext], output: Any) -> None:
        context, returns = now.context, self.unit.streams.returns
        now.learned = True
        context.form = pack(dict.fromkeys(returns), returns, output)
        try:
            if not self._apart.intact():
                raise ValueError("the states in front of the middle were changed in place")
            with torch.no_grad():
                now.audit = context.snapshots.learn(self._base, unpack(output, returns), context.k, self.config.audit)
        except ValueError as error:  # nothing to reuse, so that the next step computes
            tick, context.snapshots = now.tick, Snapshots(self._calibration, self.unit.streams.main)
            self._log.resets.append(Reset(tick.generation, tick.step, self.unit.name, tick.branch, str(error)))
