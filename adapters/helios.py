"""Helios and Helios-Pyramid."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="helios",
        transformer="HeliosTransformer3DModel",
        lists=(BlockList("blocks", ForwardPattern.Pattern_2, "num_layers"),),
        pipelines=(
            "HeliosPipeline",
            "HeliosPyramidPipeline",
        ),
        guidance="two forwards a step, conditional first",
        modality=("video",),
        needs="0.37",
        note="Runs chunk after chunk, Pyramid also stage after stage, each of which begins anew.",
    )
)
