"""Draws each picture of a run with several processes, which torchrun starts: all of them draw, the first one keeps.

Every process runs the same command. Knows what torchrun tells a process; how a model is split among them is
``options.parallel``'s matter.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

from . import pipeline
from .errors import InputError, RunError
from .jobs import Call
from .options.parallel import check_started
from .recipe import Recipe
from .run import Opened, Results, Watcher, generate
from .screen import Screen, console
from .worker import Failure, Order, working

if TYPE_CHECKING:
    import torch

__all__ = ["draw", "follow", "is_first"]


def is_first(recipe: Recipe) -> bool:
    """Return whether this process shows and saves what a recipe draws.

    Raises:
        InputError: There are more or fewer processes than the recipe shares a picture between.
    """
    check_started(recipe.model.parallel)
    return recipe.model.parallel is None or os.environ["RANK"] == "0"


def draw(order: Order, todo: Sequence[Call], opened: Opened, watcher: Watcher) -> Results:
    """Draw one call after the other, here and in the other processes at once."""
    import torch

    device = _own(pipeline.pick_device(Recipe.model_validate(order.recipe).model.device))
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    shared = [list(todo)]  # the first process may go on with a run of which the others know nothing
    torch.distributed.broadcast_object_list(shared)
    with working(order, device, watcher) as worker:
        opened(worker.environment, worker.seconds)
        for call in shared[0]:
            watcher.begins(call.jobs, worker.steps_of(call))
            result = worker.attempt(call)
            if isinstance(result, Failure):  # the others wait for this process, and torchrun ends them when it ends
                raise RunError(f"model.parallel: process {os.environ['RANK']}: {result.error}")
            yield call, result
    torch.distributed.destroy_process_group()


def follow(recipe: Recipe, version: str) -> None:
    """Draw what the first process draws, and keep nothing of it.

    Raises:
        RunError: It failed in this process.
        SystemExit: The input was wrong, as the first process says.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        redirect_stdout(nowhere),
        Screen(console()) as screen,
    ):
        kept = recipe.model_copy(update={"output": recipe.output.model_copy(update={"dir": folder})})
        try:
            generate(kept, command=[], version=version, watcher=screen, crew=draw)
        except InputError as error:
            raise SystemExit(error.exit_code) from error


def _own(device: torch.device) -> torch.device:
    """Return this process's device, and make it the one that libraries take when they are not told."""
    import torch

    if device.type != "cuda":
        return device
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if device.index >= torch.cuda.device_count():
        raise InputError(
            f"model.parallel: torchrun started {device.index + 1} processes or more here, but there are "
            f"{torch.cuda.device_count()} CUDA devices"
        )
    torch.cuda.set_device(device)
    return device
