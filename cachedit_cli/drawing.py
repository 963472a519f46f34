"""Draws one picture or video of a recipe with a model that is open, and measures it.

Knows what is measured while a pipeline runs; keeps nothing on the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from . import pipeline
from .compare import not_compared
from .errors import InputError
from .generate import Opened, caching, draw
from .jobs import Job
from .media import Pictures, Video
from .plan import call_arguments
from .recipe import Recipe
from .terms.stats import Row
from .timing import timed

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Drawn", "draw_measured"]

_LAYERS = 1.0  # a second, of pictures with several layers, which are kept as frames


@dataclass(frozen=True)
class Drawn:
    """One picture or video, and what was measured while it was drawn.

    Attributes:
        frames: One of a picture.
        fps: None of a picture.
        steps: Denoising steps that were done; None where the pipeline does not tell.
        timings: Seconds of the call's parts.
        rows: The decision log's; none without caching.
        peak_bytes: Most memory that was held on the device; CUDA only.
    """

    frames: Sequence[Image]
    fps: float | None
    steps: int | None
    timings: dict[str, float]
    rows: list[Row]
    peak_bytes: int | None

    @property
    def seconds(self) -> float:
        """Wall time of the pipeline call."""
        return sum(self.timings.values())


def draw_measured(
    opened: Opened, recipe: Recipe, job: Job, observer: Callable[[str, str, int, Any, Any], None] | None = None
) -> Drawn:
    """Draw a job of a recipe, which may differ from the one that the model was opened for in all but the model.

    ``observer`` is shown what the blocks compute, as in ``DecisionLog``.

    Raises:
        InputError: The pipeline makes neither pictures nor videos.
        RunError: Its call failed.
    """
    import torch

    arguments = call_arguments(recipe)
    steps = pipeline.real_steps(type(opened.pipe), arguments)
    own, device = replace(opened, arguments=arguments, steps=steps), opened.device
    on_cuda = device.type == "cuda"
    with caching(recipe, own) as log:
        log.observer = observer
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(device)
        with timed(own.pipe, device) as timings:
            (product,) = draw(own, [job], None)
        log.settle()
    peak = torch.cuda.max_memory_allocated(device) if on_cuda else None
    if not isinstance(product, (Pictures, Video)):
        raise InputError(not_compared(f"{type(own.pipe).__name__} made {product.kind}"))
    shown = product.frames if isinstance(product, Video) else product.images
    fps = product.fps if isinstance(product, Video) else None if len(shown) == 1 else _LAYERS
    return Drawn([each.convert("RGB") for each in shown], fps, steps, timings, log.rows, peak)
