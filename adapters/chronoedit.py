"""ChronoEdit."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="chronoedit",
        transformer="ChronoEditTransformer3DModel",
        lists=(BlockList("blocks", ForwardPattern.Pattern_2, "num_layers"),),
        pipelines=("ChronoEditPipeline",),
        guidance="two forwards a step, conditional first",
        note=(
            "With enable_temporal_reasoning most frames are dropped in mid run, and the step after that is computed."
        ),
    )
)
