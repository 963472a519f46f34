"""What a diffusers pipeline is before it is loaded: the device, the number format, the class and its call.

Knows what a pipeline's call takes; knows nothing of weights, caching, images or tables.
Torch and diffusers are imported by the functions that need them.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import inspect
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from .errors import CacheditError, InputError, RunError
from .models import ModelFiles
from .options.names import class_names
from .recipe_fields import nearest

if TYPE_CHECKING:
    import torch


__all__ = [
    "block_list",
    "call_class",
    "check_arguments",
    "check_installed",
    "check_name",
    "default_steps",
    "first_line",
    "frame_rate",
    "hub_errors",
    "pick_device",
    "pick_dtype",
    "quiet",
    "real_steps",
    "takes",
]

# Of the call; a recipe cannot set them.
_OWN_ARGUMENTS = ("generator", "output_type", "return_dict", "callback_on_step_end")
# By name: the hub's client has changed its HTTP library between versions.
_NO_CONNECTION = ("ConnectError", "ConnectionError", "ConnectTimeout", "ReadTimeout", "ProxyError")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence load reports, progress bars and warnings of the libraries; their errors still come through."""
    for name in ("torchao", "torch.utils._pytree"):  # what it says of kernels that are not for this machine
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging  # first: diffusers makes it talk when imported

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def pick_device(asked: str) -> torch.device:
    """Return the device that a recipe asks for; ``auto`` takes CUDA, then MPS, then the CPU."""
    import torch

    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked == "auto":
        return torch.device(next(name for name, there in found.items() if there))
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise InputError(f"model.device: {asked!r} is no device; give auto, cpu, cuda, cuda:N or mps") from error
    if not found.get(device.type, False):
        usable = ", ".join(name for name, there in found.items() if there)
        raise InputError(f"model.device: {asked!r} is not available here (available: {usable}; auto takes the best)")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"model.device: {asked!r}: there are {torch.cuda.device_count()} CUDA devices, from cuda:0")
    return device


def pick_dtype(asked: str, device: torch.device) -> torch.dtype:
    """Return the number format that a recipe asks for; ``auto`` is bfloat16 on CUDA, else float32."""
    import torch

    if asked == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    formats = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return formats[asked]


def call_class(files: ModelFiles, asked: str | None, revision: str | None) -> type[Any]:
    """Return the pipeline class that will be used: the recipe's ``model.pipeline``, or the one the model names."""
    import diffusers

    name = asked or files.pipeline
    if name is None:
        with hub_errors(files.id):
            index = diffusers.DiffusionPipeline.load_config(files.source, revision=revision)
        name = index.get("_class_name") if isinstance(index, dict) else None
    if not isinstance(name, str):
        raise InputError(f"model.id: {files.id}: brings a pipeline class of its own; only those of diffusers are used")
    found = getattr(diffusers, name, None)
    if isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline):
        return found
    raise InputError(_no_pipeline(name, files, asked))


def check_name(files: ModelFiles, asked: str | None) -> None:
    """Refuse a pipeline class that the installed diffusers does not have, as far as its list of names tells.

    That list is read, not run: importing it would take torch along.
    """
    name = asked or files.pipeline
    if name is not None and name not in class_names():
        raise InputError(_no_pipeline(name, files, asked))


