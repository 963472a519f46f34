"""What a comparison says: the table, and one HTML file that holds everything.

Knows the record of a comparison and its pictures; what is drawn where, the template knows. Needs no torch.
"""

from __future__ import annotations

import base64
import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from . import figures
from .compare_record import Comparison, Entry, Strip, Summary, Trial
from .contact_sheet import amplification, contact_sheet, opened, opened_frames
from .encode import encoded
from .figures import Sheet, human_bytes, labels, number
from .files import write_whole
from .media import Video

__all__ = ["CONTACT_SHEET", "html", "sheet", "write_reports"]

CONTACT_SHEET = "contact-sheet.png"
BEST = "*"

_INLINED = 24_000_000  # bytes of pictures above which they are compressed with loss
_CLIP = 80  # quality of the videos on the page
# What tells nothing about a variant: where it comes from, and what all of them draw.
_SAME = ("version", "name", "description", "output")
_DRAWN = ("prompt", "prompts", "seed", "seeds", "num_images", "batch_size")


@dataclass(frozen=True)
class _Column:
    """A number of the table: how it reads, and which is the best."""

    name: str
    text: Callable[[Summary], str]
    value: Callable[[Summary], float | None]
    best: Literal["least", "most"]


_COLUMNS = (
    _Column("seconds", lambda it: number(it.seconds, 2), lambda it: it.seconds, "least"),
    _Column("speed-up", lambda it: "-" if it.speedup is None else f"{it.speedup:.2f}x", lambda it: it.speedup, "most"),
    _Column(
        "calls saved",
        lambda it: "-" if it.calls_saved is None else f"{100 * it.calls_saved:.1f} %",
        lambda it: it.calls_saved,
        "most",
    ),
    _Column("PSNR", lambda it: psnr_text(it), lambda it: math.inf if it.identical else it.psnr, "most"),
    _Column("SSIM", lambda it: number(it.ssim, 4), lambda it: it.ssim, "most"),
    _Column("LPIPS", lambda it: number(it.lpips, 4), lambda it: it.lpips, "least"),
    _Column("estimate", lambda it: number(it.estimate), lambda it: it.estimate, "least"),
    _Column("peak memory", lambda it: human_bytes(it.peak_bytes), lambda it: it.peak_bytes, "least"),
    _Column("cache", lambda it: human_bytes(it.cache_bytes), lambda it: it.cache_bytes, "least"),
)


def psnr_text(found: Summary | Trial) -> str:
    """Return a PSNR as people read it."""
    return "identical" if found.identical else "-" if found.psnr is None else f"{found.psnr:.1f} dB"


@dataclass(frozen=True)
class _Cell:
    text: str
    best: bool = False


@dataclass(frozen=True)
class _Line:
    """A row of the table; ``number`` is its mark in the chart."""

    number: int
    name: str
    kind: str
    about: str
    cells: Sequence[_Cell]


def _lines(comparison: Comparison) -> tuple[list[str], list[_Line]]:
    """Return the columns in which anything stands, and the rows with the best values marked."""
    found = [comparison.summary(entry) for entry in comparison.entries]
    shown = [column for column in _COLUMNS if any(column.value(each) is not None for each in found)]
    whole = [each.pictures == len(comparison.jobs) for each in found]
    whole[0] = False  # nothing is to be compared with the baseline
    best: dict[str, float] = {}
    for column in shown:
        finished = [each for each, done in zip(found, whole, strict=True) if done]
        values = [value for value in map(column.value, finished) if value is not None]
        if len(set(values)) > 1:
            best[column.name] = max(values) if column.best == "most" else min(values)
    lines = []
    for place, (entry, each) in enumerate(zip(comparison.entries, found, strict=True)):
        cells = [
            _Cell(column.text(each), whole[place] and column.name in best and column.value(each) == best[column.name])
            for column in shown
        ]
        lines.append(_Line(place, entry.name, entry.kind, _about(comparison, entry), cells))
    return [column.name for column in shown], lines


def _about(comparison: Comparison, entry: Entry) -> str:
    """Return what there is to say of a row besides its numbers."""
    parts = []
    if entry.same_cost_as:
        parts.append(f"costs as much as {', '.join(entry.same_cost_as)}")
    if len(entry.trials) < len(comparison.jobs):
        parts.append(f"{len(entry.trials)} of {len(comparison.jobs)} pictures")
    if entry.error:
        parts.append(f"failed: {entry.error.splitlines()[0]}")
    return "; ".join(parts)


