"""Opens a diffusers pipeline as the `model` section of a recipe says: weights, options, device.

Knows in which order options are checked and carried out; ``options`` knows each of them. Torch and diffusers are
imported by the functions that need them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .errors import InputError, RunError
from .models import ModelFiles
from .options import (
    attention,
    compiling,
    controlnet,
    dtypes,
    ip_adapter,
    lora,
    parallel,
    placing,
    quantizing,
    scheduling,
    single_file,
)
from .options.known import refuse_unknown
from .pipeline import block_list, call_class, first_line, hub_errors

if TYPE_CHECKING:
    import torch

    from .recipe_model import Recipe
    from .recipe_options import Model

__all__ = ["check_options", "class_for", "load", "spelled_out", "transformers"]


def class_for(files: ModelFiles, model: Model) -> type[Any]:
    """Return the class of the pipeline: the recipe's or the model's, with a ControlNet if there is one."""
    cls = call_class(files, model.pipeline, model.revision)
    return cls if model.controlnet is None else controlnet.pipeline_class(cls)


def check_options(
    files: ModelFiles, pipeline: type[Any], model: Model, device: torch.device, dtype: torch.dtype
) -> None:
    """Refuse options of the model that cannot work here.

    Args:
        files: Where the model is.
        pipeline: Class of the pipeline.
        model: The recipe's section.
        device: Where it is to run.
        dtype: Number format of the weights.

    Raises:
        InputError: An option is unknown, or not supported by this machine or by the model.
    """
    refuse_unknown(model, files)
    placing.check(model, device)
    if model.lora:
        lora.check(pipeline)
    if model.ip_adapter is not None:
        ip_adapter.check(pipeline, model.ip_adapter, files)
    if model.scheduler is not None:
        scheduling.check(model.scheduler, files.components.get("scheduler"))
    if model.compile is not None:
        compiling.check(model.compile, device)
    if model.attention is not None:
        attention.check(model.attention, device, dtype)
    quantizing.check(model.quantize, device, dtype)
    if model.parallel is not None:
        parallel.check(model.parallel, model.attention)


def spelled_out(recipe: Recipe) -> list[tuple[str, str]]:
    """Return the paths of block lists that the recipe spells out, each with its place in the recipe."""
    return [(path, f"blocks[{place}].path") for place, entry in enumerate(recipe.blocks) for path in entry.paths()]


def load(
    files: ModelFiles,
    pipeline: type[Any],
    model: Model,
    device: torch.device,
    dtype: torch.dtype,
    blocks: Iterable[tuple[str, str]] = (),
) -> Any:
    """Load the weights, carry out the options of the model, and move it to the device.

    Args:
        files: Where the model is.
        pipeline: Class of the pipeline.
        model: The recipe's section.
        device: Where it is to run.
        dtype: Number format of the weights.
        blocks: Block lists that the recipe spells out, such as `transformer.blocks`, each with its place in the recipe.

    Raises:
        InputError: There is no such model, or it does not support an option.
        RunError: It could not be downloaded or loaded, or does not go onto the device.
    """
    pipe = _weights(files, pipeline, model, dtype)
    pipe.set_progress_bar_config(disable=True)
    _change(pipe, model, dtype, blocks)
    if model.device_map is None:
        try:
            placing.place(pipe, model.offload, device)
        except RuntimeError as error:
            raise RunError(f"{files.id} does not go onto {device}: {first_line(error)}") from error
    if model.parallel is not None:
        parallel.split(model.parallel, transformers(pipe))
    return pipe


def _weights(files: ModelFiles, pipeline: type[Any], model: Model, dtype: torch.dtype) -> Any:
    """Load the pipeline as it is on the disk or the hub, in the formats that the recipe asks for."""
    import diffusers

    given: dict[str, Any] = {"torch_dtype": dtypes.formats(model.component_dtypes, dtype)}  # `dtype` came with 0.42
    if model.controlnet is not None:
        with hub_errors(model.controlnet.id, "model.controlnet.id"):
            given["controlnet"] = controlnet.load(model.controlnet, dtype)
    if model.quantize:
        given["quantization_config"] = quantizing.config(model.quantize, files, dtype)
    if model.device_map is not None:
        given["device_map"] = model.device_map
    with hub_errors(files.id):
        if files.file is not None:
            return single_file.load(files, pipeline, given)
        opener = pipeline if model.pipeline or model.controlnet else diffusers.DiffusionPipeline
        return opener.from_pretrained(files.source, revision=model.revision, variant=model.variant, **given)


def _change(pipe: Any, model: Model, dtype: torch.dtype, blocks: Iterable[tuple[str, str]]) -> None:
    """Carry out the recipe's options on a pipeline that is loaded."""
    if model.scheduler is not None:
        scheduling.change(pipe, model.scheduler)
    for name in ("tiling", "slicing"):
        if model.vae is not None and getattr(model.vae, name):
            enable = getattr(pipe.vae, f"enable_{name}", None)
            if enable is None:
                raise InputError(f"model.vae.{name}: {type(pipe.vae).__name__} has no {name}")
            enable()
    lora.load(pipe, model.lora)
    if model.ip_adapter is not None:
        ip_adapter.load(pipe, model.ip_adapter, dtype)
    dtypes.connect(pipe, model.component_dtypes, dtype)
    models = transformers(pipe)
    if model.attention is not None:
        attention.choose(model.attention, models)
    if model.compile is not None:
        lists = [block_list(pipe, path, where) for path, where in blocks]
        compiling.compile_(model.compile, models, lists)


def transformers(pipe: Any) -> list[Any]:
    """Return the diffusion transformers of a pipeline."""
    from torch import nn

    parts = pipe.components.items()
    return [part for name, part in parts if name.startswith("transformer") and isinstance(part, nn.Module)]
