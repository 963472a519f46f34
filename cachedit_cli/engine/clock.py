"""Which generation, step and branch a forward belongs to, from what the model is really called with.

Most reliable first: the pipeline's loop (a generation begins and ends with it), the name and step index of
``cache_context``, the ``timestep`` argument, the conditioning, and last the count of forwards. Knows nothing of blocks
and decisions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .loops import Loops

__all__ = ["Announced", "Clock", "Forward", "Tick"]

_MOST_BRANCHES = 16  # of one transformer in a step, where no pipeline bounds the generation
_TEXT = re.compile("encoder|text|prompt|context|cond|cap_|label|pooled")


@dataclass(frozen=True, slots=True)
class Tick:
    """Where a forward stands.

    Attributes:
        generation: Counted from 0 over the life of the installation.
        step: Denoising step of the generation, from 0.
        branch: Name of the branch.
        index: Order of the branch among its transformer's branches, from 0.
    """

    generation: int
    step: int
    branch: str
    index: int


@dataclass(frozen=True, slots=True)
class Announced:
    """What the pipeline said of the forward through ``cache_context``."""

    name: str
    step_index: int | None = None


@dataclass(frozen=True, slots=True)
class Forward:
    """What one forward of a transformer is called with.

    Attributes:
        moment: The time as a number; None if the model is not told.
        announced: Name given by ``cache_context``; None if there is none.
        flags: Arguments that are no tensors and have to be equal within a branch.
        marks: Conditioning tensors by name, which tell branches apart.
        sample: The noisy input.
    """

    moment: float | None
    announced: str | None
    flags: tuple[object, ...]
    marks: dict[str, Tensor]
    sample: object


def _alias(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are the same memory; marks hold theirs, so that an address is not used again."""
    return a is b or (a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride())


def _same(a: Tensor, b: Tensor) -> bool:
    """Compare contents, but only where addresses differ."""
    if _alias(a, b):
        return True
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and bool(torch.equal(a, b))


@dataclass
class Branch:
    """One branch of one transformer: what it was called with."""

    name: str
    index: int
    announced: str | None
    flags: tuple[object, ...]
    marks: dict[str, Tensor]
    sample: object  # of its first step, until it is confirmed
    confirmed: bool = False  # seen twice, so that the marks left are those that do not move

    def equal(self, marks: Mapping[str, Tensor]) -> list[str]:
        """Return the names of this branch's marks that the forward has as well."""
        return [name for name, mark in self.marks.items() if name in marks and _same(mark, marks[name])]

    def speaks_otherwise(self, marks: Mapping[str, Tensor]) -> bool:
        """Return whether a forward has another text: of another shape, or further away than one step moves."""
        texts = [(mark, marks[name]) for name, mark in self.marks.items() if name in marks and _TEXT.search(name)]
        moved = [(a, b) for a, b in texts if not _alias(a, b)]
        return any(_distance(a, b) > 0.5 * float(a.float().abs().mean()) for a, b in moved)

    def confirm(self, marks: Mapping[str, Tensor]) -> None:
        if not self.confirmed:
            self.marks = {name: self.marks[name] for name in self.equal(marks)}
            self.confirmed, self.sample = True, None


