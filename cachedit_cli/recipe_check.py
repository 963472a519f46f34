"""What is wrong with a recipe's tree, and in which words; and which of its keys replace each other.

Knows how errors of the types read, at which place, and what only shows when two fields are seen together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from . import registry
from .errors import InputError
from .recipe_fields import Mask, Section, nearest
from .recipe_model import KINDS, VERSION, Generate, Recipe
from .recipe_options import clashes, uncacheable
from .recipe_yaml import Node, Problem, complain, dotted, plain, shorten

__all__ = ["MAPPING", "check_version", "gone", "in_words", "typed"]

MAPPING = "a mapping (lines `key: value`)"

# Keys that say the same in two ways, by the mapping they stand in. A layer's choice replaces that of the layers below
# it; both in one layer are an error.
_EITHER: dict[str, tuple[tuple[set[str], set[str]], ...]] = {
    "": (({"adapter"}, {"blocks"}),),
    "generate": (({"prompt"}, {"prompts"}), ({"seed", "num_images"}, {"seeds"})),
    "cache": (({"budget"}, {"speedup"}),),
    "params": (({"budget"}, {"speedup"}),),
    "steps_computation_mask": (({"policy"}, {"compute_bins", "cache_bins"}),),
}
# Arguments of the pipeline's call that do not belong in `extra`, and where they are given instead.
_ELSEWHERE = {
    "generator": "generate.seed",
    "latents": "generate.seed",
    "num_images_per_prompt": "generate.num_images",
    "mask_image": "generate.mask",
    **{name: f"generate.{name}" for name in Generate.model_fields},
}
_WANTED = {
    "bool_type": "true or false",
    "dict_type": MAPPING,
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_type": MAPPING,
    "string_type": "text",
}


def gone(at: Sequence[str], base: Mapping[str, Node], over: Mapping[str, Node]) -> set[str]:
    """Return the keys of ``base`` that ``over``, laid over it, does away with."""
    lost: set[str] = set()
    if "extra" in at:
        return lost
    given = {key for key, child in over.items() if child.value is not None}
    for one, other in _EITHER.get(at[-1] if at else "", ()):
        if bool(given & one) != bool(given & other):
            lost |= other if given & one else one
    if at and at[-1] in ("cache", "calibrator") and "type" in over and f"<{over['type'].value}>" in KINDS:
        # Another type: settings that it lacks go. What is no setting of any type stays, to be complained about.
        own = KINDS[f"<{over['type'].value}>"].model_fields
        lost |= {key for key in base if key not in own and any(key in kind.model_fields for kind in KINDS.values())}
    return lost


def check_version(tree: Node) -> None:
    """Refuse a file of another format: what else is wrong by the rules of this one would say nothing."""
    version = tree.value.get("version")
    if version is not None and type(version.value) is int and version.value != VERSION:
        reason = f"this cachedit reads version {VERSION} of the recipe format, not {shorten(version.value)}"
        raise complain([Problem(version.mark, "version", reason)])


def typed(tree: Node, file: str, problems: list[Problem]) -> Recipe:
    """Return the recipe, or complain of everything: ``problems`` are those found when reading the file."""
    found = [*_clashes(tree), *_misplaced(tree)]
    try:
        recipe = Recipe.model_validate(plain(tree))
    except ValidationError as error:
        found += [_problem(tree, each) for each in error.errors(include_url=False)]
    else:
        found += _unfit(tree, recipe)
        if not problems and not found:
            return recipe
    # What could not be read has no value, and is not to be complained of twice.
    unread = {problem.mark for problem in problems}
    raise complain([*problems, *(problem for problem in found if problem.mark not in unread)], file)


def _clashes(node: Node, at: tuple[str, ...] = ()) -> Iterator[Problem]:
    """Find keys that say the same in two ways."""
    if "extra" in at:
        return
    if isinstance(node.value, list):
        for index, child in enumerate(node.value):
            yield from _clashes(child, (*at, str(index)))
    elif isinstance(node.value, dict):
        given = {key for key, child in node.value.items() if child.value is not None}
        for one, other in _EITHER.get(at[-1] if at else "", ()):
            if given & one and given & other:
                first = next(key for key in node.value if key in given & (one | other))
                later = next(key for key in node.value if key in given & (other if first in one else one))
                mark = node.value[later].key or node.value[later].mark
                yield Problem(mark, dotted((*at, later)), f"cannot be combined with {first} (keep one of them)")
        for key, child in node.value.items():
            yield from _clashes(child, (*at, key))


def _misplaced(tree: Node) -> Iterator[Problem]:
    """Find what depends on a value elsewhere: a missing prompt, arguments in `extra`, settings of another type."""
    generate = tree.value.get("generate")
    if generate is not None and isinstance(generate.value, dict):
        given = {key: child for key, child in generate.value.items() if child.value is not None}
        if not given.keys() & {"prompt", "prompts", "extra", "image", "video", "inputs"}:
            hint = "a pipeline that takes none gets its arguments in `extra`"
            yield Problem(generate.key or generate.mark, "generate", f"needs a prompt, or prompts ({hint})")
        if "extra" in given and isinstance(given["extra"].value, dict):
            for key, child in given["extra"].value.items():
                if key in _ELSEWHERE:
                    place = f"cachedit gives this argument itself (write {_ELSEWHERE[key]})"
                    yield Problem(child.key or child.mark, dotted(("generate", "extra", key)), place)
    cache, blocks = tree.value.get("cache"), tree.value.get("blocks")
    settings = cache.value if cache is not None and isinstance(cache.value, dict) else {}
    kind = settings["type"].value if "type" in settings else "DBCache"
    if f"<{kind}>" not in KINDS or kind == "none" or blocks is None or not isinstance(blocks.value, list):
        return
    own, known = KINDS[f"<{kind}>"].model_fields, KINDS["<params>"].model_fields
    for index, entry in enumerate(blocks.value):
        params = entry.value.get("params") if isinstance(entry.value, dict) else None
        for key, child in params.value.items() if params is not None and isinstance(params.value, dict) else ():
            if key in known and key not in own:
                path = dotted(("blocks", index, "params", key))
                yield Problem(child.key or child.mark, path, f"not a setting of {kind}{_owner(key)}")


def _unfit(tree: Node, recipe: Recipe) -> Iterator[Problem]:
    """Find what is right in itself and does not fit the rest."""
    if recipe.adapter not in (None, "auto") and recipe.adapter not in registry.names():
        hint = nearest(recipe.adapter, [*registry.names(), "auto"])
        yield _at(tree, ("adapter",), f"no adapter is called {recipe.adapter!r} ({hint})")
    if recipe.patch_functor is not None:
        if not recipe.blocks:
            yield _at(tree, ("patch_functor",), "goes with `blocks`; an adapter brings its own")
        try:
            registry.functor(recipe.patch_functor)
        except InputError as error:
            yield _at(tree, ("patch_functor",), str(error))
    for key, reason in clashes(recipe.model):
        yield _at(tree, ("model", *_keys(key)), reason)
    if recipe.cache.type != "none":
        sections = [recipe.cache, *(entry.params for entry in recipe.blocks if entry.params)]
        back = any(getattr(section, "Bn_compute_blocks", None) for section in sections)
        for key, reason in uncacheable(recipe.model, recipe.cache.type, back):
            yield _at(tree, ("model", *_keys(key)), reason)
    steps = recipe.generate.num_inference_steps
    if steps is None or recipe.generate.strength is not None:  # which shortens the schedule
        return
    masked = [(("cache",), recipe.cache), *((("blocks", i, "params"), b.params) for i, b in enumerate(recipe.blocks))]
    for place, section in masked:
        mask = getattr(section, "steps_computation_mask", None)
        if isinstance(mask, Mask):
            try:
                mask.laid_out(steps)
            except InputError as error:
                yield _at(tree, (*place, "steps_computation_mask"), str(error))


# ------------------------------------------------------------------------------------------------------------- messages


def _keys(dotted_key: str) -> Iterator[str | int]:
    return (int(key) if key.isdigit() else key for key in dotted_key.split("."))


def _at(tree: Node, place: Sequence[str | int], reason: str, by_key: bool = False) -> Problem:
    """Return the problem with the mark of the value at ``place``, or of the nearest mapping that is there."""
    node = tree
    for element in place:
        child = node.value.get(element) if isinstance(node.value, dict) else None
        if isinstance(node.value, list) and isinstance(element, int):
            child = node.value[element]
        if child is None:
            there = node.mark if isinstance(node.value, str) else node.key or node.mark
            return Problem(there, dotted(place), reason)
        node = child
    return Problem(node.key or node.mark if by_key else node.mark, dotted(place), reason)


def _problem(tree: Node, error: ErrorDetails) -> Problem:
    """Return pydantic's error in our words, at the place in the file."""
    *place, last = error["loc"]
    section: type[Section] = Recipe
    keys: list[str | int] = []
    for element in place:
        if element in KINDS:
            section = KINDS[str(element)]
        elif element not in ("<text>", "<list>", "<bits>"):
            keys.append(element)
            if element in section.model_fields:
                section = next(_sections(section.model_fields[str(element)].annotation), section)
    if error["type"] == "extra_forbidden":
        return _at(tree, (*keys, last), _unknown(str(last), section, keys), by_key=True)
    if last not in KINDS and last not in ("<text>", "<list>", "<bits>"):
        keys.append(last)
    if error["type"] == "missing":
        meaning = section.model_fields[str(last)].description or ""
        return _at(tree, keys, f"missing: {meaning}")
    return _at(tree, keys, in_words(error))


