"""`model.controlnet`: the network, and the pipeline class that takes one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..models import ModelFiles, read_json
from .local import folder_of
from .names import class_names

if TYPE_CHECKING:
    import torch

    from ..recipe_options import ControlNet

__all__ = ["load", "pipeline_class", "pipeline_name", "problems"]


# Sizes that it shares with the transformer whose blocks it adds to.
_SHARED = ("in_channels", "num_attention_heads", "attention_head_dim", "joint_attention_dim", "pooled_projection_dim")


def problems(options: ControlNet, files: ModelFiles) -> Iterator[str]:
    """Yield what is wrong with a network that is here."""
    try:
        folder = folder_of(options.id, "model.controlnet.id")
    except InputError as error:
        yield str(error)
        return
    if folder is None:
        return
    config = folder / (options.subfolder or "") / "config.json"
    if folder.is_file() or not config.is_file():
        yield f"model.controlnet.id: {options.id}: no folder of a diffusers model, it has no config.json"
        return
    facts, model = read_json(config), files.config("transformer")
    name = facts.get("_class_name")
    if not isinstance(name, str) or "ControlNet" not in name or name not in class_names():
        yield f"model.controlnet.id: {options.id}: is {name or 'of no class'}, which is no ControlNet of diffusers"
        return
    unlike = [key for key in _SHARED if key in facts and key in model and facts[key] != model[key]]
    if unlike:
        sizes = ", ".join(f"{key} {facts[key]} instead of {model[key]}" for key in unlike)
        yield f"model.controlnet.id: {options.id}: does not fit {files.id}: {sizes}"


def pipeline_name(name: str) -> str | None:
    """Return the class that does with a ControlNet what a pipeline class does without; None if there is none."""
    stem, found, kind = name.partition("Pipeline")[0], "", ""
    for kind in ("Img2Img", "Inpaint", ""):
        if stem.endswith(kind):
            found = f"{stem.removesuffix(kind)}ControlNet{kind}Pipeline"
            break
    return name if "ControlNet" in name else found if found in class_names() else None


def pipeline_class(pipeline: type[Any]) -> type[Any]:
    """Return the pipeline class that takes a ControlNet: this one, or the one of the same model.

    Raises:
        InputError: diffusers has none.
    """
    import diffusers

    if "controlnet" in inspect.signature(pipeline.__init__).parameters:
        return pipeline
    name = pipeline_name(pipeline.__name__)
    if name is None or name == pipeline.__name__:
        raise InputError(
            f"model.controlnet: {pipeline.__name__} takes none, and diffusers has no class beside it that does"
        )
    found: type[Any] = getattr(diffusers, name)
    return found


def load(options: ControlNet, dtype: torch.dtype) -> Any:
    """Load the network."""
    import diffusers

    return diffusers.AutoModel.from_pretrained(
        str(Path(options.id).expanduser()) if folder_of(options.id, "model.controlnet.id") else options.id,
        subfolder=options.subfolder or "",
        revision=options.revision,
        variant=options.variant,
        torch_dtype=dtype,
    )
