"""What of a recipe's model options can be refused from configuration files and installed packages alone.

Imports no torch, so that plans refuse it as well: names of diffusers are read from its source.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..models import ModelFiles
from ..recipe_fields import nearest

if TYPE_CHECKING:
    from ..recipe_options import Model

__all__ = ["attention_backends", "class_names", "refuse_unknown"]


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
    if model.attention is not None and model.attention not in attention_backends():
        hint = nearest(model.attention, attention_backends())
        yield f"model.attention: diffusers has no backend {model.attention!r} ({hint})"


def _near(name: str, known: list[str]) -> str:
    hint = nearest(name, known)
    return hint if hint.startswith("did you mean") else f"such as {known[0]}"


@functools.cache
def class_names() -> tuple[str, ...]:
    """Return the names of classes in diffusers' table of what it imports on demand."""
    return tuple(sorted(set(re.findall(r'"([A-Z]\w+)"', _source("__init__.py")))))


@functools.cache
def attention_backends() -> tuple[str, ...]:
    """Return the names of diffusers' attention backends, in its order."""
    _, _, after = _source("models/attention_dispatch.py").partition("class AttentionBackendName(")
    listed, _, _ = after.partition("\nclass ")
    return tuple(re.findall(r'^    \w+ = "(\w+)"', listed, re.MULTILINE))


def _source(path: str) -> str:
    spec = importlib.util.find_spec("diffusers")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else Path()
    return (folder / path).read_text(encoding="utf-8")
