"""HiDream-I1: double blocks with two streams, then single blocks on the joined sequence.

The model appends another Llama layer to the sequence before every block and cuts it off afterwards.
"""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.config import DBCacheConfig, DefaultInt
from cachedit_cli.terms.pattern import ForwardPattern
from cachedit_cli.terms.sample import Sample, floats

register(
    ModelAdapter(
        name="hidream",
        transformer="HiDreamImageTransformer2DModel",
        lists=(
            BlockList("double_stream_blocks", ForwardPattern.Pattern_0, "num_layers"),
            BlockList("single_stream_blocks", ForwardPattern.Pattern_3, "num_single_layers"),
        ),
        pipelines=("HiDreamImagePipeline",),
        guidance="one forward, both branches in a batch",
        sample=Sample(
            {
                "patch_size": 2,
                "in_channels": 4,
                "out_channels": 4,
                "num_layers": 4,
                "num_single_layers": 4,
                "attention_head_dim": 8,
                "num_attention_heads": 2,
                "caption_channels": [8, 4],
                "text_emb_dim": 8,
                "num_routed_experts": 2,
                "num_activated_experts": 2,
                "axes_dims_rope": (4, 2, 2),
                "max_resolution": (8, 8),
                "llama_layers": list(range(8)),
                "force_inference_output": True,
            },
            {
                "hidden_states": floats(1, 4, 8, 8),
                "timesteps": floats(1, value=900.0),
                "encoder_hidden_states_t5": floats(1, 6, 8),
                "encoder_hidden_states_llama3": floats(8, 1, 6, 4),  # one for each block
                "pooled_embeds": floats(1, 8),
            },
        ),
        defaults=DBCacheConfig.reset(Fn_compute_blocks=DefaultInt(4)),
    )
)
