"""Lumina-Next and Lumina-Image 2.0.

Of Lumina 2 the two blocks each of `noise_refiner` and `context_refiner` are left out: they are few, and the text's do
not depend on the sample.
"""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="lumina",
        transformer="LuminaNextDiT2DModel",
        lists=(BlockList("layers", ForwardPattern.Pattern_3, "num_layers"),),
        pipelines=("LuminaPipeline",),
        guidance="one forward, both branches in a batch, conditional first",
    )
)
register(
    ModelAdapter(
        name="lumina2",
        transformer="Lumina2Transformer2DModel",
        lists=(BlockList("layers", ForwardPattern.Pattern_3, "num_layers"),),
        pipelines=("Lumina2Pipeline",),
        guidance="two forwards a step, conditional first; only that after cfg_trunc_ratio",
    )
)
