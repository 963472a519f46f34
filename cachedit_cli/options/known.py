"""What of a recipe's model options can be refused from configuration files and installed packages alone.

Imports no torch, so that plans refuse it as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..errors import InputError
from ..models import ModelFiles
from ..recipe_fields import nearest
from . import controlnet, dtypes, ip_adapter, lora, quantizing
from .names import attention_backends, class_names

if TYPE_CHECKING:
    from ..recipe_options import Model

__all__ = ["refuse_unknown"]


def refuse_unknown(model: Model, files: ModelFiles) -> None:
    """Refuse options that name what does not exist, or that the model's parts have no use for.

    Raises:
        InputError: All that is wrong, one option a line.
    """
    problems = list(_problems(model, files))
    if problems:
        raise InputError("\n".join(problems))


def _problems(model: Model, files: ModelFiles) -> Iterator[str]:
    if model.vae is not None and files.components and "vae" not in files.components:
        yield f"model.vae: {files.id} has no part 'vae', but {', '.join(files.components)}"
    if model.scheduler is not None and model.scheduler.type is not None:
        known = [name for name in class_names() if name.endswith("Scheduler")]
        if model.scheduler.type not in known:
            yield f"model.scheduler: diffusers has no {model.scheduler.type!r} ({_near(model.scheduler.type, known)})"
    yield from dtypes.problems(model.component_dtypes, files)
    yield from quantizing.problems(model.quantize, files)
    yield from lora.problems(model.lora, files)
    if model.controlnet is not None:
        yield from controlnet.problems(model.controlnet, files)
    if model.ip_adapter is not None:
        yield from ip_adapter.problems(model.ip_adapter)
    if model.attention is not None and model.attention not in attention_backends():
        hint = nearest(model.attention, attention_backends())
        yield f"model.attention: diffusers has no backend {model.attention!r} ({hint})"


def _near(name: str, known: list[str]) -> str:
    hint = nearest(name, known)
    return hint if hint.startswith("did you mean") else f"such as {known[0]}"
