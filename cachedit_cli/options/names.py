"""Which names the installed diffusers has, read from its source: importing it would take torch along, and seconds."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path

__all__ = ["attention_backends", "class_names"]


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
