"""How far a run of many pictures is: a line a picture, and on a terminal a bar with the time that is left.

Knows rich and counts; knows nothing of steps and caching.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from .jobs import Job
    from .resume import Left
    from .runs import Failed, Record

__all__ = ["Overall", "failures", "resumed"]


def failures(record: Record) -> str:
    """Return which pictures failed and why, a line for each cause."""
    causes: dict[str, list[Failed]] = {}
    for failure in record.failures:
        causes.setdefault(failure.error, []).append(failure)
    lines = [f"{record.error}:"]
    for error, failed in causes.items():
        first = f"seed {failed[0].seed}" + ("" if failed[0].prompt is None else f": {failed[0].prompt}")
        lines.append(f"  {first}" + (f" (and {len(failed) - 1} more)" if len(failed) > 1 else "") + f": {error}")
    return "\n".join(lines)


def resumed(left: Left) -> str:
    """Return what a run that goes on has, and what is drawn now."""
    missing = sum(len(call.jobs) for call in left.calls)
    gone = f"; gone or damaged: {', '.join(left.damaged)}" if left.damaged else ""
    return f"{left.folder}: {left.pictures - missing} of {left.pictures} pictures are there{gone}"


class Overall:
    """Counts the pictures of a run."""

    def __init__(self, pictures: int, there: int) -> None:
        self._pictures = pictures
        self._settled = there
        self._bar = Progress(
            TextColumn("all"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            expand=False,
        )
        self._task = self._bar.add_task("", total=pictures, completed=there)

    @property
    def bar(self) -> RenderableType:
        """Return the bar as it is now."""
        return self._bar.get_renderable()

    def saved(self, batch: Sequence[Job], files: Sequence[Sequence[Path]], seconds: float) -> list[str]:
        """Return a line for each picture of a call that succeeded."""
        each = f"{seconds / len(batch):.2f} s"
        return [f"{line}: {each}, {file.name}" for line, (file, *_) in zip(self._lines(batch), files, strict=True)]

    def failed(self, batch: Sequence[Job], error: str) -> list[str]:
        """Return a line for each picture of a call that failed."""
        return [f"{line}: failed: {error}" for line in self._lines(batch)]

    def _lines(self, batch: Sequence[Job]) -> list[str]:
        lines = []
        for job in batch:
            self._settled += 1
            prompt = "" if job.prompt is None else f": {' '.join(job.prompt.split())}"
            lines.append(f"{self._settled}/{self._pictures} seed {job.seed}{prompt}")
        self._bar.advance(self._task, len(batch))
        return lines
