"""Cosmos 1, 2 and 2.5 (also Transfer), and Cosmos 3 Omni, whose layers take and return the text first.

Cosmos 3 came with diffusers 0.39, but tells its branches apart, through cache_context, from 0.41 on.
"""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.config import DBCacheConfig, DefaultInt
from cachedit_cli.terms.pattern import ForwardPattern, Streams
from cachedit_cli.terms.sample import Sample, floats, grid, whole

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
        sample=Sample(
            {
                "in_channels": 4,
                "out_channels": 4,
                "num_attention_heads": 2,
                "attention_head_dim": 12,
                "num_layers": 4,
                "mlp_ratio": 2,
                "text_embed_dim": 16,
                "adaln_lora_dim": 4,
                "max_size": (4, 8, 8),
                "concat_padding_mask": False,
                "extra_pos_embed_type": "learnable",
            },
            {
                "hidden_states": floats(1, 4, 2, 8, 8),
                "timestep": floats(1, value=0.9),
                "encoder_hidden_states": floats(1, 6, 16),
                "fps": 30,
            },
        ),
        defaults=DBCacheConfig.reset(Fn_compute_blocks=DefaultInt(4)),
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
        sample=Sample(
            {
                "head_dim": 12,
                "hidden_size": 24,
                "intermediate_size": 48,
                "latent_channel": 2,
                "latent_patch_size": 1,
                "num_attention_heads": 2,
                "num_hidden_layers": 4,
                "num_key_value_heads": 1,
                "patch_latent_dim": 2,
                "rope_axes_dim": [2, 2, 2],
                "rope_theta": 10000.0,
                "vocab_size": 32,
            },
            {
                "input_ids": whole(*range(1, 5)),
                "text_indexes": whole(*range(4)),
                "position_ids": whole(*([*range(4), *places] for places in zip(*grid(2, 2, 2, before=4), strict=True))),
                "und_len": 4,
                "sequence_length": 12,
                "vision_tokens": [floats(1, 2, 2, 2, 2)],
                "vision_token_shapes": [(2, 2, 2)],
                "vision_sequence_indexes": whole(*range(4, 12)),
                "vision_mse_loss_indexes": whole(*range(4, 12)),
                "vision_timesteps": floats(8, value=0.9),
                "vision_noisy_frame_indexes": [whole(0, 1)],
            },
        ),
    )
)
