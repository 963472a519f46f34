"""MiniMax Music 3 and MiniMax H3."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern
from cachedit_cli.terms.sample import Sample, floats, whole

register(
    ModelAdapter(
        name="minimax-music3",
        transformer="MiniMaxMusic3Transformer1DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_3, "num_layers"),),
        pipelines=("MiniMaxMusic3ModularPipeline",),
        guidance="guider: two forwards a step, conditional first",
        modality=("audio",),
        needs="0.40",
        sample=Sample(
            {
                "in_channels": 8,
                "condition_dim": 12,
                "num_layers": 4,
                "num_attention_heads": 2,
                "attention_head_dim": 8,
                "ff_inner_dim": 32,
                "rotary_dim": 4,
                "fourier_embedding_dim": 8,
            },
            {
                "hidden_states": floats(1, 8, 16),
                "timestep": floats(1, value=0.9),
                "encoder_hidden_states": floats(1, 16, 12),
            },
        ),
    )
)
register(
    ModelAdapter(
        name="minimax-h3",
        transformer="MiniMaxH3Transformer3DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_3, "num_layers"),),
        pipelines=("MiniMaxH3ModularPipeline",),
        guidance="one forward",
        modality=("video", "audio"),
        needs="0.40",
        note="Text, audio and video are one sequence, so that the difference is taken over all of them.",
        sample=Sample(
            {
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "hidden_size": 24,
                "num_layers": 4,
                "num_refiner_layers": 2,
                "ffn_dim": 32,
                "in_channels": 4,
                "audio_in_channels": 6,
                "text_dim": 8,
                "freq_dim": 8,
                "time_embed_hidden_dim": 24,
                "time_embed_dim": 16,
                "rope_freq_dim": 2,
            },
            {
                "hidden_states": floats(1, 8, 16),
                "audio_hidden_states": floats(1, 6, 6),
                "encoder_hidden_states": floats(1, 4, 8),
                "timestep": floats(2, value=900.0),
                "timestep_indices": whole(*[0] * 4, *[1] * 6, *[0] * 8),  # text, audio, video
                "token_tags": whole(*[1] * 4, *[2] * 6, *[0] * 8),
                "position_ids": floats(18, 3),
                "video_indices": whole(*range(10, 18)),
                "audio_indices": whole(*range(4, 10)),
                "text_indices": whole(*range(4)),
            },
        ),
    )
)
