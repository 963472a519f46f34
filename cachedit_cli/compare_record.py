"""What a comparison found, on disk: ``compare.json``, written whole or not at all, and read back with care.

Knows variants, pictures and what they come to; knows no torch, no recipes' types and no tables. docs/compare.md
describes the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal, TypeVar

from .errors import InputError
from .files import readable_json, reason, write_whole
from .jobs import Job
from .metrics import pooled_psnr
from .runs import Status

__all__ = ["FILE", "SCHEMA", "Comparison", "Determinism", "Entry", "Kind", "Strip", "Summary", "Trial", "read"]

SCHEMA = 1
FILE = "compare.json"

Kind = Literal["baseline", "variant", "fewer-steps"]
_T = TypeVar("_T", int, float)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


@dataclass
class Strip:
    """What one context and branch did in one picture, step by step.

    Attributes:
        marks: A mark a step, as in the statistics.
        differences: What was measured at each step; None where nothing was.
        threshold: What the differences were compared with last; None where nothing was compared.
    """

    context: str
    branch: str
    marks: str
    differences: list[float | None] = field(default_factory=list)
    threshold: float | None = None


@dataclass
class Trial:
    """One picture of one variant. Unknown is None.

    Attributes:
        job: Which prompt and seed, as a place in the comparison's ``jobs``.
        file: Name in the comparison's folder.
        seconds: Wall time of the pipeline call.
        baseline_seconds: The same of the baseline that was drawn just before.
        identical: To the baseline's picture; then ``psnr`` is null, which JSON has instead of infinity.
        psnr: Decibels, against the baseline's picture; so are ``ssim`` and ``lpips``.
        computed: Block calls that were made, and ``saved``: that were not; both 0 without caching.
        estimate: Of its error, from the audits of its forecasts (``terms.estimate``).
        peak_bytes: Most memory that was held on the device during the call; CUDA only.
        cache_bytes: Most that the cache held.
        frames: Of a video; ``psnr``, ``ssim`` and ``lpips`` are then means over them.
        fps: Of them are shown a second.
    """

    job: int
    file: str
    width: int
    height: int
    seconds: float
    timings: dict[str, float] = field(default_factory=dict)
    baseline_seconds: float | None = None
    identical: bool = False
    psnr: float | None = None
    ssim: float | None = None
    lpips: float | None = None
    computed: int = 0
    saved: int = 0
    estimate: float | None = None
    peak_bytes: int | None = None
    cache_bytes: int | None = None
    strips: list[Strip] = field(default_factory=list)
    frames: int | None = None
    fps: float | None = None


@dataclass(frozen=True)
class Summary:
    """What the pictures of a variant come to. Unknown is None.

    Attributes:
        pictures: How many there are.
        seconds: Median of a picture.
        speedup: Median over the pictures of the baseline's seconds, in the same round, over the variant's.
        calls_saved: Share of the baseline's block calls, 0 to 1, fewer steps included.
        psnr: Of the mean square error over all pictures; None also where ``identical``.
        ssim, lpips: Means.
        estimate: Mean.
        peak_bytes, cache_bytes: The most of any picture.
    """

    pictures: int
    seconds: float | None
    speedup: float | None
    calls_saved: float | None
    identical: bool
    psnr: float | None
    ssim: float | None
    lpips: float | None
    estimate: float | None
    peak_bytes: int | None
    cache_bytes: int | None


@dataclass
class Entry:
    """A row of the comparison.

    Attributes:
        recipe: The recipe as it was resolved.
        steps: Denoising steps of a picture.
        same_cost_as: The variants that compute as many block calls as these fewer steps.
        error: Why it failed.
        trials: Its pictures that are finished.
    """

    name: str
    kind: Kind
    recipe: dict[str, Any]
    steps: int | None = None
    same_cost_as: list[str] = field(default_factory=list)
    error: str | None = None
    trials: list[Trial] = field(default_factory=list)

    def trial(self, job: int) -> Trial | None:
        """Return its picture of a prompt and seed; None where it is not finished."""
        return next((trial for trial in self.trials if trial.job == job), None)

    @property
    def computed_share(self) -> float:
        """Share of the block calls of its own steps that it computes, 0 to 1."""
        calls = sum(trial.computed + trial.saved for trial in self.trials)
        return sum(trial.computed for trial in self.trials) / calls if calls else 1.0

    def summary(self, baseline_steps: int | None) -> Summary:
        """Return what its pictures come to."""
        trials = self.trials
        ratios = [trial.baseline_seconds / trial.seconds for trial in trials if trial.baseline_seconds is not None]
        pooled = math.inf
        if trials and self.kind != "baseline":
            pooled = pooled_psnr([math.inf if trial.psnr is None else trial.psnr for trial in trials])
        saved = None
        if trials and self.steps is not None and baseline_steps is not None:
            saved = 1 - self.computed_share * self.steps / baseline_steps
        return Summary(
            pictures=len(trials),
            seconds=median(trial.seconds for trial in trials) if trials else None,
            speedup=median(ratios) if ratios else None,
            calls_saved=saved,
            identical=bool(trials) and all(trial.identical for trial in trials),
            psnr=pooled if math.isfinite(pooled) else None,
            ssim=_of((trial.ssim for trial in trials), mean),
            lpips=_of((trial.lpips for trial in trials), mean),
            estimate=_of((trial.estimate for trial in trials), mean),
            peak_bytes=_of((trial.peak_bytes for trial in trials), max),
            cache_bytes=_of((trial.cache_bytes for trial in trials), max),
        )


def _of(values: Iterable[_T | None], what: Callable[[list[_T]], _T]) -> _T | None:
    known = [value for value in values if value is not None]
    return what(known) if known else None


@dataclass
class Determinism:
    """How far two pictures are apart that the baseline drew from the same prompt and seed.

    Attributes:
        levels: Largest difference of a colour value, of 255.
        share: Of the colour values that differ, 0 to 1.
        psnr: Decibels; None where they are identical.
    """

    identical: bool
    levels: int = 0
    share: float = 0.0
    psnr: float | None = None


@dataclass
class Comparison:
    """What ``compare.json`` says.

    Attributes:
        cachedit: Version that made it.
        name: Of the folder.
        command: The command line; ``resumed`` are those that went on with it.
        environment: Versions, platform, device, dtype, threads.
        status: ``running`` also stays behind when the process is killed.
        error: Why it failed.
        fewer_steps: Whether rows with fewer steps at the same cost are wanted.
        jobs: Prompts and seeds that are drawn.
        entries: The baseline first.
        notes: What else a person should know.
    """

    cachedit: str
    name: str
    command: list[str]
    jobs: list[Job]
    entries: list[Entry]
    fewer_steps: bool = True
    environment: dict[str, Any] = field(default_factory=dict)
    status: Status = "running"
    error: str | None = None
    started: str = field(default_factory=_now)
    finished: str | None = None
    resumed: list[list[str]] = field(default_factory=list)
    deterministic: Determinism | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def baseline(self) -> Entry:
        return self.entries[0]

    @property
    def pictures(self) -> int:
        """How many pictures are finished."""
        return sum(len(entry.trials) for entry in self.entries)

    def summary(self, entry: Entry) -> Summary:
        """Return what an entry's pictures come to."""
        return entry.summary(self.baseline.steps)

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def finish(self, status: Status, error: str | None = None) -> None:
        """Say how it ended."""
        self.status, self.error, self.finished = status, error, _now()

    def as_dict(self) -> dict[str, Any]:
        """Return what ``compare.json`` holds."""
        entries = [{**asdict(entry), "summary": asdict(self.summary(entry))} for entry in self.entries]
        facts = {key: value for key, value in vars(self).items() if key != "entries"}
        rest = {
            "jobs": [asdict(job) for job in self.jobs],
            "deterministic": self.deterministic and asdict(self.deterministic),
            "entries": entries,
        }
        return {"schema": SCHEMA, **facts, **rest}

    def write(self, folder: Path) -> None:
        """Write ``compare.json``, replacing the earlier one at once."""
        write_whole(folder / FILE, readable_json(self.as_dict()).encode())