def _sections(annotation: Any) -> Iterator[type[Section]]:
    if get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections(argument)


def _unknown(key: str, section: type[Section], keys: Sequence[str | int]) -> str:
    is_kind = section in KINDS.values() and section not in (KINDS["<params>"], KINDS["<mask>"])
    if owner := _owner(key) if is_kind else "":
        return f"not a setting of {section.__name__}{owner}"
    known = [*section.model_fields, *(["extends"] if section is Recipe else [])]
    homes = [name for name, each in _homes().items() if key in each.model_fields and each is not section]
    if homes and not get_close_matches(key, known):
        return f"unknown key (did you mean '{homes[0]}.{key}'?)"
    return f"unknown key ({nearest(key, known, otherwise='known here are')})"


def _homes() -> dict[str, type[Section]]:
    """Return the sections at the top of a recipe, those with kinds as the kind that has all fields."""
    kinds = {"cache": KINDS["<DBPrune>"], "calibrator": KINDS["<taylorseer>"]}
    return {
        name: kinds.get(name, section)
        for name, field in Recipe.model_fields.items()
        for section in _sections(field.annotation)
        if name != "blocks"
    }


def _owner(key: str) -> str:
    """Return whose setting a key is."""
    kinds = {name: kind for name, kind in KINDS.items() if name not in ("<params>", "<mask>")}
    owners = [name.strip("<>") for name, kind in kinds.items() if key in kind.model_fields]
    return f", but of {' and '.join(owners)}" if owners else ""


