"""Chroma: double blocks with two streams, then single blocks on the joined sequence.

The model cuts every block's modulation out of one table by the block's number, which caching does not disturb.
"""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="chroma",
        transformer="ChromaTransformer2DModel",
        lists=(
            BlockList("transformer_blocks", ForwardPattern.Pattern_1, "num_layers"),
            BlockList("single_transformer_blocks", ForwardPattern.Pattern_3, "num_single_layers"),
        ),
        pipelines=(
            "ChromaImg2ImgPipeline",
            "ChromaInpaintPipeline",
            "ChromaPipeline",
        ),
        guidance="two forwards a step, conditional first",
    )
)
