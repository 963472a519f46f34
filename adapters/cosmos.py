"""Cosmos 1, 2 and 2.5 (also Transfer), and Cosmos 3 Omni, whose layers take and return the text first.

Cosmos 3 came with diffusers 0.39, but tells its branches apart, through cache_context, from 0.41 on.
"""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern, Streams

register(
    ModelAdapter(
        name="cosmos",
        transformer="CosmosTransformer3DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_2, "num_layers"),),
        pipelines=(
            "Cosmos2TextToImagePipeline",
            "Cosmos2VideoToWorldPipeline",
            "Cosmos2_5_PredictBasePipeline",
            "Cosmos2_5_TransferPipeline",
            "CosmosTextToWorldPipeline",
            "CosmosVideoToWorldPipeline",
        ),
        guidance="two forwards a step, conditional first",
        modality=("image", "video"),
    )
)
register(
    ModelAdapter(
        name="cosmos3",
        transformer="Cosmos3OmniTransformer",
        lists=(BlockList("layers", Streams(("gen_seq", "und_seq"), ("und_seq", "gen_seq")), "num_hidden_layers"),),
        pipelines=("Cosmos3OmniPipeline",),
        guidance="two forwards a step, conditional first",
        modality=("image", "video", "audio"),
        needs="0.41",
    )
)
