"""How long work takes on the device that does it."""

from __future__ import annotations

import time

import torch

__all__ = ["Stopwatch"]


class Stopwatch:
    """Milliseconds from its making to ``stop``: by events on CUDA, which does not wait, else by the wall clock."""

    def __init__(self, device: torch.device | None) -> None:
        self._events: list[torch.cuda.Event] = []
        self._device = device
        self.on_device = device is not None and device.type == "cuda"
        self._started = self._stopped = time.perf_counter()
        if self.on_device:
            self._mark()

    def _mark(self) -> None:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))  # of the work's device, which need not be the current one
        self._events.append(event)

    def stop(self) -> None:
        self._stopped = time.perf_counter()
        if self.on_device:
            self._mark()

    def item(self) -> float:
        """Return the milliseconds; waits for the device where there is one."""
        if len(self._events) == 2:
            self._events[1].synchronize()
            return float(self._events[0].elapsed_time(self._events[1]))
        return (self._stopped - self._started) * 1000
