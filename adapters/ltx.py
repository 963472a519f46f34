"""LTX-Video, LTX-2 and 2.3. LTX-2's second stream is the audio; its text is constant."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern, Streams

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
    )
)
