"""Draws the pictures of a comparison: the model loaded once, the baseline and the variants taking turns.

A round is the baseline and then each variant that is missing, on one prompt and seed. Each variant's time is compared
with the baseline's of its own round, so that a machine that gets slower or faster does not decide. Knows the order of
things and what is measured of each picture; shows nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from . import figures, media, pipeline
from .compare import not_compared
from .compare_record import Comparison, Determinism, Entry, Kind, Strip, Trial
from .compare_report import write_reports
from .contact_sheet import opened_frames
from .drawing import Drawn, draw_measured
from .errors import CacheditError, InputError, RunError
from .generate import Opened, check_call, environment, open_model
from .jobs import Job
from .media import Pictures, Video
from .metrics import Judge
from .models import locate
from .opening import class_for
from .recipe import Recipe
from .runs import RunFolder
from .terms.estimate import estimate
from .terms.stats import Row, collect

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["carry_out", "make"]

# Arguments that lay the steps out one by one: fewer steps would need others.
_LAID_OUT = ("sigmas", "timesteps")

Tell = Callable[[str], None]


def make(comparison: Comparison, folder: RunFolder, html: Path, tell: Tell) -> None:
    """Draw what is missing, and write the reports of what is finished, however it ends; an interrupt is no exception.

    Raises:
        InputError: Baseline and model, or the machine, do not fit.
        RunError: The model could not be loaded, or the baseline failed.
    """
    comparison.status, comparison.error = "running", None
    try:
        carry_out(comparison, folder.path, tell)
    except KeyboardInterrupt:
        comparison.finish("interrupted")
    except BaseException as error:
        comparison.finish("failed", pipeline.first_line(error))
        with suppress(RunError):  # the first error is the one to tell
            _conclude(comparison, folder, html)
        raise
    else:
        failed = [entry.name for entry in comparison.entries if entry.error]
        comparison.finish("failed" if failed else "done", f"failed: {', '.join(failed)}" if failed else None)
    _conclude(comparison, folder, html)


def _conclude(comparison: Comparison, folder: RunFolder, html: Path) -> None:
    if not comparison.pictures:
        folder.discard()
        return
    comparison.write(folder.path)
    write_reports(comparison, folder.path, html)


def carry_out(comparison: Comparison, folder: Path, tell: Tell) -> None:
    """Draw what is missing of a comparison, and write it down after each picture.

    A variant that fails keeps its error, and the others go on.

    Raises:
        InputError: Baseline and model, or the machine, do not fit.
        RunError: The model could not be loaded, or the baseline failed.
    """
    _forget_lost(comparison, folder)
    recipes = {entry.name: Recipe.model_validate(entry.recipe) for entry in comparison.entries}
    device = pipeline.pick_device(recipes[comparison.baseline.name].model.device)
    with pipeline.quiet():
        _check_calls(recipes)
        opened = open_model(recipes[comparison.baseline.name], device)
        session = _Session(comparison, folder, opened, tell)
        session.rounds("variant")
        if comparison.fewer_steps:
            _add_fewer_steps(comparison, opened)
            tell("fewer steps at the same costs:")
            session.rounds("fewer-steps")


def _forget_lost(comparison: Comparison, folder: Path) -> None:
    """Forget errors, and pictures that are no longer there: they are to be made now."""
    for entry in comparison.entries:
        entry.error = None
        entry.trials = [trial for trial in entry.trials if (folder / trial.file).is_file()]
    # What a baseline that is gone was compared with means nothing.
    known = {trial.job for trial in comparison.baseline.trials}
    for entry in comparison.entries[1:]:
        entry.trials = [trial for trial in entry.trials if trial.job in known]


def _check_calls(recipes: dict[str, Recipe]) -> None:
    """Refuse arguments that the pipeline's call does not take, of any variant, before the weights are loaded."""
    problems: dict[str, None] = {}
    for recipe in recipes.values():
        cls = class_for(locate(recipe.model.id, recipe.model.revision, recipe.model.config), recipe.model)
        try:
            check_call(recipe, cls)
            if media.kind_of(cls) == "audio":
                raise InputError(not_compared(f"{cls.__name__} makes sound"))
        except InputError as error:
            problems.update(dict.fromkeys(str(error).splitlines()))
    if problems:
        raise InputError("\n".join(problems))


