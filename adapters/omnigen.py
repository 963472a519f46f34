"""OmniGen."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.config import DBCacheConfig, DefaultInt
from cachedit_cli.terms.pattern import ForwardPattern
from cachedit_cli.terms.sample import Sample, floats, whole

register(
    ModelAdapter(
        name="omnigen",
        transformer="OmniGenTransformer2DModel",
        lists=(BlockList("layers", ForwardPattern.Pattern_3, "num_layers"),),
        pipelines=("OmniGenPipeline",),
        guidance="one forward, both branches in a batch, conditional first; three with input images",
        sample=Sample(
            {
                "in_channels": 4,
                "patch_size": 2,
                "hidden_size": 16,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "intermediate_size": 32,
                "num_layers": 4,
                "pad_token_id": 0,
                "vocab_size": 32,
                "pos_embed_max_size": 8,
                "time_step_dim": 8,
                "rope_scaling": {"long_factor": [1, 2], "short_factor": [1, 2]},
            },
            {
                "hidden_states": floats(1, 4, 8, 8),
                "timestep": floats(1, value=0.9),
                "input_ids": whole(list(range(6))),
                "input_img_latents": [],
                "input_image_sizes": {},
                "attention_mask": floats(1, 23, 23, value=1.0),  # six words, the time, sixteen patches
                "position_ids": whole(list(range(23))),
            },
        ),
        defaults=DBCacheConfig.reset(Fn_compute_blocks=DefaultInt(4)),
    )
)
