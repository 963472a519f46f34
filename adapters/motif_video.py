"""Motif-Video: the last `num_decoder_layers` single blocks begin anew from the embedded sample: a list of their own."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="motif-video",
        transformer="MotifVideoTransformer3DModel",
        lists=(
            BlockList("transformer_blocks", ForwardPattern.Pattern_0, "num_layers"),
            BlockList(
                "single_transformer_blocks", ForwardPattern.Pattern_0, "num_single_layers", tail="num_decoder_layers"
            ),
        ),
        pipelines=(
            "MotifVideoImage2VideoPipeline",
            "MotifVideoPipeline",
        ),
        guidance="guider: two forwards a step, conditional first",
        modality=("video",),
        needs="0.39",
    )
)
