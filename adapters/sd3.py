"""Stable Diffusion 3 and 3.5, also with ControlNet, PAG and skip-layer guidance."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="sd3",
        transformer="SD3Transformer2DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_1, "num_layers"),),
        pipelines=(
            "StableDiffusion3ControlNetInpaintingPipeline",
            "StableDiffusion3ControlNetPipeline",
            "StableDiffusion3Img2ImgPipeline",
            "StableDiffusion3InpaintPipeline",
            "StableDiffusion3PAGImg2ImgPipeline",
            "StableDiffusion3PAGPipeline",
            "StableDiffusion3Pipeline",
        ),
        guidance="one forward, both branches in a batch; skip-layer guidance: one more on some steps",
        note=(
            "The forward of skip-layer guidance always computes if the last block of the front is among the "
            "skipped ones."
        ),
    )
)