def read(folder: Path) -> Comparison:
    """Read a comparison from its folder.

    Raises:
        InputError: There is none, or it is damaged.
    """
    path = folder / FILE
    try:
        facts = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read, so there is no comparison here: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged, not valid JSON: {error}") from error
    if not isinstance(facts, dict) or "schema" not in facts:
        raise InputError(f"{path}: not the record of a comparison: 'schema' is missing")
    if facts["schema"] != SCHEMA:
        raise InputError(f"{path}: written with schema {facts['schema']!r}; this version of cachedit reads {SCHEMA}")
    from pydantic import TypeAdapter, ValidationError

    try:
        found = TypeAdapter(Comparison).validate_python(facts)
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
        raise InputError(f"{path}: damaged, {place}: {first['msg']}") from error
    if not found.entries or found.baseline.kind != "baseline" or not found.jobs:
        raise InputError(f"{path}: damaged: there is no baseline, or nothing to draw")
    for trial in (trial for entry in found.entries for trial in entry.trials):
        if not 0 <= trial.job < len(found.jobs):
            raise InputError(f"{path}: damaged: a picture is of a prompt and seed that are not listed")
        if Path(trial.file).name != trial.file:
            raise InputError(f"{path}: damaged: {trial.file!r} is no file in this folder")
    return found
