"""The priors of Kandinsky 2, Shap-E and Stable unCLIP, which make an embedding."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern
from cachedit_cli.terms.sample import Sample, floats

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
        sample=Sample(
            {
                "num_attention_heads": 2,
                "attention_head_dim": 8,
                "num_layers": 4,
                "embedding_dim": 8,
                "num_embeddings": 7,
            },
            {
                "hidden_states": floats(1, 8),
                "timestep": floats(1, value=900.0),
                "proj_embedding": floats(1, 8),
                "encoder_hidden_states": floats(1, 7, 8),
            },
        ),
    )
)
