"""Recipes from files to typed data: bundled names, files, `extends` and `--set`.

What a field is, is in ``recipe_model``; how YAML is read, in ``recipe_yaml``; what can be wrong, in ``recipe_check``.
Imports no torch: a recipe is judged in a fraction of a second.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from .errors import InputError
from .prompts_file import read_prompts
from .recipe_check import MAPPING, check_version, gone, typed
from .recipe_model import Recipe
from .recipe_schema import json_schema
from .recipe_yaml import UNREAD, Mark, Node, Problem, complain, merge, node_of, parse, put, read, shorten

__all__ = ["BundledRecipe", "Override", "Recipe", "bundled", "json_schema", "load", "text"]

# What a file says of itself, and not of the files that extend it.
_OWN = ("extends", "name", "description")


@dataclass(frozen=True)
class BundledRecipe:
    """A recipe that comes with cachedit."""

    name: str
    path: Path
    title: str


@dataclass(frozen=True)
class Override:
    """A value from a command line option: ``option`` as messages name it, ``path`` the dotted key as in `--set`."""

    option: str
    path: str
    value: Any


def load(source: str | Path, overrides: Sequence[str | Override] = ()) -> Recipe:
    """Return the recipe of a bundled name or in a file: over what it extends, and below the overrides.

    An override that is text is KEY=VALUE with the value in YAML, as `--set` takes it.

    Raises:
        InputError: Everything that is wrong, one problem a line.
    """
    file = str(source) if isinstance(source, Path) else _find(source)
    problems: list[Problem] = []
    tree = _layered(read(file), file, {}, problems)
    for override in overrides:
        tree = _overridden(tree, override)
    if "name" not in tree.value:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(file).stem).strip("-._")[:64]
        tree = replace(tree, value=tree.value | {"name": Node(name or "recipe", tree.mark)})
    recipe = typed(tree, file, problems)
    if isinstance(recipe.generate.prompts, str):
        read_prompts(recipe.generate.prompts)
    return recipe


def bundled() -> list[BundledRecipe]:
    """Return the recipes that come with cachedit, by name; the title is the first comment that says something."""
    found = []
    for path in sorted(Path(str(files("cachedit_cli.recipes"))).glob("*.yaml"), key=lambda path: path.stem):
        lines = path.read_text(encoding="utf-8").splitlines()
        comments = (line[1:].strip() for line in lines if line.startswith("#") and "yaml-language-server" not in line)
        found.append(BundledRecipe(path.stem, path, next(filter(None, comments), "")))
    return found


def text(name: str) -> str:
    """Return the text of a bundled recipe, or of a recipe file."""
    return read(_find(name))


# --------------------------------------------------------------------------------------------------------------- layers


def _find(name: str, folder: str = "") -> str:
    """Return the path of a recipe, as short as it can be: messages show it. A relative one begins in ``folder``."""
    if "\0" in name:
        raise InputError(f"{name!r} cannot be the name of a file")
    if "/" in name or os.sep in name or name.endswith((".yaml", ".yml")):
        path = os.path.join(folder, os.path.expanduser(name))
        short = os.path.normpath(path)  # which is another file where a folder in the path is a link
        return short if os.path.realpath(short) == os.path.realpath(path) else path
    known = {recipe.name: recipe.path for recipe in bundled()}
    if name in known:
        near = os.path.relpath(known[name])
        return str(known[name]) if near.startswith(os.pardir) else near
    hints = [f"did you mean {' or '.join(map(repr, near))}?" for near in [get_close_matches(name, known)] if near]
    if name and os.path.isfile(os.path.join(folder, name)):
        hints.append(f"write './{name}' for the file of this name")
    hints.append("`cachedit recipes` lists them; a path has a '/' or ends in .yaml")
    raise InputError(f"no bundled recipe is called {name!r} ({'; '.join(hints)})")


def _layered(content: str, file: str, below: Mapping[str, str], problems: list[Problem]) -> Node:
    """Return the tree of a file over those it extends; ``below`` are the files that extend this one, by real path."""
    tree, found = parse(content, file)
    problems += found
    if tree is None and found:
        raise complain(problems)
    if tree is None or tree.value is None:
        raise InputError(f"{file}: is empty (`cachedit recipes show demo` prints a recipe to start from)")
    if tree.value is UNREAD:
        raise complain(problems)
    if not isinstance(tree.value, dict):
        reason = f"{shorten(tree.value)} is no recipe, which is {MAPPING}"
        raise complain([*problems, Problem(tree.mark, "", reason)])
    check_version(tree)
    if "extends" not in tree.value:
        return tree
    base = _parent(tree.value["extends"], file, {**below, os.path.realpath(file): file}, problems)
    inherited = {key: child for key, child in base.value.items() if key not in _OWN}
    own = {key: child for key, child in tree.value.items() if key != "extends"}
    return merge(replace(base, value=inherited), replace(tree, value=own), gone)


def _parent(extends: Node, file: str, below: Mapping[str, str], problems: list[Problem]) -> Node:
    name = extends.value
    if name is UNREAD:
        raise complain(problems)
    try:
        if not isinstance(name, str):
            raise InputError(f"{shorten(name)} is not text (a bundled name, or a path relative to this file)")
        parent = _find(name, os.path.dirname(file))
        real = os.path.realpath(parent)
        if real in below:
            chain = [*list(below.values())[list(below).index(real) :], below[real]]
            raise InputError(f"recipes extend each other in a circle: {' -> '.join(chain)}")
        content = read(parent)
    except InputError as error:
        raise complain([*problems, Problem(extends.mark, "extends", str(error))]) from None
    return _layered(content, parent, below, problems)


def _overridden(tree: Node, override: str | Override) -> Node:
    if isinstance(override, Override):
        option, key, value = override.option, override.path, node_of(override.value, Mark(override.option))
    else:
        key, equals, written = override.partition("=")
        shown = " ".join(override.split())
        option = f"--set {shown if len(shown) <= 80 else shown[:76] + ' ...'}"
        if not equals:
            raise InputError(f"{option}: is not KEY=VALUE, as in cache.residual_diff_threshold=0.12")
        given, problems = parse(written, option, positions=False)
        if problems:
            raise complain(problems)
        value = given or Node(None, Mark(option))
    path = key.strip().split(".")
    if not all(path):
        raise InputError(f"{option}: {key!r} is not a key, which is names with dots between them")
    if path[0] == "extends":
        raise InputError(f"{option}: extends: only a file can extend another")
    return put(tree, path, value, gone)
