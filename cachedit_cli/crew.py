"""Spreads calls over workers, collects what comes back, and has what a killed worker held drawn by another.

Knows workers by what they answer; where they are, ``local_workers`` and ``ray_workers`` know.
"""

from __future__ import annotations

import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from .errors import RunError
from .jobs import Call
from .remote import Gone, Opening
from .run import Opened, Results
from .worker import Drawn, Failure

__all__ = ["ATTEMPTS", "Hand", "spread"]

ATTEMPTS = 3  # of a call whose worker is killed


class Hand(Protocol):
    """A worker somewhere; ``Gone`` is raised when it is not there any more."""

    def open(self) -> Opening:
        """Load the model; errors are those of the worker."""

    def draw(self, call: Call) -> Drawn | Failure:
        """Draw a call; errors are those of the worker."""

    def dismiss(self) -> None:
        """End it in good order: there is nothing more to draw."""

    def close(self) -> None:
        """End it now, from any thread, whatever it does; again does nothing."""


@dataclass
class _Entry:
    call: Call
    attempts: int = 0


def spread(hire: Callable[[int], Hand], count: int, todo: Sequence[Call], opened: Opened) -> Results:
    """Draw calls with several workers, and yield what comes of each as it comes.

    Args:
        hire: Starts the worker of a place, counted from 0; it may be called again for one that was killed.
        count: Workers at most; no more than there are calls are started.
        todo: What to draw.
        opened: Is told of each worker that has loaded its model.

    Raises:
        RunError: No worker is left, or one after the other was killed.
    """
    desk = _Desk(todo, min(count, len(todo)))
    threads = [
        threading.Thread(target=desk.serve, args=(hire, place), name=f"worker {place}", daemon=True)
        for place in range(desk.count)
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in todo:
            yield desk.next(opened)
    finally:
        desk.close()
        for thread in threads:
            thread.join(timeout=10)


class _Desk:
    """What is still to be drawn, who draws, and what has come back; used by a thread for each worker."""

    def __init__(self, todo: Sequence[Call], count: int) -> None:
        self.count = count
        self._changed = threading.Condition()
        self._waiting = deque(_Entry(call) for call in todo)
        self._unsettled = len(todo)
        self._hands: dict[int, Hand] = {}
        self._unopened = 0  # workers that were gone before their model was loaded
        self._killed = 0  # in a row, since one answered
        self._closed = False
        self._events: queue.SimpleQueue[Opening | tuple[Call, Drawn | Failure] | BaseException] = queue.SimpleQueue()

    def next(self, opened: Opened) -> tuple[Call, Drawn | Failure]:
        """Wait for the next call that is settled."""
        while True:
            event = self._events.get()
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, tuple):
                return event
            opened({**event.environment, "workers": self.count}, event.seconds)

    def close(self) -> None:
        """End all workers."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            hands = list(self._hands.values())
        for hand in hands:
            hand.close()

    def serve(self, hire: Callable[[int], Hand], place: int) -> None:
        """Have one worker draw as long as there is something, and start another in its place when it is killed."""
        # Ctrl-C is for this process alone: workers inherit what their thread does not hear.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            while self._work():
                if not self._employ(hire(place), place):
                    return
        except BaseException as error:
            self._events.put(error)

    def _employ(self, hand: Hand, place: int) -> bool:
        """Have a worker draw until nothing is left or it is gone; return whether another may take its place."""
        with self._changed:
            self._hands[place] = hand
        entry = None
        try:
            if self._closed:
                return False
            self._events.put(hand.open())
            while (entry := self._take()) is not None:
                result = hand.draw(entry.call)
                with self._changed:
                    self._killed = 0
                self._settle(entry, result)
            if not self._closed:
                hand.dismiss()
        except Gone as gone:
            if self._closed:
                return False
            if entry is None:
                self._never_opened(gone)
                return False
            self._again(entry, gone)
        finally:
            hand.close()
        return True

    def _work(self) -> bool:
        """Wait until there is something to draw; False if there will be nothing any more."""
        with self._changed:
            while not self._waiting and self._unsettled and not self._closed:
                self._changed.wait()
            return bool(self._waiting) and not self._closed

    def _take(self) -> _Entry | None:
        while self._work():
            with self._changed, suppress(IndexError):  # another thread was faster
                return self._waiting.popleft()
        return None

    def _settle(self, entry: _Entry, result: Drawn | Failure) -> None:
        with self._changed:
            self._unsettled -= 1
            self._changed.notify_all()
        self._events.put((entry.call, result))

    def _again(self, entry: _Entry, gone: Gone) -> None:
        """Have a call drawn by whoever is free next."""
        entry.attempts += 1
        with self._changed:
            self._killed += 1
            killed = self._killed
        if killed > ATTEMPTS * self.count:
            raise RunError(f"{killed} workers in a row ended while drawing: {gone}")
        if entry.attempts == ATTEMPTS:
            self._settle(entry, Failure(f"its worker ended {ATTEMPTS} times, the last time: {gone}"))
            return
        with self._changed:
            self._waiting.appendleft(entry)
            self._changed.notify_all()

    def _never_opened(self, gone: Gone) -> None:
        with self._changed:
            self._unopened += 1
            left = self.count - self._unopened
        if not left:
            raise RunError(f"no worker is left, all ended while loading the model: {gone}; try fewer --workers")
