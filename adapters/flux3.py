"""FLUX.3: text and image apart, then single blocks with two streams.

The five blocks each of `txt_mode_blocks` and `mode_blocks` are left out: they are few, and the text's do not depend on
the sample.
"""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="flux3",
        transformer="Flux3Transformer2DModel",
        lists=(BlockList("single_transformer_blocks", ForwardPattern.Pattern_1, "num_single_layers"),),
        pipelines=(
            "Flux3ModularPipeline",
            "Flux3DistilledModularPipeline",
        ),
        guidance="two forwards a step, conditional first; distilled: one",
        needs="0.42",
    )
)
