"""A worker on the other side of a process or a network: what it is told and what it answers is plain data.

Knows ``Worker`` and which errors end a run; knows nothing of how the data travels.
"""

from __future__ import annotations

import traceback
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

from . import pipeline, registry
from .errors import CacheditError, InputError, RunError
from .jobs import Call
from .recipe import Recipe
from .worker import Broken, Drawn, Failure, Order, Worker, working

__all__ = ["Ended", "Gone", "Opening", "Remote", "checked"]


@dataclass(frozen=True)
class Opening:
    """A model that is loaded: where, and how long that took."""

    environment: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Ended:
    """What ends the whole run, or this worker (``gone``); ``text`` is the message, of a bug the traceback."""

    kind: Literal["input", "run", "bug", "gone"]
    text: str


class Gone(Exception):
    """A worker ended without a picture."""


class Remote:
    """Loads a model when it is told to, and draws what it is told to."""

    def __init__(self, order: Order, device: str | None, threads: int | None) -> None:
        """Take an order.

        Args:
            device: None for that of the recipe.
            threads: Of torch on the CPU; None leaves them as they are.
        """
        self._order = order
        self._device = device
        self._threads = threads
        self._stack = ExitStack()
        self._worker: Worker | None = None

    def open(self) -> Opening | Ended:
        """Load the model."""
        try:
            return self._open()
        except Exception as error:
            return _ended(error)

    def draw(self, call: Call) -> Drawn | Failure | Ended:
        """Draw a call; the model is open."""
        try:
            if self._worker is None:
                raise RuntimeError("a worker was told to draw before it was open")
            return self._worker.attempt(call)
        except Exception as error:
            return _ended(error)

    def close(self) -> None:
        """Take the cache out."""
        self._stack.close()

    def _open(self) -> Opening:
        import torch

        for file in self._order.plugins:
            registry.load_plugin(file)
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        device = pipeline.pick_device(self._device or Recipe.model_validate(self._order.recipe).model.device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self._worker = self._stack.enter_context(working(self._order, device))
        return Opening(self._worker.environment, self._worker.seconds)


def _ended(error: Exception) -> Ended:
    if isinstance(error, Broken):
        return Ended("gone", str(error))
    if isinstance(error, CacheditError):
        return Ended("input" if isinstance(error, InputError) else "run", str(error))
    return Ended("bug", "".join(traceback.format_exception(error)))


def checked(answer: Any) -> Any:
    """Return an answer, or raise what it says."""
    if not isinstance(answer, Ended):
        return answer
    if answer.kind == "gone":
        raise Gone(answer.text)
    if answer.kind == "bug":
        raise RuntimeError(f"in a worker: {answer.text}")
    raise (InputError if answer.kind == "input" else RunError)(answer.text)
