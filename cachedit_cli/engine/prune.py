"""DBPrune: decides block by block whether to compute it or to reuse what it did last."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..audit import Mean, Score
from ..patches import Call
from ..snapshots import Apart, Calibration, Snapshots, l1
from ..terms.config import DBPruneConfig
from ..terms.pattern import pack, unpack
from ..terms.stats import DecisionLog
from .decide import Verdict, by_difference
from .runner import Context, Pass, Runner, States, Unit

__all__ = ["BlockPrune"]

_FIRST = 5  # differences of a step that a relaxed threshold is made of


@dataclass
class Memory:
    """What is kept of one block: its input at its last computed step, and what it did."""

    snapshots: Snapshots
    before: Tensor | None = None
    norm: Tensor | None = None
    form: Any = None


@dataclass
class PruneContext(Context):
    """What DBPrune keeps."""

    memories: dict[int, Memory] = field(default_factory=dict)
    diffs: list[float] = field(default_factory=list)  # of this step, block by block
    scores: list[Score] = field(default_factory=list)  # likewise
    guarded: bool = False  # a block of this step was computed because its forecast was not credible

    @property
    def nbytes(self) -> int:
        held = self.memories.values()
        return sum(m.snapshots.nbytes + (m.before.nbytes if m.before is not None else 0) for m in held)

    @property
    def history(self) -> bool:
        return bool(self.memories)


class BlockPrune(Runner[PruneContext]):
    """Computes front, back and ``non_prune_block_ids``; of the others each block whose input has changed enough."""

    def __init__(self, unit: Unit, config: DBPruneConfig, calibration: Calibration, log: DecisionLog) -> None:
        super().__init__(unit, config, calibration, log)
        front, back = config.Fn_compute_blocks, unit.count - config.Bn_compute_blocks
        self._prunable = {i for i in range(front, back) if i not in set(config.non_prune_block_ids)}
        self._apart = Apart()
        self._relax = config.enable_dynamic_prune_threshold
        self._ratio = config.dynamic_prune_threshold_relax_ratio
        highest = config.max_dynamic_prune_threshold
        self._highest = 2 * config.residual_diff_threshold if highest is None else highest

    def _new_context(self) -> PruneContext:
        return PruneContext()

    def _open(self, entry: States) -> None:
        super()._open(entry)
        if self._pass is not None:  # nothing of a step that did not reach the last block
            context = self._pass.context
            context.diffs, context.scores, context.guarded = [], [], False

    def wrap(self, index: int, inner: Call) -> Call:
        slots, first, last = self.unit.slots[index], index == 0, index == self.unit.count - 1
        prunable = index in self._prunable

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._tick is None:
                return inner(*args, **kwargs)
            entry = {name: slot.read(args, kwargs) for name, slot in slots.items()} if first or prunable else {}
            if first:
                self._open(entry)
            now = self._pass
            if now is None:
                return inner(*args, **kwargs)
            output = self._prune(now, index, entry) if prunable else None
            if output is None:
                before = self._apart.keep(entry) if prunable else entry
                output = inner(*args, **kwargs)
                now.computed += 1
                if prunable and self._apart.intact():
                    self._learn(now, index, before, output)
            if last:
                self._finish(now)
            return output

        return call

    def _prune(self, now: Pass[PruneContext], index: int, entry: dict[str, Any]) -> Any:
        """Return the forecast of a block, or None to compute it."""
        context = now.context
        memory = context.memories.get(index)
        if memory is None or memory.before is None:
            return None
        if now.verdict is None:
            verdict = self._compare(now, memory, entry[self.unit.streams.main])
        else:
            verdict = now.verdict
        if verdict.decision == "compute":
            return None
        forecast = memory.snapshots.forecast(entry, context.k)
        if self.config.audit and not memory.snapshots.credible(forecast, entry, context.k):
            context.guarded = True
            return None
        now.saved += 1
        return pack(forecast, self.unit.streams.returns, memory.form)

    def _compare(self, now: Pass[PruneContext], memory: Memory, state: Tensor) -> Verdict:
        if memory.before is None or memory.norm is None or memory.before.shape != state.shape:
            return Verdict("compute", "no-history")
        diffs = now.context.diffs
        threshold = self._threshold(diffs)
        diff = float(self.unit.ratio(l1(memory.before - state.detach()), memory.norm).item())
        diffs.append(diff)
        now.threshold = threshold
        return by_difference(diff, threshold)

    def _threshold(self, diffs: list[float]) -> float:
        plain = self.config.residual_diff_threshold
        first = [diff for diff in diffs[:_FIRST] if diff > 0]
        if not self._relax or not first:
            return plain
        relaxed = self._ratio * sum(first) / len(first)
        return relaxed if plain < relaxed < self._highest else plain

    def _learn(self, now: Pass[PruneContext], index: int, entry: dict[str, Any], output: Any) -> None:
        context, streams = now.context, self.unit.streams
        now.learned = True
        memory = context.memories.get(index)
        if memory is None:
            memory = context.memories[index] = Memory(Snapshots(self._calibration, streams.main, self.unit.total))
        state = entry[streams.main]
        memory.form = pack(dict.fromkeys(streams.returns), streams.returns, output)
        with torch.no_grad():
            try:
                after = unpack(output, streams.returns)
                score = memory.snapshots.learn(entry, after, context.k, self.config.audit)
            except ValueError:  # a block that changes the shape cannot be pruned
                memory.before = None
                return
            memory.before, memory.norm = state.detach(), l1(state)
            if score is not None:
                context.scores.append(score)

    def _finish(self, now: Pass[PruneContext]) -> None:
        now.watch.stop()
        context = now.context
        if context.diffs:
            now.diff = sum(context.diffs) / len(context.diffs)
        if context.scores:
            now.audit = Mean(context.scores)
        reason = now.verdict.reason if now.verdict is not None else "threshold"
        now.verdict = Verdict("compute", "guard" if context.guarded and not now.saved else reason)
