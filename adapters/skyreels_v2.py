"""SkyReels-V2, also diffusion forcing."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="skyreels-v2",
        transformer="SkyReelsV2Transformer3DModel",
        lists=(BlockList("blocks", ForwardPattern.Pattern_2, "num_layers"),),
        pipelines=(
            "SkyReelsV2DiffusionForcingImageToVideoPipeline",
            "SkyReelsV2DiffusionForcingPipeline",
            "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
            "SkyReelsV2ImageToVideoPipeline",
            "SkyReelsV2Pipeline",
        ),
        guidance="two forwards a step, conditional first",
        modality=("video",),
        note="Long videos of diffusion forcing run several loops, each of which begins anew.",
    )
)
