"""What a context remembers of its middle blocks: the last snapshots of every stream, and the forecast from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..calibrators import Calibrator, Hold, calibrator_for
from ..terms.config import CalibratorConfig

__all__ = ["Apart", "Calibration", "Snapshots", "copied", "l1"]

State = Mapping[str, Tensor | None]


def l1(tensor: Tensor) -> Tensor:
    """Return the sum of absolute values as a float32 scalar on the tensor's device."""
    norm: Tensor = torch.linalg.vector_norm(tensor, 1, dtype=torch.float32)
    return norm


@dataclass(frozen=True)
class Calibration:
    """Which calibrator forecasts which stream, and what of it.

    Attributes:
        main: Calibrator of the denoised stream.
        other: Calibrator of the further streams.
        absolute: Forecast the states after the middle instead of the change over it.
    """

    main: Calibrator = Hold()
    other: Calibrator = Hold()
    absolute: bool = False

    @classmethod
    def of(cls, config: CalibratorConfig | None) -> Calibration:
        """Return the calibration that the settings ask for; None holds the residual."""
        if config is None:
            return cls()
        chosen, hold = calibrator_for(config), Hold()
        return cls(
            chosen if config.enable_calibrator else hold,
            chosen if config.enable_encoder_calibrator else hold,
            config.calibrator_cache_type == "hidden_states",
        )


class Snapshots:
    """The last computed changes (or states), newest first, per stream."""

    def __init__(self, calibration: Calibration, main: str) -> None:
        self._calibration = calibration
        self._main = main
        self._times: list[float] = []
        self._kept: dict[str, list[Tensor] | None] = {}

    def __bool__(self) -> bool:
        return bool(self._times)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for kept in self._kept.values() if kept for tensor in kept)

    def _weights(self, stream: str, count: int, now: float) -> list[float]:
        calibrator = self._calibration.main if stream == self._main else self._calibration.other
        return calibrator.weights(self._times[: min(calibrator.depth, count)], now)

    def forecast(self, base: State, now: float) -> dict[str, Tensor | None]:
        """Return every stream after the middle, ``base`` being the state before it."""
        result: dict[str, Tensor | None] = {}
        for stream, kept in self._kept.items():
            if kept is None:
                result[stream] = None
                continue
            start = None if self._calibration.absolute else base.get(stream)
            if len(kept) == 1 and start is not None:  # one snapshot can only be held, whatever the calibrator
                result[stream] = start + kept[0]
                continue
            weights = self._weights(stream, len(kept), now)
            total = torch.mul(kept[0], weights[0]) if start is None else torch.add(start, kept[0], alpha=weights[0])
            for tensor, weight in zip(kept[1:], weights[1:], strict=False):
                total.add_(tensor, alpha=weight)
            result[stream] = total
        return result

    def learn(self, base: State, after: State, now: float, audit: bool) -> Tensor | None:
        """Keep what the middle did to each stream.

        Returns:
            Relative L1 error that a forecast would have had on the denoised stream's change, as a scalar still on its
            device; None without earlier snapshots or with ``audit`` off.

        Raises:
            ValueError: A stream changes its shape in the middle, so that nothing can be reused.
        """
        error: Tensor | None = None
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
                error = self._score(kept, fresh, start, now)
            calibrator = self._calibration.main if stream == self._main else self._calibration.other
            self._kept[stream] = [fresh, *kept[: calibrator.depth - 1]]
        depth = max(self._calibration.main.depth, self._calibration.other.depth)
        self._times = [now, *self._times[: depth - 1]]
        return error

    def _score(self, kept: Sequence[Tensor], fresh: Tensor, start: Tensor | None, now: float) -> Tensor:
        weights = self._weights(self._main, len(kept), now)
        miss = torch.sub(fresh, kept[0], alpha=weights[0])
        for tensor, weight in zip(kept[1:], weights[1:], strict=False):
            miss.sub_(tensor, alpha=weight)
        truth = fresh if start is None or not self._calibration.absolute else fresh - start.detach()
        return l1(miss) / l1(truth)


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
