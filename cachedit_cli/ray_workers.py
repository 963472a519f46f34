"""Workers on a Ray cluster, or on one that is started here for the run.

Knows Ray's addresses, actors and errors; imports Ray only when it is used (extra ``ray``).
"""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from .crew import spread
from .errors import InputError
from .jobs import Call
from .pipeline import first_line
from .recipe import Recipe
from .remote import Gone, Opening, Remote, checked
from .run import Crew, Opened, Results, Watcher
from .worker import Drawn, Failure, Order

__all__ = ["Needs", "check_address", "needs", "on_ray"]

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[\w.-]+):(\d{1,5})")
LISTENS, ANSWERS = 5, 40  # seconds


def on_ray(address: str, count: int | None) -> Crew:
    """Return a crew of so many actors; None is one for each GPU of the cluster, or for each machine without any.

    Raises:
        InputError: When it begins: Ray is not installed, the address does not answer, or there are fewer GPUs.
    """

    def crew(order: Order, todo: Sequence[Call], opened: Opened, watcher: Watcher) -> Results:
        with _connected(address) as ray:
            asked = Recipe.model_validate(order.recipe).model.device
            each = needs(ray.nodes(), asked, count)
            yield from spread(lambda place: _Actor(ray, order, each), each.count, todo, opened)

    return crew


@dataclass(frozen=True)
class Needs:
    """How many workers there are, and how many GPUs and cores each gets."""

    count: int
    gpus: int
    cpus: int


def check_address(address: str) -> None:
    """Refuse an address at which no cluster answers, in bounded time.

    Raises:
        InputError: It is none of Ray's forms, nobody listens there, or it is not Ray who does; Ray is not installed.
    """
    if address in ("local", "auto"):
        _check_installed()
        return
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise InputError(f"--ray {address}: is no address; give HOST:PORT, auto, or local")
    host, port = found[1].strip("[]"), int(found[2])
    try:
        socket.create_connection((host, port), timeout=LISTENS).close()
    except (OSError, OverflowError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise InputError(f"--ray {address}: nothing answers there: {said}") from error
    _check_installed()
    # Ray itself waits for minutes, and cannot be told not to; so another process tries first.
    attempt = [sys.executable, "-c", "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False)", address]
    try:
        done = subprocess.run(attempt, capture_output=True, text=True, errors="replace", timeout=ANSWERS, check=False)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"--ray {address}: who listens there did not answer as Ray in {ANSWERS} seconds") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise InputError(f"--ray {address}: no Ray cluster answers there: {said}")


def _check_installed() -> None:
    if find_spec("ray") is None:
        raise InputError("--ray: Ray is not installed; pip install 'cachedit[ray]'")


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    check_address(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    own = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:
        raise InputError(f"--ray {address}: no Ray cluster answers there: {first_line(error)}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def needs(nodes: Sequence[dict[str, Any]], asked: str, count: int | None) -> Needs:
    """Return what each worker gets of a cluster's machines.

    Raises:
        InputError: There are fewer GPUs, or fewer cores, than workers.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in alive))
    cores = int(sum(node.get("CPU", 0) for node in alive))
    if asked == "cpu" or (asked == "auto" and not gpus):
        count = count or len(alive)
        if count > cores:
            raise InputError(f"--workers {count}: the cluster has {cores} CPU cores, and each worker needs its own")
        # So that as many as are asked for find room, whichever machines they come to.
        each = min(int(node.get("CPU", 0)) for node in alive) // -(-count // len(alive))
        return Needs(count, 0, max(1, each))
    if asked not in ("auto", "cuda"):
        raise InputError(f"--ray: model.device is {asked!r}; on a cluster it is auto, cuda or cpu")
    if not gpus:
        raise InputError(f"--ray: model.device is {asked!r}, but the cluster has no GPU")
    count = count or gpus
    if count > gpus:
        raise InputError(f"--workers {count}: the cluster has {gpus} GPUs, and each worker needs its own")
    return Needs(count, 1, 1)


class _Actor:
    """A worker in an actor."""

    def __init__(self, ray: Any, order: Order, each: Needs) -> None:
        self._ray = ray
        options = {"num_cpus": each.cpus, "num_gpus": each.gpus, "max_restarts": 0, "max_task_retries": 0}
        threads = None if each.gpus else each.cpus
        self._actor = ray.remote(Remote).options(**options).remote(order, None, threads)

    def open(self) -> Opening:
        opening: Opening = self._answer(self._actor.open.remote())
        return opening

    def draw(self, call: Call) -> Drawn | Failure:
        result: Drawn | Failure = self._answer(self._actor.draw.remote(call))
        return result

    def dismiss(self) -> None:
        self.close()

    def close(self) -> None:
        with suppress(Exception):  # it is gone, or Ray is
            self._ray.kill(self._actor)

    def _answer(self, answer: Any) -> Any:
        try:
            return checked(self._ray.get(answer))
        except (self._ray.exceptions.RayActorError, self._ray.exceptions.ObjectLostError) as error:
            raise Gone(first_line(error)) from error
