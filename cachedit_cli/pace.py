"""Measures what part of a denoising step's time reusing saves: in the second step, which is computed for it.

Knows clocks and rows of the log; waits for the device twice, and only where a speed-up was asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import torch

from .terms.stats import Row

__all__ = ["Pace"]


class Pace:
    """The share, once it is known.

    Attributes:
        share: Part of a step's time, 0 to 1, that the blocks take which a reused step leaves out.
    """

    def __init__(self) -> None:
        self.share: float | None = None
        self._started: tuple[int, float] | None = None  # generation, and when its second step began

    def reach(self, generation: int, step: int, rows: Iterable[Row], saves: Mapping[str, float]) -> bool:
        """Take the first forward of a step; return whether the share is known from now on.

        Args:
            generation: Number of the generation.
            step: 1 begins the measurement, and 2 ends it.
            rows: What was logged so far.
            saves: Part of its blocks, 0 to 1, that each context leaves out.
        """
        if self.share is not None or step not in (1, 2):
            return False
        if step == 1:
            if self._started is None or self._started[0] != generation:
                self._started = generation, _now()
            return False
        if self._started is None or self._started[0] != generation:
            return False
        whole = 1000 * (_now() - self._started[1])
        second = [row for row in rows if (row.generation, row.step) == (generation, 1) and row.ms is not None]
        saved = sum((row.ms or 0.0) * saves.get(row.context, 0.0) for row in second)
        if not second or not saved:
            return False
        self.share = min(saved / whole, 0.999)
        return True


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()
    return time.perf_counter()
