"""Nucleus-MoE-Image."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="nucleus-moe-image",
        transformer="NucleusMoEImageTransformer2DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_2, "num_layers"),),
        pipelines=("NucleusMoEImagePipeline",),
        guidance="two forwards a step, conditional first",
        needs="0.38",
    )
)
