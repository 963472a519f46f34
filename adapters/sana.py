"""Sana (also Sprint, ControlNet, PAG), Sana-Video, Sana-WM and its refiner."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.config import DBCacheConfig, DefaultInt
from cachedit_cli.terms.pattern import ForwardPattern, Streams
from cachedit_cli.terms.sample import Sample, floats

register(
    ModelAdapter(
        name="sana",
        transformer="SanaTransformer2DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_3, "num_layers"),),
        pipelines=(
            "SanaControlNetPipeline",
            "SanaPAGPipeline",
            "SanaPipeline",
            "SanaSprintImg2ImgPipeline",
            "SanaSprintPipeline",
        ),
        guidance="one forward, both branches in a batch; Sprint: one branch",
        defaults=DBCacheConfig.reset(Fn_compute_blocks=DefaultInt(2)),
    )
)
register(
    ModelAdapter(
        name="sana-video",
        transformer="SanaVideoTransformer3DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_3, "num_layers"),),
        pipelines=(
            "SanaImageToVideoPipeline",
            "SanaVideoPipeline",
        ),
        guidance="one forward, both branches in a batch",
        modality=("video",),
        defaults=DBCacheConfig.reset(Fn_compute_blocks=DefaultInt(2)),
    )
)
register(
    ModelAdapter(
        name="sana-wm",
        transformer="SanaWMTransformer3DModel",
        lists=(BlockList("blocks", Streams(("x",), ("x",)), "num_layers"),),
        pipelines=("SanaWMPipeline",),
        guidance="one forward, both branches in a batch",
        modality=("video",),
        needs="0.42",
        sample=Sample(
            {
                "in_channels": 4,
                "num_layers": 4,
                "hidden_size": 32,
                "num_attention_heads": 2,
                "patch_size": (1, 1, 1),
                "softmax_every_n": 2,
                "linear_head_dim": 16,
                "caption_channels": 12,
                "mlp_ratio": 2.0,
                "chunk_plucker_channels": 8,
                "chunk_plucker_post_attn_blocks": 2,
                "use_chunk_plucker_post_attn": False,
            },
            {
                "hidden_states": floats(1, 4, 3, 4, 4),
                "timestep": floats(1, 1, 3, value=900.0),
                "encoder_hidden_states": floats(1, 1, 6, 12),
                "encoder_attention_mask": floats(1, 6, value=1.0),
            },
        ),
    )
)
register(
    ModelAdapter(
        name="sana-wm-refiner",
        transformer="SanaWMLTX2RefinerTransformer3DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_2, "num_layers"),),
        pipelines=("SanaWMLTX2Refiner",),
        guidance="one forward",
        modality=("video",),
        needs="0.42",
        note="Runs window after window, and fills its KV cache with forwards of their own.",
        sample=Sample(
            {
                "in_channels": 4,
                "out_channels": 4,
                "num_attention_heads": 2,
                "attention_head_dim": 8,
                "cross_attention_dim": 16,
                "audio_in_channels": 4,
                "audio_out_channels": 4,
                "audio_num_attention_heads": 2,
                "audio_attention_head_dim": 4,
                "audio_cross_attention_dim": 8,
                "num_layers": 4,
                "caption_channels": 12,
                "rope_double_precision": False,
            },
            {
                "hidden_states": floats(1, 8, 4),
                "encoder_hidden_states": floats(1, 6, 12),
                "timestep": floats(1, 8, value=900.0),
                "video_rotary_emb": (floats(1, 8, 16), floats(1, 8, 16)),
            },
        ),
    )
)
