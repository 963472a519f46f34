"""What the command line writes: tables and lines for people, and the strip of a run as it happens.

Knows consoles, and what a terminal can show that a pipe cannot; what is shown comes from ``report``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live

from .figures import describe
from .progress import Overall
from .report import headline, live, stats_table

if TYPE_CHECKING:
    from pathlib import Path

    from .jobs import Job
    from .runs import Record
    from .terms.stats import ContextInfo, Row

__all__ = ["Screen", "console", "show", "summary", "tables"]

PIPE_WIDTH = 120  # columns of tables that no terminal limits
REFRESH = 0.1  # seconds between two drawings of the live strip


def show(on: Console, *shown: RenderableType) -> None:
    """Print; without the blanks at the ends of lines where no terminal needs them."""
    if on.is_terminal:
        on.print(*shown, sep="\n")
        return
    with on.capture() as captured:
        on.print(*shown, sep="\n")
    text = "\n".join(line.rstrip() for line in captured.get().splitlines())
    on.file.write(f"{text}\n")
    on.file.flush()


def console(stderr: bool = False) -> Console:
    """Return a console for people, on stdout or stderr."""
    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = PIPE_WIDTH
    return made


def tables(record: Record, generation: int | None = None, details: bool = False) -> Iterator[RenderableType]:
    """Yield the statistics of one generation, or of the whole run, and what they come to."""
    if record.log.contexts:
        yield stats_table(record.stats(generation), details)
    yield summary(record, generation)


def summary(record: Record, generation: int | None) -> str:
    """Return what one generation, or the whole run, saved, in one line."""
    of = [image for image in record.images if generation in (None, image.generation)]
    seconds = sum(image.seconds or 0.0 for image in of)
    if not record.log.contexts:
        return f"computed everything in {seconds:.2f} s: without caching"
    return headline(record.stats(generation), seconds)


class Screen:
    """Shows a run as it happens: a strip that fills on a terminal, lines elsewhere; of many pictures a line each."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._overall: Overall | None = None
        self._rows: list[Row] = []
        self._steps: int | None = None
        self._drawn = 0.0

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def planned(self, pictures: int, there: int) -> None:
        """Count them, if there are several."""
        self._overall = Overall(pictures, there) if pictures > 1 else None

    def opened(self, device: str, dtype: str, seconds: float) -> None:
        """Say where the model is now."""
        self._console.print(f"loaded in {seconds:.1f} s: {device}, {dtype}")
        if self._live is not None and self._overall is not None:
            self._live.update(self._shown())
            self._live.start()

    def begins(self, batch: Sequence[Job], steps: int | None) -> None:
        """Begin a new strip."""
        self._rows, self._steps = [], steps
        for job in batch if self._overall is None else ():
            self._line(f"seed {job.seed}" + (f": {job.prompt}" if job.prompt else ""))
        if self._live is not None:
            self._live.update(self._shown())  # not the strip before
            self._live.start()

    def found(self, lists: Sequence[ContextInfo]) -> None:
        """Say which block lists the first forward showed."""
        for info in lists:
            self._line(f"found {info.name}: {describe(info)}")
            for note in info.notes:
                self._line(f"  {note}")

    def row(self, row: Row) -> None:
        """Add a mark."""
        self._rows.append(row)
        if self._live is not None and time.monotonic() - self._drawn > REFRESH:
            self._draw(self._live)

    def saved(self, batch: Sequence[Job], files: Sequence[Sequence[Path]], seconds: float) -> None:
        """Finish the strip and name the files."""
        if self._overall is not None:
            self._settled(self._overall.saved(batch, files, seconds))
            return
        if self._live is not None:
            self._draw(self._live)
            self._live.stop()
        else:
            show(self._console, live(self._rows, self._steps))
        for file in (file for each in files for file in each):
            self._line(f"saved {file}")
        self._line(f"took {seconds:.2f} s")

    def failed(self, batch: Sequence[Job], error: str) -> None:
        """Say which pictures are not there, and why."""
        if self._overall is not None:
            self._settled(self._overall.failed(batch, error))

    def _settled(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._line(line)
        if self._live is not None:
            self._draw(self._live)

    def _shown(self) -> RenderableType:
        strips = [live(self._rows, self._steps)] if self._rows else []
        return Group(*strips, *([] if self._overall is None else [self._overall.bar]))

    def _draw(self, shown: Live) -> None:
        self._drawn = time.monotonic()
        shown.update(self._shown(), refresh=True)

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)
