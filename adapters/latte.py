"""Latte: spatial and temporal blocks take turns, and the two lists share one decision."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="latte",
        transformer="LatteTransformer3DModel",
        lists=(
            BlockList("transformer_blocks", ForwardPattern.Pattern_3, "num_layers"),
            BlockList("temporal_transformer_blocks", ForwardPattern.Pattern_3, "num_layers"),
        ),
        alternate=True,
        pipelines=("LattePipeline",),
        guidance="one forward, both branches in a batch",
        modality=("video",),
        note="A spatial and a temporal block are one unit: Fn and Bn count such pairs.",
    )
)
