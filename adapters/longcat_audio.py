"""LongCat-Audio."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="longcat-audio",
        transformer="LongCatAudioDiTTransformer",
        lists=(BlockList("blocks", ForwardPattern.Pattern_3, "dit_depth"),),
        pipelines=("LongCatAudioDiTPipeline",),
        guidance="two forwards a step, conditional first",
        modality=("audio",),
        needs="0.38",
    )
)
