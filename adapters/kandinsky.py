"""Kandinsky 5, Kandinsky 6 (video with audio) and its super-resolution.

The few blocks of the text lists are left out: they do not depend on the sample.
"""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern, Streams

register(
    ModelAdapter(
        name="kandinsky5",
        transformer="Kandinsky5Transformer3DModel",
        lists=(
            BlockList("visual_transformer_blocks", Streams(("visual_embed",), ("visual_embed",)), "num_visual_blocks"),
        ),
        pipelines=(
            "Kandinsky5I2IPipeline",
            "Kandinsky5I2VPipeline",
            "Kandinsky5T2IPipeline",
            "Kandinsky5T2VPipeline",
        ),
        guidance="two forwards a step, conditional first",
        modality=("image", "video"),
    )
)
register(
    ModelAdapter(
        name="kandinsky6",
        transformer="Kandinsky6Transformer3DModel",
        lists=(BlockList("visual_transformer_blocks", Streams(("vis", "aud"), ("vis", "aud")), "num_visual_blocks"),),
        pipelines=("Kandinsky6TI2VAPipeline",),
        guidance="two forwards a step, conditional first",
        modality=("video", "audio"),
        needs="0.42",
        note="The second stream is audio, and None for silent video.",
    )
)
register(
    ModelAdapter(
        name="kandinsky6-sr",
        transformer="Kandinsky6SRTransformer3DModel",
        lists=(BlockList("visual_transformer_blocks", ForwardPattern.Pattern_3, "num_visual_blocks"),),
        pipelines=("Kandinsky6SRPipeline",),
        guidance="one forward",
        modality=("video",),
        needs="0.42",
        note="Runs tile batch after tile batch, each of which begins anew; attention needs flex_attention.",
    )
)
