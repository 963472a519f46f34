"""Which DBCache settings suit the bundled model: block calls saved against PSNR to the same pictures without caching.

    python bench/demo_settings.py

12 pictures (4 prompts, 3 seeds) of 28 steps for each setting: float32, decoded, PSNR of the mean square error.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from diffusers import FluxPipeline

from cachedit_cli import DBCacheConfig, TaylorSeerCalibratorConfig, cached, demo

PROMPTS = (
    "red heart on a white background",
    "cat face on a sky blue background",
    "slice of pizza on a white background",
    "rocket on a navy blue background",
)
SEEDS = (0, 1, 2)


def pictures(pipe: Any) -> torch.Tensor:
    images = [
        pipe(
            prompt,
            num_inference_steps=28,
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
            **demo.DEFAULTS,
        ).images
        for prompt, seed in itertools.product(PROMPTS, SEEDS)
    ]
    return torch.cat(images)


def main() -> None:
    pipe = FluxPipeline.from_pretrained(demo.path(), torch_dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    plain = pictures(pipe)
    print("warm-up  threshold  calibrator   saved   PSNR     worst")
    for warmup, threshold, order in itertools.product((2, 4, 6), (0.08, 0.12, 0.16, 0.2), (0, 1)):
        config = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=warmup, residual_diff_threshold=threshold)
        calibrator = TaylorSeerCalibratorConfig(taylorseer_order=order) if order else None
        with cached(pipe, config, calibrator) as cache:
            errors = (pictures(pipe) - plain).square().mean(dim=(1, 2, 3))
        rows = cache.log.rows
        saved = sum(row.saved for row in rows) / sum(row.saved + row.computed for row in rows)
        mean, worst = (-10 * math.log10(float(value)) for value in (errors.mean(), errors.max()))
        name = "taylorseer" if order else "hold"
        print(f"{warmup:7d}  {threshold:9.2f}  {name:10s}  {saved:6.1%}  {mean:5.1f} dB  {worst:5.1f} dB", flush=True)


if __name__ == "__main__":
    main()
