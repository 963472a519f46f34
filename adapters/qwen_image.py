"""Qwen-Image (also Edit, Edit-Plus, Layered and ControlNet) and Qwen-Image 2.1."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern
from cachedit_cli.terms.sample import Numbers, Sample, floats

register(
    ModelAdapter(
        name="qwen-image",
        transformer="QwenImageTransformer2DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_1, "num_layers"),),
        pipelines=(
            "QwenImageControlNetInpaintPipeline",
            "QwenImageControlNetPipeline",
            "QwenImageEditInpaintPipeline",
            "QwenImageEditPipeline",
            "QwenImageEditPlusPipeline",
            "QwenImageImg2ImgPipeline",
            "QwenImageInpaintPipeline",
            "QwenImageLayeredPipeline",
            "QwenImagePipeline",
        ),
        guidance="one forward; with true_cfg_scale > 1 and a negative prompt two, conditional first",
    )
)
register(
    ModelAdapter(
        name="qwen-image-21",
        transformer="QwenImage21Transformer2DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_3, "num_layers"),),
        pipelines=("QwenImage21Pipeline",),
        guidance="one forward; with true_cfg_scale > 1 two, conditional first",
        needs="0.41",
        note=("With its own KV cache the sequence is shorter from the second step on, which is therefore computed."),
        sample=Sample(
            {
                "patch_size": 1,
                "in_channels": 8,
                "out_channels": 8,
                "num_layers": 4,
                "attention_head_dim": 16,
                "num_attention_heads": 2,
                "context_in_dim": 16,
                "mlp_ratio": 2,
                "axes_dims_rope": (4, 6, 6),
            },
            {
                "hidden_states": floats(1, 16, 8),
                "encoder_hidden_states": floats(1, 6, 16),
                "timestep": floats(1, value=0.9),
                "img_shapes": [[(1, 4, 4)]],
                "img_mask": Numbers((1, 10), "bool", [[False] * 6 + [True] * 4]),
            },
        ),
    )
)
