"""AuraFlow: joint blocks with two streams, then single blocks on the joined sequence."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="auraflow",
        transformer="AuraFlowTransformer2DModel",
        lists=(
            BlockList("joint_transformer_blocks", ForwardPattern.Pattern_1, "num_mmdit_layers"),
            BlockList("single_transformer_blocks", ForwardPattern.Pattern_3, "num_single_dit_layers"),
        ),
        pipelines=("AuraFlowPipeline",),
        guidance="one forward, both branches in a batch",
    )
)
