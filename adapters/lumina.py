"""Lumina-Next and Lumina-Image 2.0.

Of Lumina 2 the two blocks each of `noise_refiner` and `context_refiner` are left out: they are few, and the text's do
not depend on the sample.
"""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.config import DBCacheConfig, DefaultInt
from cachedit_cli.terms.pattern import ForwardPattern
from cachedit_cli.terms.sample import Numbers, Sample, floats

register(
    ModelAdapter(
        name="lumina",
        transformer="LuminaNextDiT2DModel",
        lists=(BlockList("layers", ForwardPattern.Pattern_3, "num_layers"),),
        pipelines=("LuminaPipeline",),
        guidance="one forward, both branches in a batch, conditional first",
        sample=Sample(
            {
                "sample_size": 8,
                "patch_size": 2,
                "in_channels": 4,
                "hidden_size": 24,
                "num_layers": 4,
                "num_attention_heads": 3,
                "num_kv_heads": 1,
                "multiple_of": 8,
                "learn_sigma": False,
                "cross_attention_dim": 16,
            },
            {
                "hidden_states": floats(1, 4, 8, 8),
                "timestep": floats(1, value=0.9),
                "encoder_hidden_states": floats(1, 6, 16),
                "encoder_mask": floats(1, 6, value=1.0),
                "image_rotary_emb": Numbers((4, 4, 4), "complex"),
                "cross_attention_kwargs": {},
            },
        ),
    )
)
register(
    ModelAdapter(
        name="lumina2",
        transformer="Lumina2Transformer2DModel",
        lists=(BlockList("layers", ForwardPattern.Pattern_3, "num_layers"),),
        pipelines=("Lumina2Pipeline",),
        guidance="two forwards a step, conditional first; only that after cfg_trunc_ratio",
        defaults=DBCacheConfig.reset(Fn_compute_blocks=DefaultInt(4)),
    )
)
