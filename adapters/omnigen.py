"""OmniGen."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="omnigen",
        transformer="OmniGenTransformer2DModel",
        lists=(BlockList("layers", ForwardPattern.Pattern_3, "num_layers"),),
        pipelines=("OmniGenPipeline",),
        guidance="one forward, both branches in a batch, conditional first; three with input images",
    )
)
