"""Makes what a recipe asks for: checks, opens the pipeline, caches, generates, and records each picture at once.

Knows the order of things and how a pipeline is called; prints nothing, but tells a ``Watcher``. Imports torch only when
it generates.
"""

from __future__ import annotations

import platform
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from . import media, pipeline, registry
from .errors import CacheditError, InputError, RunError
from .models import locate
from .plan import Job, adapters, call_arguments, found_later, jobs
from .recipe import Recipe
from .runs import Image, Record, RunFolder
from .terms.stats import ContextInfo, DecisionLog, Row
from .timing import timed

if TYPE_CHECKING:
    import torch

    from .media import Product
    from .recipe_model import Output

__all__ = ["Opened", "Outcome", "Watcher", "caching", "draw", "environment", "generate", "open_model"]


@dataclass(frozen=True)
class Outcome:
    """A run that ended; ``record.status`` says how."""

    folder: Path
    record: Record

    def as_dict(self) -> dict[str, Any]:
        """Return what ``run.json`` says, and where it is: null if there was nothing to keep."""
        return {"folder": str(self.folder) if self.record.images else None, **self.record.as_dict()}


class Watcher(Protocol):
    """Is told what happens, as it happens."""

    def opened(self, device: str, dtype: str, seconds: float) -> None:
        """The weights are loaded."""

    def begins(self, batch: Sequence[Job], steps: int | None) -> None:
        """A pipeline call begins."""

    def found(self, lists: Sequence[ContextInfo]) -> None:
        """The first forward showed which block lists can be cached."""

    def row(self, row: Row) -> None:
        """One context is done with one step."""

    def saved(self, files: Sequence[Path], seconds: float) -> None:
        """The pictures of the call are on the disk."""


@dataclass(frozen=True)
class Opened:
    """A pipeline that is ready.

    Attributes:
        arguments: What each call gets, besides prompt and seed.
        steps: Denoising steps, also where the pipeline's default counts.
        seconds: How long loading took.
        output: How what it makes is written.
        fps: Frames of a video that are shown a second.
    """

    pipe: Any
    device: torch.device
    dtype: torch.dtype
    arguments: Mapping[str, Any]
    steps: int | None
    seconds: float
    output: Output
    fps: float


def generate(recipe: Recipe, *, command: Sequence[str], version: str, watcher: Watcher) -> Outcome:
    """Make the pictures of a recipe.

    What was finished stays on the disk with its record, however the run ends. An interrupt is an outcome, not an
    exception.

    Raises:
        InputError: Recipe and model, or recipe and machine, do not fit.
        RunError: The model could not be loaded, or its call failed.
    """
    record = Record(cachedit=version, recipe=recipe.resolved(), command=list(command))
    folder = RunFolder.create(recipe.name, recipe.output.dir)
    try:
        _run(recipe, folder, record, watcher)
    except KeyboardInterrupt:
        record.finish("interrupted")
    except BaseException as error:
        record.finish("failed", pipeline.first_line(error))
        with suppress(RunError):  # the first error is the one to tell
            _keep(folder, record)
        raise
    else:
        record.finish("done")
    _keep(folder, record)
    return Outcome(folder.path, record)


def _keep(folder: RunFolder, record: Record) -> None:
    if record.images:
        folder.write(record)
    else:
        folder.discard()


def _run(recipe: Recipe, folder: RunFolder, record: Record, watcher: Watcher) -> None:
    started = time.perf_counter()
    try:
        device = pipeline.pick_device(recipe.model.device)
        with pipeline.quiet():
            opened = open_model(recipe, device)
            record.environment = environment(opened)
            record.timings["load"] = opened.seconds
            watcher.opened(str(device), record.environment["dtype"], opened.seconds)
            with caching(recipe, opened) as record.log:
                record.log.listener = _Listener(record.log, watcher).row
                for number, batch in enumerate(_batches(jobs(recipe), recipe.generate.batch_size)):
                    _make(opened, batch, number, folder, record, watcher)
    finally:
        record.timings["total"] = time.perf_counter() - started


