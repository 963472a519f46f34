"""The best schedule for every number of computed steps, by a landscape: shortest paths over the steps.

A step that is reused costs the squared error of its forecast, times how much an error at that step hurts. There are two
objectives: the least sum, and the least largest stretch, then the least second largest and so on (the lexicographic
minimax of LeMiCa, arXiv 2511.00090). Knows numbers only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy

from .calibrators import Calibrator
from .landscape import Landscape

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Costs", "Objective", "Schedule", "best_schedules", "price", "profile", "simulated"]

Objective = Literal["sum", "minimax"]


class Schedule(NamedTuple):
    """A mask, and its price: the sum of the costs of its reused steps, over the number of steps."""

    mask: tuple[int, ...]
    price: float

    @property
    def computed(self) -> int:
        """Number of computed steps."""
        return sum(self.mask)


class Costs:
    """What reusing costs with one calibrator.

    Args:
        landscape: Of the model.
        calibrator: That forecasts.
        weights: How much an error at each step hurts.
    """

    def __init__(self, landscape: Landscape, calibrator: Calibrator, weights: Sequence[float]) -> None:
        self.steps = landscape.steps
        self.depth = calibrator.depth
        self._landscape = landscape
        self._calibrator = calibrator
        self._weights = numpy.asarray(weights)
        self._known: dict[tuple[int, ...], NDArray[numpy.float64]] = {}

    def after(self, history: tuple[int, ...]) -> NDArray[numpy.float64]:
        """Return the cost of reusing the first, the first two, ... steps after the last of ``history``.

        ``history`` are computed steps, oldest first; the first of what is returned is 0, for reusing none.
        """
        key = history[-self.depth :]
        if key not in self._known:
            self._known[key] = numpy.concatenate([[0.0], numpy.cumsum(self._each(key))])
        return self._known[key]

    def _each(self, history: tuple[int, ...]) -> NDArray[numpy.float64]:
        steps = numpy.arange(history[-1] + 1, self.steps)
        total = numpy.zeros(len(steps))
        for part in self._landscape.parts.values():
            alike = part.alike
            # What a transformer did not see, it has no snapshots of; without any it computes, whatever the mask says.
            known = [step for step in reversed(history) if not numpy.isnan(alike[step, step])]
            if not known or not len(steps):
                continue
            table = [self._calibrator.weights(known, float(step)) for step in steps]
            weights = numpy.asarray(table, dtype=numpy.float64).reshape(len(steps), -1)
            used = numpy.asarray(known[: weights.shape[1]], dtype=numpy.intp)
            cross = (weights * alike[steps[:, None], used]).sum(1)
            square = ((weights @ alike[used[:, None], used]) * weights).sum(1)
            total += numpy.nan_to_num(numpy.maximum(numpy.diagonal(alike)[steps] - 2 * cross + square, 0.0))
        return numpy.asarray(total * self._weights[steps], dtype=numpy.float64)


def price(costs: Costs, mask: Sequence[int]) -> float:
    """Return a mask's price, as ``Schedule`` has it."""
    computed = [step for step, bit in enumerate(mask) if bit]
    ends = [*computed[1:], len(mask)]
    return sum(
        float(costs.after(tuple(computed[: place + 1]))[end - step - 1])
        for place, (step, end) in enumerate(zip(computed, ends, strict=True))
    ) / len(mask)


def best_schedules(costs: Costs, objective: Objective) -> dict[int, Schedule]:
    """Return the best schedule for each number of computed steps, from 1 to all.

    Exact for calibrators that use the last two snapshots; for deeper ones the steps before those are the best path's.
    """
    steps = costs.steps
    # Best paths by their last two steps: value and computed steps. The value is what the objective compares.
    layer: dict[tuple[int, ...], tuple[tuple[float, ...], tuple[int, ...]]] = {(0,): ((), (0,))}
    found: dict[int, Schedule] = {}
    for count in range(1, steps + 1):
        best = min((_with(value, _tail(costs, path), objective), path) for value, path in layer.values())[1]
        mask = tuple(int(step in set(best)) for step in range(steps))
        found[count] = Schedule(mask, price(costs, mask))
        following: dict[tuple[int, ...], tuple[tuple[float, ...], tuple[int, ...]]] = {}
        for value, path in layer.values():
            after = costs.after(path)
            for step in range(path[-1] + 1, steps):
                reached = _with(value, float(after[step - path[-1] - 1]), objective), (*path, step)
                key = (path[-1], step) if costs.depth > 1 else (step,)
                if key not in following or reached < following[key]:
                    following[key] = reached
        layer = following
    return found


def _tail(costs: Costs, path: tuple[int, ...]) -> float:
    return float(costs.after(path)[-1])


def _with(value: tuple[float, ...], stretch: float, objective: Objective) -> tuple[float, ...]:
    if objective == "sum":
        return (sum(value) + stretch,)
    return tuple(sorted((*value, stretch), reverse=True))


def profile(landscape: Landscape, calibrator: Calibrator, weights: Sequence[float]) -> list[float]:
    """Return how much each step suffers from being reused, for ``error_profile``; the mean is 1.

    That is its cost two steps after the last of consecutive computed steps, where a calibrator shows what it is worth.
    """
    costs = Costs(landscape, calibrator, weights)
    found = []
    for step in range(landscape.steps):
        last = max(step - 2, 0)
        history = tuple(range(max(0, last - calibrator.depth + 1), last + 1))
        after = costs.after(history)
        found.append(float(after[step - last] - after[step - last - 1]) if step > last else 0.0)
    found[0] = max(found[1:2] or [0.0])
    mean = sum(found) / len(found)
    return [round(each / mean, 4) if mean else 1.0 for each in found]


def simulated(landscape: Landscape, threshold: float, warmup: int) -> list[int]:
    """Return the steps that a threshold computes, going by the mean differences of the watched generations.

    A step counts as computed if any branch computes it.
    """
    mask = [0] * landscape.steps
    for part in landscape.parts.values():
        last: int | None = None
        for step in range(landscape.steps):
            if numpy.isnan(part.alike[step, step]):
                continue
            moved = numpy.nan if last is None else part.moved[last, step]
            if step < warmup or not moved < threshold:
                mask[step], last = 1, step
    return mask
