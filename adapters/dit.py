"""DiT, conditioned on classes of ImageNet."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.config import DBCacheConfig, DefaultInt
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="dit",
        transformer="DiTTransformer2DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_3, "num_layers"),),
        pipelines=("DiTPipeline",),
        guidance="one forward, both branches in a batch, the null class second",
        defaults=DBCacheConfig.reset(Fn_compute_blocks=DefaultInt(4)),
    )
)
