"""HunyuanVideo (also I2V and SkyReels-V1), FramePack and HunyuanVideo 1.5.

The first two have double blocks, then single blocks, with the same two streams.
"""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern
from cachedit_cli.terms.sample import Sample, floats

register(
    ModelAdapter(
        name="hunyuan-video",
        transformer="HunyuanVideoTransformer3DModel",
        lists=(
            BlockList("transformer_blocks", ForwardPattern.Pattern_0, "num_layers"),
            BlockList("single_transformer_blocks", ForwardPattern.Pattern_0, "num_single_layers"),
        ),
        chain=True,
        pipelines=(
            "HunyuanSkyreelsImageToVideoPipeline",
            "HunyuanVideoImageToVideoPipeline",
            "HunyuanVideoPipeline",
        ),
        guidance="one forward; with true_cfg_scale > 1 two, conditional first",
        modality=("video",),
    )
)
register(
    ModelAdapter(
        name="framepack",
        transformer="HunyuanVideoFramepackTransformer3DModel",
        lists=(
            BlockList("transformer_blocks", ForwardPattern.Pattern_0, "num_layers"),
            BlockList("single_transformer_blocks", ForwardPattern.Pattern_0, "num_single_layers"),
        ),
        chain=True,
        pipelines=("HunyuanVideoFramepackPipeline",),
        guidance="one forward; with true_cfg_scale > 1 two, conditional first",
        modality=("video",),
        note="Runs section after section, each of which begins anew.",
        sample=Sample(
            {
                "in_channels": 4,
                "out_channels": 4,
                "num_attention_heads": 2,
                "attention_head_dim": 10,
                "num_layers": 4,
                "num_single_layers": 4,
                "num_refiner_layers": 1,
                "mlp_ratio": 2.0,
                "text_embed_dim": 16,
                "pooled_projection_dim": 8,
                "rope_axes_dim": (2, 4, 4),
                "has_image_proj": True,
                "image_proj_dim": 16,
                "has_clean_x_embedder": True,
            },
            {
                "hidden_states": floats(1, 4, 3, 4, 4),
                "timestep": floats(1, value=900.0),
                "encoder_hidden_states": floats(1, 6, 16),
                "encoder_attention_mask": floats(1, 6, value=1.0),
                "pooled_projections": floats(1, 8),
                "guidance": floats(1, value=6.0),
                "image_embeds": floats(1, 5, 16),
                "indices_latents": floats(3),
                "latents_clean": floats(1, 4, 2, 4, 4),
                "indices_latents_clean": floats(2),
                "latents_history_2x": floats(1, 4, 2, 4, 4),
                "indices_latents_history_2x": floats(2),
                "latents_history_4x": floats(1, 4, 8, 4, 4),
                "indices_latents_history_4x": floats(8),
            },
        ),
    )
)
register(
    ModelAdapter(
        name="hunyuan-video-15",
        transformer="HunyuanVideo15Transformer3DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_0, "num_layers"),),
        pipelines=(
            "HunyuanVideo15ImageToVideoPipeline",
            "HunyuanVideo15Pipeline",
        ),
        guidance="guider: two forwards a step, conditional first",
        modality=("video",),
    )
)
