"""Hears where a pipeline's denoising loops begin and end, from the progress bar that each of them makes.

Knows nothing of transformers and blocks. Loops may be nested, as where a callback draws another picture; a second
thread may not begin one while the first's is running, as one cache cannot follow both.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Loop", "Loops"]

Call = Callable[..., Any]


@dataclass(eq=False)
class Loop:
    """A denoising loop.

    Attributes:
        steps: Model calls of one branch, if known.
        outer: The loop in whose middle this one began.
        thread: Where it began.
        caller: The thread that calls the transformer for it, from its first call on.
        running: Until its progress bar is closed.
    """

    steps: int | None
    outer: Loop | None = None
    thread: threading.Thread = field(default_factory=threading.current_thread)
    caller: int | None = None
    running: bool = True


class Loops:
    """The loops of one pipeline, or of nothing that could be heard."""

    def __init__(self, pipe: Any, restart: Callable[[], None], refuse: Callable[[], None]) -> None:
        self.now: Loop | None = None
        self.pipe = pipe
        self._restart = restart
        self._refuse = refuse

    def schedule(self) -> object:
        """Return what the scheduler makes anew for each generation, also for pipelines that share it unheard."""
        return getattr(getattr(self.pipe, "scheduler", None), "timesteps", None)

    def join(self, thread: int) -> None:
        """Take a call of the transformer; a loop is followed in one thread only."""
        loop = self.now
        if loop is None:
            return
        if loop.caller is None:
            loop.caller = thread
        elif loop.caller != thread:
            self._refuse()

    def listen(self, original: Call) -> Call:
        """Return what stands in for the pipeline's ``progress_bar``."""

        def progress_bar(*args: Any, **kwargs: Any) -> Any:
            outer = self.now
            if outer is not None and outer.thread is not threading.current_thread() and outer.thread.is_alive():
                self._refuse()
            bar = original(*args, **kwargs)
            loop = Loop(self._steps(getattr(bar, "total", None)), outer)
            self._restart()
            self.now = loop
            # Nothing here may keep the bar alive: one that is dropped without being closed closes itself.
            there, close = weakref.ref(bar), type(bar).close

            def closed() -> None:
                close(there())
                self._end(loop)

            bar.close = closed
            return bar

        return progress_bar

    def _end(self, loop: Loop) -> None:
        loop.running = False
        if self.now is loop:
            while self.now is not None and not self.now.running:
                self.now = self.now.outer
            self._restart()  # frees what is kept, before the pipeline decodes

    def _steps(self, total: int | None) -> int | None:
        """Return the length of the schedule that the pipeline says it loops over.

        It differs from the bar's total where the scheduler calls the model more than once a step. A shallow copy of
        the pipeline leaves its number on itself, so that the one found here may be an earlier call's.
        """
        told, schedule = getattr(self.pipe, "_num_timesteps", None), self.schedule()
        made = len(schedule) if hasattr(schedule, "__len__") else None
        if told is None or total is None or told == made:
            return told or total
        order = getattr(self.pipe.scheduler, "order", 1)
        return next((steps for steps in (told, made) if steps in range(total, total * order + 1)), total)
