"""Stable Audio Open and Stable Audio 3."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.config import DBCacheConfig, DefaultInt
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="stable-audio",
        transformer="StableAudioDiTModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_3, "num_layers"),),
        pipelines=("StableAudioPipeline",),
        guidance="one forward, both branches in a batch",
        modality=("audio",),
        defaults=DBCacheConfig.reset(Fn_compute_blocks=DefaultInt(4)),
    )
)
register(
    ModelAdapter(
        name="stable-audio-3",
        transformer="StableAudio3DiTModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_3, "depth"),),
        pipelines=(
            "StableAudio3AudioToAudioPipeline",
            "StableAudio3InpaintPipeline",
            "StableAudio3Pipeline",
        ),
        guidance="one forward, both branches in a batch; audio-to-audio and inpainting: one branch",
        modality=("audio",),
        needs="0.40",
    )
)
