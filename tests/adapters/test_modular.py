"""A modular pipeline, whose loop is made of blocks and announces nothing: branches and steps are told all the same."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from cachedit_cli.api import cached
from tests.adapters.pipelines import of, scheduler
from tests.adapters.test_pipelines import OLDEST, STEPS, settings, strips_of
from tests.tiny_models import TINY


@pytest.mark.skipif(OLDEST, reason="the guider of modular pipelines came into use after diffusers 0.36")
def test_a_modular_pipeline_with_a_guider_for_a_part_of_the_steps_is_followed() -> None:
    from diffusers.modular_pipelines import QwenImageAutoBlocks

    blocks = QwenImageAutoBlocks()
    for name in set(blocks.sub_blocks) - {"denoise"}:  # neither a text encoder nor a VAE
        blocks.sub_blocks.pop(name)
    pipe = blocks.init_pipeline()
    guider = diffusers.ClassifierFreeGuidance(guidance_scale=3.0, stop=0.6)
    parts = {"transformer": TINY["qwen_image"].build(), "scheduler": scheduler(use_dynamic_shifting=True)}
    pipe.update_components(guider=guider, **parts)
    call: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": STEPS, "output": "latents"}
    for prefix, branch, length in (("", "cond", 8), ("negative_", "uncond", 5)):
        call[f"{prefix}prompt_embeds"] = of(branch, length, 16)
        call[f"{prefix}prompt_embeds_mask"] = torch.ones(1, length).long()

    def run() -> Tensor:
        latents = pipe(**call, generator=torch.Generator().manual_seed(0))
        assert isinstance(latents, Tensor)
        return latents

    plain = run()
    with cached(pipe, settings(0.0)):
        assert torch.equal(run(), plain)
    with cached(pipe, settings(1.0)) as cache:
        first = run()
        assert torch.equal(run(), first)
    assert not torch.equal(first, plain)
    (context,) = cache.log.contexts
    for generation in range(2):
        rows = [row for row in cache.log.rows if row.generation == generation]
        branches = {("transformer", "0"): "C·····", ("transformer", "1"): "C··   "}
        assert strips_of(rows, context.name) == branches
    assert torch.equal(run(), plain)
