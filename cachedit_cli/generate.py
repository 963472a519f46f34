"""Opens a recipe's pipeline, caches it, and calls it.

Knows how a pipeline is called; knows nothing of folders and records. Imports torch only when it generates.
"""

from __future__ import annotations

import platform
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import inputs, media, opening, pipeline, registry
from .errors import CacheditError, InputError, RunError
from .jobs import Job
from .models import locate
from .plan import adapters, call_arguments, found_later
from .recipe import Recipe
from .terms.stats import DecisionLog, Row

if TYPE_CHECKING:
    import torch

    from .media import Product
    from .recipe_model import Output

__all__ = ["Opened", "caching", "check_call", "draw", "environment", "open_model"]


@dataclass(frozen=True)
class Opened:
    """A pipeline that is ready.

    Attributes:
        arguments: What each call gets, besides prompt and seed.
        steps: Denoising steps that are done, also where the pipeline's default counts.
        seconds: How long loading took.
        output: How what it makes is written.
        fps: Frames of a video that are shown a second.
        inputs: Pictures and lists of them that each call gets.
    """

    pipe: Any
    device: torch.device
    dtype: torch.dtype
    arguments: Mapping[str, Any]
    steps: int | None
    seconds: float
    output: Output
    fps: float
    inputs: Mapping[str, Any]


def open_model(recipe: Recipe, device: torch.device, overrides: Iterable[str] = ()) -> Opened:
    """Check the model's options and the call, with ``overrides`` of single pictures, open the inputs, then load."""
    model, arguments = recipe.model, call_arguments(recipe)
    files = locate(model.id, model.revision, model.config)
    dtype = pipeline.pick_dtype(model.dtype, device)
    cls = opening.class_for(files, model)
    opening.check_options(files, cls, model, device, dtype)
    check_call(recipe, cls, overrides)
    steps = pipeline.real_steps(cls, arguments)
    read = inputs.opened(recipe.generate, cls)
    fps = recipe.output.fps or pipeline.frame_rate(cls, arguments)
    started = time.perf_counter()
    pipe = opening.load(files, cls, model, device, dtype, opening.spelled_out(recipe))
    return Opened(pipe, device, dtype, arguments, steps, time.perf_counter() - started, recipe.output, fps, read)


def check_call(recipe: Recipe, pipe: type[Any], overrides: Iterable[str] = ()) -> None:
    """Refuse arguments, inputs and an output that the pipeline's call does not take.

    Args:
        overrides: Arguments that only some pictures have.

    Raises:
        InputError: Everything that is wrong, one problem a line.
    """
    arguments, settings = call_arguments(recipe), recipe.generate
    every = {**dict.fromkeys(overrides), **arguments}
    problems: list[str] = []
    for check in (
        lambda: pipeline.check_installed(pipe),
        lambda: pipeline.check_arguments(pipe, every, settings.extra, settings.prompted),
        lambda: inputs.check_call(settings, pipe),
        lambda: media.check_output(recipe.output, pipe, arguments),
    ):
        try:
            check()
        except InputError as error:
            problems += str(error).splitlines()
    if recipe.model.ip_adapter is not None and not any(
        "ip_adapter_image" in name for name in (*settings.inputs, *every)
    ):
        problems.append("generate.inputs.ip_adapter_image: missing, and model.ip_adapter takes a picture as a prompt")
    if not problems and pipeline.real_steps(pipe, arguments) == 0:
        problems.append(f"generate.strength: {settings.strength} leaves none of the steps (take more of either)")
    if problems:
        raise InputError("\n".join(problems))


@contextmanager
def caching(recipe: Recipe, opened: Opened) -> Iterator[DecisionLog]:
    """Cache the pipeline's blocks as the recipe says, as long as the block is open; the log tells what happened."""
    files = locate(
        recipe.model.id, recipe.model.revision, recipe.model.config
    )  # again, as only loading may have brought them here
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


def draw(opened: Opened, batch: Sequence[Job], on_step: Callable[[Row], None] | None) -> list[Product]:
    """Call the pipeline for a batch and return what it made; ``on_step`` hears of steps that no decision tells of."""
    import torch

    # On the CPU and one a picture: the same noise on every device and in every batch.
    generators = [torch.Generator().manual_seed(job.seed) for job in batch]
    one = len(batch) == 1
    # Pipelines change lists that they are given.
    read = {name: list(value) if isinstance(value, list) else value for name, value in opened.inputs.items()}
    given = {**opened.arguments, **read, **batch[0].overrides, "generator": generators[0] if one else generators}
    if batch[0].prompt is not None:
        given["prompt"] = batch[0].prompt if one else [job.prompt for job in batch]
    if "negative_prompt" in given and not one:
        shared = given["negative_prompt"]
        given["negative_prompt"] = [job.overrides.get("negative_prompt", shared) for job in batch]

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
        if "OutOfMemory" in type(error).__name__ or "can't allocate memory" in said:  # on the CPU
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
