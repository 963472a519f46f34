"""The priors of Kandinsky 2, Shap-E and Stable unCLIP, which make an embedding."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="prior",
        transformer="PriorTransformer",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_3, "num_layers"),),
        pipelines=(
            "KandinskyPriorPipeline",
            "KandinskyV22PriorEmb2EmbPipeline",
            "KandinskyV22PriorPipeline",
            "ShapEImg2ImgPipeline",
            "ShapEPipeline",
            "StableUnCLIPPipeline",
        ),
        guidance="one forward, both branches in a batch",
        modality=("embedding",),
        note="Only the prior is cached; the UNet that draws the picture is not.",
    )
)
