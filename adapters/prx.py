"""PRX and PRX pixel."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.config import DBCacheConfig, DefaultInt
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="prx",
        transformer="PRXTransformer2DModel",
        lists=(BlockList("blocks", ForwardPattern.Pattern_2, "depth"),),
        pipelines=(
            "PRXPipeline",
            "PRXPixelPipeline",
        ),
        guidance="one forward, both branches in a batch",
        defaults=DBCacheConfig.reset(Fn_compute_blocks=DefaultInt(4)),
    )
)