def open_model(recipe: Recipe, device: torch.device) -> Opened:
    """Check the call's arguments, then load the weights."""
    model, arguments = recipe.model, call_arguments(recipe)
    files = locate(model.id, model.revision)
    dtype = pipeline.pick_dtype(model.dtype, device)
    cls = pipeline.call_class(files, model.pipeline, model.revision)
    prompted = recipe.generate.all_prompts() != (None,)
    pipeline.check_arguments(cls, arguments, recipe.generate.extra, prompted)
    media.check_output(recipe.output, cls, arguments)
    fps = recipe.output.fps or pipeline.frame_rate(cls, arguments)
    started = time.perf_counter()
    pipe = pipeline.load(files, cls, model, device, dtype)
    steps = arguments.get("num_inference_steps", pipeline.default_steps(cls))
    return Opened(pipe, device, dtype, arguments, steps, time.perf_counter() - started, recipe.output, fps)


@contextmanager
def caching(recipe: Recipe, opened: Opened) -> Iterator[DecisionLog]:
    """Cache the pipeline's blocks as the recipe says, as long as the block is open; the log tells what happened."""
    files = locate(recipe.model.id, recipe.model.revision)  # again, as only loading may have brought them here
    defaults = next((adapter.defaults for adapter in adapters(recipe, files).values()), None)
    config = recipe.cache_config(opened.steps, defaults)
    if config is None:
        yield DecisionLog()
        return
    from .api import cached
    from .terms.block_adapter import BlockAdapter

    target = opened.pipe
    if recipe.blocks:
        target = _spelled_out(recipe, opened)
    elif found_later(recipe, files) and registry.BlockAdapterRegister.find(type(opened.pipe).__name__) is None:
        target = BlockAdapter(pipe=opened.pipe, auto=True)
    with cached(target, cache_config=config, calibrator_config=recipe.calibrator_config()) as cache:
        yield cache.log


class _Listener:
    """Tells a watcher of rows, and before the first one of block lists that were found on the way."""

    def __init__(self, log: DecisionLog, watcher: Watcher) -> None:
        self._log = log
        self._watcher = watcher
        self._known = len(log.contexts)

    def row(self, row: Row) -> None:
        found, self._known = self._log.contexts[self._known :], len(self._log.contexts)
        if found:
            self._watcher.found(found)
        self._watcher.row(row)


def _spelled_out(recipe: Recipe, opened: Opened) -> Any:
    """Return the BlockAdapter for the recipe's `blocks`."""
    from .terms.block_adapter import BlockAdapter, ParamsModifier
    from .terms.pattern import ForwardPattern

    parts: dict[str, list[tuple[Any, ForwardPattern, ParamsModifier]]] = {}
    joined = [len(entry.paths()) > 1 for entry in recipe.blocks]
    if any(joined) and len(joined) > 1:
        raise InputError("blocks: joined paths cannot stand beside other entries")
    for place, (entry, own) in enumerate(zip(recipe.blocks, recipe.modifiers(opened.steps), strict=True)):
        for path in entry.paths():
            blocks = pipeline.block_list(opened.pipe, path, f"blocks[{place}].path")
            found = (blocks, list(ForwardPattern)[entry.pattern], ParamsModifier(*own))
            parts.setdefault(path.partition(".")[0], []).append(found)
    return BlockAdapter(
        pipe=opened.pipe,
        transformer=[opened.pipe.components[part] for part in parts],
        blocks=[[blocks for blocks, _, _ in lists] for lists in parts.values()],
        forward_pattern=[[pattern for _, pattern, _ in lists] for lists in parts.values()],
        params_modifiers=[[modifier for _, _, modifier in lists] for lists in parts.values()],
        chain=any(joined),
        patch_functor=registry.functor(recipe.patch_functor)() if recipe.patch_functor is not None else None,
    )


