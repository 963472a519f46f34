"""The registry of model adapters: which block lists a transformer class has, as data, and who else adds to it.

Adapters come from the shipped ones, from installed packages (entry points of the group ``cachedit.adapters``) and from
plugin files that the user names. Needs no torch, so that plans and listings answer at once; ``api`` turns what an
adapter says into a BlockAdapter.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.metadata
import importlib.util
import itertools
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import InputError
from .terms.config import CacheConfig
from .terms.pattern import ForwardPattern, Streams
from .terms.sample import Sample

__all__ = [
    "OLDEST_DIFFUSERS",
    "BlockAdapterRegister",
    "BlockList",
    "ModelAdapter",
    "all_adapters",
    "by_name",
    "find",
    "functor",
    "load_plugin",
    "names",
    "origin",
    "problems",
    "register",
    "register_functor",
]

#: The oldest diffusers that is supported; has every class whose adapter does not name a newer one.
OLDEST_DIFFUSERS = "0.36"

_GROUP = "cachedit.adapters"
_HERE = "this program"


@dataclass(frozen=True)
class BlockList:
    """One block list of a transformer.

    Attributes:
        path: Where it is, from the transformer: 'transformer_blocks'.
        pattern: What its blocks take and return.
        length: Key of the transformer's config that holds its length; None if no single key does.
        tail: Key of the config with the number of last blocks that the model runs on other states than those before
            them, so that they are a list of their own; None if there are none.
    """

    path: str
    pattern: ForwardPattern | Streams
    length: str | None = None
    tail: str | None = None

    def parts(self, count: int, config: Mapping[str, Any]) -> tuple[slice, ...]:
        """Return the parts that a list of ``count`` blocks is cached in, mostly one: all of it."""
        last = (config.get(self.tail) or 0) if self.tail is not None else 0
        cuts = sorted({0, count - last, count})
        return tuple(slice(start, stop) for start, stop in itertools.pairwise(cuts))


@dataclass(frozen=True)
class ModelAdapter:
    """What cachedit knows of one transformer class.

    Attributes:
        name: Family, for people and recipes: 'flux'.
        transformer: Exact name of the transformer's class.
        lists: Block lists to cache, in the order of the forward.
        pipelines: Names of the diffusers pipelines that use it.
        chain: The lists have one pattern and one set of states, and are decided together.
        alternate: The lists take turns, block by block, and are decided together.
        skips: The model hands outputs of its first blocks to its last ones in reverse order, which needs Bn <= Fn.
        guidance: How guidance is computed, in a few words.
        modality: What the model makes.
        needs: The first diffusers version with which the class can be cached, if later than ``OLDEST_DIFFUSERS``.
        defaults: Settings that suit the family where they differ from the engine's, made with ``DBCacheConfig.reset``;
            a front as ``DefaultInt`` gives way to models with shorter lists.
        functor: Makes the PatchFunctor that the model needs, if any.
        note: Pitfalls worth knowing.
        sample: A small instance and its inputs, where they cannot be guessed from the class.
    """

    name: str
    transformer: str
    lists: tuple[BlockList, ...]
    pipelines: tuple[str, ...] = ()
    chain: bool = False
    alternate: bool = False
    skips: bool = False
    guidance: str = ""
    modality: tuple[str, ...] = ("image",)
    needs: str = OLDEST_DIFFUSERS
    defaults: CacheConfig | None = None
    functor: Callable[[], Any] | None = None
    note: str = ""
    sample: Sample | None = None


@dataclass
class _Registry:
    adapters: dict[str, ModelAdapter] = field(default_factory=dict)  # by transformer class
    functions: dict[str, Callable[..., Any]] = field(default_factory=dict)  # by the name given
    functors: dict[str, Callable[[], Any]] = field(default_factory=dict)  # by the name given
    origins: dict[str, str] = field(default_factory=dict)  # who registered what, by transformer class
    plugins: dict[Path, tuple[ModelAdapter, ...]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)  # by entry point: what is wrong with it
    origin: str = _HERE  # of what is being registered
    loaded: bool = False


_registry = _Registry()


def register(adapter: ModelAdapter) -> ModelAdapter:
    """Add an adapter.

    Raises:
        InputError: Another adapter is registered for the class.
    """
    if _registry.origin == _HERE:
        _load()
    other = _registry.adapters.setdefault(adapter.transformer, adapter)
    if other is not adapter:
        theirs = _registry.origins[adapter.transformer]
        raise InputError(
            f"two adapters for {adapter.transformer}: {other.name!r} of {theirs} and {adapter.name!r} of "
            f"{_registry.origin}; there can only be one"
        )
    _registry.origins[adapter.transformer] = _registry.origin
    return adapter


def register_functor(name: str, make: Callable[[], Any]) -> None:
    """Let recipes that spell out their ``blocks`` name a PatchFunctor: ``patch_functor: name``.

    Raises:
        InputError: The name is taken.
    """
    if _registry.functors.setdefault(name, make) is not make:
        raise InputError(f"two patch functors are called {name!r}; there can only be one")


def functor(name: str) -> Callable[[], Any]:
    """Return what makes the PatchFunctor of a name.

    Raises:
        InputError: There is none; names those that there are.
    """
    _load()
    if name not in _registry.functors:
        known = ", ".join(sorted(_registry.functors)) or "none; a plugin registers one with register_functor"
        raise InputError(f"no patch functor is called {name!r} (registered: {known})")
    return _registry.functors[name]


@contextlib.contextmanager
def _registering(origin: str) -> Iterator[None]:
    """Note who registers; nothing stays registered if it fails."""
    before = _registry.origin, dict(_registry.adapters), dict(_registry.functions), dict(_registry.origins)
    _registry.origin = origin
    try:
        yield
    except BaseException:
        _, _registry.adapters, _registry.functions, _registry.origins = before
        raise
    finally:
        _registry.origin = before[0]


def _load() -> None:
    """Import the shipped adapters, each of which registers itself, and those of installed packages."""
    if _registry.loaded:
        return
    _registry.loaded = True
    with _registering("cachedit"):
        package = importlib.import_module("cachedit_cli.adapters")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    for entry in importlib.metadata.entry_points(group=_GROUP):
        owner = f"the package {entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.value
        try:
            with _registering(owner):
                loaded = entry.load()
                if isinstance(loaded, ModelAdapter):
                    register(loaded)
        except Exception as error:  # other people's code: whatever it raises must not take the rest along
            reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            _registry.broken[entry.name] = f"the adapter {entry.name!r} of {owner} cannot be used: {reason}"


def load_plugin(path: str | Path) -> tuple[ModelAdapter, ...]:
    """Run a Python file that registers adapters, and return them. A file that has run already is not run again.

    It may also only define a transformer, for models that name the file as the library of a part; ``auto`` finds the
    block lists then.

    Raises:
        InputError: The file is not there, raises, or neither registers nor defines anything.
    """
    _load()
    file = Path(path).expanduser().resolve()
    if file in _registry.plugins:
        return _registry.plugins[file]
    spec = importlib.util.spec_from_file_location(f"cachedit_plugin_{len(_registry.plugins)}_{file.stem}", file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise InputError(f"--plugin: {path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses of the plugin look for themselves
    known = set(_registry.adapters), {*_registry.functions, *_registry.functors}
    try:
        with _registering(str(path)):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise InputError(_where(path, file, error)) from error
    made = tuple(adapter for name, adapter in _registry.adapters.items() if name not in known[0])
    classes = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == spec.name]
    further = {*_registry.functions, *_registry.functors} - known[1]
    if not made and not further and not any(hasattr(each, "forward") for each in classes):
        raise InputError(f"--plugin: {path}: registers no adapter; see cachedit_cli.registry.register")
    _name(module, file)
    _registry.plugins[file] = made
    return made


def _name(module: ModuleType, file: Path) -> None:
    """Let a plugin be found under its own name too, as diffusers looks for the library of a part; nothing is hidden."""
    if file.stem not in sys.modules:
        other = importlib.util.find_spec(file.stem)
        if other is None or other.origin == str(file):
            sys.modules[file.stem] = module


def _where(path: str | Path, file: Path, error: BaseException) -> str:
    """Say what a plugin raised, and where in its file."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    for frame in traceback.extract_tb(error.__traceback__):
        if Path(frame.filename) == file:
            line = frame.lineno
    reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    return f"--plugin: {path}{f':{line}' if line else ''}: {reason}"


def problems() -> list[str]:
    """Return what is wrong with adapters of installed packages, one line each."""
    _load()
    return list(_registry.broken.values())


def origin(adapter: ModelAdapter) -> str:
    """Return who registered an adapter: 'cachedit', 'the package my-adapters 1.0', or the path of a plugin file."""
    _load()
    return _registry.origins[adapter.transformer]


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
        InputError: There is none, or the package that should bring it is broken; names the nearest.
    """
    for adapter in all_adapters():
        if adapter.name == name:
            return adapter
    if name in _registry.broken:
        raise InputError(_registry.broken[name])
    near = difflib.get_close_matches(name, names(), n=1)
    lines = [f"no adapter is called {name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""), *problems()]
    raise InputError("\n".join(lines))


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
        _load()
        fitting = [name for name in _registry.functions if pipeline.startswith(name)]
        return _registry.functions[max(fitting, key=len)] if fitting else None