def _add_fewer_steps(comparison: Comparison, opened: Opened) -> None:
    """Add a row for each number of steps that costs what a variant costs, without caching."""
    steps, baseline = comparison.baseline.steps, Recipe.model_validate(comparison.baseline.recipe)
    laid_out = [name for name in _LAID_OUT if name in baseline.generate.extra]
    if laid_out or steps is None or not pipeline.takes(type(opened.pipe), "num_inference_steps"):
        why = f"generate.extra.{laid_out[0]} lays them out" if laid_out else "their number is not known"
        comparison.note(f"no row has fewer steps: {why}")
        return
    costs: dict[int, list[str]] = {}
    for entry in comparison.entries:
        if entry.kind == "variant" and entry.trials and not entry.error:
            cost = max(1, round((entry.steps or steps) * entry.computed_share))
            if cost < steps:
                costs.setdefault(cost, []).append(entry.name)
    known = {entry.steps: entry for entry in comparison.entries if entry.kind == "fewer-steps"}
    comparison.entries = [entry for entry in comparison.entries if entry.kind != "fewer-steps"]
    for cost, names in sorted(costs.items(), reverse=True):
        settings = baseline.generate.model_copy(update={"num_inference_steps": _asked_for(cost, opened)})
        recipe = baseline.model_copy(update={"generate": settings})
        entry = known.get(cost) or Entry(_name_of(cost), "fewer-steps", recipe.resolved(), cost)
        entry.same_cost_as = names
        comparison.entries.append(entry)


def _asked_for(cost: int, opened: Opened) -> int:
    """Return how many steps to ask for so that so many are done: more where `strength` leaves some out."""
    tried = ((asked, {**opened.arguments, "num_inference_steps": asked}) for asked in itertools.count(cost))
    return next(asked for asked, given in tried if pipeline.real_steps(type(opened.pipe), given) in (None, cost))


def _name_of(steps: int) -> str:
    return f"{steps} step{'s' if steps != 1 else ''}, no cache"


