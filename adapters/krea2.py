"""Krea 2. The few blocks that fuse the text do not depend on the sample and are left out."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="krea2",
        transformer="Krea2Transformer2DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_3, "num_layers"),),
        pipelines=("Krea2Pipeline",),
        guidance="two forwards a step, conditional first",
        needs="0.39",
    )
)
