"""LTX-Video, LTX-2 and 2.3. LTX-2's second stream is the audio; its text is constant."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.config import DBCacheConfig, DefaultInt
from cachedit_cli.terms.pattern import ForwardPattern, Streams
from cachedit_cli.terms.sample import Numbers, Sample, floats

register(
    ModelAdapter(
        name="ltx-video",
        transformer="LTXVideoTransformer3DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_2, "num_layers"),),
        pipelines=(
            "LTXConditionPipeline",
            "LTXI2VLongMultiPromptPipeline",
            "LTXImageToVideoPipeline",
            "LTXPipeline",
        ),
        guidance="one forward, both branches in a batch",
        modality=("video",),
        note="LTXI2VLongMultiPromptPipeline runs window after window, each of which begins anew.",
        defaults=DBCacheConfig.reset(Fn_compute_blocks=DefaultInt(4)),
    )
)
register(
    ModelAdapter(
        name="ltx2",
        transformer="LTX2VideoTransformer3DModel",
        lists=(
            BlockList(
                "transformer_blocks",
                Streams(("hidden_states", "audio_hidden_states"), ("hidden_states", "audio_hidden_states")),
                "num_layers",
            ),
        ),
        pipelines=(
            "LTX2ConditionPipeline",
            "LTX2DFRPipeline",
            "LTX2DFRTemporalRefinePipeline",
            "LTX2HDRPipeline",
            "LTX2ImageToVideoPipeline",
            "LTX2InContextPipeline",
            "LTX2Pipeline",
        ),
        guidance="one forward, both branches in a batch; up to two more for spatio-temporal and modality guidance",
        modality=("video", "audio"),
        needs="0.37",
        note="The DFR pipelines run one forward for each tile of a step.",
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
                "hidden_states": floats(1, 32, 4),
                "audio_hidden_states": floats(1, 9, 4),
                "encoder_hidden_states": floats(1, 6, 12),
                "audio_encoder_hidden_states": floats(1, 6, 12),
                "timestep": floats(1, value=900.0),
                "encoder_attention_mask": Numbers((1, 6), "bool", True),
                "num_frames": 2,
                "height": 4,
                "width": 4,
                "audio_num_frames": 9,
                "fps": 25.0,
            },
        ),
    )
)
