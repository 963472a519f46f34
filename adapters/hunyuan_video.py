"""HunyuanVideo (also I2V and SkyReels-V1), FramePack and HunyuanVideo 1.5.

The first two have double blocks, then single blocks, with the same two streams.
"""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="hunyuan-video",
        transformer="HunyuanVideoTransformer3DModel",
        lists=(
            BlockList("transformer_blocks", ForwardPattern.Pattern_0, "num_layers"),
            BlockList("single_transformer_blocks", ForwardPattern.Pattern_0, "num_single_layers"),
        ),
        chain=True,
        pipelines=(
            "HunyuanSkyreelsImageToVideoPipeline",
            "HunyuanVideoImageToVideoPipeline",
            "HunyuanVideoPipeline",
        ),
        guidance="one forward; with true_cfg_scale > 1 two, conditional first",
        modality=("video",),
    )
)
register(
    ModelAdapter(
        name="framepack",
        transformer="HunyuanVideoFramepackTransformer3DModel",
        lists=(
            BlockList("transformer_blocks", ForwardPattern.Pattern_0, "num_layers"),
            BlockList("single_transformer_blocks", ForwardPattern.Pattern_0, "num_single_layers"),
        ),
        chain=True,
        pipelines=("HunyuanVideoFramepackPipeline",),
        guidance="one forward; with true_cfg_scale > 1 two, conditional first",
        modality=("video",),
        note="Runs section after section, each of which begins anew.",
    )
)
register(
    ModelAdapter(
        name="hunyuan-video-15",
        transformer="HunyuanVideo15Transformer3DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_0, "num_layers"),),
        pipelines=(
            "HunyuanVideo15ImageToVideoPipeline",
            "HunyuanVideo15Pipeline",
        ),
        guidance="guider: two forwards a step, conditional first",
        modality=("video",),
    )
)
