"""How `cachedit inspect` looks on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from .inspect_model import Inspection, ListFacts, ModelFacts

__all__ = ["as_text"]


def as_text(found: Inspection) -> RenderableType:
    """Return what was found out."""
    title = found.what + (f", {found.pipeline}" if found.pipeline and found.pipeline not in found.what else "")
    return Group(Text(title, "bold"), *(part for model in found.models for part in _model(model)))


def _model(model: ModelFacts) -> Iterator[RenderableType]:
    yield Text()
    yield Text(f"{model.part}: {model.transformer}, {_many(model.parameters)} parameters", "bold")
    yield _line(f"adapter   {model.adapter or 'auto'}: {model.why}")
    if model.guidance:
        yield _line(f"guidance  {model.guidance}")
    if model.traced is not None:
        yield _line(f"measured  in {model.traced}")
    else:
        yield _line(f"measured  no: it could not be traced ({model.reason}); --trace looks at the real model")
    for note in model.notes:
        yield _line(f"note      {note}")
    for each in model.lists:
        yield Text()
        share = f", {100 * each.parameters / model.parameters:.0f} % of all" if model.parameters else ""
        yield _line(f"{each.path}: {each.blocks} x {each.block}, {_many(each.parameters)} parameters{share}")
        for line in _list(each, model.traced is not None):
            yield _line(line, 4)
    yield Text()
    if model.blocks is not None:
        yield _line("to paste into a recipe, in place of `adapter`:")
        yield Text(model.blocks.rstrip())
    else:
        yield _line("`blocks` in a recipe cannot say this: leave it to the adapter, or write one")


def _list(each: ListFacts, traced: bool) -> Iterator[str]:
    if each.positional or each.keywords:
        called = [*each.positional, *(f"{name}=" for name in each.keywords)]
        yield f"called    ({', '.join(called)})"
    if each.pattern is not None:
        yield f"pattern   {each.pattern}, measured" + _differs(each)
    elif each.registered is not None:
        yield f"pattern   {each.registered}, as the adapter says" + (", not measured" if not traced else "")
    if each.problem is not None:
        yield f"left out  {each.problem}"
    elif traced and (each.positional or each.keywords):
        between = [f"{name} is changed after block {_places(after)}" for name, after in each.changed.items()]
        yield f"between   {'; '.join(between) or 'nothing: the next block takes what one returned'}"
    if each.differing:
        yield f"per block {', '.join(each.differing)}"


def _differs(each: ListFacts) -> str:
    if each.registered is None or each.registered == each.pattern:
        return ""
    return f" (the adapter says {each.registered})"


def _places(after: list[int]) -> str:
    if len(after) > 2 and after == list(range(after[0], after[-1] + 1)):
        return f"{after[0]} to {after[-1]}"
    return ", ".join(map(str, after))


def _many(count: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)


def _line(text: str, by: int = 2) -> RenderableType:
    return Padding(Text(text), (0, 0, 0, by))
