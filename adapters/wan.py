"""Wan 2.1 and 2.2, Lucy-Edit, VACE, Animate and Animate 2.

VACE adds hints and Animate the face to the sample between blocks; `vace_blocks` run first and are not cached.
"""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern
from cachedit_cli.terms.sample import Made, Sample, floats, whole

register(
    ModelAdapter(
        name="wan",
        transformer="WanTransformer3DModel",
        lists=(BlockList("blocks", ForwardPattern.Pattern_2, "num_layers"),),
        pipelines=(
            "LucyEditPipeline",
            "WanImageToVideoPipeline",
            "WanPipeline",
            "WanVideoToVideoPipeline",
        ),
        guidance="two forwards a step, conditional first",
        modality=("video",),
        note=(
            "Wan 2.2 A14B has two transformers, each for a part of the steps; both are cached, with settings "
            "of their own where wanted."
        ),
    )
)
register(
    ModelAdapter(
        name="wan-vace",
        transformer="WanVACETransformer3DModel",
        lists=(BlockList("blocks", ForwardPattern.Pattern_2, "num_layers"),),
        pipelines=("WanVACEPipeline",),
        guidance="two forwards a step, conditional first",
        modality=("video",),
    )
)
register(
    ModelAdapter(
        name="wan-animate",
        transformer="WanAnimateTransformer3DModel",
        lists=(BlockList("blocks", ForwardPattern.Pattern_2, "num_layers"),),
        pipelines=("WanAnimatePipeline",),
        guidance="two forwards a step, conditional first",
        modality=("video",),
        sample=Sample(
            {
                "num_attention_heads": 2,
                "attention_head_dim": 12,
                "in_channels": 12,
                "latent_channels": 4,
                "out_channels": 4,
                "text_dim": 16,
                "freq_dim": 32,
                "ffn_dim": 32,
                "num_layers": 6,
                "image_dim": 16,
                "added_kv_proj_dim": 24,
                "rope_max_seq_len": 32,
                "motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16},
                "motion_encoder_size": 16,
                "motion_style_dim": 8,
                "motion_dim": 4,
                "motion_encoder_dim": 16,
                "face_encoder_hidden_dim": 16,
                "face_encoder_num_heads": 2,
                "inject_face_latents_blocks": 2,
            },
            {
                "hidden_states": floats(1, 12, 4, 8, 8),
                "timestep": floats(1, value=900.0),
                "encoder_hidden_states": floats(1, 6, 16),
                "encoder_hidden_states_image": floats(1, 257, 16),
                "pose_hidden_states": floats(1, 4, 3, 8, 8),
                "face_pixel_values": floats(1, 3, 9, 16, 16),
            },
        ),
    )
)
register(
    ModelAdapter(
        name="wan-animate-2",
        transformer="WanAnimate2Transformer3DModel",
        lists=(BlockList("blocks", ForwardPattern.Pattern_3, "num_layers"),),
        pipelines=(
            "WanAnimate2ModularPipeline",
            "WanAnimate2DistilledModularPipeline",
        ),
        guidance="two forwards a step, conditional first; before each segment one more fills the KV cache",
        modality=("video",),
        needs="0.40",
        note=(
            "The unconditional forward leaves out block 9, which therefore must not be the last of the "
            "middle; nor of the front, or nothing is reused there."
        ),
        sample=Sample(
            {
                "patch_size": (1, 2, 2),
                "text_len": 8,
                "in_dim": 10,
                "dim": 32,
                "ffn_dim": 32,
                "freq_dim": 32,
                "text_dim": 16,
                "out_dim": 4,
                "num_heads": 2,
                "num_layers": 4,
                "use_img_emb": False,
            },
            {
                "hidden_states": [floats(4, 2, 4, 4)],
                "timestep": floats(1, value=900.0),
                "encoder_hidden_states": [floats(6, 16)],
                "condition_latents": [floats(6, 2, 4, 4)],
                "kv_cache": Made("diffusers.models.transformers.transformer_wan_animate_2", "WanAnimate2KVCache", (4,)),
                "kv_cache_mode": "extract",
                "seq_len": 8,
                "offset_grid_sizes": whole([2, 2, 2]),
            },
        ),
    )
)
