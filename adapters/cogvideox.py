"""CogVideoX 1.0 and 1.5 (also Fun-Control), and ConsisID, which is made from it."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.config import DBCacheConfig, DefaultInt
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="cogvideox",
        transformer="CogVideoXTransformer3DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_0, "num_layers"),),
        pipelines=(
            "CogVideoXFunControlPipeline",
            "CogVideoXImageToVideoPipeline",
            "CogVideoXPipeline",
            "CogVideoXVideoToVideoPipeline",
        ),
        guidance="one forward, both branches in a batch",
        modality=("video",),
        defaults=DBCacheConfig.reset(Fn_compute_blocks=DefaultInt(4)),
    )
)
register(
    ModelAdapter(
        name="consisid",
        transformer="ConsisIDTransformer3DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_0, "num_layers"),),
        pipelines=("ConsisIDPipeline",),
        guidance="one forward, both branches in a batch",
        modality=("video",),
        defaults=DBCacheConfig.reset(Fn_compute_blocks=DefaultInt(4)),  # as what it is made from
    )
)
