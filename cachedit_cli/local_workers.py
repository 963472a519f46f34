"""Workers in processes of this machine: one for each GPU, or several on the CPU that share its cores.

Knows devices and processes; imports torch to count devices.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from . import pipeline
from .crew import spread
from .errors import InputError
from .jobs import Call
from .recipe import Recipe
from .remote import Gone, Opening, Remote, checked
from .run import Crew, Opened, Results, Watcher
from .worker import Drawn, Failure, Order

__all__ = ["devices", "processes"]

_PATIENCE = 5  # seconds for a process to end in good order


def processes(count: int) -> Crew:
    """Return a crew of so many processes.

    Raises:
        InputError: When it begins: there are fewer devices.
    """

    def crew(order: Order, todo: Sequence[Call], opened: Opened, watcher: Watcher) -> Results:
        import torch

        places = devices(Recipe.model_validate(order.recipe).model.device, count)
        threads = max(1, torch.get_num_threads() // count)
        return spread(lambda place: _Process(order, places[place], threads), count, todo, opened)

    return crew


def devices(asked: str, count: int) -> list[str]:
    """Return the device of each worker.

    Raises:
        InputError: There is none such, or there are fewer than workers.
    """
    import torch

    device = pipeline.pick_device(asked)
    if device.type == "cpu" or count == 1:
        return [str(device)] * count
    if ":" in asked:
        raise InputError(f"--workers {count}: model.device is {asked!r}, which is one device; write {device.type!r}")
    there = torch.cuda.device_count() if device.type == "cuda" else 1
    if count > there:
        what = "GPU" if device.type == "cuda" else "device 'mps'"
        few = f"there is 1 {what}" if there == 1 else f"there are {there} {what}s"
        raise InputError(f"--workers {count}: {few} here, and each worker needs its own")
    return [f"{device.type}:{place}" for place in range(count)]


def _serve(pipe: Connection, order: Order, device: str, threads: int) -> None:
    """Answer as long as anyone asks: what runs in the process."""
    from tqdm import tqdm

    # Bars are drawn by one process; the lock that tqdm would make is one of the system, which a kill leaves behind.
    tqdm.set_lock(threading.RLock())
    remote = Remote(order, device, threads)
    try:
        pipe.send(remote.open())
        while (call := pipe.recv()) is not None:
            pipe.send(remote.draw(call))
    except (EOFError, BrokenPipeError):  # the run was killed
        pass
    remote.close()


class _Process:
    """A worker in a process of its own."""

    def __init__(self, order: Order, device: str, threads: int) -> None:
        # Not forked: a copy of a process that has used CUDA, or has threads, does not work.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, order, device, threads), daemon=True)
        self._process.start()
        theirs.close()

    def open(self) -> Opening:
        opening: Opening = self._answer()
        return opening

    def draw(self, call: Call) -> Drawn | Failure:
        try:
            self._pipe.send(call)
        except OSError:
            raise Gone(self._end()) from None
        result: Drawn | Failure = self._answer()
        return result

    def dismiss(self) -> None:
        with suppress(OSError):
            self._pipe.send(None)
        self._process.join(_PATIENCE)

    def close(self) -> None:
        self._process.kill()
        self._process.join()

    def _answer(self) -> Any:
        try:
            return checked(self._pipe.recv())
        except (EOFError, OSError):
            raise Gone(self._end()) from None

    def _end(self) -> str:
        """Return how the process ended."""
        self._process.join()
        code = self._process.exitcode or 0
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
