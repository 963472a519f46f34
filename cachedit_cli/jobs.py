"""What there is to draw: a job for each picture, which of them share a pipeline call, and how their files are named.

Knows recipes; loads no weights and no torch.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .files import slug
from .inputs import given
from .prompts_file import read_prompts
from .recipe import Recipe

__all__ = ["Call", "Job", "alone", "at_once", "calls", "jobs", "key_of", "stems"]

# What says which pictures there are, and not what any of them looks like.
LISTING = ("prompt", "prompts", "seed", "seeds", "num_images", "batch_size")


@dataclass(frozen=True)
class Job:
    """One picture to make.

    Attributes:
        prompt: None for a pipeline that takes none.
        overrides: Arguments of the pipeline's call that are this picture's own, above the recipe's.
    """

    prompt: str | None
    seed: int
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One pipeline call.

    Attributes:
        number: Its place in the run, from 0.
        jobs: The pictures that it makes.
        stems: Names of their files, without what follows the last dot.
    """

    number: int
    jobs: tuple[Job, ...]
    stems: tuple[str, ...]


def jobs(recipe: Recipe) -> list[Job]:
    """Return a job for each prompt and seed, prompts outside.

    Raises:
        InputError: The file of prompts cannot be read, or something is wrong with its lines.
    """
    settings = recipe.generate
    if isinstance(settings.prompts, str):
        return [
            Job(line.prompt, seed, line.overrides)
            for line in read_prompts(settings.prompts)
            for seed in settings.all_seeds(line.seed)
        ]
    return [Job(prompt, seed) for prompt in settings.all_prompts() for seed in settings.all_seeds()]


def at_once(recipe: Recipe) -> int:
    """Return how many pictures at most share a call: one where they begin with inputs.

    What inputs do to the noise of others in their batch, and to which of them a list belongs, differs by pipeline.
    """
    return 1 if given(recipe.generate) else recipe.generate.batch_size


def calls(todo: Sequence[Job], size: int) -> Iterator[tuple[Job, ...]]:
    """Yield jobs that share a pipeline call, at most ``size`` of them; pictures without a prompt come one by one.

    Only pictures whose arguments are the same do, but for the negative prompt, of which each has its own.
    """
    waiting: dict[str, list[Job]] = {}
    for job in todo:
        if job.prompt is None:
            yield (job,)
            continue
        shared = {name: value for name, value in job.overrides.items() if name != "negative_prompt"}
        key = json.dumps([shared, "negative_prompt" in job.overrides], sort_keys=True)
        batch = waiting.setdefault(key, [])
        batch.append(job)
        if len(batch) == size:
            yield tuple(waiting.pop(key))
    for batch in waiting.values():
        yield tuple(batch)


def key_of(job: Job) -> str:
    """Return what tells a picture from all others of its run."""
    return json.dumps([job.prompt, job.seed, job.overrides], sort_keys=True)


def stems(todo: Sequence[Job], recipe: str, taken: Collection[str] = ()) -> list[str]:
    """Return names for the files of pictures, each its own and none of those that are taken: by prompt and seed."""
    found = []
    used = set(taken)
    numbers: dict[str, int] = {}  # so that a thousand of one name are not counted through for each
    for job in todo:
        stem = name = "-".join(part for part in (slug(recipe) or "run", slug(job.prompt or ""), f"s{job.seed}") if part)
        while name in used:
            numbers[stem] = numbers.get(stem, 1) + 1
            name = f"{stem}-{numbers[stem]}"
        used.add(name)
        found.append(name)
    return found


def alone(recipe: Recipe, job: Job) -> dict[str, Any]:
    """Return the recipe that draws this picture and no other, as plain data; wherever it is saved."""
    settings = recipe.resolved()
    output = {name: value for name, value in settings.pop("output", {}).items() if name != "dir"}
    shared = {name: value for name, value in settings["generate"].items() if name not in LISTING}
    prompt = {} if job.prompt is None else {"prompt": job.prompt}
    generate = {**prompt, **shared, **job.overrides, "seed": job.seed}
    return {**settings, "generate": generate, **({"output": output} if output else {})}
