"""JoyAI-Image-Edit and Edit-Plus."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="joyimage-edit",
        transformer="JoyImageEditTransformer3DModel",
        lists=(BlockList("double_blocks", ForwardPattern.Pattern_0, "num_layers"),),
        pipelines=("JoyImageEditPipeline",),
        guidance="two forwards a step, conditional first",
        needs="0.39",
    )
)
register(
    ModelAdapter(
        name="joyimage-edit-plus",
        transformer="JoyImageEditPlusTransformer3DModel",
        lists=(BlockList("double_blocks", ForwardPattern.Pattern_0, "num_layers"),),
        pipelines=("JoyImageEditPlusPipeline",),
        guidance="one forward, both branches in a batch",
        needs="0.40",
    )
)
