"""ACE-Step 1.5: sliding and full attention take turns in one list."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern
from cachedit_cli.terms.sample import Sample, floats

register(
    ModelAdapter(
        name="ace-step",
        transformer="AceStepTransformer1DModel",
        lists=(BlockList("layers", ForwardPattern.Pattern_3, "num_hidden_layers"),),
        pipelines=("AceStepPipeline",),
        guidance="one forward, both branches in a batch within the guidance interval; cover tasks: one more",
        modality=("audio",),
        needs="0.38",
        sample=Sample(
            {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "in_channels": 24,
                "audio_acoustic_hidden_dim": 8,
                "rope_theta": 10000.0,
                "sliding_window": 2,
            },
            {
                "hidden_states": floats(1, 16, 8),
                "timestep": floats(1, value=0.9),
                "timestep_r": floats(1, value=0.9),
                "encoder_hidden_states": floats(1, 6, 32),
                "context_latents": floats(1, 16, 16),
            },
        ),
    )
)
