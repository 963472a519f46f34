"""What a context remembers of its middle blocks: the last snapshots of every stream, and the forecast from them.

Knows tensors by the names of their streams; knows nothing of steps, branches and decisions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .audit import Board, Score
from .calibrators import HOLD, Calibrator, calibrators_for
from .terms.config import CalibratorConfig

__all__ = ["Apart", "Calibration", "Snapshots", "copied", "l1"]

State = Mapping[str, Tensor | None]


def l1(tensor: Tensor) -> Tensor:
    """Return the sum of absolute values as a float32 scalar on the tensor's device."""
    norm: Tensor = torch.linalg.vector_norm(tensor, 1, dtype=torch.float32)
    return norm


@dataclass(frozen=True)
class Calibration:
    """What forecasts which stream, and what of it.

    Attributes:
        choices: Calibrators, the first of them until an audit says which is best; mostly one.
        main: Forecast the denoised stream with it; False holds.
        other: Forecast the further streams with it; False holds.
        absolute: Forecast the states after the middle instead of the change over it.
    """

    choices: tuple[Calibrator, ...] = (HOLD,)
    main: bool = True
    other: bool = True
    absolute: bool = False

    @classmethod
    def of(cls, config: CalibratorConfig | None) -> Calibration:
        """Return the calibration that the settings ask for; None holds the residual."""
        if config is None:
            return cls()
        return cls(
            calibrators_for(config),
            config.enable_calibrator,
            config.enable_encoder_calibrator,
            config.calibrator_cache_type == "hidden_states",
        )


