"""CogView3-Plus and CogView4 (also Control)."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.config import DBCacheConfig, DefaultInt
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="cogview3-plus",
        transformer="CogView3PlusTransformer2DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_0, "num_layers"),),
        pipelines=("CogView3PlusPipeline",),
        guidance="one forward, both branches in a batch",
        defaults=DBCacheConfig.reset(Fn_compute_blocks=DefaultInt(4)),
    )
)
register(
    ModelAdapter(
        name="cogview4",
        transformer="CogView4Transformer2DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_0, "num_layers"),),
        pipelines=(
            "CogView4ControlPipeline",
            "CogView4Pipeline",
        ),
        guidance="two forwards a step, conditional first",
        defaults=DBCacheConfig.reset(Fn_compute_blocks=DefaultInt(4)),
    )
)
