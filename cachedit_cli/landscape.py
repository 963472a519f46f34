"""What a few uncached generations tell of every schedule: how alike the changes of any two steps are.

A forecast is a weighted sum of earlier changes, so that its squared error is a quadratic form in their inner products.
One matrix of inner products a context and branch thus prices every calibrator on every schedule, without another
forward. Knows tensors while a generation is watched, and numbers afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[numpy.float64]

__all__ = ["Landscape", "Part", "Watch"]

_KEPT = 2**30  # bytes of a generation's changes that are kept at once; of larger ones every n-th token


@dataclass
class Part:
    """One context and branch. Steps in which it did not run are NaN.

    Attributes:
        alike: Inner products of the middle's changes at two steps, over the mean squared norm of the steps; the mean of
            all generations.
        moved: Relative L1 difference of the front's change at the later step to that at the earlier one.
    """

    alike: Matrix
    moved: Matrix


@dataclass
class Landscape:
    """All contexts and branches, over a number of steps."""

    steps: int
    generations: int = 0
    parts: dict[tuple[str, str], Part] = field(default_factory=dict)

    def add(self, parts: Mapping[tuple[str, str], Part]) -> None:
        """Take one more generation into the means."""
        count = self.generations
        for name, part in parts.items():
            known = self.parts.get(name)
            if known is None:
                self.parts[name] = part
            else:
                known.alike = (known.alike * count + part.alike) / (count + 1)
                known.moved = (known.moved * count + part.moved) / (count + 1)
        self.generations += 1


class Watch:
    """Keeps what a generation computes, as the decision log's ``observer``."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._changes: dict[tuple[str, str], dict[int, tuple[Any, Any]]] = {}

    def __call__(self, context: str, branch: str, step: int, change: Any, front: Any) -> None:
        """Take one step of one branch."""
        if change is None or step >= self._steps:
            return
        every = max(1, -(-change.nbytes * self._steps // _KEPT))
        kept = tuple(None if each is None else each[..., ::every, :].flatten().float() for each in (change, front))
        self._changes.setdefault((context, branch), {})[step] = (kept[0], kept[1])

    def parts(self) -> dict[tuple[str, str], Part]:
        """Return what was kept as numbers."""
        return {name: self._part(changes) for name, changes in self._changes.items()}

    def _part(self, changes: Mapping[int, tuple[Any, Any]]) -> Part:
        alike = numpy.full((self._steps, self._steps), numpy.nan)
        moved = numpy.full((self._steps, self._steps), numpy.nan)
        for later, (change, front) in changes.items():
            for earlier, (other, front_before) in changes.items():
                if earlier > later:
                    continue
                alike[later, earlier] = alike[earlier, later] = float((change * other).sum())
                if front is not None and front_before is not None and front.shape == front_before.shape:
                    moved[earlier, later] = float((front - front_before).abs().sum() / front_before.abs().sum())
        return Part(alike / numpy.nanmean(numpy.diagonal(alike)), moved)