def sheet(comparison: Comparison, width: int) -> Sheet:
    """Return the table; names stand on lines of their own where it would be wider than ``width``."""
    columns, lines = _lines(comparison)
    marked = [any(line.cells[place].best for line in lines) for place in range(len(columns))]
    rows = []
    for line in lines:
        cells = [
            cell.text + (f" {BEST}" if cell.best else "  " if mark else "")
            for cell, mark in zip(line.cells, marked, strict=True)
        ]
        finished, wanted = len(comparison.entries[line.number].trials), len(comparison.jobs)
        rows.append([line.name if finished == wanted else f"{line.name} ({finished} of {wanted})", *cells])
    heads = ["variant", *(name + "  " * mark for name, mark in zip(columns, marked, strict=True))]
    natural = sum(max(map(len, column)) + 2 for column in zip(heads, *rows, strict=True))
    return Sheet(heads, rows, words=1, headed=natural > width)


# ---- files


def write_reports(comparison: Comparison, folder: Path, html_path: Path) -> None:
    """Write the contact sheet and the HTML file of what is finished."""
    amplify = amplification(comparison, folder)
    write_whole(folder / CONTACT_SHEET, contact_sheet(comparison, folder, amplify))
    write_whole(html_path, html(comparison, folder, amplify).encode())


