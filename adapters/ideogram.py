"""Ideogram 4: one transformer for each guidance branch."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern
from cachedit_cli.terms.sample import Sample, floats, whole

register(
    ModelAdapter(
        name="ideogram4",
        transformer="Ideogram4Transformer2DModel",
        lists=(BlockList("layers", ForwardPattern.Pattern_3, "num_layers"),),
        pipelines=("Ideogram4Pipeline",),
        guidance="two transformers a step: `transformer`, then `unconditional_transformer`",
        needs="0.39",
        note="Cached in both transformers, each on its own.",
        sample=Sample(
            {
                "in_channels": 4,
                "num_layers": 4,
                "attention_head_dim": 8,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "adaln_dim": 16,
                "llm_features_dim": 16,
                "rope_theta": 10000,
                "mrope_section": (2, 1, 1),
            },
            {
                "hidden_states": floats(1, 22, 4),
                "timestep": floats(1, value=0.9),
                "encoder_hidden_states": floats(1, 22, 16),
                "position_ids": whole([[place] * 3 for place in range(22)]),
                "segment_ids": whole([1] * 22),
                "indicator": whole([3] * 6 + [2] * 16),  # text, then image
            },
        ),
    )
)
