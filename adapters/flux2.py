"""FLUX.2 (dev, klein): double blocks with two streams, then single blocks on the joined sequence."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="flux2",
        transformer="Flux2Transformer2DModel",
        lists=(
            BlockList("transformer_blocks", ForwardPattern.Pattern_1, "num_layers"),
            BlockList("single_transformer_blocks", ForwardPattern.Pattern_3, "num_single_layers"),
        ),
        pipelines=(
            "Flux2KleinInpaintPipeline",
            "Flux2KleinKVPipeline",
            "Flux2KleinPipeline",
            "Flux2Pipeline",
        ),
        guidance="dev: one forward; klein: two forwards a step, conditional first",
        note=(
            "Klein KV leaves the reference tokens out after the first step, which is therefore followed by "
            "another computed one."
        ),
    )
)
