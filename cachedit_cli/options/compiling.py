"""`model.compile`: blocks, or transformers as a whole, through torch.compile."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from .. import registry
from ..errors import InputError
from ..recipe_fields import nearest

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..recipe_options import Compile

__all__ = ["check", "compile_", "missing"]


def check(options: Compile, device: torch.device) -> None:
    """Refuse a backend that torch does not have, or that lacks a compiler here."""
    import torch

    if options.type == "none":
        return
    if options.backend is not None:
        if options.backend not in torch.compiler.list_backends(exclude_tags=()):
            hint = nearest(options.backend, torch.compiler.list_backends())
            raise InputError(f"model.compile.backend: torch has no {options.backend!r} ({hint})")
    if options.backend in (None, "inductor") and (problem := missing(device)) is not None:
        raise InputError(f"model.compile: {problem}")


def missing(device: torch.device) -> str | None:
    """Return what inductor lacks for this device; None if it is there."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "the package triton is not installed, which writes the kernels for CUDA (pip install triton)"
    if device.type == "cpu" and not any(map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++")))):
        return "there is no C++ compiler, which torch.compile needs on the CPU (install g++, or set CXX)"
    return None


def compile_(options: Compile, transformers: Iterable[nn.Module], lists: Iterable[Iterable[nn.Module]]) -> None:
    """Compile transformers, or the blocks that repeat in them.

    Nothing is translated before the first call.

    Args:
        options: What and how.
        transformers: The transformers of a pipeline.
        lists: Lists of blocks that the recipe spells out.
    """
    given: dict[str, Any] = {"fullgraph": options.fullgraph, "dynamic": options.dynamic}
    given |= {key: value for key, value in (("mode", options.mode), ("backend", options.backend)) if value is not None}
    for transformer in transformers:
        if options.type == "full":
            transformer.compile(**given)
        elif options.type == "blocks":
            for block in _repeated(transformer, lists):
                block.compile(**given)


def _repeated(transformer: nn.Module, lists: Iterable[Iterable[nn.Module]]) -> Iterator[nn.Module]:
    """Yield the blocks that are cached, and those that diffusers compiles as repeated ones, each once."""
    adapter = registry.find(type(transformer).__name__)
    inside = set(map(id, transformer.modules()))
    known: list[Any] = [transformer.get_submodule(each.path) for each in adapter.lists] if adapter is not None else []
    found = {id(block): block for blocks in (*known, *lists) for block in blocks if id(block) in inside}
    names = getattr(transformer, "_repeated_blocks", None) or ()
    found |= {id(module): module for module in transformer.modules() if type(module).__name__ in names}
    if not found:
        raise InputError(
            f"model.compile: {type(transformer).__name__} says of no blocks that they repeat; spell them out as "
            "`blocks`, or write none"
        )
    yield from found.values()
