"""Mochi 1."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="mochi",
        transformer="MochiTransformer3DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_0, "num_layers"),),
        pipelines=("MochiPipeline",),
        guidance="one forward, both branches in a batch",
        modality=("video",),
    )
)
