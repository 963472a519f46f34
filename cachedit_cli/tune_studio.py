"""The model while it is tuned: draws pictures with other settings, and measures them against those without caching.

Knows recipes as settings that change; does not know which to try.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import pipeline
from .calibrators import Calibrator, TaylorSeer
from .compare import without_cache
from .drawing import Drawn, draw_measured
from .generate import environment, open_model
from .jobs import Job
from .landscape import Watch
from .metrics import Judge
from .recipe import Recipe
from .tune_record import Trial, Tuning

__all__ = ["Studio", "Tell", "calibrator_settings", "schedule_settings"]

Tell = Callable[[str], None]


class Studio:
    """An open model with what tuning draws of it.

    Attributes:
        recipe: As it was given.
        plain: The same without caching.
        references: Pictures without caching, by the number of the picture that decides.
        tell: Says a line to people.
    """

    def __init__(self, tuning: Tuning, tell: Tell) -> None:
        self.tuning = tuning
        self.tell = tell
        self.recipe = Recipe.model_validate(tuning.recipe)
        self.plain = without_cache(self.recipe)
        self.references: list[Drawn] = []
        self.judge = Judge()
        self._opened = open_model(self.recipe, pipeline.pick_device(self.recipe.model.device))
        tuning.environment = environment(self._opened)
        tell(f"loaded in {self._opened.seconds:.1f} s: {self._opened.device}, {tuning.environment['dtype']}")

    @property
    def counts_steps(self) -> bool:
        """Whether the pipeline's call can be told a number of steps."""
        return pipeline.takes(type(self._opened.pipe), "num_inference_steps")

    def draw(self, recipe: Recipe, job: Job, observer: Watch | None = None) -> Drawn:
        """Draw a picture, and measure how long it takes."""
        return draw_measured(self._opened, recipe, job, observer)

    def with_settings(self, cache: Mapping[str, Any], calibrator: Mapping[str, Any] | None = None) -> Recipe:
        """Return the recipe with other cache settings, and another calibrator than its own: hold if none is given."""
        settings = self.tuning.recipe
        merged = {**settings.get("cache", {}), "budget": None, "speedup": None, **cache}
        return Recipe.model_validate({**settings, "cache": merged, "calibrator": dict(calibrator or {"type": "hold"})})

    def seconds_left(self, trials: int) -> float:
        """Return about how long so many trials take, going by the pictures without caching."""
        each = sum(drawn.seconds for drawn in self.references) / max(len(self.references), 1)
        return trials * len(self.references) * each / 2  # reusing halves it, or more

    def refer(self) -> None:
        """Draw the pictures that decide without caching."""
        self.tell(f"drawing {len(self.tuning.checked)} other pictures without caching, to decide by:")
        self.references = [self.draw(self.plain, job) for job in self.tuning.checked]

    def run(self, trial: Trial, recipe: Recipe) -> Trial:
        """Draw a trial's pictures and measure them."""
        made = calls = rows = full = 0
        for job, reference in zip(self.tuning.checked, self.references, strict=True):
            drawn = self.draw(recipe, job)
            scores = self.judge.frames(drawn.frames, reference.frames)
            trial.psnrs.append(scores.psnr if math.isfinite(scores.psnr) else None)
            trial.ssims.append(scores.ssim)
            trial.speedups.append(reference.seconds / drawn.seconds)
            made += sum(row.computed for row in drawn.rows)
            calls += sum(row.computed + row.saved for row in drawn.rows)
            full += sum(row.saved == 0 for row in drawn.rows)
            rows += len(drawn.rows)
        if rows:
            trial.computed, trial.calls_saved = trial.steps * full / rows, 1 - made / calls
        self.tuning.trials.append(trial)
        self.tell(f"  {trial.name}: {trial.psnr:.1f} dB, {trial.speedup:.2f} times as fast")
        return trial

    def time(self, trial: Trial, recipe: Recipe) -> None:
        """Draw a trial's pictures again, each right after the same one without caching, and take those times."""
        pairs = [(self.draw(self.plain, job).seconds, self.draw(recipe, job).seconds) for job in self.tuning.checked]
        trial.speedups = [plain / cached for plain, cached in pairs]
        self.tell(f"  {trial.name}: {trial.speedup:.2f} times as fast")


def schedule_settings(mask: Sequence[int]) -> dict[str, Any]:
    """Return the cache settings that follow a mask to the letter."""
    return {"steps_computation_mask": "".join(map(str, mask)), "steps_computation_policy": "static"}


def calibrator_settings(calibrator: Calibrator) -> dict[str, Any]:
    """Return a calibrator as a recipe has it."""
    if isinstance(calibrator, TaylorSeer):
        own = {"type": "taylorseer", "taylorseer_order": calibrator.order}
        return own if calibrator.damping == 1 else {**own, "taylorseer_damping": calibrator.damping}
    return {"type": "hold"}
