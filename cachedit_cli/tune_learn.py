"""What tuning learns before it tries anything: the price of every schedule, and what thresholds would do.

A few generations compute everything and are watched; a few more reuse one stretch each: how much the picture suffers,
over what the stretch was priced, is how much an error there hurts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .calibrators import CANDIDATES, Calibrator, Hold, calibrators_for
from .drawing import Drawn
from .errors import InputError, RunError
from .jobs import Job
from .landscape import Landscape, Watch
from .schedule import Costs, Objective, Schedule, best_schedules, price, profile, simulated
from .tune_record import Simulated
from .tune_studio import Studio, calibrator_settings, schedule_settings

__all__ = ["Knowledge", "learn"]

_STRETCHES = 6  # generations that measure how much an error hurts
_THRESHOLDS = (0.04, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)


class Knowledge:
    """What was learned; schedules are found when they are asked for."""

    def __init__(self, landscape: Landscape, sensitivity: Sequence[float]) -> None:
        self.steps = landscape.steps
        self._landscape = landscape
        self._sensitivity = sensitivity
        self._found: dict[tuple[str, Objective, bool], dict[int, Schedule]] = {}

    def schedule(
        self, computed: int, calibrator: Calibrator, objective: Objective = "sum", felt: bool = False
    ) -> Schedule:
        """Return the best schedule with so many computed steps; ``felt`` weighs errors by how much they hurt."""
        key = str(calibrator), objective, felt
        if key not in self._found:
            weights = self._sensitivity if felt else [1.0] * self.steps
            self._found[key] = best_schedules(Costs(self._landscape, calibrator, weights), objective)
        return self._found[key][computed]

    def profile(self, settings: dict[str, object]) -> list[float]:
        """Return the error profile for a calibrator, given as a recipe has it."""
        used = next(each for each in CANDIDATES if calibrator_settings(each) == settings)
        return profile(self._landscape, used, [1.0] * self.steps)


def learn(studio: Studio) -> Knowledge:
    """Draw the pictures to learn from; what they tell is written into the tuning.

    Raises:
        InputError: There are too few steps.
        RunError: No block computed anything that could be reused.
    """
    first = studio.draw(studio.plain, studio.tuning.watched[0])  # also warms up
    landscape = _watch(studio, first)
    sensitivity = studio.tuning.sensitivity = _feel(studio, landscape, first)
    _simulate(studio, landscape)
    return Knowledge(landscape, sensitivity)


def _watch(studio: Studio, first: Drawn) -> Landscape:
    tuning, steps = studio.tuning, first.steps
    if steps is None or steps < 3:
        raise InputError(f"{tuning.name}: {steps or 'an unknown number of'} steps leave nothing to tune")
    studio.tell(f"watching {len(tuning.watched)} pictures without caching:")
    everything = {"max_warmup_steps": 100_000, "warmup_interval": 1, "residual_diff_threshold": 0.5, "audit": False}
    recipe = studio.with_settings({**everything, "steps_computation_mask": None})
    landscape = Landscape(steps)
    for number, job in enumerate(tuning.watched):
        watch = Watch(steps)
        drawn = studio.draw(recipe, job, watch)
        landscape.add(watch.parts())
        studio.tell(f"  {number + 1}/{len(tuning.watched)} {_about(job)}: {drawn.seconds:.2f} s")
        if number == 0:
            tuning.share = _share(studio, drawn)
            _check_twice(studio, first, drawn)
    if not landscape.parts:
        raise RunError(f"{tuning.name}: no block was seen to compute anything that could be reused")
    return landscape


def _about(job: Job) -> str:
    return f"seed {job.seed}" + (f", {job.prompt}" if job.prompt else "")


def _share(studio: Studio, drawn: Drawn) -> float | None:
    """Return the share of the denoising time that the blocks take which a reused step leaves out."""
    times = [row.ms for row in drawn.rows if row.ms is not None]
    denoise, config = drawn.timings.get("denoise"), studio.recipe.cache_config(drawn.steps)
    if not times or not denoise or config is None:
        return None
    blocks = max(row.computed for row in drawn.rows)
    left_out = max(0, blocks - config.Fn_compute_blocks - config.Bn_compute_blocks) / max(blocks, 1)
    return min(sum(times) / 1000 * left_out / denoise, 0.999)


def _check_twice(studio: Studio, first: Drawn, again: Drawn) -> None:
    """Say how far the first picture is from the same one again."""
    psnr = studio.judge.frames(again.frames, first.frames).psnr
    if math.isfinite(psnr):
        studio.tell(
            f"  the model is not deterministic: the same prompt and seed drew a picture {psnr:.1f} dB away; nothing "
            "can be told apart better than that"
        )


def _feel(studio: Studio, landscape: Landscape, first: Drawn) -> list[float]:
    """Return how much an error at each step hurts, by pictures in which one stretch is reused; the mean is 1."""
    steps, job = landscape.steps, studio.tuning.watched[0]
    length = max(2, steps // (_STRETCHES + 1))
    costs = Costs(landscape, Hold(), [1.0] * steps)
    felt: list[tuple[float, float]] = []  # middle of the stretch, error of the picture over what was priced
    studio.tell(f"feeling how much errors hurt, in stretches of {length} steps:")
    for number in range(_STRETCHES):
        start = 1 + round(number * (steps - 1 - length) / (_STRETCHES - 1))
        mask = [int(not start <= step < start + length) for step in range(steps)]
        drawn = studio.draw(studio.with_settings(schedule_settings(mask)), job)
        psnr = studio.judge.frames(drawn.frames, first.frames).psnr
        # Errors, not their squares, which weigh the first steps so much that the schedules get worse
        # (docs/experiments.md).
        error, expected = 10 ** (-psnr / 20), math.sqrt(price(costs, mask))
        if expected > 0 and error > 0:
            felt.append((start + (length - 1) / 2, error / expected))
        studio.tell(f"  steps {start + 1} to {start + length}: {psnr:.1f} dB")
    weights = _between(felt, steps)
    return [round(weight * steps / sum(weights), 4) for weight in weights]


def _between(felt: Sequence[tuple[float, float]], steps: int) -> list[float]:
    """Return weights for all steps from some of them: straight lines through their logarithms, level at the ends."""
    if not felt:
        return [1.0] * steps
    import numpy

    places, values = zip(*felt, strict=True)
    return [float(each) for each in numpy.exp(numpy.interp(range(steps), places, numpy.log(values)))]


def _simulate(studio: Studio, landscape: Landscape) -> None:
    """Say what thresholds would do with the recipe's own warm-up and calibrator, going by what was watched."""
    tuning, steps = studio.tuning, landscape.steps
    config = studio.recipe.cache_config(steps)
    costs = Costs(landscape, calibrators_for(studio.recipe.calibrator_config())[0], [1.0] * steps)
    for threshold in _THRESHOLDS:
        mask = simulated(landscape, threshold, config.max_warmup_steps if config is not None else 0)
        count, share = sum(mask), tuning.share
        speed = None if share is None else steps / (count + (steps - count) * (1 - share))
        tuning.thresholds.append(Simulated(threshold, count, speed, price(costs, mask)))
