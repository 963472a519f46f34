"""AnyFlow and AnyFlow-FAR."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="anyflow",
        transformer="AnyFlowTransformer3DModel",
        lists=(BlockList("blocks", ForwardPattern.Pattern_2, "num_layers"),),
        pipelines=("AnyFlowPipeline",),
        guidance="one forward, both branches in a batch",
        modality=("video",),
        needs="0.39",
    )
)
register(
    ModelAdapter(
        name="anyflow-far",
        transformer="AnyFlowFARTransformer3DModel",
        lists=(BlockList("blocks", ForwardPattern.Pattern_2, "num_layers"),),
        pipelines=("AnyFlowFARPipeline",),
        guidance="one forward, both branches in a batch",
        modality=("video",),
        needs="0.39",
        note=(
            "Runs chunk after chunk, and fills its KV cache with forwards of their own; with few steps a "
            "chunk little can be reused."
        ),
    )
)