def _distance(a: object, b: object) -> float:
    """Return how far apart two samples are, which may be lists of tensors; infinite if they cannot be compared."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return sum(_distance(x, y) for x, y in zip(a, b, strict=True))
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape != b.shape:
        return 0.0 if a is b else math.inf
    return float((a.float() - b.float()).abs().mean().item())


@dataclass
class Branches:
    """The branches of one transformer in this generation, and which of them this step has seen."""

    known: list[Branch] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    calls: int = 0

    def continued(self, call: Forward) -> Branch | None:
        """Return the branch that this forward takes a step further, if any waits for one."""
        waiting = [b for b in self.fitting(call) if b.name not in self.seen]
        if call.announced is not None:
            return waiting[0] if waiting else None
        if len(self.known) == 1 and waiting and not waiting[0].confirmed:
            # The second step of what may be the only branch: what moves is no mark, but another text is.
            return None if waiting[0].speaks_otherwise(call.marks) else waiting[0]
        scores = {b.name: len(b.equal(call.marks)) for b in waiting}
        waiting = [b for b in waiting if not b.confirmed or scores[b.name] == len(b.marks)]
        best = max(scores.values(), default=0)
        waiting = [b for b in waiting if b.confirmed or scores[b.name] == best]
        if len(waiting) > 1:
            # Nothing but the sample is left to tell new ones apart: a step moves it less than another seed would.
            sure = [b for b in waiting if b.confirmed]
            waiting = sure or sorted(waiting, key=lambda b: _distance(b.sample, call.sample))
        return waiting[0] if waiting else None

    def repeated(self, call: Forward) -> Branch | None:
        """Return the branch that this step has seen already, called with the same conditioning."""
        found = (b for b in self.fitting(call) if b.name in self.seen)
        return next((b for b in found if call.announced is not None or len(b.equal(call.marks)) == len(b.marks)), None)

    def fitting(self, call: Forward) -> list[Branch]:
        return [b for b in self.known if b.announced == call.announced and b.flags == call.flags]

    def add(self, call: Forward) -> Branch:
        """Make a new branch, named as announced or by its number."""
        index = len(self.known)
        name = call.announced or str(index)
        if any(branch.name == name for branch in self.known):
            name = f"{name}/{index}"
        branch = Branch(name, index, call.announced, call.flags, call.marks, call.sample)
        self.known.append(branch)
        return branch


class Clock:
    """Counts generations and steps over all transformers of one installation, and branches for each of them."""

    def __init__(self, loops: Loops) -> None:
        self.generation = -1
        self.step = 0
        self._loops = loops
        self._schedule: object = None  # that the scheduler made for this generation
        self._moment: float | None = None
        self._rising: bool | None = None  # whether the time grows from step to step; unknown before the second
        self._branches: dict[int, Branches] = {}
        self._fresh = True

    def restart(self) -> None:
        """Let the next forward begin a generation."""
        self._fresh = True
        self._branches.clear()

    def tick(self, model: int, call: Forward, steps: int | None, separate_cfg: bool) -> Tick:
        """Place a forward of transformer ``model``.

        Args:
            model: Identity of the transformer.
            call: What it is called with.
            steps: Steps of a generation if known.
            separate_cfg: Where nothing else tells: every second forward is the guidance branch.
        """
        schedule = self._loops.schedule()
        if self._fresh or schedule is not self._schedule:
            self._begin(call.moment)
        self._schedule = schedule
        if call.moment is not None and call.moment != self._moment:
            self._move(call.moment, steps if self._loops.now is None else None)
        branches = self._branches.setdefault(model, Branches())
        if call.moment is None and call.announced is None:
            branch = self._count(model, steps, separate_cfg, call)
        else:
            branch = self._match(model, branches, call, steps)
        self._branches[model].seen.add(branch.name)
        return Tick(self.generation, self.step, branch.name, branch.index)

    def _begin(self, moment: float | None) -> None:
        self.generation += 1
        self.step = 0
        self._moment, self._rising, self._fresh = moment, None, False
        self._branches.clear()

    def _advance(self) -> None:
        self.step += 1
        for branches in self._branches.values():
            branches.seen.clear()

    def _move(self, moment: float, most: int | None) -> None:
        if self._moment is None:
            self._moment = moment
            return
        rising = moment > self._moment
        if most is not None and self.step + 1 >= most:
            self._begin(moment)
        elif self._rising is None or rising == self._rising:
            self._rising, self._moment = rising, moment
            self._advance()
        else:  # time turned back: another generation
            self._begin(moment)

    def _match(self, model: int, branches: Branches, call: Forward, steps: int | None) -> Branch:
        found = branches.continued(call)
        if found is None:
            repeat = branches.repeated(call)
            again = repeat is not None and (
                # A second call at the first time is another branch (a tile, say) unless it is the same in everything.
                self.step > 0 or call.moment is None or _distance(repeat.sample, call.sample) == 0
            )
            if again or (self._loops.now is None and len(branches.known) >= _MOST_BRANCHES):
                if not again or (steps is not None and self.step + 1 >= steps):
                    self._begin(call.moment)
                    branches = self._branches.setdefault(model, Branches())
                else:
                    self._advance()
                    found = repeat
        if found is None:
            return branches.add(call)
        found.confirm(call.marks)
        return found

    def _count(self, model: int, steps: int | None, separate_cfg: bool, call: Forward) -> Branch:
        per_step = 2 if separate_cfg else 1
        branches = self._branches[model]
        if steps is not None and branches.calls >= steps * per_step:
            self._begin(None)
            branches = self._branches.setdefault(model, Branches())
        index = branches.calls % per_step
        self.step = branches.calls // per_step
        branches.calls += 1
        while len(branches.known) <= index:
            branches.add(call)
        return branches.known[index]
