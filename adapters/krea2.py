"""Krea 2. The few blocks that fuse the text do not depend on the sample and are left out."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern
from cachedit_cli.terms.sample import Sample, floats

register(
    ModelAdapter(
        name="krea2",
        transformer="Krea2Transformer2DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_3, "num_layers"),),
        pipelines=("Krea2Pipeline",),
        guidance="two forwards a step, conditional first",
        needs="0.39",
        sample=Sample(
            {
                "in_channels": 4,
                "num_layers": 4,
                "attention_head_dim": 8,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "intermediate_size": 32,
                "timestep_embed_dim": 8,
                "text_hidden_dim": 16,
                "num_text_layers": 2,
                "text_num_attention_heads": 2,
                "text_num_key_value_heads": 1,
                "text_intermediate_size": 16,
                "num_layerwise_text_blocks": 1,
                "num_refiner_text_blocks": 1,
                "axes_dims_rope": (4, 2, 2),
            },
            {
                "hidden_states": floats(1, 16, 4),
                "encoder_hidden_states": floats(1, 6, 2, 16),  # of two layers of the text encoder
                "timestep": floats(1, value=0.9),
                "position_ids": floats(22, 3),
            },
        ),
    )
)
