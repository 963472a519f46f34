"""MiniMax Music 3 and MiniMax H3."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="minimax-music3",
        transformer="MiniMaxMusic3Transformer1DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_3, "num_layers"),),
        pipelines=("MiniMaxMusic3ModularPipeline",),
        guidance="guider: two forwards a step, conditional first",
        modality=("audio",),
        needs="0.40",
    )
)
register(
    ModelAdapter(
        name="minimax-h3",
        transformer="MiniMaxH3Transformer3DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_3, "num_layers"),),
        pipelines=("MiniMaxH3ModularPipeline",),
        guidance="one forward",
        modality=("video", "audio"),
        needs="0.40",
        note="Text, audio and video are one sequence, so that the difference is taken over all of them.",
    )
)