class _Session:
    """A comparison while its model is loaded."""

    def __init__(self, comparison: Comparison, folder: Path, opened: Opened, tell: Tell) -> None:
        self._comparison = comparison
        self._folder = folder
        self._opened = opened
        self._tell = tell
        self._judge = Judge()
        if self._judge.note is not None:
            comparison.note(self._judge.note)
        self._begun = False
        self._warm: Sequence[Image] | None = None  # the baseline's first picture, which has to come out the same again
        self._found = environment(opened)
        tell(f"loaded in {opened.seconds:.1f} s: {self._found['device']}, {self._found['dtype']}")
        comparison.environment = comparison.environment or self._found

    def rounds(self, kind: Kind) -> None:
        """Draw what is missing of one kind of variants, prompt by prompt and seed by seed."""
        for number, job in enumerate(self._comparison.jobs):
            self._round(number, job, [entry for entry in self._comparison.entries if entry.kind == kind])

    def _round(self, number: int, job: Job, entries: Sequence[Entry]) -> None:
        baseline = self._comparison.baseline
        missing = [entry for entry in entries if entry.error is None and entry.trial(number) is None]
        known = baseline.trial(number)
        if known is not None and not missing:
            return
        if not self._begun:
            self._begin()
        about = f"{number + 1}/{len(self._comparison.jobs)} seed {job.seed}" + (f": {job.prompt}" if job.prompt else "")
        drawn = self._draw(baseline, job)
        self._tell(f"{about}\n  {baseline.name}: {drawn.seconds:.2f} s")
        if known is None:
            known = self._keep(baseline, number, job, drawn, None)
        if number == 0:
            self._compare_twice(drawn.frames)
        for entry in missing:
            try:
                trial = self._keep(entry, number, job, self._draw(entry, job), (known, drawn.seconds))
            except CacheditError as error:
                entry.error = str(error)
                self._comparison.write(self._folder)
                self._tell(f"  {entry.name}: failed: {error}")
                continue
            psnr = "identical" if trial.identical else f"{figures.number(trial.psnr, 1)} dB"
            self._tell(f"  {entry.name}: {trial.seconds:.2f} s, {psnr}")

    def _begin(self) -> None:
        """Warm up; and say if what was drawn before was drawn elsewhere."""
        before, now = self._comparison.environment, self._found
        changed = [f"{key} {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
        if changed:
            self._comparison.note(f"it was resumed in another environment: {', '.join(changed)}")
        self._tell("warm-up: the baseline's first picture")
        self._warm = self._draw(self._comparison.baseline, self._comparison.jobs[0]).frames
        self._begun = True

    def _draw(self, entry: Entry, job: Job) -> Drawn:
        drawn = draw_measured(self._opened, Recipe.model_validate(entry.recipe), job)
        entry.steps = drawn.steps
        return drawn

    def _keep(self, entry: Entry, number: int, job: Job, drawn: Drawn, against: tuple[Trial, float] | None) -> Trial:
        """Measure a picture, save it and write everything down; ``against`` is the baseline's, with its seconds now."""
        first, rows = drawn.frames[0], drawn.rows
        trial = Trial(
            job=number,
            file="",
            width=first.width,
            height=first.height,
            seconds=drawn.seconds,
            timings=drawn.timings,
            computed=sum(row.computed for row in rows),
            saved=sum(row.saved for row in rows),
            estimate=estimate(rows).error,
            peak_bytes=drawn.peak_bytes,
            cache_bytes=_held(rows) if rows else None,
            strips=_strips(rows),
            frames=None if drawn.fps is None else len(drawn.frames),
            fps=drawn.fps,
        )
        if against is not None:
            known, trial.baseline_seconds = against
            scores = self._judge.frames(drawn.frames, opened_frames(self._folder, known))
            trial.identical = scores.psnr == float("inf")
            trial.psnr = None if trial.identical else scores.psnr
            trial.ssim, trial.lpips = scores.ssim, scores.lpips
        kept = Pictures([first]) if drawn.fps is None else Video(drawn.frames, drawn.fps)
        (trial.file,) = RunFolder(self._folder, entry.name).save(
            kept,
            "png" if drawn.fps is None else "webp",
            quality=100,  # without loss: what is compared is what was drawn
            prompt=job.prompt,
            seed=job.seed,
            cachedit=self._comparison.cachedit,
            settings=entry.recipe,
        )
        entry.trials.append(trial)
        self._comparison.write(self._folder)
        return trial

    def _compare_twice(self, again: Sequence[Image]) -> None:
        """Say how far the first picture is from the same one again."""
        first, self._warm = self._warm, None
        if first is None:
            return
        found = _apart(first, again, self._judge)
        self._comparison.deterministic = found
        if not found.identical:
            text = (
                "the baseline is not deterministic: the same prompt and seed drew another picture, "
                f"{found.share:.1%} of the colour values differ, by up to {found.levels} of 255 "
                f"(PSNR {figures.number(found.psnr, 1)} dB); "
                "no variant can be told apart better than that"
            )
            self._comparison.note(text)
            self._tell(text)


def _apart(first: Sequence[Image], again: Sequence[Image], judge: Judge) -> Determinism:
    before, after = ((len(frames), *frames[0].size) for frames in (first, again))
    if before != after:
        raise RunError(
            f"the baseline drew {before} and then {after} (frames, width, height): nothing can be compared with it"
        )
    import numpy

    one, other = (numpy.stack([numpy.asarray(frame) for frame in frames]).astype(int) for frames in (first, again))
    levels = numpy.abs(one - other)
    if not levels.any():
        return Determinism(identical=True)
    psnr = judge.frames(again, first).psnr
    return Determinism(False, levels=int(levels.max()), share=float((levels > 0).mean()), psnr=psnr)


def _held(rows: Sequence[Row]) -> int:
    """Return the most that all contexts and branches held together."""
    held: dict[tuple[str, str], int] = {}
    most = 0
    for row in rows:
        held[row.context, row.branch] = row.bytes
        most = max(most, sum(held.values()))
    return most


def _strips(rows: Sequence[Row]) -> list[Strip]:
    found = []
    for context in collect(rows):
        for branch in context.branches:
            thresholds = [row.threshold for row in branch.rows if row.threshold is not None]
            differences = [row.diff for row in branch.rows]
            marks = figures.strip(branch.rows)
            found.append(Strip(context.name, branch.name, marks, differences, thresholds[-1] if thresholds else None))
    return found
