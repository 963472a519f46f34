"""examples/user_loop.py: a denoising loop of the user's own is cached as the pipeline's is."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from cachedit_cli import BlockAdapter, DBCacheConfig, ForwardPattern, cached, demo, refresh_context
from cachedit_cli.engine.install import installed

EXAMPLE = Path(__file__).parent.parent / "examples" / "user_loop.py"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLE))


def noise(seed: int) -> Tensor:
    return torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(seed))


def test_the_example_writes_what_the_pipeline_draws(tmp_path: Path, flux: Any) -> None:
    process = subprocess.run([sys.executable, str(EXAMPLE), str(tmp_path)], capture_output=True, text=True, check=True)
    assert process.stdout.count("transformer_blocks") >= 2
    config = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.3)
    for steps in (12, 8):
        with cached(flux, config) as cache:
            expected = flux(
                "red heart on a white background", **demo.DEFAULTS, num_inference_steps=steps, latents=noise(0)
            ).images[0]
        assert any(row.saved for row in cache.log.rows)
        drawn = Image.open(tmp_path / f"user_loop-{steps}.png")
        a, b = (torch.tensor(list(image.convert("RGB").tobytes())) for image in (drawn, expected))
        assert int((a - b).abs().max()) <= 1  # rounded from sums in another order


@pytest.mark.parametrize("refreshed", [True, False])
def test_requests_follow_each_other_as_in_fresh_processes(flux: Any, example: dict[str, Any], refreshed: bool) -> None:
    """With ``refresh_context`` between them, and without, as time tells where the next one begins."""
    model, text = flux.transformer, example["encode"]("red heart on a white background")
    config = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.3, num_inference_steps=8)
    adapter = BlockAdapter(
        transformer=model,
        blocks=[model.transformer_blocks, model.single_transformer_blocks],
        forward_pattern=ForwardPattern.Pattern_1,
        chain=True,
    )
    requests = [(8, 0), (6, 1), (6, 1), (8, 0), (1, 2), (8, 0)]
    expected = []
    for steps, seed in requests:
        with cached(adapter, config):
            expected.append(example["sample"](model, text, noise(seed), steps))
    with cached(adapter, config) as cache:
        for (steps, seed), wanted in zip(requests, expected, strict=True):
            if refreshed:
                refresh_context(adapter, num_inference_steps=steps)
            assert torch.equal(example["sample"](model, text, noise(seed), steps), wanted)
    assert [row.step for row in cache.log.rows] == [step for steps, _ in requests for step in range(steps)]
    assert sum(row.saved for row in cache.log.rows) > 0
    assert installed(model) is None
