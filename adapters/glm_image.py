"""GLM-Image, also for editing, where every block has a KV cache of the images."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="glm-image",
        transformer="GlmImageTransformer2DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_0, "num_layers"),),
        pipelines=("GlmImagePipeline",),
        guidance="two forwards a step, conditional first",
        needs="0.37",
        note="Editing begins with a forward for each condition image, which is no step.",
    )
)
