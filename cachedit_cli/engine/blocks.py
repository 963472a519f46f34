"""DBCache: front, decision, middle computed or forecast, back.

Knows tensors and what a middle block returns; the walk through the blocks is the runner's matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..calibrators import HOLD
from ..errors import InputError, RunError
from ..patches import Call
from ..snapshots import Apart, Calibration, Snapshots, copied, l1
from ..terms.config import CacheConfig
from ..terms.pattern import Slot, nearest, pack, unpack
from ..terms.stats import DecisionLog, Reset
from .decide import Verdict, by_budget, by_difference
from .runner import Context, Pass, Runner, States, Unit

__all__ = ["BlockCache"]


@dataclass(kw_only=True)
class BlockContext(Context):
    """What DBCache keeps."""

    snapshots: Snapshots
    front: Tensor | None = None  # change over the front blocks at the last computed step
    front_norm: Tensor | None = None
    form: Any = None  # how a middle block packs its output: None in place of each stream, further items kept

    @property
    def nbytes(self) -> int:
        return self.snapshots.nbytes + (self.front.nbytes if self.front is not None else 0)

    @property
    def history(self) -> bool:
        return bool(self.snapshots)


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
        static = config.planned and config.steps_computation_policy == "static"
        self._measures = self._front > 0 and not static and 0 < config.residual_diff_threshold < 1

    def _new_context(self) -> BlockContext:
        return BlockContext(snapshots=Snapshots(self._calibration, self.unit.streams.main, self.unit.total))

    def drop(self, generation: int, step: int, reason: str | None) -> None:
        super().drop(generation, step, reason)
        self._base, self._held, self._forecast, self._shared = {}, None, None, None

    def _close(self) -> None:
        if self._held is not None:
            raise RunError(
                f"{self.unit.name}: the model left out the last of the blocks that were to be reused, so that the "
                "forecast could not be put in; run this model without caching, or with a PatchFunctor"
            )
        super()._close()

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
            self._check(now.entry, state[main], output)
            with torch.no_grad():
                residual = self._sparse(state[main]) - self._sparse(now.entry[main])
                if now.verdict is None:
                    self._measure(now, residual)
        if now.verdict is not None:
            now.verdict = by_budget(self.config, self.mask, now.view, now.verdict)
        if now.verdict is not None and now.verdict.decision == "reuse":
            # The forecast is made now: what the loop does in place to the held states cannot reach it.
            snapshots, returns = context.snapshots, self.unit.streams.returns
            forecast, used = snapshots.forecast(state, context.k), snapshots.calibrator(context.k)
            if self.config.audit and self.leader is None and not snapshots.credible(forecast, state, context.k):
                now.verdict = by_budget(self.config, self.mask, now.view, Verdict("compute", "guard"))
                if now.verdict.decision == "reuse":  # nothing is left to compute it with
                    forecast, used = snapshots.forecast(state, context.k, HOLD), HOLD
            if now.verdict.decision == "reuse":
                now.used = str(used), snapshots.distance(context.k)
                self._forecast = pack(forecast, returns, context.form)
                self._held = output if output is not None else pack(copied(state, returns), returns, context.form)
                return
        self._base = self._apart.keep(state)
        if residual is not None:
            context.front, context.front_norm = residual, l1(residual)

    def _sparse(self, state: Tensor) -> Tensor:
        stride = self.config.diff_token_stride
        return state if stride == 1 or state.ndim < 2 else state[..., ::stride, :]

    def _check(self, entry: States, returned: Any, output: Any) -> None:
        """Refuse a pattern by which the blocks would return something else for the denoised stream than they take."""
        taken = entry[self.unit.streams.main]
        if not isinstance(returned, Tensor) or returned.shape != taken.shape:
            what = f"of shape {tuple(returned.shape)}" if isinstance(returned, Tensor) else "no tensor"
            streams = self.unit.streams
            raise InputError(
                f"{self.unit.name}: {streams} says that blocks return {streams.main} as value "
                f"{streams.returns.index(streams.main) + 1}, but they take one of shape {tuple(taken.shape)}, and what "
                f"they return there is {what}; {nearest(streams, entry, output)}"
            )

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
        diff = float(self.unit.ratio(l1(context.front - residual), context.front_norm).item())
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
            if self._log.observer is not None:
                tick, change = now.tick, context.snapshots.newest
                self._log.observer(self.unit.name, tick.branch, tick.step, change, context.front)
        except ValueError as error:  # nothing to reuse, so that the next step computes
            tick, context.snapshots = now.tick, self._new_context().snapshots
            self._log.resets.append(Reset(tick.generation, tick.step, self.unit.name, tick.branch, str(error)))
