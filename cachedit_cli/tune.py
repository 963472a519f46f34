"""What tuning begins with: the recipe, the goal, and the pictures to learn from and to decide by.

Knows recipes and options, and what can be said of them before any weights are loaded; draws nothing. ``tune_run`` does,
``tune_record`` keeps. Imports no torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from . import plan
from .errors import InputError
from .jobs import Job, jobs
from .recipe import load
from .tune_record import Goal, Tuning

__all__ = ["PROMPTS", "check_target", "prepare"]

#: What is drawn besides the recipe's own prompts: plain things, of which every model of pictures has seen many. The
#: first half is learned from, the second decides.
PROMPTS = (
    "cat face on a sky blue background",
    "slice of pizza on a white background",
    "rocket on a navy blue background",
    "panda face on a pink background",
    "hamburger on a mint green background",
    "tiger face on a teal background",
    "automobile on a white background",
    "owl on a gray background",
    "red apple on a yellow background",
    "sunflower on a black background",
    "fox face on an orange background",
    "sailboat on a sky blue background",
)
_FIRST_SEED = 1000  # of the pictures that decide, away from those that a person draws


def prepare(
    source: str,
    *,
    psnr: float | None = None,
    ssim: float | None = None,
    speedup: float | None = None,
    changes: Sequence[str] = (),
    while_tuning: Sequence[str] = (),
    watch: int = 4,
    check: int = 6,
    command: Sequence[str] = (),
    version: str = "",
) -> Tuning:
    """Return a tuning with nothing drawn yet.

    Args:
        source: A bundled name or a file.
        psnr: Goal in decibels; exactly one of the three is given.
        ssim: Goal from 0 to 1.
        speedup: Goal as a factor.
        changes: What `--set` changes, also in the recipe that is written.
        while_tuning: Texts KEY=VALUE that hold for the pictures of the tuning alone.
        watch: Pictures to learn from.
        check: Pictures that decide.
        command: The command line, for the record.
        version: cachedit's, for the record.

    Raises:
        InputError: Everything that is wrong and shows before weights are loaded.
    """
    goal = _goal(psnr, ssim, speedup)
    for option, count in (("--watch", watch), ("--check", check)):
        if not 1 <= count <= 1000:
            raise InputError(f"{option}: {count} is no number of pictures from 1 to 1000")
    recipe = load(source, [*changes, *while_tuning])
    if recipe.cache.type != "DBCache":
        raise InputError(
            f"{source}: cache.type is {recipe.cache.type}, but a schedule of steps is for DBCache: add "
            "--set cache.type=DBCache"
        )
    plan.build(recipe)
    own = jobs(recipe)
    return Tuning(
        cachedit=version,
        name=recipe.name,
        source=source,
        command=list(command),
        goal=goal,
        watched=_pictures(own, watch, 0, PROMPTS[: len(PROMPTS) // 2]),
        checked=_pictures([], check, _FIRST_SEED, PROMPTS[len(PROMPTS) // 2 :], like=own[0]),
        recipe=recipe.resolved(),
        changes=list(changes),
    )


def _goal(psnr: float | None, ssim: float | None, speedup: float | None) -> Goal:
    given = {"--target-psnr": psnr, "--target-ssim": ssim, "--speedup": speedup}
    named = [option for option, value in given.items() if value is not None]
    if len(named) != 1:
        what = f"{' and '.join(named)} contradict each other" if named else "nothing is asked for"
        raise InputError(f"{what}: give one of --target-psnr, --target-ssim and --speedup")
    if psnr is not None:
        if not 0 < psnr < math.inf:
            raise InputError(f"--target-psnr: {psnr:g} is no number of decibels above 0, such as 30")
        return Goal("psnr", psnr)
    if ssim is not None:
        if not 0 < ssim <= 1:
            raise InputError(f"--target-ssim: {ssim:g} is not above 0 and at most 1")
        return Goal("ssim", ssim)
    if speedup is None or not 1 < speedup < math.inf:
        raise InputError(f"--speedup: {speedup:g} is no factor above 1, such as 2.0")
    return Goal("speedup", speedup)


def _pictures(own: Sequence[Job], count: int, seed: int, prompts: Sequence[str], like: Job | None = None) -> list[Job]:
    """Return the recipe's own pictures, then others until there are ``count``: prompts in turn, a seed each."""
    found = list(own[:count])
    prompted = (like or own[0]).prompt is not None
    for place in range(count - len(found)):
        found.append(Job(prompts[place % len(prompts)] if prompted else None, seed + place))
    return found


def check_target(path: str | None) -> None:
    """Refuse a place for the tuned recipe that will not do, before the work begins."""
    if path is None:
        return
    folder = os.path.dirname(path) or "."
    if not path.endswith((".yaml", ".yml")):
        raise InputError(f"--write {path}: a recipe's file ends in .yaml")
    if os.path.exists(path):
        raise InputError(f"--write {path}: is there already; give another name, or remove it")
    if not os.path.isdir(folder):
        raise InputError(f"--write {path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise InputError(f"--write {path}: nothing can be written into {Path(folder)}")
