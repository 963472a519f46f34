"""Bria 3, Bria FIBO and FIBO 2.

FIBO hands every block another layer of the text encoder, and FIBO 2 some of its blocks another bundle of the text.
"""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.config import DBCacheConfig, DefaultInt
from cachedit_cli.terms.pattern import ForwardPattern, Streams
from cachedit_cli.terms.sample import Sample, floats

register(
    ModelAdapter(
        name="bria",
        transformer="BriaTransformer2DModel",
        lists=(
            BlockList("transformer_blocks", ForwardPattern.Pattern_1, "num_layers"),
            BlockList("single_transformer_blocks", ForwardPattern.Pattern_1, "num_single_layers"),
        ),
        chain=True,
        pipelines=("BriaPipeline",),
        guidance="one forward, both branches in a batch",
        defaults=DBCacheConfig.reset(Fn_compute_blocks=DefaultInt(4)),
    )
)
register(
    ModelAdapter(
        name="bria-fibo",
        transformer="BriaFiboTransformer2DModel",
        lists=(
            BlockList("transformer_blocks", ForwardPattern.Pattern_1, "num_layers"),
            BlockList("single_transformer_blocks", ForwardPattern.Pattern_3, "num_single_layers"),
        ),
        pipelines=(
            "BriaFiboEditPipeline",
            "BriaFiboPipeline",
        ),
        guidance="one forward, both branches in a batch",
        note=(
            "Half of the text channels is replaced before every block, so that the double blocks forecast "
            "little of the text."
        ),
        sample=Sample(
            {
                "in_channels": 4,
                "num_layers": 4,
                "num_single_layers": 4,
                "attention_head_dim": 8,
                "num_attention_heads": 2,
                "joint_attention_dim": 32,
                "text_encoder_dim": 16,
                "pooled_projection_dim": None,
                "axes_dims_rope": [0, 4, 4],
            },
            {
                "hidden_states": floats(1, 16, 4),
                "encoder_hidden_states": floats(1, 6, 32),
                "timestep": floats(1, value=0.9),
                "img_ids": floats(16, 3),
                "txt_ids": floats(6, 3),
                "text_encoder_layers": [floats(1, 6, 16)] * 8,  # one for each block
            },
        ),
        defaults=DBCacheConfig.reset(Fn_compute_blocks=DefaultInt(4)),
    )
)
register(
    ModelAdapter(
        name="bria-fibo2",
        transformer="BriaFibo2Transformer2DModel",
        lists=(BlockList("layers", Streams(("x",), ("x",)), "n_layers"),),
        pipelines=("BriaFibo2Pipeline",),
        guidance="two forwards a step, conditional first",
        needs="0.42",
        note=("The prompt may be switched in mid run (text_images_max_noise_level); the step after that is computed."),
        sample=Sample(
            {
                "in_channels": 4,
                "dim": 32,
                "n_layers": 6,
                "n_refiner_layers": 2,
                "n_heads": 2,
                "cap_feat_dim": 16,
                "injection_layer_ids": (1, 4),
                "perceiver_num_layers": 1,
                "min_num_gist_tokens": 4,
                "max_num_gist_tokens": 8,
                "gist_step": 4,
                "gist_min_text_len": 4,
                "gist_max_text_len": 32,
                "axes_dims": (4, 6, 6),
                "axes_lens": (64, 32, 32),
            },
            {
                "hidden_states": floats(1, 4, 8, 8),
                "timestep": floats(1, value=0.9),
                "encoder_hidden_states": floats(1, 3, 6, 16),  # of three layers of the text encoder
            },
        ),
        defaults=DBCacheConfig.reset(Fn_compute_blocks=DefaultInt(4)),
    )
)
