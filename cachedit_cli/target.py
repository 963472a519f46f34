"""What `cachedit inspect` is asked about: a recipe, a folder, a class or a family, as transformer classes.

Knows names and configuration files; loads no weights. Torch and diffusers are imported where a class itself is needed.
"""

from __future__ import annotations

import difflib
import inspect
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import registry
from .errors import InputError
from .models import ModelFiles, locate, read_json
from .plan import adapters

if TYPE_CHECKING:
    from .recipe import Recipe

__all__ = ["Part", "Target", "class_named", "resolve"]


@dataclass(frozen=True)
class Part:
    """One transformer: its class, and the configuration it has where that is known."""

    name: str
    transformer: str
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """What was meant.

    Attributes:
        what: In words.
        parts: The transformers in it.
        pipeline: Class of the pipeline, where that is known.
        files: The model, where there is one.
        recipe: The recipe, where it is one.
    """

    what: str
    parts: tuple[Part, ...]
    pipeline: str | None = None
    files: ModelFiles | None = None
    recipe: Recipe | None = None


def resolve(text: str) -> Target:
    """Return what a target on the command line means.

    Raises:
        InputError: Nothing is called so; names the nearest.
    """
    from . import recipe

    if text in registry.names():
        found = [adapter for adapter in registry.all_adapters() if adapter.name == text]
        parts = tuple(Part("transformer", adapter.transformer) for adapter in found)
        return Target(f"family {text!r}", parts)
    folder = Path(text).expanduser()
    if folder.is_dir():
        return _folder(text, folder)
    if text.endswith((".yaml", ".yml")) or any(text == each.name for each in recipe.bundled()):
        return _recipe(recipe.load(text))
    if text.isidentifier():
        return _class(text)
    if os.sep in text or folder.exists():
        raise InputError(f"{text}: no such folder, recipe or class")
    raise InputError(_unknown(text))


def _folder(text: str, folder: Path) -> Target:
    if (folder / "model_index.json").is_file():
        return _model(f"model {text!r}", locate(text))
    config = folder / "config.json"
    name = read_json(config).get("_class_name") if config.is_file() else None
    if not isinstance(name, str):
        raise InputError(
            f"{text}: neither a pipeline nor a part of one: the folder has no model_index.json, and no config.json "
            "that names a class"
        )
    return Target(f"model {text!r}", (Part("transformer", name, read_json(config)),))


def _recipe(loaded: Recipe) -> Target:
    files = locate(loaded.model.id, loaded.model.revision, loaded.model.config)
    if not files.components:
        used = adapters(loaded, files)
        if not used:
            raise InputError(
                f"{loaded.name}: {files.id} is not in the hub's cache, and the recipe names no adapter; download it, "
                "or give the class of its transformer"
            )
        parts = tuple(Part(part, adapter.transformer) for part, adapter in used.items())
        return Target(f"recipe {loaded.name!r}", parts, loaded.model.pipeline, files, loaded)
    found = _model(f"recipe {loaded.name!r}", files)
    return Target(found.what, found.parts, loaded.model.pipeline or found.pipeline, files, loaded)


def _model(what: str, files: ModelFiles) -> Target:
    parts = tuple(Part(name, cls, files.config(name)) for name, cls in files.transformers().items())
    if not parts:
        raise InputError(f"{files.id} has no transformer, but {', '.join(files.components.values())}")
    return Target(what, parts, files.pipeline, files)


def _class(name: str) -> Target:
    adapter = registry.find(name)
    if adapter is not None:
        return Target(f"transformer class {name}", (Part("transformer", name),))
    fitting = [each for each in registry.all_adapters() if name in each.pipelines]
    if fitting:
        return Target(f"pipeline class {name}", tuple(Part("transformer", each.transformer) for each in fitting), name)
    found = class_named(name)
    if found is None:
        raise InputError(_unknown(name))
    if hasattr(found, "from_pretrained") and not hasattr(found, "forward"):
        parts = tuple(_transformers_of(found))
        if not parts:
            raise InputError(f"{name} has no transformer")
        return Target(f"pipeline class {name}", parts, name)
    return Target(f"transformer class {name}", (Part("transformer", name),))


def class_named(name: str) -> type[Any] | None:
    """Return the class of that name in diffusers or in a plugin that was loaded."""
    import diffusers

    plugins = [module for key, module in sys.modules.items() if key.startswith("cachedit_plugin_")]
    for module in (diffusers, *plugins):
        found = getattr(module, name, None)
        if isinstance(found, type):
            return found
    return None


def _transformers_of(pipeline: type[Any]) -> Iterator[Part]:
    """Yield the transformers that a pipeline's constructor takes, by its annotations."""
    for name, parameter in inspect.signature(pipeline.__init__).parameters.items():
        if name.startswith("transformer"):
            text = parameter.annotation if isinstance(parameter.annotation, str) else repr(parameter.annotation)
            for cls in re.findall(r"\w*Transformer\w*|\w*DiT\w*", text):
                if class_named(cls) is not None:
                    yield Part(name, cls)
                    break


def _unknown(text: str) -> str:
    from . import recipe

    classes: list[str] = []
    if text.isidentifier():
        import diffusers

        classes = [each for each in dir(diffusers) if each.endswith("Pipeline") or "Transformer" in each]
    every = [*registry.names(), *(each.name for each in recipe.bundled()), *_registered(), *classes]
    near = difflib.get_close_matches(text, every, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"{text!r} is no recipe, folder, family, or class of a transformer or pipeline{hint}"


def _registered() -> Iterable[str]:
    for adapter in registry.all_adapters():
        yield adapter.transformer
        yield from adapter.pipelines