def in_words(error: ErrorDetails) -> str:
    """Return what pydantic complains of, in our words, without the place."""
    value, kind, context = error["input"], error["type"], error.get("ctx", {})
    match kind:
        case "value_error":
            return str(context["error"])
        case "literal_error":
            allowed = re.findall(r"'([^']*)'", context["expected"])
            return f"{shorten(value)} is unknown ({nearest(str(value), allowed)})"
        case "greater_than_equal":
            return f"{shorten(value)} is too small (at least {context['ge']})"
        case "greater_than":
            return f"{shorten(value)} is too small (above {context['gt']:g})"
        case "less_than_equal":
            return f"{shorten(value)} is too large (at most {context['le']})"
        case "too_short" | "string_too_short":
            return "is empty (give at least one, or leave the key out)"
    if kind not in _WANTED:
        return error["msg"]
    hint = ""
    if kind == "string_type" and isinstance(value, (bool, int, float)):
        hint = " (put it in quotes)"
    elif kind == "bool_type" and str(value).lower() in ("yes", "on", "no", "off"):
        hint = f" (write {'true' if str(value).lower() in ('yes', 'on') else 'false'})"
    elif kind == "list_type" and value is not None:
        hint = " (put it in square brackets)"
    elif (
        kind in ("int_type", "float_type") and isinstance(value, str) and re.fullmatch(r"[-+.\deE]*\d[-+.\deE]*", value)
    ):
        hint = " (write it without quotes)"
    return f"{shorten(value)} is not {_WANTED[kind]}{hint}"
