"""FLUX.1 (dev, schnell, Fill, Control, Kontext, ControlNet) and VisualCloze: double blocks, then single blocks.

Both lists take and return text and image as two streams (diffusers >= 0.35), so that they are decided as one.
"""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="flux",
        transformer="FluxTransformer2DModel",
        lists=(
            BlockList("transformer_blocks", ForwardPattern.Pattern_1, "num_layers"),
            BlockList("single_transformer_blocks", ForwardPattern.Pattern_1, "num_single_layers"),
        ),
        chain=True,
        pipelines=(
            "FluxControlImg2ImgPipeline",
            "FluxControlInpaintPipeline",
            "FluxControlNetImg2ImgPipeline",
            "FluxControlNetInpaintPipeline",
            "FluxControlNetPipeline",
            "FluxControlPipeline",
            "FluxFillPipeline",
            "FluxImg2ImgPipeline",
            "FluxInpaintPipeline",
            "FluxKontextInpaintPipeline",
            "FluxKontextPipeline",
            "FluxPipeline",
            "VisualClozeGenerationPipeline",
            "VisualClozePipeline",
        ),
        guidance="one forward; with true_cfg_scale > 1 two, conditional first",
    )
)
