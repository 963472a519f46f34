"""What `cachedit models` lists: every registered adapter, as table, Markdown and JSON.

Knows the registry and the bundled recipes' adapters; no torch and no models.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from . import recipe, registry
from .errors import InputError
from .registry import BlockList, ModelAdapter
from .terms.pattern import ForwardPattern, as_streams

__all__ = ["models_json", "models_markdown", "models_table"]


def models_table(word: str | None = None) -> RenderableType:
    """Return the adapters in which ``word`` occurs as a table.

    Raises:
        InputError: It occurs in none.
    """
    table = Table("family", "transformer", "makes", box=None, pad_edge=False)
    recipes = _recipes()
    for adapter in _matching(word):
        about = [*_lines(adapter), adapter.guidance, *_more(adapter), *_named("recipes", recipes.get(adapter.name, ()))]
        lines = Group(Text(adapter.transformer), *(Padding(Text(line), (0, 0, 0, 2)) for line in about if line))
        table.add_row(adapter.name, lines, ", ".join(adapter.modality))
    return Group(table, *(Text(f"warning: {problem}") for problem in registry.problems()))


def models_json(word: str | None = None) -> dict[str, Any]:
    """Return the adapters in which ``word`` occurs as plain data.

    Raises:
        InputError: It occurs in none.
    """
    recipes = _recipes()
    return {
        "adapters": [
            {
                "name": adapter.name,
                "transformer": adapter.transformer,
                "lists": [
                    {
                        "path": entry.path,
                        "pattern": _pattern(entry),
                        "takes": list(as_streams(entry.pattern).takes),
                        "returns": list(as_streams(entry.pattern).returns),
                        "length": entry.length,
                        "tail": entry.tail,
                    }
                    for entry in adapter.lists
                ],
                "decided": _decided(adapter),
                "pipelines": list(adapter.pipelines),
                "guidance": adapter.guidance,
                "modality": list(adapter.modality),
                "functor": adapter.functor.__name__ if adapter.functor is not None else None,
                "defaults": adapter.defaults.as_dict() if adapter.defaults is not None else None,
                "needs": adapter.needs,
                "note": adapter.note or None,
                "origin": registry.origin(adapter),
                "recipes": recipes.get(adapter.name, []),
            }
            for adapter in _matching(word)
        ],
        "problems": registry.problems(),
    }


def models_markdown() -> str:
    """Return the shipped adapters as a GitHub table, with a list of what is worth knowing below it."""
    recipes = _recipes()
    shipped = [adapter for adapter in registry.all_adapters() if registry.origin(adapter) == "cachedit"]
    rows = ["| family | transformer | block lists | guidance | makes | diffusers | recipes |"]
    rows.append("| --- | --- | --- | --- | --- | --- | --- |")
    for adapter in shipped:
        cells = (
            f"`{adapter.name}`",
            f"`{adapter.transformer}`",
            "<br>".join(_lines(adapter, "`")),
            adapter.guidance,
            ", ".join(adapter.modality),
            adapter.needs,
            ", ".join(f"`{name}`" for name in recipes.get(adapter.name, ())),
        )
        rows.append(f"| {' | '.join(cells)} |")
    rows += ["", "## Pipelines", ""]
    rows += [f"- `{adapter.name}`: {', '.join(adapter.pipelines)}" for adapter in shipped]
    rows += ["", "## Worth knowing", ""]
    rows += [f"- `{adapter.name}`: {adapter.note}" for adapter in shipped if adapter.note]
    return "\n".join(rows) + "\n"


def _matching(word: str | None) -> Sequence[ModelAdapter]:
    every = registry.all_adapters()
    if word is None:
        return every
    found = [adapter for adapter in every if any(word.lower() in text.lower() for text in _texts(adapter))]
    if not found:
        known = {text.lower(): text for adapter in every for text in (adapter.name, adapter.transformer)}
        near = difflib.get_close_matches(word.lower(), known, n=1)
        hint = f" (did you mean {known[near[0]]!r}?)" if near else ""
        raise InputError("\n".join([f"no adapter has {word!r} in it{hint}", *registry.problems()]))
    return found


def _texts(adapter: ModelAdapter) -> Iterable[str]:
    paths = (entry.path for entry in adapter.lists)
    return (adapter.name, adapter.transformer, *adapter.pipelines, *adapter.modality, *paths, adapter.note)


def _more(adapter: ModelAdapter) -> Iterable[str]:
    """Yield what goes beyond the block lists: settings of its own, functor, the diffusers it needs, its pipelines."""
    own = adapter.defaults.as_dict().items() if adapter.defaults is not None else ()
    yield from _named("settings", [f"{key} {value}" for key, value in own if value is not None])
    if adapter.functor is not None:
        yield f"functor: {adapter.functor.__name__}"
    yield f"diffusers: {adapter.needs} or newer"
    yield from _named("pipelines", adapter.pipelines)


def _named(what: str, names: Sequence[str]) -> Iterable[str]:
    if names:
        yield f"{what}: {', '.join(names)}"


def _lines(adapter: ModelAdapter, quote: str = "") -> list[str]:
    lines = [f"{quote}{entry.path}{quote} {_pattern(entry)}" for entry in adapter.lists]
    decided = _decided(adapter)
    return [*lines, decided] if decided is not None else lines


def _pattern(entry: BlockList) -> str:
    streams = as_streams(entry.pattern)
    number = next((place for place, pattern in enumerate(ForwardPattern) if pattern.value == streams), None)
    return f"pattern {number}" if number is not None else str(streams)


def _decided(adapter: ModelAdapter) -> str | None:
    if adapter.chain:
        return "decided as one list"
    return "decided as pairs, which take turns" if adapter.alternate else None


def _recipes() -> Mapping[str, list[str]]:
    """Return the names of the bundled recipes by the adapter that they name."""
    found: dict[str, list[str]] = {}
    for each in recipe.bundled():
        adapter = recipe.load(each.name).adapter
        if adapter is not None:
            found.setdefault(adapter, []).append(each.name)
    return found
