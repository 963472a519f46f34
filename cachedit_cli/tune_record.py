"""What tuning measured, as plain data: ``tune.json``, and what is read off it.

Knows numbers and the disk; draws nothing. Imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, Literal

from .files import readable_json, write_whole
from .jobs import Job
from .metrics import pooled_psnr
from .runs import Status

__all__ = ["FILE", "Goal", "Simulated", "Trial", "Tuning"]

FILE = "tune.json"
SCHEMA = 1

Kind = Literal["schedule", "rival"]


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


@dataclass(frozen=True)
class Goal:
    """What is asked for: at least this PSNR in decibels, this SSIM, or this speed-up."""

    metric: Literal["psnr", "ssim", "speedup"]
    value: float

    def __str__(self) -> str:
        units = {"psnr": f"{self.value:g} dB PSNR", "ssim": f"SSIM {self.value:g}", "speedup": f"{self.value:g} times"}
        return units[self.metric]


@dataclass
class Trial:
    """One way of caching that was run for real on the pictures that decide. Unknown is None.

    Attributes:
        name: For people.
        kind: A ``schedule`` may be chosen; a ``rival`` is there to be compared with.
        settings: What it changes in the recipe, by section.
        computed: Steps that it computes, the mean over pictures and branches; ``steps`` of them there are.
        price: What the schedule was expected to cost; None where nothing priced it.
        psnrs: Decibels of each picture against the one without caching; None of an identical one.
        ssims: Likewise; None where a side is too short.
        speedups: Seconds without caching over the trial's, a picture.
        calls_saved: Share of the block calls without caching that were not made, 0 to 1.
    """

    name: str
    kind: Kind
    settings: dict[str, Any]
    computed: float
    steps: int
    price: float | None = None
    psnrs: list[float | None] = field(default_factory=list)
    ssims: list[float | None] = field(default_factory=list)
    speedups: list[float] = field(default_factory=list)
    calls_saved: float | None = None

    @property
    def psnr(self) -> float:
        """Of the mean square error over the pictures; infinite if all are identical."""
        return pooled_psnr([math.inf if psnr is None else psnr for psnr in self.psnrs]) if self.psnrs else math.nan

    @property
    def ssim(self) -> float | None:
        """Mean over the pictures."""
        known = [ssim for ssim in self.ssims if ssim is not None]
        return sum(known) / len(known) if known else None

    @property
    def speedup(self) -> float | None:
        """Median over the pictures."""
        return median(self.speedups) if self.speedups else None

    def value(self, goal: Goal) -> float:
        """Return what the goal asks about; NaN where it is unknown."""
        found = {"psnr": self.psnr, "ssim": self.ssim, "speedup": self.speedup}[goal.metric]
        return math.nan if found is None else found

    def as_dict(self) -> dict[str, Any]:
        """Return the trial with what its pictures come to."""
        return {**asdict(self), "psnr": self.psnr, "ssim": self.ssim, "speedup": self.speedup}


@dataclass(frozen=True)
class Simulated:
    """What a threshold is expected to do, from the watched generations alone.

    Attributes:
        computed: Steps, of all branches together as soon as one computes.
        speedup: Of the denoising loop, from the share of time that the blocks take.
        price: Expected cost, in the unit of ``Trial.price``.
    """

    threshold: float
    computed: int
    speedup: float | None
    price: float


@dataclass
class Tuning:
    """What ``tune.json`` says.

    Attributes:
        cachedit: Version that made it.
        name: Of the recipe that is tuned.
        source: The recipe as it was given.
        command: The command line.
        goal: What was asked for.
        watched: Pictures that were drawn without caching to learn from.
        checked: Pictures that decide; none of them is among the watched ones.
        recipe: The recipe as it was resolved.
        changes: What `--set` changed in it, KEY=VALUE, which the tuned recipe says as well.
        sensitivity: How much an error at each step was measured to hurt; the mean is 1.
        thresholds: What thresholds were simulated to do.
        share: Part of a step's time that reusing saves, 0 to 1, as far as it was measured.
        trials: What was run for real, in this order.
        chosen: Name of the trial that became the tuned recipe.
        profile: How much each step suffers from being reused with its calibrator, as ``error_profile`` has it.
    """

    cachedit: str
    name: str
    source: str
    command: list[str]
    goal: Goal
    watched: list[Job]
    checked: list[Job]
    recipe: dict[str, Any]
    changes: list[str] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    status: Status = "running"
    error: str | None = None
    started: str = field(default_factory=_now)
    finished: str | None = None
    sensitivity: list[float] = field(default_factory=list)
    thresholds: list[Simulated] = field(default_factory=list)
    share: float | None = None
    trials: list[Trial] = field(default_factory=list)
    chosen: str | None = None
    profile: list[float] = field(default_factory=list)

    @property
    def choice(self) -> Trial | None:
        """The trial that became the tuned recipe."""
        return next((trial for trial in self.trials if trial.name == self.chosen), None)

    @property
    def schedules(self) -> list[Trial]:
        """Trials that may be chosen."""
        return [trial for trial in self.trials if trial.kind == "schedule"]

    def finish(self, status: Status, error: str | None = None) -> None:
        """Say how it ended."""
        self.status, self.error, self.finished = status, error, _now()

    def as_dict(self) -> dict[str, Any]:
        """Return what ``tune.json`` holds."""
        facts = {**asdict(self), "trials": [trial.as_dict() for trial in self.trials]}
        return {"schema": SCHEMA, **facts}

    def write(self, folder: Path) -> None:
        """Write ``tune.json``, replacing the earlier one at once."""
        write_whole(folder / FILE, readable_json(self.as_dict()).encode())
