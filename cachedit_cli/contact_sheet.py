"""One picture of a whole comparison: rows are prompts and seeds, columns the baseline and the variants, and under each
picture how it differs from the baseline's, amplified.

Knows pictures, numbers and fonts; takes them from a comparison and its folder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from .compare_record import Comparison, Entry, Trial
from .figures import number

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray
    from PIL.Image import Image as Picture
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont
    from PIL.ImageFont import ImageFont as BitmapFont

__all__ = ["amplification", "contact_sheet", "opened", "opened_frames"]

_NARROWEST, _WIDEST = 192, 384  # pixels of a column: captions fit, and several stay on a screen
_MOST = 120_000_000  # pixels of the sheet, above which columns stay narrow
_SIDE, _MARGIN, _GAP = 176, 20, 14  # pixels: of the column of prompts, around the sheet, between its parts
_TEXT, _LINE = 14, 18  # pixels of a letter and of a line
_BRIGHTEST = 64
_PAPER, _INK, _FAINT, _EMPTY = "#ffffff", "#1b1f24", "#667078", "#e8ebee"


def opened(folder: Path, trial: Trial) -> Picture:
    """Return a picture of a comparison; of a video the frame in the middle."""
    frames = opened_frames(folder, trial)
    return frames[len(frames) // 2]


def opened_frames(folder: Path, trial: Trial) -> list[Picture]:
    """Return the frames of a video of a comparison; of a picture itself."""
    from PIL import Image, ImageSequence

    frames: list[Picture] = []
    end = 0  # milliseconds
    with Image.open(folder / trial.file) as file:
        for frame in ImageSequence.Iterator(file):
            picture = frame.convert("RGB")
            end += frame.info.get("duration", 0)
            # WebP keeps frames that are the same as the one before as a longer one.
            count = 1 if trial.fps is None else round(end * trial.fps / 1000) - len(frames)
            frames += [picture] * count
    return frames


def amplification(comparison: Comparison, folder: Path) -> int:
    """Return the power of two by which differences are multiplied: the largest that keeps nearly all in range."""
    import numpy

    most = 0.0
    for trial, reference in _pairs(comparison):
        most = max(most, float(numpy.percentile(_apart(folder, trial, reference), 99.5)))
    return min(_BRIGHTEST, 2 ** math.floor(math.log2(255 / most))) if most else 1


def contact_sheet(comparison: Comparison, folder: Path, amplify: int) -> bytes:
    """Return the sheet as PNG."""
    data = BytesIO()
    _Sheet(comparison, folder, amplify).picture().save(data, format="PNG")
    return data.getvalue()


def _pairs(comparison: Comparison) -> list[tuple[Trial, Trial]]:
    baseline = comparison.baseline
    return [
        (trial, reference)
        for entry in comparison.entries[1:]
        for trial in entry.trials
        if (reference := baseline.trial(trial.job)) is not None
    ]


def _apart(folder: Path, trial: Trial, reference: Trial) -> NDArray[numpy.int64]:
    import numpy

    mine, other = (numpy.asarray(opened(folder, each)).astype(numpy.int64) for each in (trial, reference))
    levels: NDArray[numpy.int64] = numpy.abs(mine - other)
    return levels


class _Sheet:
    """Where everything goes, and the drawing of it."""

    def __init__(self, comparison: Comparison, folder: Path, amplify: int) -> None:
        self._comparison = comparison
        self._folder = folder
        self._amplify = amplify
        first = comparison.baseline.trials[0]
        columns, rows = len(comparison.entries), len(comparison.jobs)
        wide = first.width
        if wide < _NARROWEST:
            wide *= math.ceil(_NARROWEST / wide)  # whole pixels stay whole
        elif wide > _WIDEST:
            roomy = columns * rows * 2 * _WIDEST * (_WIDEST * first.height // wide) <= _MOST
            wide = _WIDEST if roomy else _NARROWEST
        self._cell = (wide, max(1, round(first.height * wide / first.width)))
        self._names = [self._lines(entry.name, wide) for entry in comparison.entries]

    @cached_property
    def _font(self) -> FreeTypeFont | BitmapFont:
        from PIL import ImageFont

        return ImageFont.load_default(_TEXT)

    def picture(self) -> Picture:
        """Draw the sheet."""
        from PIL import Image, ImageDraw

        wide, high = self._cell
        head = _LINE * (max(map(len, self._names)) + 1)
        block = 2 * high + _LINE + 2 * _GAP
        prompts = [self._job(place) for place in range(len(self._comparison.jobs))]
        heights = [max(block, _LINE * len(lines) + _GAP) for lines in prompts]
        width = 2 * _MARGIN + _SIDE + (wide + _GAP) * len(self._comparison.entries)
        title = self._lines(self._title(), width - 2 * _MARGIN)
        top = _MARGIN + _LINE * len(title) + _GAP
        sheet = Image.new("RGB", (width, top + head + _GAP + sum(heights) + _MARGIN), _PAPER)
        pen = ImageDraw.Draw(sheet)
        self._write(pen, (_MARGIN, _MARGIN), title, _INK)
        for column, entry in enumerate(self._comparison.entries):
            left = self._left(column)
            self._write(pen, (left, top), self._names[column], _INK)
            self._write(pen, (left, top + _LINE * len(self._names[column])), [self._about(entry)], _FAINT)
        down = top + head + _GAP
        for place, lines in enumerate(prompts):
            self._write(pen, (_MARGIN, down), lines, _INK)
            for column, entry in enumerate(self._comparison.entries):
                self._place(sheet, pen, (self._left(column), down), entry, place)
            down += heights[place]
        return sheet

    def _place(self, sheet: Picture, pen: ImageDraw, corner: tuple[int, int], entry: Entry, place: int) -> None:
        """Draw one picture, its caption and its difference."""
        from PIL import Image

        (left, top), (wide, high) = corner, self._cell
        trial, reference = entry.trial(place), self._comparison.baseline.trial(place)
        below = top + high + _LINE + _GAP // 2
        if trial is None or reference is None:
            pen.rectangle((left, top, left + wide - 1, top + high - 1), fill=_EMPTY)
            self._write(pen, (left + 8, top + 8), ["failed" if entry.error else "not drawn"], _FAINT)
            return
        sheet.paste(self._fitted(opened(self._folder, trial)), (left, top))
        seconds = f"{number(trial.seconds, 2)} s"
        if entry.kind == "baseline":
            self._write(pen, (left, top + high + 3), [seconds], _FAINT)
            times = f"Difference to the baseline, times {self._amplify}:"
            self._write(pen, (left, below), self._lines(times, wide), _FAINT)
            return
        worth = "identical" if trial.identical else f"{number(trial.psnr, 1)} dB"
        self._write(pen, (left, top + high + 3), [f"{worth}, {seconds}"], _FAINT)
        import numpy

        levels = _apart(self._folder, trial, reference) * self._amplify
        shown = Image.fromarray(levels.clip(0, 255).astype(numpy.uint8))
        sheet.paste(self._fitted(shown), (left, below))

    def _fitted(self, picture: Picture) -> Picture:
        from PIL.Image import Resampling

        up = self._cell[0] >= picture.width
        return picture.resize(self._cell, Resampling.NEAREST if up else Resampling.LANCZOS)

    def _left(self, column: int) -> int:
        return _MARGIN + _SIDE + column * (self._cell[0] + _GAP)

    def _title(self) -> str:
        facts = self._comparison.environment
        steps, first = self._comparison.baseline.steps, self._comparison.baseline.trials[0]
        parts = [f"cachedit compare: {self._comparison.name}"]
        parts += [f"frame {first.frames // 2 + 1} of {first.frames}"] if first.frames is not None else []
        parts += [f"{steps} steps"] if steps is not None else []
        parts += [str(facts[key]) for key in ("device_name", "dtype") if key in facts]
        return ", ".join([*parts, self._comparison.started[:10]])

    def _about(self, entry: Entry) -> str:
        found = self._comparison.summary(entry)
        if entry.kind == "baseline" or found.speedup is None:
            return f"{number(found.seconds, 2)} s a picture"
        worth = "identical" if found.identical else f"{number(found.psnr, 1)} dB"
        return f"{found.speedup:.2f}x, {worth}"

    def _job(self, place: int) -> list[str]:
        job = self._comparison.jobs[place]
        return [*self._lines(job.prompt or "", _SIDE - _GAP), f"seed {job.seed}"]

    def _lines(self, text: str, width: int) -> list[str]:
        """Break text so that it fits, also inside of words."""
        lines: list[str] = []
        line = ""
        for word in text.split():
            longer = f"{line} {word}".strip()
            if line and self._font.getlength(longer) > width:
                lines.append(line)
                longer = word
            while self._font.getlength(longer) > width:
                fits = next(end for end in range(len(longer) - 1, 0, -1) if end == 1 or self._fits(longer[:end], width))
                lines.append(longer[:fits])
                longer = longer[fits:]
            line = longer
        return [*lines, line] if line or not lines else lines

    def _fits(self, text: str, width: int) -> bool:
        return self._font.getlength(text) <= width

    def _write(self, pen: ImageDraw, corner: tuple[int, int], lines: Sequence[str], colour: str) -> None:
        for place, line in enumerate(lines):
            pen.text((corner[0], corner[1] + place * _LINE), line, fill=colour, font=self._font)
