"""What a comparison is made of: variants from recipes and `--vary`, prompts and seeds from a file and a list.

Knows recipes and what can be said of them before any weights are loaded; draws nothing. `compare_run` draws,
`compare_record` keeps, `compare_report` shows. Imports no torch.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import inputs, plan
from .compare_record import Comparison, Entry, read
from .errors import InputError
from .jobs import jobs
from .prompts_file import read_prompts
from .recipe import Override, Recipe, load

__all__ = [
    "HTML",
    "MOST_VARIANTS",
    "check_html",
    "not_compared",
    "parse_prompts",
    "parse_seeds",
    "parse_vary",
    "prepare",
    "resumed",
    "without_cache",
]

HTML = "report.html"

MOST_VARIANTS = 64

# What all variants share, by the first part of the key or by the whole key, and what to do instead.
_SHARED = {
    "model": "the model is loaded once for all variants; compare models by a run of each",
    "output": "there is one folder for all variants; --output-dir chooses where",
    "name": "variants are named by what varies",
    "description": "it changes nothing that could be compared",
    "version": "it is the recipe format's",
    "generate.prompt": "every variant draws the same prompts; --prompts FILE gives them",
    "generate.prompts": "every variant draws the same prompts; --prompts FILE gives them",
    "generate.seed": "every variant draws the same seeds; --seeds 0,1,2 gives them",
    "generate.seeds": "every variant draws the same seeds; --seeds 0,1,2 gives them",
    "generate.num_images": "every variant draws the same seeds; --seeds 0,1,2 gives them",
    **{
        f"generate.{name}": "every variant draws from the same pictures"
        for name in ("image", "mask", "control_image", "last_image", "video", "inputs")
    },
    "generate.batch_size": "pictures are drawn one by one, so that each has a time of its own",
}

Vary = tuple[str, Sequence[str]]


def prepare(
    sources: Sequence[str],
    *,
    vary: Sequence[str] = (),
    changes: Sequence[str | Override] = (),
    seeds: str | None = None,
    prompts: str | None = None,
    fewer_steps: bool = True,
    command: Sequence[str] = (),
    version: str = "",
) -> Comparison:
    """Return the comparison of some recipes, each in every combination of what varies, with nothing drawn yet.

    Args:
        sources: Bundled names or files. The first one's prompts, seeds and arguments are the baseline's.
        vary: Texts KEY=A,B,C.
        changes: What `--set` and its shorthands change in every recipe.
        seeds: Text A,B,C; None for those of the first recipe.
        prompts: A file of prompts; None for those of the first recipe.
        fewer_steps: Add rows with fewer steps at the cost of the variants.
        command: The command line, for the record.
        version: cachedit's, for the record.

    Raises:
        InputError: Everything that is wrong and shows before weights are loaded.
    """
    varied = [parse_vary(text) for text in vary]
    keys = [key for key, _ in varied]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise InputError(f"--vary {twice}: is given twice; write all values in one, as in --vary {twice}=A,B,C")
    count = len(sources)
    for _, values in varied:
        count *= len(values)
    if count > MOST_VARIANTS:
        raise InputError(f"these are {count} variants, and at most {MOST_VARIANTS} are compared: vary less")
    shared = list(changes)
    if seeds is not None:
        shared.append(Override("--seeds", "generate.seeds", parse_seeds(seeds)))
    if prompts is not None:
        shared.append(Override("--prompts", "generate.prompts", parse_prompts(prompts)))
    variants = _variants(sources, varied, shared)
    first = load(sources[0], shared)
    if isinstance(first.generate.prompts, str):
        parse_prompts(first.generate.prompts)  # a recipe's own file may set more than prompts, too
    baseline = without_cache(first)
    _check(baseline, variants)
    entries = [Entry("baseline", "baseline", baseline.resolved())]
    entries += [Entry(name, "variant", recipe.resolved()) for name, recipe in variants]
    return Comparison(
        cachedit=version,
        name=first.name,
        command=list(command),
        jobs=jobs(first),
        entries=entries,
        fewer_steps=fewer_steps,
    )


def resumed(folder: str, command: Sequence[str]) -> Comparison:
    """Return a comparison from its folder, to go on with.

    Raises:
        InputError: There is none, it is damaged, or nothing can be written there.
    """
    comparison = read(Path(folder))
    if not os.access(folder, os.W_OK):
        raise InputError(f"--resume {folder}: nothing can be written into this folder")
    comparison.resumed.append(list(command))
    return comparison


def without_cache(recipe: Recipe) -> Recipe:
    """Return the recipe that computes everything, and is otherwise the same."""
    settings = recipe.resolved()
    for section in ("cache", "calibrator", "blocks", "adapter"):
        settings.pop(section, None)
    return Recipe.model_validate({**settings, "cache": {"type": "none"}})


def not_compared(what: str) -> str:
    """Return why something cannot be compared."""
    return f"{what}, and only pictures and video can be compared: PSNR and SSIM measure nothing else"


def parse_vary(text: str) -> Vary:
    """Split KEY=A,B,C at the commas that stand in no brackets, braces or quotes."""
    key, equals, written = text.partition("=")
    key = key.strip()
    values = [value.strip() for value in _split(written)]
    if not equals or not key or not all(values):
        what = "one of its values is empty" if any(values) else "gives no values"
        raise InputError(f"--vary {text}: {what}; write KEY=A,B,C, as in cache.residual_diff_threshold=0.08,0.12")
    if twice := next((value for value in values if values.count(value) > 1), None):
        raise InputError(f"--vary {text}: {twice} is given twice")
    why = _SHARED.get(key) or _SHARED.get(key.partition(".")[0])
    if why is not None:
        raise InputError(f"--vary {key}: {key.partition('.')[0] if key not in _SHARED else key} cannot vary: {why}")
    return key, values


def _split(text: str) -> list[str]:
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += char
    return parts


def parse_seeds(text: str) -> list[int]:
    """Return the seeds in A,B,C; what a seed may be is the recipe's to say."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--seeds: {text!r} is not a list of whole numbers such as 0,1,2") from None