def _batches(todo: Sequence[Job], size: int) -> Iterator[list[Job]]:
    """Yield jobs that share a pipeline call; pictures without a prompt come one by one."""
    batch: list[Job] = []
    for job in todo:
        batch.append(job)
        if len(batch) == size or job.prompt is None:
            yield batch
            batch = []
    if batch:
        yield batch


def _make(
    opened: Opened, batch: Sequence[Job], number: int, folder: RunFolder, record: Record, watcher: Watcher
) -> None:
    """Make the pictures of one pipeline call, and record them."""
    watcher.begins(batch, opened.steps)
    known = len(record.log.rows)
    try:
        with timed(opened.pipe, opened.device) as seconds:
            made = draw(opened, batch, None if record.log.contexts else watcher.row)
    except BaseException:
        del record.log.rows[known:]  # the record is about pictures that were finished
        raise
    for part, value in seconds.items():
        record.timings[part] = (record.timings.get(part) or 0.0) + value
    whole = sum(seconds.values())
    rows = record.log.rows[known:]
    negative = opened.arguments.get("negative_prompt")
    for job, product in zip(batch, made, strict=True):
        files = folder.save(
            product,
            media.pick_format(product, opened.output, type(opened.pipe).__name__),
            prompt=job.prompt,
            negative_prompt=negative,
            seed=job.seed,
            cachedit=record.cachedit,
            settings=record.recipe,
            quality=opened.output.quality,
        )
        record.images.append(
            Image(
                file=files[0],
                prompt=job.prompt,
                negative_prompt=negative,
                seed=job.seed,
                steps=opened.steps,
                seconds=whole / len(batch),
                timings=seconds,
                generation=rows[0].generation if rows else number,
                others=files[1:],
                **media.about(product),
            )
        )
    folder.write(record)
    saved = [name for image in record.images[-len(batch) :] for name in (image.file, *image.others)]
    watcher.saved([folder.path / name for name in saved], whole)


def draw(opened: Opened, batch: Sequence[Job], on_step: Callable[[Row], None] | None) -> list[Product]:
    """Call the pipeline for a batch and return what it made; ``on_step`` hears of steps that no decision tells of."""
    import torch

    # On the CPU and one a picture: the same noise on every device and in every batch.
    generators = [torch.Generator().manual_seed(job.seed) for job in batch]
    one = len(batch) == 1
    given = {**opened.arguments, "generator": generators[0] if one else generators}
    if batch[0].prompt is not None:
        given["prompt"] = batch[0].prompt if one else [job.prompt for job in batch]
    if "negative_prompt" in given and not one:
        given["negative_prompt"] = [given["negative_prompt"]] * len(batch)

    def step_ends(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if on_step is not None:
            on_step(Row(0, step, "transformer", "baseline", "compute", "not cached"))
        return tensors

    latent = opened.output.type == "latent"
    if latent:
        given["output_type"] = "latent"
    name = type(opened.pipe).__name__
    if on_step is not None and pipeline.takes(type(opened.pipe), "callback_on_step_end"):
        given["callback_on_step_end"] = step_ends
    try:
        result = opened.pipe(**given)
    except CacheditError:
        raise
    except Exception as error:
        said = pipeline.first_line(error)
        if "OutOfMemory" in type(error).__name__:
            small = "try a smaller generate.batch_size, height and width, or another model.dtype"
            raise RunError(f"{name} ran out of memory: {said}; {small}") from error
        frames = traceback.extract_tb(error.__traceback__)
        if Path(frames[-1].filename).is_relative_to(Path(__file__).parent):
            raise  # a bug, and ours
        if any(frame.name == "check_inputs" for frame in frames):
            raise InputError(f"generate: {name} refuses its arguments: {said}") from error
        raise RunError(f"{name} failed: {said}") from error
    return media.products(result, len(batch), opened.pipe, fps=opened.fps, latent=latent)


def environment(opened: Opened) -> dict[str, Any]:
    """Return versions, platform, device, number format and threads."""
    import diffusers
    import torch
    import transformers

    device = opened.device
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "platform": platform.platform(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "dtype": str(opened.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }
