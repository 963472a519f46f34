"""Calibrators: what a reused step takes for the middle's output, as weights on the last snapshots.

A calibrator knows times only, no tensors: the forecast is the weighted sum of stored snapshots, newest first, so one
fused multiply-add serves all of them and order n needs n + 1 tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .terms.config import AutoCalibratorConfig, CalibratorConfig, TaylorSeerCalibratorConfig

__all__ = ["CANDIDATES", "HOLD", "Calibrator", "Hold", "TaylorSeer", "calibrators_for"]


class Calibrator(Protocol):
    """One rule of forecasting; its text form is its name in logs."""

    @property
    def depth(self) -> int:
        """Snapshots that it can use."""

    @property
    def growth(self) -> float:
        """Power of the distance with which its error is taken to grow where nothing was measured."""

    def weights(self, times: Sequence[float], now: float) -> list[float]:
        """Return a weight per snapshot; ``times`` are those of the snapshots, newest first, at most ``depth``."""


@dataclass(frozen=True)
class Hold:
    """The last snapshot, unchanged."""

    depth: int = 1
    growth: float = 1.0

    def __str__(self) -> str:
        return "hold"

    def weights(self, times: Sequence[float], now: float) -> list[float]:
        return [1.0]


@dataclass(frozen=True)
class TaylorSeer:
    """TaylorSeer (arXiv 2503.06923, eq. 6): sum over i of d_i * (elapsed steps)^i / i!, with finite differences d_i.

    The differences follow the paper's recursion, d_(i+1) = (d_i now - d_i at the computed step before) / gap, over the
    actual gaps between computed steps. They are backward differences: exact for straight lines, while for curved paths
    the forecast lags behind a polynomial extrapolation by terms of the gap's size.

    ``damping`` is ours, a factor on everything but the last snapshot: 1 is the paper's series, 0 would hold.
    """

    order: int = 1
    damping: float = 1.0

    def __str__(self) -> str:
        return f"taylorseer {self.order}" + (f" x {self.damping:g}" if self.damping != 1 else "")

    @property
    def depth(self) -> int:
        return self.order + 1

    @property
    def growth(self) -> float:
        return float(self.order)

    def weights(self, times: Sequence[float], now: float) -> list[float]:
        # rows[j] holds the weights of d_i as seen from snapshot j on; each round raises i by one.
        count = len(times)
        rows = [[float(k == j) for k in range(count)] for j in range(count)]
        total, elapsed = [0.0] * count, now - times[0]
        for i in range(count):
            factor = (self.damping if i else 1.0) * elapsed**i / math.factorial(i)
            total = [sum_ + factor * weight for sum_, weight in zip(total, rows[0], strict=True)]
            rows = [
                [(new - old) / (times[j] - times[j + 1]) for new, old in zip(rows[j], rows[j + 1], strict=True)]
                for j in range(len(rows) - 1)
            ]
        return total


HOLD = Hold()

#: What ``auto`` chooses from, the most careful first.
CANDIDATES: tuple[Calibrator, ...] = (
    HOLD,
    TaylorSeer(1, damping=0.5),
    TaylorSeer(1),
    TaylorSeer(2, damping=0.5),
    TaylorSeer(2),
)


def calibrators_for(config: CalibratorConfig | None) -> tuple[Calibrator, ...]:
    """Return the calibrators that the settings choose from, mostly one; None holds."""
    if isinstance(config, AutoCalibratorConfig):
        return CANDIDATES
    if isinstance(config, TaylorSeerCalibratorConfig):
        return (TaylorSeer(config.taylorseer_order, config.taylorseer_damping),)
    return (HOLD,)
