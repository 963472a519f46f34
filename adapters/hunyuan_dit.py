"""Hunyuan-DiT, also with ControlNet and PAG: the last blocks get what the first ones returned."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="hunyuan-dit",
        transformer="HunyuanDiT2DModel",
        lists=(BlockList("blocks", ForwardPattern.Pattern_3, "num_layers"),),
        skips=True,
        pipelines=(
            "HunyuanDiTControlNetPipeline",
            "HunyuanDiTPAGPipeline",
            "HunyuanDiTPipeline",
        ),
        guidance="one forward, both branches in a batch",
        note="Long skips from the first blocks to the last ones: Bn must not be larger than Fn.",
    )
)