def parse_prompts(file: str) -> list[str]:
    """Return the prompts of a file, each once.

    Raises:
        InputError: It cannot be read, is not text, or is empty; a line of it has settings of its own.
    """
    lines = read_prompts(file)
    own = {name: None for line in lines for name in (*line.overrides, *(["seed"] if line.seed is not None else []))}
    if own:
        what = f"{', '.join(own)} of single prompts"
        raise InputError(f"{file}: sets {what}, but a comparison draws all of them alike; leave that out")
    return list(dict.fromkeys(line.prompt for line in lines))


def _variants(
    sources: Sequence[str], varied: Sequence[Vary], shared: Sequence[str | Override]
) -> list[tuple[str, Recipe]]:
    """Return name and recipe of each variant, or say everything that is wrong with them, each problem once."""
    found: list[tuple[str, Recipe]] = []
    problems: dict[str, str] = {}  # the lines, by what they say apart from the value
    ends = [key.rpartition(".")[2] for key, _ in varied]
    names = [key if ends.count(end) > 1 else end for (key, _), end in zip(varied, ends, strict=True)]
    for source in sources:
        load(source, shared)  # what is wrong without what varies is told without it
        for values in itertools.product(*(values for _, values in varied)):
            settings = [f"{key}={value}" for (key, _), value in zip(varied, values, strict=True)]
            try:
                recipe = load(source, [*shared, *settings])
            except InputError as error:
                for line in _as_vary(str(error), settings):
                    problems.setdefault(re.sub(r"^--vary \S.*?: ", "", line), line)
                continue
            parts = [recipe.name] if len(sources) > 1 or not varied else []
            parts += [f"{name}={value}" for name, value in zip(names, values, strict=True)]
            found.append((" ".join(parts), recipe))
    if problems:
        raise InputError("\n".join(problems.values()))
    return list(_told_apart(found))


def _as_vary(message: str, settings: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a message about `--set`, saying `--vary` where that is where the setting came from."""
    for line in message.splitlines():
        ours = any(line.startswith(f"--set {' '.join(setting.split())[:76]}") for setting in settings)
        yield line.replace("--set", "--vary", 1) if ours else line


def _told_apart(variants: Sequence[tuple[str, Recipe]]) -> Iterator[tuple[str, Recipe]]:
    taken = {"baseline"}
    for name, recipe in variants:
        number, unique = 1, name
        while unique in taken:
            number += 1
            unique = f"{name} ({number})"
        taken.add(unique)
        yield unique, recipe


def _check(baseline: Recipe, variants: Sequence[tuple[str, Recipe]]) -> None:
    """Refuse variants of another model or size, and settings that do not fit the model."""
    problems = []
    if baseline.output.type == "latent":
        raise InputError(not_compared("output.type: latents are asked for"))
    inputs.check(baseline.generate)
    own = {**baseline.model.model_dump(), "size": _size(baseline)}
    for name, recipe in variants:
        mine = {**recipe.model.model_dump(), "size": _size(recipe)}
        differ = [key for key in own if key != "size" and mine[key] != own[key]]
        if differ:
            what = ", ".join(f"model.{key} is {mine[key]}, not {own[key]}" for key in differ)
            problems.append(f"{name}: {what}: the model is loaded once, so all variants need the same")
        elif inputs.given(recipe.generate) != inputs.given(baseline.generate):
            problems.append(f"{name}: begins with other pictures than the baseline: only the same can be compared")
        elif mine["size"] != own["size"]:
            problems.append(
                f"{name}: draws {mine['size']}, the baseline {own['size']}: only the same size can be compared"
            )
        else:
            try:
                plan.build(recipe)
            except InputError as error:
                problems += [f"{name}: {line}" for line in str(error).splitlines()]
    if problems:
        raise InputError("\n".join(problems))


def _size(recipe: Recipe) -> str:
    arguments = plan.call_arguments(recipe)
    sides = " x ".join(str(arguments.get(side) or "default") for side in ("width", "height"))
    return f"{sides}, {arguments['num_frames']} frames" if "num_frames" in arguments else sides


def check_html(path: str | None) -> None:
    """Refuse a place for the HTML file that will not do, before the work begins."""
    if path is None:
        return
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path):
        raise InputError(f"--html {path}: is a folder; give a file, such as {os.path.join(path, 'report.html')}")
    if not os.path.isdir(folder):
        raise InputError(f"--html {path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK) or (os.path.exists(path) and not os.access(path, os.W_OK)):
        raise InputError(f"--html {path}: cannot be written here")
