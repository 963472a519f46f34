"""Tunes: learns what every schedule would cost, runs the best of them for real, and chooses by what was measured.

For a number of computed steps the best schedule of each calibrator is drawn on pictures that nothing was learned from.
A search over the number finds the goal; after its first round only the calibrators that did best go on. Shows nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from . import pipeline
from .calibrators import CANDIDATES, Calibrator, Hold, TaylorSeer
from .errors import CacheditError, RunError
from .recipe import Recipe
from .schedule import Objective
from .terms.mask import shaped
from .tune_learn import Knowledge, learn
from .tune_record import Trial, Tuning
from .tune_studio import Studio, Tell, calibrator_settings, schedule_settings

__all__ = ["tune"]

_MOST_ROUNDS = 8  # numbers of computed steps that are tried
_GO_ON = 3  # calibrators after the first round
_SLACK = 0.98  # of a speed-up that is measured: clocks are not exact


def tune(tuning: Tuning, folder: Path, tell: Tell) -> None:
    """Measure, and choose; what was measured is in the folder, however it ends.

    An interrupt is no exception: the status says so, and the best of what was tried by then is chosen if it reaches the
    goal.

    Raises:
        InputError: Recipe and model, or the machine, do not fit.
        RunError: The model could not be loaded, its call failed, or the goal cannot be reached.
    """
    search: _Search | None = None
    try:
        with pipeline.quiet():
            studio = Studio(tuning, tell)
            knowledge = learn(studio)
            tuning.write(folder)
            studio.refer()
            search = _Search(studio, knowledge, folder)
            search.run()
    except KeyboardInterrupt:
        if search is not None:
            search.settle()
        tuning.finish("interrupted")
    except BaseException as error:
        tuning.finish("failed", str(error) if isinstance(error, CacheditError) else pipeline.first_line(error))
        with suppress(RunError):  # the first error is the one to tell
            tuning.write(folder)
        raise
    else:
        tuning.finish("done")
    tuning.write(folder)


class _Search:
    """The rounds of a tuning, each a number of computed steps."""

    def __init__(self, studio: Studio, knowledge: Knowledge, folder: Path) -> None:
        self._studio = studio
        self._tuning = studio.tuning
        self._goal = studio.tuning.goal
        self._knowledge = knowledge
        self._steps = knowledge.steps
        self._folder = folder
        self._calibrators: Sequence[Calibrator] = CANDIDATES
        self._rounds: dict[int, list[Trial]] = {}

    def run(self) -> None:
        """Find the goal, and run what else could be done at the same cost.

        Raises:
            RunError: It cannot be reached; says what the best was.
        """
        choice = self._by_speed() if self._goal.metric == "speedup" else self._by_quality()
        self._choose(choice)
        self._studio.tell("the choice and no caching in turns, for the time:")
        self._studio.time(choice, self._with(choice))
        self._rivals()

    def settle(self) -> None:
        """After an interrupt, choose the best of what reached the goal, if anything did."""
        reached = [trial for trial in self._tuning.schedules if self._reaches(trial)]
        if self._tuning.chosen is None and reached:
            self._choose(min(reached, key=lambda trial: (_asked(trial), -trial.psnr)))

    def _choose(self, trial: Trial) -> None:
        self._tuning.chosen = trial.name
        self._tuning.profile = self._knowledge.profile(trial.settings["calibrator"])

    def _reaches(self, trial: Trial) -> bool:
        slack = _SLACK if self._goal.metric == "speedup" else 1.0
        return trial.value(self._goal) >= self._goal.value * slack

    def _with(self, trial: Trial) -> Recipe:
        return self._studio.with_settings(trial.settings["cache"], trial.settings["calibrator"])

    def _run(self, trial: Trial) -> Trial:
        self._studio.run(trial, self._with(trial))
        self._tuning.write(self._folder)
        return trial

    # ---- rounds

    def _round(self, computed: int) -> Trial:
        """Try so many computed steps; return what drew best."""
        trials = len(self._calibrators) + 2  # with the two others, at most
        left = self._studio.seconds_left(trials)
        self._studio.tell(f"{computed} of {self._steps} steps computed (this round takes about {left:.0f} s):")
        tried = self._rounds[computed] = []
        for calibrator in self._calibrators:
            mask, price = self._knowledge.schedule(computed, calibrator)
            tried.append(self._run(self._trial(f"{computed} steps, {calibrator}", calibrator, mask, price)))
        tried += [self._run(trial) for trial in self._others(computed, max(tried, key=lambda trial: trial.psnr))]
        best = sorted(tried, key=lambda trial: -trial.psnr)
        if len(self._rounds) == 1:
            good = [trial.settings["calibrator"] for trial in best]
            order = [settings for place, settings in enumerate(good) if settings not in good[:place]][:_GO_ON]
            self._calibrators = [each for each in CANDIDATES if calibrator_settings(each) in order]
        return best[0]

    def _others(self, computed: int, best: Trial) -> Iterator[Trial]:
        """Yield what else the best calibrator could do: errors weighed by how they hurt, or the least largest error."""
        calibrator = next(each for each in self._calibrators if f"{computed} steps, {each}" == best.name)
        masks = {self._knowledge.schedule(computed, calibrator).mask}
        ways: tuple[tuple[str, Objective, bool], ...] = (("as felt", "sum", True), ("minimax", "minimax", False))
        for name, objective, felt in ways:
            mask, price = self._knowledge.schedule(computed, calibrator, objective, felt)
            if mask not in masks:
                masks.add(mask)
                yield self._trial(f"{best.name}, {name}", calibrator, mask, price)

    def _trial(self, name: str, calibrator: Calibrator, mask: Sequence[int], price: float | None) -> Trial:
        settings = {"cache": schedule_settings(mask), "calibrator": calibrator_settings(calibrator)}
        return Trial(name, "schedule" if price is not None else "rival", settings, sum(mask), len(mask), price)

    def _by_quality(self) -> Trial:
        """Find the fewest computed steps that are good enough, by halving."""
        low, high = 2, self._steps - 1  # the fewest that may do, and the most that save anything
        best: Trial | None = None
        computed = max(low, round(0.4 * self._steps))
        for _ in range(_MOST_ROUNDS):
            self._round(computed)
            value = max(self._rounds[computed], key=lambda each: each.value(self._goal))
            if self._reaches(value):
                best, high = value, computed - 1
            else:
                low = computed + 1
            if low > high:
                break
            computed = (low + high) // 2
        if best is None:
            self._fail(f"{self._goal} cannot be reached with caching")
        return self._lean(best)

    def _by_speed(self) -> Trial:
        """Find the most computed steps that are fast enough, from the times of what was tried."""
        wanted = max(2, min(self._steps - 1, math.floor(self._steps / self._goal.value)))
        for _ in range(_MOST_ROUNDS):
            if wanted in self._rounds:
                break
            self._round(wanted)
            wanted = self._fast_enough()
            if wanted < 1:
                if any(self._reaches(trial) for trial in self._tuning.schedules):
                    break  # the clock is less steady than the line through it
                self._fail(
                    f"{self._goal} as fast cannot be reached, not even with one computed step: text, decoding and what "
                    "is not blocks take the rest"
                )
        fast = [count for count in self._rounds if count <= wanted]
        reached = [count for count, tried in self._rounds.items() if any(map(self._reaches, tried))]
        return max(self._rounds[max(fast or reached or [min(self._rounds)])], key=lambda trial: trial.psnr)

    def _fast_enough(self) -> int:
        """Return the most computed steps that are fast enough, by a line through the times so far; 0 if none are."""
        import numpy

        each = [(float(self._steps), 1.0)]  # computed steps, and seconds over those without caching
        each += [(float(_asked(t)), 1 / t.speedup) for t in self._tuning.schedules if t.speedup]
        counts, seconds = zip(*each, strict=True)
        slope, least = (float(value) for value in numpy.polyfit(counts, seconds, 1))
        if slope <= 0:
            return 0
        most = math.floor((1 / (self._goal.value * _SLACK) - least) / slope + 1e-9)
        return min(self._steps - 1, most)

    def _fail(self, what: str) -> NoReturn:
        best = max(self._tuning.schedules, key=lambda trial: trial.value(self._goal))
        units = {"psnr": f"{best.psnr:.1f} dB", "ssim": f"{best.ssim}", "speedup": f"{best.speedup} times"}
        raise RunError(
            f"{what}; the best was {units[self._goal.metric]} with {_asked(best)} of {self._steps} steps computed"
        )

    # ---- the choice

    def _lean(self, best: Trial) -> Trial:
        """Return the same schedule without front blocks if that is still good enough, as it saves more."""
        config = self._studio.recipe.cache_config(self._steps)
        if config is None or config.Fn_compute_blocks == 0 or self._studio.recipe.blocks:
            return best
        settings = {**best.settings, "cache": {**best.settings["cache"], "Fn_compute_blocks": 0}}
        fresh = replace(best, name=f"{best.name}, no front block", settings=settings, psnrs=[], ssims=[], speedups=[])
        bare = self._run(fresh)
        return bare if self._reaches(bare) else best

    def _rivals(self) -> None:
        """Run what else could be done at the same cost, for the evidence."""
        choice = self._tuning.choice
        if choice is None:
            return
        computed = _asked(choice)
        self._studio.tell(f"what else {computed} steps would give:")
        for calibrator in (Hold(), TaylorSeer(1)):
            mask = shaped(None, self._steps, computed)
            self._run(self._trial(f"a policy's shape, {calibrator}", calibrator, mask, None))
        self._threshold(computed)
        if self._studio.counts_steps:
            plain = self._studio.plain
            settings = plain.generate.model_copy(update={"num_inference_steps": computed})
            trial = Trial(f"just {computed} steps", "rival", {}, computed, computed)
            self._studio.run(trial, plain.model_copy(update={"generate": settings}))
            trial.calls_saved = 1 - computed / self._steps
            self._tuning.write(self._folder)

    def _threshold(self, computed: int) -> None:
        """Run the threshold that was simulated to compute about as many steps, with the recipe's own settings."""
        nearest = min(self._tuning.thresholds, key=lambda each: abs(each.computed - computed), default=None)
        if nearest is None:
            return
        cache = {"residual_diff_threshold": nearest.threshold, "steps_computation_mask": None}
        calibrator = self._tuning.recipe.get("calibrator") or {"type": "hold"}
        name = f"threshold {nearest.threshold:g}, the recipe's calibrator"
        trial = Trial(name, "rival", {"cache": cache, "calibrator": calibrator}, nearest.computed, self._steps)
        self._run(trial)


def _asked(trial: Trial) -> int:
    """Return how many steps a trial's schedule was to compute; the guard may have computed more."""
    return str(trial.settings["cache"]["steps_computation_mask"]).count("1")
