"""Latte: spatial and temporal blocks take turns, and the two lists share one decision."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.config import DBCacheConfig, DefaultInt
from cachedit_cli.terms.pattern import ForwardPattern
from cachedit_cli.terms.sample import Sample, floats

register(
    ModelAdapter(
        name="latte",
        transformer="LatteTransformer3DModel",
        lists=(
            BlockList("transformer_blocks", ForwardPattern.Pattern_3, "num_layers"),
            BlockList("temporal_transformer_blocks", ForwardPattern.Pattern_3, "num_layers"),
        ),
        alternate=True,
        pipelines=("LattePipeline",),
        guidance="one forward, both branches in a batch",
        modality=("video",),
        note="A spatial and a temporal block are one unit: Fn and Bn count such pairs.",
        sample=Sample(
            {
                "num_attention_heads": 2,
                "attention_head_dim": 8,
                "in_channels": 4,
                "out_channels": 8,
                "num_layers": 4,
                "cross_attention_dim": 16,
                "attention_bias": True,
                "sample_size": 8,
                "patch_size": 2,
                "activation_fn": "gelu-approximate",
                "num_embeds_ada_norm": 1000,
                "norm_type": "ada_norm_single",
                "norm_elementwise_affine": False,
                "norm_eps": 1e-6,
                "caption_channels": 12,
                "video_length": 2,
            },
            {
                "hidden_states": floats(1, 4, 2, 8, 8),
                "timestep": floats(1, value=900.0),
                "encoder_hidden_states": floats(1, 6, 12),
            },
        ),
        defaults=DBCacheConfig.reset(Fn_compute_blocks=DefaultInt(4)),
    )
)
