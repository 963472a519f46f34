"""Hunyuan-DiT, also with ControlNet and PAG: the last blocks get what the first ones returned."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.config import DBCacheConfig, DefaultInt
from cachedit_cli.terms.pattern import ForwardPattern
from cachedit_cli.terms.sample import Sample, floats, whole

register(
    ModelAdapter(
        name="hunyuan-dit",
        transformer="HunyuanDiT2DModel",
        lists=(BlockList("blocks", ForwardPattern.Pattern_3, "num_layers"),),
        skips=True,
        pipelines=(
            "HunyuanDiTControlNetPipeline",
            "HunyuanDiTPAGPipeline",
            "HunyuanDiTPipeline",
        ),
        guidance="one forward, both branches in a batch",
        note="Long skips from the first blocks to the last ones: Bn must not be larger than Fn.",
        sample=Sample(
            {
                "sample_size": 8,
                "patch_size": 2,
                "in_channels": 4,
                "num_layers": 8,
                "attention_head_dim": 8,
                "num_attention_heads": 2,
                "cross_attention_dim": 8,
                "cross_attention_dim_t5": 8,
                "pooled_projection_dim": 4,
                "hidden_size": 16,
                "text_len": 4,
                "text_len_t5": 4,
            },
            {
                "hidden_states": floats(1, 4, 8, 8),
                "timestep": floats(1, value=900.0),
                "encoder_hidden_states": floats(1, 4, 8),
                "text_embedding_mask": floats(1, 4, value=1.0),
                "encoder_hidden_states_t5": floats(1, 4, 8),
                "text_embedding_mask_t5": floats(1, 4, value=1.0),
                "image_meta_size": floats(1, 6, value=8.0),
                "style": whole(0),
                "image_rotary_emb": [floats(16, 8), floats(16, 8)],
            },
        ),
        defaults=DBCacheConfig.reset(Fn_compute_blocks=DefaultInt(4)),
    )
)
