"""`model.component_dtypes`: parts of a pipeline in other number formats, and what passes between them.

Some pipelines (Wan) cast what they hand from part to part, others (FLUX) take for granted that all parts have one
format. Where formats differ, the transformers and the VAE therefore cast what they are given.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any

from ..models import ModelFiles
from ..recipe_fields import nearest

if TYPE_CHECKING:
    import torch

__all__ = ["connect", "formats", "problems"]

# What of a transformer's arguments is cast: features of pictures and text. Times and positions keep their precision.
_FEATURES = ("hidden_states", "embeds", "projections")


def problems(options: Mapping[str, str], files: ModelFiles) -> Iterator[str]:
    """Yield parts that the model does not have."""
    for part in options:
        if files.components and part not in files.components:
            hint = nearest(part, files.components)
            yield f"model.component_dtypes.{part}: {files.id} has no such part ({hint})"


def formats(options: Mapping[str, str], dtype: torch.dtype) -> Any:
    """Return what ``from_pretrained`` takes: one format, or one for each part."""
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return {"default": dtype, **{part: known[name] for part, name in options.items()}} if options else dtype


def connect(pipe: Any, options: Mapping[str, str], dtype: torch.dtype) -> None:
    """Let parts cast what other parts give them, if their formats differ."""
    given = formats(options, dtype)
    if not options or len(set(given.values())) == 1:
        return
    for name, part in pipe.components.items():
        own = given.get(name, dtype)
        if name.startswith("transformer") and hasattr(part, "register_forward_pre_hook"):
            part.register_forward_pre_hook(_caster(part, own), with_kwargs=True)
        elif name == "vae" and part is not None:
            for method in ("encode", "decode"):
                setattr(part, method, _casting(getattr(part, method), own))


def _caster(transformer: Any, dtype: torch.dtype) -> Callable[..., Any]:
    names = list(inspect.signature(transformer.forward).parameters)

    def cast(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        moved = [
            _to(value, dtype) if name.endswith(_FEATURES) else value for name, value in zip(names, args, strict=False)
        ]
        return (*moved, *args[len(moved) :]), {
            name: _to(value, dtype) if name.endswith(_FEATURES) else value for name, value in kwargs.items()
        }

    return cast


def _casting(method: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    @wraps(method)
    def cast(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return method(_to(tensor, dtype), *args, **kwargs)

    return cast


def _to(value: Any, dtype: torch.dtype) -> Any:
    import torch

    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
