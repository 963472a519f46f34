"""Carries a run out: what there is to draw goes to workers, and each picture is saved and recorded as it comes back.

Knows the order of things; prints nothing, but tells a ``Watcher``. A picture that fails is recorded, and the others are
drawn; what concerns all of them ends the run.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from . import inputs, pipeline
from .errors import InputError, RunError
from .jobs import Call, Job
from .recipe import Recipe
from .resume import Left, everything
from .runs import Failed, Image, Record, RunFolder, load
from .terms.stats import ContextInfo, Row
from .worker import Drawn, Failure, Order, working

__all__ = ["Crew", "Outcome", "Watcher", "generate", "in_process"]

# A record is written again when the pictures since the last time took so many times as long as writing it: with
# thousands of pictures it is large.
_PATIENCE = 20


@dataclass(frozen=True)
class Outcome:
    """A run that ended; ``record.status`` says how."""

    folder: Path
    record: Record

    def as_dict(self) -> dict[str, Any]:
        """Return what ``run.json`` says, and where it is: null if there was nothing to keep."""
        return {"folder": str(self.folder) if self.record.kept else None, **self.record.as_dict()}


class Watcher(Protocol):
    """Is told what happens, as it happens."""

    def planned(self, pictures: int, there: int) -> None:
        """There will be so many pictures; so many are there already."""

    def opened(self, device: str, dtype: str, seconds: float) -> None:
        """The weights are loaded."""

    def begins(self, batch: Sequence[Job], steps: int | None) -> None:
        """A pipeline call begins."""

    def found(self, lists: Sequence[ContextInfo]) -> None:
        """The first forward showed which block lists can be cached."""

    def row(self, row: Row) -> None:
        """One context is done with one step."""

    def saved(self, batch: Sequence[Job], files: Sequence[Sequence[Path]], seconds: float) -> None:
        """The files of each picture of the call are on the disk."""

    def failed(self, batch: Sequence[Job], error: str) -> None:
        """The pictures of the call could not be drawn."""


Opened = Callable[[dict[str, Any], float], None]  # a worker's environment, and the seconds that loading took
Results = Generator[tuple[Call, Drawn | Failure], None, None]
Crew = Callable[[Order, Sequence[Call], Opened, Watcher], Results]
"""Draws the calls of an order and yields what comes of each, in any order; closing it ends all workers."""


def in_process(order: Order, todo: Sequence[Call], opened: Opened, watcher: Watcher) -> Results:
    """Draw one call after the other, here."""
    device = pipeline.pick_device(Recipe.model_validate(order.recipe).model.device)
    with working(order, device, watcher) as worker:
        opened(worker.environment, worker.seconds)
        for call in todo:
            watcher.begins(call.jobs, worker.steps_of(call))
            yield call, worker.attempt(call)


def generate(
    recipe: Recipe,
    *,
    command: Sequence[str],
    version: str,
    watcher: Watcher,
    crew: Crew = in_process,
    left: Left | None = None,
    plugins: Sequence[str] = (),
) -> Outcome:
    """Make the pictures of a recipe, or what is left over of a run.

    What was finished stays on the disk with its record, however the run ends. An interrupt is an outcome, not an
    exception; so are pictures that fail, unless none succeeds and all say the same.

    Raises:
        InputError: Recipe and model, or recipe and machine, do not fit.
        RunError: The model could not be loaded, a file could not be written, or no picture could be drawn.
    """
    left = left or everything(recipe)
    if left.folder is not None and left.record is not None:
        folder, record = RunFolder(left.folder, recipe.name), left.record
        record.resumed.append(list(command))
        record.cachedit = version
        record.recipe, record.status, record.error, record.finished = recipe.resolved(), "running", None, None
        folder.renumber(left.numbers)
        folder.write(record)
    else:
        read = inputs.digests(recipe.generate)
        record = Record(cachedit=version, recipe=recipe.resolved(), command=list(command), inputs=read)
        folder = RunFolder.create(recipe.name, recipe.output.dir)
    books = _Books(folder, record, watcher, tuple(plugins))
    began, before = time.perf_counter(), record.timings.get("total") or 0.0
    try:
        books.carry_out(left, crew)
    except KeyboardInterrupt:
        record.finish("interrupted")
    except BaseException as error:
        record.finish("failed", pipeline.first_line(error))
        record.timings["total"] = before + time.perf_counter() - began
        with suppress(RunError):  # the first error is the one to tell
            books.conclude()
        raise
    else:
        failed = f"{len(record.failures)} of {left.pictures} pictures failed" if record.failures else None
        record.finish("failed" if failed else "done", failed)
    record.timings["total"] = before + time.perf_counter() - began
    books.conclude()
    return Outcome(folder.path, load(folder.path).record if record.kept else record)


class _Books:
    """Saves what is drawn, and keeps the record of it."""

    def __init__(self, folder: RunFolder, record: Record, watcher: Watcher, plugins: tuple[str, ...]) -> None:
        self._plugins = plugins
        self._folder = folder
        self._record = record
        self._watcher = watcher
        self._written = 0.0  # when the record was, and how long that took
        self._took = 0.0
        self._refused = False  # whether the pipeline refused arguments of a call

    def carry_out(self, left: Left, crew: Crew) -> None:
        """Have everything drawn that is left."""
        todo = [job for call in left.calls for job in call.jobs]
        self._watcher.planned(left.pictures, left.pictures - len(todo))
        if not todo:
            return
        overrides = tuple(sorted({name for job in todo for name in job.overrides}))
        order = Order(self._record.recipe, overrides, self._record.cachedit, self._plugins)
        with closing(crew(order, left.calls, self._opened, self._watcher)) as results:
            for call, result in results:
                if isinstance(result, Failure):
                    self._fail(call, result)
                else:
                    self._keep(call, result)
        failures = self._record.failures
        if not self._record.images and len({failure.error for failure in failures}) == 1:
            error, failures[:] = failures[0].error, []
            raise (InputError if self._refused else RunError)(error)

    def conclude(self) -> None:
        """Write the record, or remove the folder if there is nothing in it."""
        if self._record.kept:
            self._folder.write(self._record)
        else:
            self._folder.discard()

    def _opened(self, environment: dict[str, Any], seconds: float) -> None:
        record = self._record
        record.environment = environment
        record.timings["load"] = max(record.timings.get("load") or 0.0, seconds)
        self._watcher.opened(environment["device"], environment["dtype"], seconds)

    def _fail(self, call: Call, failure: Failure) -> None:
        self._refused = self._refused or failure.refused
        self._record.failures += [
            Failed(job.prompt, job.seed, failure.error, job.overrides, call.number) for job in call.jobs
        ]
        self._watcher.failed(call.jobs, failure.error)

    def _keep(self, call: Call, drawn: Drawn) -> None:
        record = self._record
        for part, value in drawn.seconds.items():
            record.timings[part] = (record.timings.get(part) or 0.0) + value
        whole = sum(drawn.seconds.values())
        images = []
        for job, stem, shot in zip(call.jobs, call.stems, drawn.shots, strict=True):
            file, *others = self._folder.store(stem, shot.files)
            images.append(
                Image(
                    file=file,
                    others=others,
                    sha256=[hashlib.sha256(data).hexdigest() for _, data in shot.files],
                    prompt=job.prompt,
                    seed=job.seed,
                    overrides=job.overrides,
                    steps=drawn.steps,
                    seconds=whole / len(call.jobs),
                    timings=drawn.seconds,
                    generation=call.number,
                    **shot.about,
                )
            )
        known = {info.name for info in record.log.contexts}
        record.log.contexts += [info for info in drawn.contexts if info.name not in known]
        record.images += images
        self._folder.log(call.number, images, drawn.rows, drawn.resets)
        self._write()
        saved = [[self._folder.path / name for name in (image.file, *image.others)] for image in images]
        self._watcher.saved(call.jobs, saved, whole)

    def _write(self) -> None:
        began = time.perf_counter()
        if began - self._written >= _PATIENCE * self._took:
            self._folder.write(self._record)
            self._written = time.perf_counter()
            self._took = self._written - began
