"""`model.ip_adapter`: layers that take a picture as a prompt, through diffusers' loader of the pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..models import ModelFiles
from .local import folder_of, weight_file

if TYPE_CHECKING:
    import torch

    from ..recipe_options import IpAdapter

__all__ = ["check", "load", "problems"]

_HERE = "model.ip_adapter"
_ENCODER, _ENCODER_FORMAT = "image_encoder_pretrained_model_name_or_path", "image_encoder_dtype"


def problems(options: IpAdapter) -> Iterator[str]:
    """Yield what is wrong with files that are here."""
    try:
        _source(options)
        if options.image_encoder is not None:
            folder_of(options.image_encoder, f"{_HERE}.image_encoder")
    except InputError as error:
        yield str(error)


def _source(options: IpAdapter) -> tuple[str, str]:
    """Return folder or hub id, and the file in it."""
    file = weight_file(options.id, options.weight_name, _HERE)
    if file is not None:
        return str(file.parent), file.name
    if options.weight_name is None:
        raise InputError(f"{_HERE}.weight_name: missing: the name of a file in the repository")
    return options.id, options.weight_name


def check(pipeline: type[Any], options: IpAdapter, files: ModelFiles) -> None:
    """Refuse pipelines that take none, and an encoder of the picture that is missing or one too many."""
    if not hasattr(pipeline, "load_ip_adapter"):
        raise InputError(f"{_HERE}: {pipeline.__name__} takes none")
    named = _ENCODER in inspect.signature(pipeline.load_ip_adapter).parameters
    if options.image_encoder is not None and not named:
        raise InputError(f"{_HERE}.image_encoder: {pipeline.__name__} looks for its own (leave it out)")
    if options.image_encoder is None and named and files.components and "image_encoder" not in files.components:
        raise InputError(
            f"{_HERE}.image_encoder: missing: {files.id} brings no model that reads the picture; name the CLIP vision "
            "model that the IP-Adapter was trained with"
        )


def load(pipe: Any, options: IpAdapter, dtype: torch.dtype) -> None:
    """Load the layers, and the encoder of the picture if one is named.

    Raises:
        InputError: It does not fit the pipeline.
    """
    source, name = _source(options)
    parameters = inspect.signature(pipe.load_ip_adapter).parameters
    every: dict[str, Any] = {_ENCODER: options.image_encoder, _ENCODER_FORMAT: dtype}
    given = {key: value for key, value in every.items() if key in parameters}
    try:
        pipe.load_ip_adapter(source, weight_name=name, subfolder="", **given)
    except (ValueError, KeyError, RuntimeError, OSError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{_HERE}.id: {options.id}: cannot be loaded: {reason}") from error
    pipe.set_ip_adapter_scale(options.scale)
