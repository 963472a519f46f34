"""GLM-Image, also for editing, where every block has a KV cache of the images."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.config import DBCacheConfig, DefaultInt
from cachedit_cli.terms.pattern import ForwardPattern
from cachedit_cli.terms.sample import Numbers, Sample, floats, whole

register(
    ModelAdapter(
        name="glm-image",
        transformer="GlmImageTransformer2DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_0, "num_layers"),),
        pipelines=("GlmImagePipeline",),
        guidance="two forwards a step, conditional first",
        needs="0.37",
        note="Editing begins with a forward for each condition image, which is no step.",
        sample=Sample(
            {
                "in_channels": 4,
                "out_channels": 4,
                "num_layers": 4,
                "attention_head_dim": 8,
                "num_attention_heads": 2,
                "text_embed_dim": 16,
                "time_embed_dim": 16,
                "condition_dim": 8,
                "prior_vq_quantizer_codebook_size": 16,
            },
            {
                "hidden_states": floats(1, 4, 8, 8),
                "encoder_hidden_states": floats(1, 6, 16),
                "prior_token_id": whole(list(range(16))),
                "prior_token_drop": Numbers((1, 16), "bool", False),
                "timestep": floats(1, value=900.0),
                "target_size": floats(1, 2, value=32.0),
                "crop_coords": floats(1, 2, value=0.0),
            },
        ),
        defaults=DBCacheConfig.reset(Fn_compute_blocks=DefaultInt(4)),
    )
)
