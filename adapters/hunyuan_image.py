"""HunyuanImage 2.1 and its refiner: double blocks, then single blocks, with the same two streams."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="hunyuan-image",
        transformer="HunyuanImageTransformer2DModel",
        lists=(
            BlockList("transformer_blocks", ForwardPattern.Pattern_0, "num_layers"),
            BlockList("single_transformer_blocks", ForwardPattern.Pattern_0, "num_single_layers"),
        ),
        chain=True,
        pipelines=(
            "HunyuanImagePipeline",
            "HunyuanImageRefinerPipeline",
        ),
        guidance="guider: two forwards a step, conditional first; distilled: one",
    )
)
