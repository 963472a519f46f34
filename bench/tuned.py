"""What tuning is worth: tuned recipes of the bundled model against masks, thresholds and fewer steps at the same cost.

    python bench/tuned.py demo-fast demo-balanced demo-quality

24 pictures of prompts and seeds that nothing was tuned on, PSNR of the mean square error to the same pictures without
caching. A threshold computes what it computes: of those tried, each line is the best that computes at most half a step
more than the tuned recipe, with the steps it computes.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from cachedit_cli import (
    CalibratorConfig,
    DBCacheConfig,
    TaylorSeerCalibratorConfig,
    cached,
    demo,
)
from cachedit_cli.plan import call_arguments
from cachedit_cli.recipe import load
from cachedit_cli.terms.config import CacheConfig
from cachedit_cli.terms.mask import POLICIES, shaped

PROMPTS = (
    "penguin on a white background",
    "strawberry on a teal background",
    "frog face on a yellow background",
    "airplane on a sky blue background",
    "unicorn face on a purple background",
    "soccer ball on a mint green background",
    "koala on a red background",
    "banana on a gray background",
    "bus on an orange background",
    "mushroom on a black background",
    "sun on a navy blue background",
    "teddy bear on a pink background",
)
SEEDS = (42, 4711)
THRESHOLDS = (0.08, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
CALIBRATORS: dict[str, CalibratorConfig | None] = {
    "hold": None,
    "taylorseer 1": TaylorSeerCalibratorConfig(),
}

Draw = Callable[[int], torch.Tensor]


def drawing(pipe: Any, arguments: dict[str, Any]) -> Draw:
    """Return what draws all pictures with a number of steps."""

    def draw(steps: int) -> torch.Tensor:
        pictures = [
            pipe(
                prompt,
                generator=torch.Generator().manual_seed(seed),
                output_type="pt",
                **{**arguments, "num_inference_steps": steps},
            ).images
            for prompt, seed in itertools.product(PROMPTS, SEEDS)
        ]
        return torch.cat(pictures)

    return draw


def psnr(pictures: torch.Tensor, plain: torch.Tensor) -> float:
    return -10 * math.log10(float((pictures - plain).square().mean()))


def run(
    pipe: Any, draw: Draw, steps: int, config: CacheConfig, calibrator: CalibratorConfig | None
) -> tuple[torch.Tensor, float]:
    """Return the pictures, and the mean number of steps that a branch computes."""
    with cached(pipe, config, calibrator) as cache:
        pictures = draw(steps)
    rows = cache.log.rows
    return pictures, steps * sum(row.saved == 0 for row in rows) / len(rows)


def rivals(
    pipe: Any, draw: Draw, plain: torch.Tensor, steps: int, computed: float, own: CacheConfig
) -> Iterator[tuple[str, float, float]]:
    """Yield name, computed steps and PSNR of what else could be done."""
    count = round(computed)
    yield f"just {count} steps", count, psnr(draw(count), plain)
    static = replace(
        DBCacheConfig(),
        Fn_compute_blocks=own.Fn_compute_blocks,
        Bn_compute_blocks=own.Bn_compute_blocks,
        steps_computation_policy="static",
    )
    for policy, (name, calibrator) in itertools.product(POLICIES, CALIBRATORS.items()):
        mask = replace(static, steps_computation_mask=shaped(policy, steps, count))
        pictures, made = run(pipe, draw, steps, mask, calibrator)
        yield f"mask in the shape of {policy}, {name}", made, psnr(pictures, plain)
    for name, calibrator in CALIBRATORS.items():
        best: tuple[float, float, float] | None = None
        for threshold in THRESHOLDS:
            config = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=4, residual_diff_threshold=threshold)
            pictures, made = run(pipe, draw, steps, config, calibrator)
            found = psnr(pictures, plain)
            if made <= computed + 0.5 and (best is None or found > best[1]):
                best = made, found, threshold
        if best is not None:
            yield f"threshold {best[2]:g}, {name}", best[0], best[1]


def main(names: list[str]) -> None:
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(demo.path(), torch_dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    for source in names:
        recipe = load(source)
        arguments = call_arguments(recipe)
        steps = arguments["num_inference_steps"]
        config = recipe.cache_config(steps)
        if config is None:
            sys.exit(f"{source} caches nothing")
        draw = drawing(pipe, arguments)
        plain = draw(steps)
        pictures, computed = run(pipe, draw, steps, config, recipe.calibrator_config())
        tuned = psnr(pictures, plain)
        print(f"{source}: {computed:.1f} of {steps} steps computed, {tuned:.1f} dB", flush=True)
        for name, made, found in rivals(pipe, draw, plain, steps, computed, config):
            print(f"  {name:42}  {made:5.1f}  {found:5.1f} dB  {found - tuned:+.1f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["demo-fast", "demo-balanced", "demo-quality"])
