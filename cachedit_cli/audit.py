"""The audit: what each forecast would have been worth on the steps where the truth is known, and what follows from it.

On a computed step every candidate calibrator's forecast is scored against what the blocks really did. The scores of one
context choose its calibrator (``auto``), and bound how far a forecast can be from the last computed change (the guard).
Knows norms and distances; a tensor is only waited for when its number is asked for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .calibrators import Calibrator

__all__ = ["Board", "Mean", "Score"]


class Score:
    """How far each candidate's forecast was from one computed change.

    Attributes:
        distance: Steps from the last computed step to this one.
        used: Name of the calibrator that a reused step would have taken here.
    """

    def __init__(self, candidates: Sequence[Calibrator], used: Calibrator, distance: float, norms: Tensor):
        self.candidates = candidates
        self.distance = distance
        self.used = str(used)
        self._read: list[float] | None = None
        self._there: torch.cuda.Event | None = None
        if norms.is_cuda:  # they travel now, so that nothing on the device is held until the log is read
            host = torch.empty(norms.shape, dtype=norms.dtype, pin_memory=True)
            stream, norms = torch.cuda.current_stream(norms.device), host.copy_(norms, non_blocking=True)
            self._there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._there.record(stream)
        self._norms = norms  # of the truth, then of what each missed

    def norms(self) -> list[float]:
        """Return the L1 norms of the computed change and of each candidate's miss; waits for the device once."""
        if self._read is None:
            if self._there is not None:
                self._there.synchronize()
            self._read = [float(norm) for norm in self._norms.tolist()]
        return self._read

    def errors(self) -> dict[str, float | None]:
        """Return each candidate's relative L1 error, by name; None where it is not finite."""
        truth, *missed = self.norms()
        found = [miss / truth if truth else math.nan for miss in missed]
        return {
            str(candidate): error if math.isfinite(error) else None
            for candidate, error in zip(self.candidates, found, strict=True)
        }

    def error_of_used(self) -> float | None:
        """Return the error of the calibrator that would have been used."""
        return self.errors()[self.used]


class Mean:
    """The scores of several blocks of one step, as one: DBPrune's."""

    def __init__(self, scores: Sequence[Score]) -> None:
        self._scores = scores
        self.distance = sum(score.distance for score in scores) / len(scores)
        self.used = Counter(score.used for score in scores).most_common(1)[0][0]  # where blocks choose their own

    def errors(self) -> dict[str, float | None]:
        """Return the mean error of each candidate over the blocks where it is finite."""
        each = [score.errors() for score in self._scores]
        return {name: _mean(errors[name] for errors in each) for name in each[0]}

    def error_of_used(self) -> float | None:
        """Return the mean error of what each block would have used."""
        return _mean(score.error_of_used() for score in self._scores)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


class Board:
    """The scores of one context and branch so far."""

    def __init__(self, candidates: Sequence[Calibrator]) -> None:
        self._candidates = candidates
        self._scores: list[Score] = []  # of the last snapshots, newest first
        self._unread: list[Score] = []
        self._errors: dict[str, dict[float, float]] = {}  # by candidate and distance, recent ones weighing more

    def add(self, score: Score) -> None:
        """Take the score of the snapshot that is the newest now."""
        self._scores = [score, *self._scores[:3]]
        self._unread.append(score)

    def choose(self, distance: float) -> Calibrator:
        """Return the candidate whose audited error at this distance is the smallest; the first without any audit."""
        if len(self._candidates) == 1:
            return self._candidates[0]
        self._read()
        return min(self._candidates, key=lambda candidate: self._expected(candidate, distance))

    def leap(self, weights: Sequence[float]) -> float:
        """Return how far the forecast with these weights can be from the newest snapshot, in units of its norm.

        With weights that sum to one the forecast is the newest snapshot plus a sum of differences of consecutive
        snapshots, whose norms ``hold``'s scores are; the triangle inequality bounds the rest.
        """
        total, beyond = 0.0, 0.0
        for place in range(len(weights) - 1, 0, -1):
            beyond += weights[place]
            total += abs(beyond) * self._scores[place - 1].norms()[1]
        truth = self._scores[0].norms()[0]
        return total / truth if truth else math.inf

    @property
    def norm(self) -> float:
        """L1 norm of the change that the newest snapshot was made from."""
        return self._scores[0].norms()[0]

    def _read(self) -> None:
        for score in self._unread:
            for name, error in score.errors().items():
                known = self._errors.setdefault(name, {})
                before = known.get(score.distance)
                now = math.inf if error is None else error
                known[score.distance] = now if before is None else (before + now) / 2
        self._unread.clear()

    def _expected(self, candidate: Calibrator, distance: float) -> float:
        """Return the audited error at this distance, or what the nearest audited one grows to."""
        known = self._errors.get(str(candidate))
        if not known:
            return math.inf
        nearest = min(known, key=lambda audited: (abs(audited - distance), audited))
        return known[nearest] * math.pow(distance / nearest, candidate.growth)
