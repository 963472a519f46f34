"""What tuning found, for people: tables, and the tuned recipe with its evidence in a comment.

Knows ``tune_record`` and YAML; draws nothing. Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from .figures import Sheet, number
from .files import write_whole
from .recipe import bundled, load
from .tune_record import Trial, Tuning

__all__ = ["thresholds", "trials", "tuned_recipe", "write_recipe"]

_WIDTH = 118  # of a comment's line


def trials(tuning: Tuning, brief: bool = False) -> Sheet:
    """Return what was run for real, the chosen one first and marked.

    ``brief`` leaves out, of other numbers of computed steps, all but the best picture, and all times but the choice's,
    which alone was timed in turns with no caching.
    """
    choice = tuning.choice
    rows = [choice, *(trial for trial in tuning.trials if trial is not choice)] if choice else tuning.trials
    if brief and choice is not None:
        best: dict[int, Trial] = {}
        for trial in tuning.schedules:
            count = round(trial.computed)
            best[count] = max(best.get(count, trial), trial, key=lambda each: each.psnr)
        same = [trial for trial in rows if trial.kind == "rival" or round(trial.computed) == round(choice.computed)]
        rows = [*same, *(trial for _, trial in sorted(best.items()) if trial not in same)]
    return Sheet(
        ["", "computed", "PSNR", "SSIM", "speed-up", "calls saved"],
        [_row(trial, trial is choice, timed=trial is choice or not brief) for trial in rows],
        words=1,
    )


def _row(trial: Trial, chosen: bool, timed: bool) -> list[str]:
    saved = "" if trial.calls_saved is None else f"{trial.calls_saved:.1%}"
    return [
        trial.name + (" *" if chosen else ""),
        f"{number(trial.computed, 1)} of {trial.steps}",
        "identical" if trial.psnr == float("inf") else f"{number(trial.psnr, 1)} dB",
        number(trial.ssim),
        number(trial.speedup, 2) if timed else "",
        saved,
    ]


def thresholds(tuning: Tuning) -> Sheet:
    """Return what thresholds would do, as simulated."""
    return Sheet(
        ["threshold", "computed", "speed-up", "expected cost"],
        [
            [number(each.threshold, 2), str(each.computed), number(each.speedup, 2), f"{each.price:.2e}"]
            for each in tuning.thresholds
        ],
        words=0,
    )


def tuned_recipe(tuning: Tuning, choice: Trial, folder: str, name: str, profile: Sequence[float]) -> str:
    """Return the text of the recipe that the choice makes, for a file in ``folder``."""
    changes: dict[str, Any] = {}
    for change in tuning.changes:
        key, _, value = change.partition("=")
        _put(changes, key.strip().split("."), yaml.safe_load(value))
    changes["cache"] = {**changes.get("cache", {}), **choice.settings["cache"], "error_profile": list(profile)}
    changes["calibrator"] = choice.settings["calibrator"]
    steps = tuning.recipe.get("generate", {}).get("num_inference_steps")
    body: dict[str, Any] = {"version": 1, "name": name, "extends": _base(tuning.source, folder)}
    if steps is None:
        _put(changes, ["generate", "num_inference_steps"], choice.steps)
    lines = [
        f"{tuning.name}, tuned: {choice.steps and round(choice.computed)} of {choice.steps} steps computed, "
        f"{number(choice.psnr, 1)} dB to the uncached pictures, {number(choice.speedup, 2)} times as fast.",
        "",
        f"Made by `{' '.join(tuning.command)}`, with {_versions(tuning)}.",
        "",
        *_aligned(trials(tuning, brief=True)),
        "",
        f"Measured on {len(tuning.checked)} pictures that it was not tuned on (seeds {tuning.checked[0].seed} to "
        f"{tuning.checked[-1].seed}): {_prompts([job.prompt for job in tuning.checked])}.",
        f"Tuned on {len(tuning.watched)}: {_prompts([job.prompt for job in tuning.watched])}.",
        "",
        "The schedule is for this number of steps. For another one, or another share of computed steps, set a budget, "
        "which goes by error_profile: --set cache.budget=0.3",
    ]
    comment = "\n".join(f"# {part}".rstrip() for line in lines for part in _wrapped(line))
    return f"{comment}\n{_yaml({**body, **changes})}"


def write_recipe(path: Path, text: str) -> None:
    """Write the tuned recipe, and read it back as a check."""
    write_whole(path, text.encode())
    load(path)


def _put(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = value


def _base(source: str, folder: str) -> str:
    """Return what the tuned recipe extends: a bundled name, or a path relative to its own folder."""
    if any(source == each.name for each in bundled()):
        return source
    near = os.path.relpath(os.path.expanduser(source), folder or ".")
    return near if os.sep in near or near.endswith((".yaml", ".yml")) else f".{os.sep}{near}"


def _versions(tuning: Tuning) -> str:
    known = tuning.environment
    parts = [
        f"cachedit {tuning.cachedit}",
        *(f"{name} {known[name]}" for name in ("torch", "diffusers") if name in known),
    ]
    return f"{', '.join(parts)} on {known.get('device_name', 'an unknown device')}"


def _prompts(prompts: Sequence[str | None]) -> str:
    named = list(dict.fromkeys(prompt for prompt in prompts if prompt is not None))
    return "; ".join(named) if named else "without prompts"


def _aligned(sheet: Sheet) -> list[str]:
    rows = [sheet.columns, *sheet.rows]
    widths = [max(len(row[place]) for row in rows) for place in range(len(sheet.columns))]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def _wrapped(line: str) -> list[str]:
    import textwrap

    if "  " in line:  # a row of a table
        return [line]
    return textwrap.wrap(line, _WIDTH) or [""]


class _Dumper(yaml.SafeDumper):
    """Sections a line a key, lists of numbers on as few lines as fit."""


def _flow(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)


_Dumper.add_representer(list, _flow)


def _yaml(body: Mapping[str, Any]) -> str:
    return yaml.dump(dict(body), Dumper=_Dumper, sort_keys=False, width=_WIDTH, allow_unicode=True)
