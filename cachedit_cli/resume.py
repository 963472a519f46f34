"""Goes on with a run: which of its pictures are there and whole, which are drawn again, and what may not have changed.

Knows records and recipes; draws nothing and loads no torch.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .errors import InputError
from .inputs import digests
from .jobs import LISTING, Call, Job, at_once, calls, jobs, key_of, stems
from .recipe import Recipe
from .run_log import Image
from .runs import Record, load

__all__ = ["Left", "everything", "left_over"]

# What changes none of the pictures that are there.
_FREE = {*(f"generate.{name}" for name in LISTING if name != "batch_size"), "output.dir", "description"}
_UNSET = {"generate.batch_size": 1}


@dataclass(frozen=True)
class Left:
    """What is to be drawn, and the run that it is for.

    Attributes:
        pictures: How many there will be in all.
        folder: Of a run that goes on; None of a new one.
        record: What it has that is whole.
        numbers: The calls of its log that are kept, and their numbers now.
        damaged: Files that are gone, or not as they were written.
    """

    calls: list[Call]
    pictures: int
    folder: Path | None = None
    record: Record | None = None
    numbers: Mapping[int, int] = field(default_factory=dict)
    damaged: Sequence[str] = ()


def everything(recipe: Recipe) -> Left:
    """Return all that a recipe asks for."""
    todo = jobs(recipe)
    return Left(_named(enumerate(calls(todo, at_once(recipe))), recipe, ()), len(todo))


def left_over(recipe: Recipe, source: str) -> Left:
    """Return what a run lacks of what a recipe asks for.

    Raises:
        InputError: There is no such run, nothing can be written there, or the recipe is another than the run's.
    """
    run = load(source)
    folder, record = run.folder, run.record
    if not os.access(folder, os.W_OK):
        raise InputError(f"--resume {source}: nothing can be written into this folder")
    todo = jobs(recipe)
    _check(source, record, recipe, todo)
    made: dict[int, list[Image]] = {}
    for image in record.images:
        made.setdefault(image.generation, []).append(image)
    damaged = [name for image in record.images for name in _damaged(folder, image)]
    found: dict[tuple[str, ...], list[int]] = {}
    for number, images in made.items():
        # A call whose pictures are not all there is made as a whole: what is drawn together is decided together.
        if not any({image.file, *image.others} & set(damaged) for image in images):
            found.setdefault(tuple(map(_key, images)), []).append(number)
    missing: list[tuple[int, tuple[Job, ...]]] = []
    numbers: dict[int, int] = {}
    for number, batch in enumerate(calls(todo, at_once(recipe))):
        same = found.get(tuple(map(key_of, batch)))
        if same:
            numbers[same.pop(0)] = number
        else:
            missing.append((number, batch))
    kept = [image for image in record.images if image.generation in numbers]
    record.images = [replace(image, generation=numbers[image.generation]) for image in kept]
    record.failures.clear()
    record.log.clear()  # of the rows, which are in the file
    return Left(_named(missing, recipe, record.images), len(todo), folder, record, numbers, damaged)


def _named(
    batches: Iterator[tuple[int, tuple[Job, ...]]] | Sequence[tuple[int, tuple[Job, ...]]],
    recipe: Recipe,
    kept: Sequence[Image],
) -> list[Call]:
    """Return the calls with names for their files that are not those of pictures which are kept."""
    batches = list(batches)
    taken = {Path(image.file).stem for image in kept}
    names = iter(stems([job for _, batch in batches for job in batch], recipe.name, taken))
    return [Call(number, batch, tuple(next(names) for _ in batch)) for number, batch in batches]


def _key(image: Image) -> str:
    return key_of(Job(image.prompt, image.seed, image.overrides))


def _check(source: str, record: Record, recipe: Recipe, todo: Sequence[Job]) -> None:
    before, now = dict(_flat(record.recipe)), dict(_flat(recipe.resolved()))
    changed = [
        f"  {key}: {before.get(key, 'not set')} there, {now.get(key, 'not set')} here"
        for key in dict.fromkeys([*before, *now])
        if key not in _FREE and before.get(key, _UNSET.get(key)) != now.get(key, _UNSET.get(key))
    ]
    if changed:
        raise InputError("\n".join([f"--resume {source}: the run was made with another recipe:", *changed]))
    others = [path for path, digest in digests(recipe.generate).items() if record.inputs.get(path) != digest]
    if others:
        raise InputError(f"--resume {source}: the run began with another {others[0]} than is there now")
    foreign = Counter(map(_key, record.images)) - Counter(map(key_of, todo))
    if foreign:
        image = next(image for image in record.images if foreign[_key(image)])
        first = f"seed {image.seed}" + ("" if image.prompt is None else f": {image.prompt}")
        raise InputError(
            f"--resume {source}: has {foreign.total()} pictures that the recipe does not ask for, such as {first}; "
            "give the prompts and seeds of the run, and more if you like"
        )


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, child in value.items():
            yield from _flat(child, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _damaged(folder: Path, image: Image) -> Iterator[str]:
    """Yield the files of a picture that are not what was written."""
    names = (image.file, *image.others)
    written = dict(zip(names, image.sha256, strict=False))
    for name in names:
        try:
            found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except OSError:
            found = None
        if found is None or found != written.get(name):
            yield name