def _no_pipeline(name: str, files: ModelFiles, asked: str | None) -> str:
    near = difflib.get_close_matches(name, [each for each in class_names() if each.endswith("Pipeline")], n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    where = "model.pipeline" if asked else f"model.id: {files.id}"
    return f"{where}: diffusers {importlib.metadata.version('diffusers')} has no pipeline {name!r}{hint}"


def check_arguments(pipeline: type[Any], arguments: Mapping[str, Any], extra: Iterable[str], prompted: bool) -> None:
    """Refuse arguments that the pipeline's call does not take, and a missing prompt.

    Args:
        arguments: What the call will get, besides prompt and seed.
        extra: Those of them that stand under ``generate.extra``.
        prompted: There is a prompt.

    Raises:
        InputError: All that is wrong, one argument a line.
    """
    own = ("self", *_OWN_ARGUMENTS)
    named = [name for name in inspect.signature(pipeline.__call__).parameters if name not in own]
    places = {name: f"generate.extra.{name}" if name in extra else f"generate.{name}" for name in arguments}
    if prompted:
        places["prompt"] = "generate.prompt"
    problems = [
        f"{place}: {pipeline.__name__} takes no such argument ({nearest(name, named, 'it takes')})"
        for name, place in places.items()
        if not takes(pipeline, name)
    ]
    problems += [f"{places[name]}: cachedit sets it itself" for name in arguments if name in _OWN_ARGUMENTS]
    if takes(pipeline, "prompt") and not prompted and not any(name.startswith("prompt") for name in arguments):
        problems.append(f"generate.prompt: missing, and {pipeline.__name__} draws what a prompt says")
    if problems:
        raise InputError("\n".join(problems))


def check_installed(pipeline: type[Any]) -> None:
    """Refuse a pipeline that calls a library which diffusers takes for optional, and which is not installed.

    Wan's pipelines (diffusers 0.42.1) clean prompts with ftfy, and all but one of them do not ask whether it is there.
    """
    clean = getattr(sys.modules[pipeline.__module__], "basic_clean", None)
    used = clean.__code__.co_names if clean is not None else ()
    if "ftfy" in used and "is_ftfy_available" not in used and importlib.util.find_spec("ftfy") is None:
        raise InputError(f"model.pipeline: {pipeline.__name__} needs ftfy, which is not installed: pip install ftfy")


def takes(pipeline: type[Any], argument: str) -> bool:
    """Return whether the pipeline's call takes an argument."""
    parameters = inspect.signature(pipeline.__call__).parameters
    return argument in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def default_steps(pipeline: type[Any]) -> int | None:
    """Return the number of steps that the pipeline's call takes when it is not told."""
    parameter = inspect.signature(pipeline.__call__).parameters.get("num_inference_steps")
    return parameter.default if parameter is not None and isinstance(parameter.default, int) else None


def real_steps(pipeline: type[Any], arguments: Mapping[str, Any]) -> int | None:
    """Return how many denoising steps a call does: fewer than asked for where ``strength`` leaves some out.

    The pipeline's own arithmetic is asked, with numbers in place of a schedule; it differs by a step between pipelines.
    """
    parameters = inspect.signature(pipeline.__call__).parameters
    laid_out = [arguments[name] for name in ("sigmas", "timesteps") if isinstance(arguments.get(name), list)]
    steps = len(laid_out[0]) if laid_out else arguments.get("num_inference_steps", default_steps(pipeline))
    name = next((each for each in ("strength", "denoise_strength") if each in parameters), None)
    if name is None or steps is None or not hasattr(pipeline, "get_timesteps"):
        return steps
    strength = arguments.get(name, parameters[name].default)
    if not isinstance(strength, (int, float)) or strength >= 1:
        return steps
    schedule = list(range(steps))
    known = {
        "num_inference_steps": steps,
        "strength": strength,
        "timesteps": schedule,
        "sigmas": schedule,
        "denoising_start": arguments.get("denoising_start"),
    }
    asked = [each for each in inspect.signature(pipeline.get_timesteps).parameters if each != "self"]
    scheduler = SimpleNamespace(timesteps=schedule, order=1, config=SimpleNamespace(num_train_timesteps=1000))
    *_, left = pipeline.get_timesteps(SimpleNamespace(scheduler=scheduler), **{each: known.get(each) for each in asked})
    return max(0, int(left))


def frame_rate(pipeline: type[Any], arguments: Mapping[str, Any]) -> float:
    """Return how many frames a second a pipeline's video is made for: what its call is told, or else 16."""
    parameters = inspect.signature(pipeline.__call__).parameters
    for name in ("frame_rate", "fps"):
        given = arguments.get(name, parameters[name].default if name in parameters else None)
        if isinstance(given, (int, float)) and given > 0:
            return float(given)
    return 16.0


def block_list(pipe: Any, path: str, where: str) -> Any:
    """Return the block list at a path such as ``transformer.transformer_blocks``; ``where`` names it in errors."""
    from torch import nn

    part, _, inner = path.partition(".")
    modules = {name: module for name, module in pipe.components.items() if isinstance(module, nn.Module)}
    if part not in modules:
        raise InputError(f"{where}: {type(pipe).__name__} has no part {part!r} ({nearest(part, modules)})")
    lists = {name: module for name, module in modules[part].named_modules() if isinstance(module, nn.ModuleList)}
    if inner not in lists:
        outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
        hint = nearest(inner, outer, "it has")
        raise InputError(f"{where}: {type(modules[part]).__name__} has no block list {inner!r} ({hint})")
    return lists[inner]


def first_line(error: BaseException) -> str:
    """Return type and first line of an exception's message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def hub_errors(model_id: str, where: str = "model.id") -> Iterator[None]:
    """Turn what the hub's client and diffusers raise for a missing or broken model into one sentence."""
    from huggingface_hub import errors as hub

    try:
        yield
    except CacheditError:
        raise
    except Exception as error:
        # diffusers reports each of these as "has no model_index.json"; the reason is what that came from.
        chain = list(_causes(error))
        if any(isinstance(each, hub.GatedRepoError) for each in chain):
            raise InputError(
                f"{where}: {model_id}: access must be granted first: accept the terms on its hub page, then "
                "`hf auth login`"
            ) from error
        if any(isinstance(each, (hub.RepositoryNotFoundError, hub.RevisionNotFoundError)) for each in chain):
            raise InputError(f"{where}: {model_id}: neither a local folder nor a model on the hub") from error
        if any(isinstance(each, (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled)) for each in chain) or any(
            type(each).__name__ in _NO_CONNECTION for each in chain
        ):
            raise RunError(
                f"{model_id} is neither a local folder nor complete in the hub's cache, and the hub cannot be reached"
            ) from error
        raise RunError(f"{model_id} could not be loaded: {first_line(error)}") from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
