"""Qwen-Image (also Edit, Edit-Plus, Layered and ControlNet) and Qwen-Image 2.1."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="qwen-image",
        transformer="QwenImageTransformer2DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_1, "num_layers"),),
        pipelines=(
            "QwenImageControlNetInpaintPipeline",
            "QwenImageControlNetPipeline",
            "QwenImageEditInpaintPipeline",
            "QwenImageEditPipeline",
            "QwenImageEditPlusPipeline",
            "QwenImageImg2ImgPipeline",
            "QwenImageInpaintPipeline",
            "QwenImageLayeredPipeline",
            "QwenImagePipeline",
        ),
        guidance="one forward; with true_cfg_scale > 1 and a negative prompt two, conditional first",
    )
)
register(
    ModelAdapter(
        name="qwen-image-21",
        transformer="QwenImage21Transformer2DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_3, "num_layers"),),
        pipelines=("QwenImage21Pipeline",),
        guidance="one forward; with true_cfg_scale > 1 two, conditional first",
        needs="0.41",
        note=("With its own KV cache the sequence is shorter from the second step on, which is therefore computed."),
    )
)
