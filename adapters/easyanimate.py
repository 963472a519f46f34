"""EasyAnimate 5.1, also Inpaint and Control."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="easyanimate",
        transformer="EasyAnimateTransformer3DModel",
        lists=(BlockList("transformer_blocks", ForwardPattern.Pattern_0, "num_layers"),),
        pipelines=(
            "EasyAnimateControlPipeline",
            "EasyAnimateInpaintPipeline",
            "EasyAnimatePipeline",
        ),
        guidance="one forward, both branches in a batch",
        modality=("video",),
    )
)