def html(comparison: Comparison, folder: Path, amplify: int) -> str:
    """Return a page that needs nothing but itself."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("cachedit_cli"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    columns, lines = _lines(comparison)
    every = [trial for entry in comparison.entries for trial in entry.trials]
    # Of a video one frame is shown as a picture.
    lossy = sum((folder / trial.file).stat().st_size / (trial.frames or 1) for trial in every) > _INLINED
    first = comparison.baseline.trials[0]
    return environment.get_template("compare.html.j2").render(
        comparison=comparison,
        baseline=comparison.baseline,
        columns=columns,
        lines=lines,
        chart=_chart(comparison),
        amplify=amplify,
        lossy=lossy,
        pixelated=first.width < 256,
        size=(first.width, first.height),
        frames=first.frames,
        cards=[_card(comparison, folder, place, lossy) for place in range(len(comparison.jobs))],
        stories=[_story(comparison, entry) for entry in comparison.entries if any(it.strips for it in entry.trials)],
        settings=_settings(comparison.entries),
        command=shlex.join(comparison.command),
        resumed=[shlex.join(command) for command in comparison.resumed],
    )


@dataclass(frozen=True)
class _Shot:
    """A picture in the page; of a video the frame in the middle, and the whole of it as ``clip``."""

    number: int
    name: str
    worth: str
    source: str
    clip: str | None


def _card(comparison: Comparison, folder: Path, place: int, lossy: bool) -> Mapping[str, Any]:
    job = comparison.jobs[place]
    shots = [
        _Shot(
            number_,
            entry.name,
            "" if entry.kind == "baseline" else psnr_text(trial),
            _source(folder, trial, lossy),
            None if trial.frames is None or trial.fps is None else _clip(folder, trial, trial.fps),
        )
        for number_, entry in enumerate(comparison.entries)
        if (trial := entry.trial(place)) is not None
    ]
    return {"prompt": job.prompt, "seed": job.seed, "shots": shots}


def _source(folder: Path, trial: Trial, lossy: bool) -> str:
    if lossy or trial.frames is not None:
        buffer, kind = BytesIO(), "jpeg" if lossy else "png"
        opened(folder, trial).save(buffer, format=kind.upper(), quality=92)
        return _inlined(buffer.getvalue(), kind)
    return _inlined((folder / trial.file).read_bytes(), "png")


def _clip(folder: Path, trial: Trial, fps: float) -> str:
    ((_, data),) = encoded(Video(opened_frames(folder, trial), fps), "webp", _CLIP, {})
    return _inlined(data, "webp")


def _inlined(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


# ---- settings


def _settings(entries: Sequence[Entry]) -> list[tuple[str, list[str], bool]]:
    """Return key, the values of baseline and variants, and whether variants differ; those that do first."""
    flat = [dict(_flattened(_told(entry.recipe))) for entry in entries if entry.kind != "fewer-steps"]
    compared = flat[1:] if len(flat) > 2 else flat
    rows = []
    for key in dict.fromkeys(key for each in flat for key in each):
        differs = len({each.get(key) for each in compared}) > 1
        rows.append((key, [each.get(key, "-") for each in flat], differs))
    return sorted(rows, key=lambda row: not row[2])


def _told(recipe: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in recipe.items() if key not in _SAME}
    drawn = {key: value for key, value in recipe.get("generate", {}).items() if key not in _DRAWN}
    return {**kept, "generate": drawn}


def _flattened(settings: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{above}{key}.")
        elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            for place, each in enumerate(value):
                yield from _flattened(each, f"{above}{key}.{place}.")
        else:
            yield f"{above}{key}", str(value).lower() if isinstance(value, bool) else str(value)


# ---- drawings, in the units of their own boxes


def _chart(comparison: Comparison) -> Mapping[str, Any] | None:
    """Return speed-up against PSNR, laid out; None where there is nothing to draw."""
    points = []
    for place, entry in enumerate(comparison.entries):
        found = comparison.summary(entry)
        if found.speedup is not None and (found.psnr is not None or found.identical):
            points.append((place, entry, found.speedup, found.psnr))
    if not points:
        return None
    wide, high, left, right, top, bottom = 420, 290, 44, 14, 26, 38
    across = _ticks([1.0, *(speedup for _, _, speedup, _ in points)])
    known = [psnr for *_, psnr in points if psnr is not None]
    up = _ticks(known) if known else []

    def horizontal(value: float) -> float:
        return round(left + (value - across[0]) / (across[-1] - across[0]) * (wide - left - right), 1)

    def vertical(value: float | None) -> float:
        if value is None:
            return top - 12  # identical: above all that can be measured
        return round(high - bottom - (value - up[0]) / (up[-1] - up[0]) * (high - top - bottom), 1)

    return {
        "size": (wide, high),
        "frame": (left, top, wide - right, high - bottom),
        "across": [(horizontal(value), f"{value:g}") for value in across],
        "up": [(vertical(value), f"{value:g}") for value in up],
        "identical": top - 12 if len(known) < len(points) else None,
        "points": [
            {
                "number": place,
                "x": horizontal(speedup),
                "y": vertical(psnr),
                "kind": entry.kind,
                "title": f"{entry.name}: {speedup:.2f}x, {'identical' if psnr is None else f'{psnr:.1f} dB'}",
            }
            for place, entry, speedup, psnr in points
        ],
    }


def _ticks(values: Sequence[float]) -> list[float]:
    """Return round numbers, at least two, from below the least to above the most."""
    low, high = min(values), max(values)
    rough = max((high - low) / 5, abs(high) * 0.01, 1e-6)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * each for each in (1, 2, 2.5, 5, 10) if unit * each >= rough)
    start, end = math.floor(low / step), math.ceil(high / step)
    return [round(place * step, 10) for place in range(start, max(end, start + 1) + 1)]


def _story(comparison: Comparison, entry: Entry) -> Mapping[str, Any]:
    """Return what a variant did in each picture: strips and curves."""
    names = labels({strip.context for trial in entry.trials for strip in trial.strips})
    pictures = [
        {
            "title": f"{comparison.jobs[trial.job].prompt or ''} (seed {comparison.jobs[trial.job].seed})".strip(),
            "strips": [
                {"title": f"{names[strip.context]} {strip.branch}".strip(), **_curve(strip)} for strip in trial.strips
            ],
        }
        for trial in entry.trials
    ]
    return {"name": entry.name, "number": comparison.entries.index(entry), "first": pictures[0], "others": pictures[1:]}


_MARKS = {figures.COMPUTED: "computed", figures.CACHED: "cached", figures.PRUNED: "pruned"}


def _curve(strip: Strip) -> Mapping[str, Any]:
    """Return a strip and the curve of its differences above it, laid out."""
    wide, high, left = 360, 92, 34
    steps = max(1, len(strip.marks))
    step = (wide - left) / steps
    measured = [value for value in strip.differences if value is not None]
    top = max([*measured, strip.threshold or 0.0], default=0.0) * 1.1 or 1.0

    counts = {kind: strip.marks.count(mark) for mark, kind in _MARKS.items()}

    def down(value: float) -> float:
        return round(high - 22 - value / top * (high - 30), 1)

    return {
        "size": (wide, high),
        "left": left,
        "cells": [(round(left + place * step, 2), _MARKS[mark]) for place, mark in enumerate(strip.marks)],
        "cell": round(max(step - 1, step * 0.7), 2),
        "points": [
            (round(left + (place + 0.5) * step, 1), down(value))
            for place, value in enumerate(strip.differences)
            if value is not None
        ],
        "top": (down(top / 1.1), number(top / 1.1, 2)) if measured else None,
        "zero": down(0.0),
        "threshold": None
        if strip.threshold is None or not measured
        else (down(strip.threshold), f"{strip.threshold:g}"),
        "about": f"{len(strip.marks)} steps: {', '.join(f'{count} {kind}' for kind, count in counts.items() if count)}",
    }
