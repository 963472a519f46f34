"""AnyFlow and AnyFlow-FAR."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern
from cachedit_cli.terms.sample import Sample, floats

register(
    ModelAdapter(
        name="anyflow",
        transformer="AnyFlowTransformer3DModel",
        lists=(BlockList("blocks", ForwardPattern.Pattern_2, "num_layers"),),
        pipelines=("AnyFlowPipeline",),
        guidance="one forward, both branches in a batch",
        modality=("video",),
        needs="0.39",
        sample=Sample(
            {
                "num_attention_heads": 2,
                "attention_head_dim": 12,
                "in_channels": 4,
                "out_channels": 4,
                "text_dim": 16,
                "freq_dim": 32,
                "ffn_dim": 32,
                "num_layers": 4,
                "rope_max_seq_len": 32,
            },
            {
                "hidden_states": floats(1, 2, 4, 8, 8),
                "timestep": floats(1, 2, value=900.0),
                "r_timestep": floats(1, 2, value=900.0),
                "encoder_hidden_states": floats(1, 6, 16),
            },
        ),
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
        sample=Sample(
            {
                "num_attention_heads": 2,
                "attention_head_dim": 12,
                "in_channels": 4,
                "out_channels": 4,
                "text_dim": 16,
                "freq_dim": 32,
                "ffn_dim": 32,
                "num_layers": 4,
                "rope_max_seq_len": 32,
                "compressed_patch_size": (1, 4, 4),
                "full_chunk_limit": 3,
                "chunk_partition": (1, 1),
            },
            {
                "hidden_states": floats(1, 2, 4, 8, 8),
                "timestep": floats(1, 2, value=900.0),
                "r_timestep": floats(1, 2, value=900.0),
                "encoder_hidden_states": floats(1, 6, 16),
                "chunk_partition": [1, 1],
            },
        ),
    )
)
