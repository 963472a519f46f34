"""The registry of model adapters: which block lists a transformer class has, as data, and who else adds to it.

Needs no torch, so that plans and listings answer at once; ``api`` turns what an adapter says into a BlockAdapter.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from .engine.config import CacheConfig
from .engine.pattern import ForwardPattern, Streams
from .errors import InputError

__all__ = [
    "BlockAdapterRegister",
    "BlockList",
    "ModelAdapter",
    "all_adapters",
    "by_name",
    "find",
    "names",
    "register",
]


@dataclass(frozen=True)
class BlockList:
    """One block list of a transformer.

    Attributes:
        path: Where it is, from the transformer: 'transformer_blocks'.
        pattern: What its blocks take and return.
        length: Key of the transformer's config that holds its length; None if no single key does.
    """

    path: str
    pattern: ForwardPattern | Streams
    length: str | None = None


@dataclass(frozen=True)
class ModelAdapter:
    """What cachedit knows of one transformer class.

    Attributes:
        name: Family, for people and recipes: 'flux'.
        transformer: Exact name of the transformer's class.
        lists: Block lists to cache, in the order of the forward.
        pipelines: Names of the diffusers pipelines that use it.
        chain: The lists have one pattern and one set of states, and are decided together.
        guidance: How guidance is computed, in a few words.
        defaults: Settings that suit the family, made with ``DBCacheConfig.reset``.
        functor: Makes the PatchFunctor that the model needs, if any.
        note: Pitfalls worth knowing.
    """

    name: str
    transformer: str
    lists: tuple[BlockList, ...]
    pipelines: tuple[str, ...] = ()
    chain: bool = False
    guidance: str = ""
    defaults: CacheConfig | None = None
    functor: Callable[[], Any] | None = None
    note: str = ""


@dataclass
class _Registry:
    adapters: dict[str, ModelAdapter] = field(default_factory=dict)  # by transformer class
    functions: dict[str, Callable[..., Any]] = field(default_factory=dict)  # by the name given


_registry = _Registry()


def register(adapter: ModelAdapter) -> ModelAdapter:
    """Add an adapter.

    Raises:
        InputError: Another adapter is registered for the class.
    """
    other = _registry.adapters.setdefault(adapter.transformer, adapter)
    if other is not adapter:
        raise InputError(f"two adapters for {adapter.transformer}: {other.name!r} and {adapter.name!r}")
    return adapter


@cache
def _load() -> None:
    """Import the shipped adapters, each of which registers itself."""
    package = importlib.import_module("cachedit_cli.adapters")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def all_adapters() -> tuple[ModelAdapter, ...]:
    """Return every adapter, by family."""
    _load()
    return tuple(sorted(_registry.adapters.values(), key=lambda adapter: (adapter.name, adapter.transformer)))


def names() -> list[str]:
    """Return the families that have an adapter."""
    return sorted({adapter.name for adapter in all_adapters()})


def find(transformer: str) -> ModelAdapter | None:
    """Return the adapter for the exact class name of a transformer."""
    _load()
    return _registry.adapters.get(transformer)


def by_name(name: str) -> ModelAdapter:
    """Return the adapter of a family.

    Raises:
        InputError: There is none; names the nearest.
    """
    for adapter in all_adapters():
        if adapter.name == name:
            return adapter
    near = difflib.get_close_matches(name, names(), n=1)
    raise InputError(f"no adapter is called {name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))


class BlockAdapterRegister:
    """Adapters as functions from a pipeline to a BlockAdapter, registered under the beginning of its class name.

    They go before the adapters that are data; of several that fit the longest name counts.
    """

    @staticmethod
    def register(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Return a decorator that registers a function for pipelines whose class name begins with ``name``.

        Raises:
            InputError: The name is taken.
        """

        def decorator(function: Callable[..., Any]) -> Callable[..., Any]:
            other = _registry.functions.setdefault(name, function)
            if other is not function:
                raise InputError(f"two adapter functions for {name!r}: {other.__qualname__}, {function.__qualname__}")
            return function

        return decorator

    @staticmethod
    def unregister(name: str) -> None:
        """Forget the function registered under ``name``, if there is one."""
        _registry.functions.pop(name, None)

    @staticmethod
    def find(pipeline: str) -> Callable[..., Any] | None:
        """Return the function for a pipeline's class name."""
        fitting = [name for name in _registry.functions if pipeline.startswith(name)]
        return _registry.functions[max(fitting, key=len)] if fitting else None
