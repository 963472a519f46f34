"""LongCat-Image and LongCat-Image-Edit: double blocks, then single blocks, with the same two streams."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.config import DBCacheConfig, DefaultInt
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="longcat-image",
        transformer="LongCatImageTransformer2DModel",
        lists=(
            BlockList("transformer_blocks", ForwardPattern.Pattern_1, "num_layers"),
            BlockList("single_transformer_blocks", ForwardPattern.Pattern_1, "num_single_layers"),
        ),
        chain=True,
        pipelines=(
            "LongCatImageEditPipeline",
            "LongCatImagePipeline",
        ),
        guidance="two forwards a step, conditional first",
        needs="0.37",
        defaults=DBCacheConfig.reset(Fn_compute_blocks=DefaultInt(4)),
    )
)
