"""Ovis-Image: double blocks, then single blocks, with the same two streams."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.config import DBCacheConfig, DefaultInt
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="ovis-image",
        transformer="OvisImageTransformer2DModel",
        lists=(
            BlockList("transformer_blocks", ForwardPattern.Pattern_1, "num_layers"),
            BlockList("single_transformer_blocks", ForwardPattern.Pattern_1, "num_single_layers"),
        ),
        chain=True,
        pipelines=("OvisImagePipeline",),
        guidance="two forwards a step, conditional first",
        defaults=DBCacheConfig.reset(Fn_compute_blocks=DefaultInt(4)),
    )
)