class Snapshots:
    """The last computed changes (or states), newest first, per stream."""

    def __init__(
        self, calibration: Calibration, main: str, total: Callable[[Tensor], Tensor] = lambda sums: sums
    ) -> None:
        self._calibration = calibration
        self._main = main
        self._total = total  # over the processes that hold parts of a sample
        self._times: list[float] = []
        self._kept: dict[str, list[Tensor] | None] = {}
        choices = calibration.choices if calibration.main else ()
        self._audited = tuple(dict.fromkeys((HOLD, *choices)))
        self._board = Board(calibration.choices)

    def __bool__(self) -> bool:
        return bool(self._times)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for kept in self._kept.values() if kept for tensor in kept)

    @property
    def newest(self) -> Tensor | None:
        """The last computed change (or state) of the denoised stream."""
        kept = self._kept.get(self._main)
        return kept[0] if kept else None

    def distance(self, now: float) -> float:
        """Return the steps since the newest snapshot."""
        return now - self._times[0]

    def calibrator(self, now: float) -> Calibrator:
        """Return what forecasts the denoised stream at this time."""
        return self._board.choose(self.distance(now)) if self._calibration.main else HOLD

    def forecast(self, base: State, now: float, by: Calibrator | None = None) -> dict[str, Tensor | None]:
        """Return every stream after the middle, ``base`` being the state before it; ``by`` is another calibrator."""
        result: dict[str, Tensor | None] = {}
        for stream, kept in self._kept.items():
            if kept is None:
                result[stream] = None
                continue
            start = None if self._calibration.absolute else base.get(stream)
            if len(kept) == 1 and start is not None:  # one snapshot can only be held, whatever the calibrator
                result[stream] = start + kept[0]
                continue
            weights = self._weights(stream, len(kept), now, by)
            total = torch.mul(kept[0], weights[0]) if start is None else torch.add(start, kept[0], alpha=weights[0])
            for tensor, weight in zip(kept[1:], weights[1:], strict=False):
                total.add_(tensor, alpha=weight)
            result[stream] = total
        return result

    def credible(self, forecast: State, base: State, now: float) -> bool:
        """Return whether the forecast's change is finite and of about the size of the last computed one.

        That is, its L1 norm is 0.5 to 2 times as large. The norm is only taken where the audited differences between
        the snapshots do not already bound it, so that most steps need no look at a tensor; ``hold`` needs none at all.
        Differences of states bound no change, so that a forecast of states is always looked at.
        """
        kept = self._kept.get(self._main)
        if kept is None or len(kept) == 1:
            return True
        weights = self._weights(self._main, len(kept), now)
        if len(weights) == 1 or (not self._calibration.absolute and self._board.leap(weights) <= 0.5):
            return True
        value, start = forecast[self._main], base.get(self._main)
        if value is None:
            return True
        size = float(self._total(l1(value if start is None else value - start)).item())
        return math.isfinite(size) and 0.5 * self._board.norm <= size <= 2 * self._board.norm

    def learn(self, base: State, after: State, now: float, audit: bool) -> Score | None:
        """Keep what the middle did to each stream.

        Returns:
            What forecasts of the denoised stream's change would have missed; None without earlier snapshots or with
            ``audit`` off.

        Raises:
            ValueError: A stream changes its shape in the middle, so that nothing can be reused.
        """
        score: Score | None = None
        for stream, value in after.items():
            start = base.get(stream)
            if value is None:
                self._kept[stream] = None
                continue
            if start is not None and start.shape != value.shape:
                raise ValueError(f"{stream} changes from {tuple(start.shape)} to {tuple(value.shape)} in the middle")
            value = value.detach()
            # A state is copied, as the model may go on to change it in place.
            fresh = value.clone() if self._calibration.absolute or start is None else value - start.detach()
            kept = self._kept.get(stream) or []
            if audit and stream == self._main and kept:
                score = self._score(kept, fresh, start, now)
            self._kept[stream] = [fresh, *kept[: self._depth(stream) - 1]]
        if score is not None:
            self._board.add(score)
        depth = max(self._depth(self._main), self._depth(None))
        self._times = [now, *self._times[: depth - 1]]
        return score

    def _calibrates(self, stream: str | None) -> bool:
        return self._calibration.main if stream == self._main else self._calibration.other

    def _depth(self, stream: str | None) -> int:
        return max(choice.depth for choice in self._calibration.choices) if self._calibrates(stream) else 1

    def _weights(self, stream: str, count: int, now: float, by: Calibrator | None = None) -> list[float]:
        chosen = by or (self._board.choose(self.distance(now)) if self._calibrates(stream) else HOLD)
        return chosen.weights(self._times[: min(chosen.depth, count)], now)

    def _score(self, kept: Sequence[Tensor], fresh: Tensor, start: Tensor | None, now: float) -> Score:
        truth = fresh if start is None or not self._calibration.absolute else fresh - start.detach()
        norms = [l1(truth)]
        for candidate in self._audited:
            weights = candidate.weights(self._times[: min(candidate.depth, len(kept))], now)
            miss = torch.sub(fresh, kept[0], alpha=weights[0])
            for tensor, weight in zip(kept[1:], weights[1:], strict=False):
                miss.sub_(tensor, alpha=weight)
            norms.append(l1(miss))
        sums = torch.stack(norms)
        decides = len(self._audited) > 1  # hold's own score is only told, so that each process may have its part's
        return Score(self._audited, self.calibrator(now), self.distance(now), self._total(sums) if decides else sums)


def copied(states: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: s.clone() if isinstance(s := states.get(name), Tensor) else s for name in names}


class Apart:
    """Keeps states from what a model does to them in place later on, with copies only where one was seen to do so.

    The first time they are copied and watched; where nothing changed them, references are enough from then on.
    """

    def __init__(self) -> None:
        self._copies: bool | None = None
        self._watched: list[tuple[Tensor, int | None]] = []

    def keep(self, states: Mapping[str, Any]) -> dict[str, Any]:
        tensors = [state for state in states.values() if isinstance(state, Tensor)]
        self._watched = [(tensor, None if tensor.is_inference() else tensor._version) for tensor in tensors]
        return dict(states) if self._copies is False else copied(states, tuple(states))

    def intact(self) -> bool:
        """Return whether what was kept is still what it was; tensors of inference mode count as changed."""
        changed = any(version is None or tensor._version != version for tensor, version in self._watched)
        self._watched = []
        intact = self._copies is not False or not changed
        self._copies = changed or bool(self._copies)
        return intact
