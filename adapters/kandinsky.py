"""Kandinsky 5, Kandinsky 6 (video with audio) and its super-resolution.

The few blocks of the text lists are left out: they do not depend on the sample.
"""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.config import DBCacheConfig, DefaultInt
from cachedit_cli.terms.pattern import ForwardPattern, Streams
from cachedit_cli.terms.sample import Sample, floats, whole

register(
    ModelAdapter(
        name="kandinsky5",
        transformer="Kandinsky5Transformer3DModel",
        lists=(
            BlockList("visual_transformer_blocks", Streams(("visual_embed",), ("visual_embed",)), "num_visual_blocks"),
        ),
        pipelines=(
            "Kandinsky5I2IPipeline",
            "Kandinsky5I2VPipeline",
            "Kandinsky5T2IPipeline",
            "Kandinsky5T2VPipeline",
        ),
        guidance="two forwards a step, conditional first",
        modality=("image", "video"),
        sample=Sample(
            {
                "in_text_dim": 16,
                "in_text_dim2": 8,
                "time_dim": 16,
                "model_dim": 24,
                "ff_dim": 32,
                "num_text_blocks": 4,
                "num_visual_blocks": 4,
                "axes_dims": (4, 4, 4),
            },
            {
                "hidden_states": floats(1, 2, 8, 8, 4),
                "encoder_hidden_states": floats(1, 6, 16),
                "timestep": floats(1, value=900.0),
                "pooled_projections": floats(1, 8),
                "visual_rope_pos": [whole(*range(2)), whole(*range(4)), whole(*range(4))],
                "text_rope_pos": whole(*range(6)),
                "scale_factor": (1.0, 2.0, 2.0),
            },
        ),
        defaults=DBCacheConfig.reset(Fn_compute_blocks=DefaultInt(4)),
    )
)
register(
    ModelAdapter(
        name="kandinsky6",
        transformer="Kandinsky6Transformer3DModel",
        lists=(BlockList("visual_transformer_blocks", Streams(("vis", "aud"), ("vis", "aud")), "num_visual_blocks"),),
        pipelines=("Kandinsky6TI2VAPipeline",),
        guidance="two forwards a step, conditional first",
        modality=("video", "audio"),
        needs="0.42",
        note="The second stream is audio, and None for silent video.",
        sample=Sample(
            {
                "in_visual_dim": 4,
                "out_visual_dim": 4,
                "in_text_dim": 16,
                "in_text_dim2": 8,
                "time_dim": 16,
                "model_dim": 24,
                "ff_dim": 32,
                "num_text_blocks": 4,
                "num_visual_blocks": 4,
                "axes_dims": (4, 4, 4),
                "in_audio_dim": 4,
                "out_audio_dim": 4,
                "ca_rope": True,
                "cross_gates": True,
                "fix_modulation": True,
            },
            {
                "hidden_states": floats(1, 2, 8, 8, 9),
                "encoder_hidden_states": floats(1, 6, 16),
                "pooled_projections": floats(1, 8),
                "timestep": floats(1, value=900.0),
                "audio_hidden_states": floats(1, 10, 4),
            },
        ),
    )
)
register(
    ModelAdapter(
        name="kandinsky6-sr",
        transformer="Kandinsky6SRTransformer3DModel",
        lists=(BlockList("visual_transformer_blocks", ForwardPattern.Pattern_3, "num_visual_blocks"),),
        pipelines=("Kandinsky6SRPipeline",),
        guidance="one forward",
        modality=("video",),
        needs="0.42",
        note="Runs tile batch after tile batch, each of which begins anew; attention needs flex_attention.",
    )
)
