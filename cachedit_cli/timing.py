"""Seconds that the parts of a pipeline call take: before the first transformer forward, denoising, decoding.

Knows modules and hooks; changes nothing, and takes its hooks out again. Works for any pipeline, because it listens to
the parts instead of standing in for the pipeline's methods.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["Parts", "timed"]


class Parts:
    """When the parts of one call began and ended, on a clock that waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: dict[str, float] = {}

    def begins(self, *_: Any) -> None:
        """A transformer is called: encoding is over, and what was decoded so far was not the result."""
        if "denoise" not in self._marks:
            self._marks["denoise"] = self.now()
        self._marks.pop("decode", None)

    def ends(self, *_: Any) -> None:
        """A transformer returned; nobody waits for the device here, so this only serves pipelines without a VAE."""
        self._marks["last"] = time.perf_counter()

    def decodes(self, *_: Any) -> None:
        """A part of the VAE is called."""
        if "denoise" in self._marks and "decode" not in self._marks:
            self._marks["decode"] = self.now()

    def now(self) -> float:
        """Return the time at which the device has done all it was asked to."""
        import torch

        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> dict[str, float]:
        """Return ``text`` (prompts and first noise), ``denoise`` and ``decode``; they add up to the whole call."""
        denoise = self._marks.get("denoise", end)
        decode = self._marks.get("decode", self._marks.get("last", end))
        return {"text": denoise - start, "denoise": decode - denoise, "decode": end - decode}


@contextmanager
def timed(pipe: Any, device: torch.device) -> Iterator[dict[str, float]]:
    """Time one call of a pipeline; the dict that is yielded is filled when the block is left."""
    from torch import nn

    parts = Parts(device)
    handles = []
    for name, part in pipe.components.items():
        if not isinstance(part, nn.Module):
            continue
        if name.startswith("transformer"):
            handles += [part.register_forward_pre_hook(parts.begins), part.register_forward_hook(parts.ends)]
        elif "vae" in name:
            # ``decode`` is no forward; its first step is one of the VAE's own parts.
            handles += [child.register_forward_pre_hook(parts.decodes) for child in part.children()]
    seconds: dict[str, float] = {}
    start = parts.now()
    try:
        yield seconds
        seconds.update(parts.seconds(start, parts.now()))
    finally:
        for handle in handles:
            handle.remove()
