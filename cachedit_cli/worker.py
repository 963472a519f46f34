"""One worker: a model that is loaded once, cached as the recipe says, and draws one call after the other.

The same for a run in one process, for each of several processes, and on each machine of a cluster. Knows nothing of
folders: what it draws comes back as the bytes of files.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from . import media, pipeline
from .encode import encoded
from .errors import InputError, RunError
from .generate import Opened, caching, draw, environment, open_model
from .jobs import Call, alone
from .recipe import Recipe
from .runs import provenance
from .terms.stats import ContextInfo, DecisionLog, Reset, Row
from .timing import timed

if TYPE_CHECKING:
    import torch

__all__ = ["Broken", "Drawn", "Failure", "Listener", "Order", "Shot", "Worker", "working"]


@dataclass(frozen=True)
class Order:
    """What a worker has to know, as plain data that goes anywhere.

    Attributes:
        recipe: As it was resolved.
        overrides: Names of the arguments that pictures have of their own.
        cachedit: Version that is written into the files.
        plugins: Files of the user that are loaded first.
    """

    recipe: dict[str, Any]
    overrides: tuple[str, ...] = ()
    cachedit: str = ""
    plugins: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shot:
    """One picture that was drawn.

    Attributes:
        files: Suffix and bytes of each of its files, the main one first.
        about: What the record says of it besides its job: ``width``, ``kind`` and the like.
    """

    files: list[tuple[str, bytes]]
    about: dict[str, Any]


@dataclass(frozen=True)
class Drawn:
    """What a call drew.

    Attributes:
        shots: In the order of the call's jobs.
        steps: Denoising steps, also where the pipeline's default counts.
        seconds: Of the call's parts: ``text``, ``denoise``, ``decode``.
        contexts: What was cached.
    """

    shots: list[Shot]
    steps: int | None
    seconds: dict[str, float]
    rows: list[Row] = field(default_factory=list)
    resets: list[Reset] = field(default_factory=list)
    contexts: list[ContextInfo] = field(default_factory=list)


@dataclass(frozen=True)
class Failure:
    """Why a call drew nothing; ``refused`` if what was wrong are arguments that its pictures have of their own."""

    error: str
    refused: bool = False


class Broken(RunError):
    """The device cannot be used any more in this process."""


class Listener(Protocol):
    """Is told what happens in a call, as it happens."""

    def found(self, lists: list[ContextInfo]) -> None:
        """The first forward showed which block lists can be cached."""

    def row(self, row: Row) -> None:
        """One context is done with one step."""


class Worker:
    """An open model, and how the calls are cached."""

    def __init__(self, order: Order, opened: Opened, listener: Listener | None) -> None:
        self._order = order
        self._recipe = Recipe.model_validate(order.recipe)
        self._opened = opened
        self._listener = listener
        self._stack = ExitStack()
        self._log: DecisionLog | None = None
        self._steps: int | None = None
        self.environment = environment(opened)
        self.seconds = opened.seconds

    def steps_of(self, call: Call) -> int | None:
        """Return the denoising steps of a call's pictures."""
        own = call.jobs[0].overrides
        if not own:
            return self._opened.steps
        return pipeline.real_steps(type(self._opened.pipe), {**self._opened.arguments, **own})

    def close(self) -> None:
        """Take the cache out."""
        self._stack.close()
        self._log = None

    def attempt(self, call: Call) -> Drawn | Failure:
        """Draw a call, or say why that failed.

        Raises:
            InputError: It was refused, and so would every other be: none of its arguments is its own.
            Broken: It failed, and nothing can be drawn here any more.
        """
        try:
            return self.draw(call)
        except InputError as error:
            if not call.jobs[0].overrides:
                raise
            failure = Failure(str(error), refused=True)
        except RunError as error:
            failure = Failure(str(error))
        finally:
            if self._log is not None:
                self._log.clear()  # a record is about pictures that were finished, and none is kept here
        self._tidy(failure)
        return failure

    def draw(self, call: Call) -> Drawn:
        """Draw a call.

        Raises:
            InputError: The pipeline refuses its arguments.
            RunError: It failed.
        """
        steps = self.steps_of(call)
        opened = replace(self._opened, steps=steps)
        log = self._cached(opened)
        on_step = None if log.contexts or self._listener is None else self._listener.row
        with timed(opened.pipe, opened.device) as seconds:
            products = draw(opened, call.jobs, on_step)
        log.settle()
        shots = []
        shared = opened.arguments.get("negative_prompt")
        for job, product in zip(call.jobs, products, strict=True):
            negative = job.overrides.get("negative_prompt", shared)
            settings = alone(self._recipe, job)
            facts = provenance(self._recipe.name, job.prompt, negative, job.seed, self._order.cachedit, settings)
            form = media.pick_format(product, opened.output, type(opened.pipe).__name__)
            files = encoded(product, form, opened.output.quality, facts)
            shots.append(Shot(files, {**media.about(product), "negative_prompt": negative}))
        # A pipeline call is one generation of a run, also where its scheduler began anew in mid-call.
        for row in log.rows:
            row.generation = call.number
        for reset in log.resets:
            reset.generation = call.number
        return Drawn(shots, steps, seconds, list(log.rows), list(log.resets), list(log.contexts))

    def _tidy(self, failure: Failure) -> None:
        """Give back the memory of a call that failed: it may have failed for want of it."""
        import torch

        gc.collect()
        device = self._opened.device
        if device.type == "cuda":
            try:
                torch.cuda.synchronize(device)
                torch.cuda.empty_cache()
            except RuntimeError as error:  # some errors of CUDA are for good, in this process
                raise Broken(f"{failure.error}; {device} cannot be used after that, --resume goes on") from error

    def _cached(self, opened: Opened) -> DecisionLog:
        """Return the log of the cache, which is put in anew where the number of steps changes: masks depend on it."""
        if self._log is None or opened.steps != self._steps:
            self.close()
            self._log = self._stack.enter_context(caching(self._recipe, opened))
            self._steps = opened.steps
            if self._listener is not None:
                self._log.listener = _Rows(self._log, self._listener).row
        return self._log


class _Rows:
    """Tells a listener of rows, and before the first one of block lists that were found on the way."""

    def __init__(self, log: DecisionLog, listener: Listener) -> None:
        self._log = log
        self._listener = listener
        self._known = len(log.contexts)

    def row(self, row: Row) -> None:
        found, self._known = self._log.contexts[self._known :], len(self._log.contexts)
        if found:
            self._listener.found(found)
        self._listener.row(row)


@contextmanager
def working(order: Order, device: torch.device, listener: Listener | None = None) -> Iterator[Worker]:
    """Load the model of an order onto a device; the worker draws as long as the block is open.

    Raises:
        InputError: Recipe and model, or recipe and machine, do not fit.
        RunError: The model could not be loaded.
    """
    recipe = Recipe.model_validate(order.recipe)
    with pipeline.quiet():
        worker = Worker(order, open_model(recipe, device, order.overrides), listener)
        try:
            yield worker
        finally:
            worker.close()
