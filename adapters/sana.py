"""Sana (also Sprint, ControlNet, PAG), Sana-Video, Sana-WM and its refiner."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern, Streams

register(
    ModelAdapter(
        name="sana",
        transformer="SanaTransformer2DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_3, "num_layers"),),
        pipelines=(
            "SanaControlNetPipeline",
            "SanaPAGPipeline",
            "SanaPipeline",
            "SanaSprintImg2ImgPipeline",
            "SanaSprintPipeline",
        ),
        guidance="one forward, both branches in a batch; Sprint: one branch",
    )
)
register(
    ModelAdapter(
        name="sana-video",
        transformer="SanaVideoTransformer3DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_3, "num_layers"),),
        pipelines=(
            "SanaImageToVideoPipeline",
            "SanaVideoPipeline",
        ),
        guidance="one forward, both branches in a batch",
        modality=("video",),
    )
)
register(
    ModelAdapter(
        name="sana-wm",
        transformer="SanaWMTransformer3DModel",
        lists=(BlockList("blocks", Streams(("x",), ("x",)), "num_layers"),),
        pipelines=("SanaWMPipeline",),
        guidance="one forward, both branches in a batch",
        modality=("video",),
        needs="0.42",
    )
)
register(
    ModelAdapter(
        name="sana-wm-refiner",
        transformer="SanaWMLTX2RefinerTransformer3DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_2, "num_layers"),),
        pipelines=("SanaWMLTX2Refiner",),
        guidance="one forward",
        modality=("video",),
        needs="0.42",
        note="Runs window after window, and fills its KV cache with forwards of their own.",
    )
)
