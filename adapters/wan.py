"""Wan 2.1 and 2.2, Lucy-Edit, VACE, Animate and Animate 2.

VACE adds hints and Animate the face to the sample between blocks; `vace_blocks` run first and are not cached.
"""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="wan",
        transformer="WanTransformer3DModel",
        lists=(BlockList("blocks", ForwardPattern.Pattern_2, "num_layers"),),
        pipelines=(
            "LucyEditPipeline",
            "WanImageToVideoPipeline",
            "WanPipeline",
            "WanVideoToVideoPipeline",
        ),
        guidance="two forwards a step, conditional first",
        modality=("video",),
        note=(
            "Wan 2.2 A14B has two transformers, each for a part of the steps; both are cached, with settings "
            "of their own where wanted."
        ),
    )
)
register(
    ModelAdapter(
        name="wan-vace",
        transformer="WanVACETransformer3DModel",
        lists=(BlockList("blocks", ForwardPattern.Pattern_2, "num_layers"),),
        pipelines=("WanVACEPipeline",),
        guidance="two forwards a step, conditional first",
        modality=("video",),
    )
)
register(
    ModelAdapter(
        name="wan-animate",
        transformer="WanAnimateTransformer3DModel",
        lists=(BlockList("blocks", ForwardPattern.Pattern_2, "num_layers"),),
        pipelines=("WanAnimatePipeline",),
        guidance="two forwards a step, conditional first",
        modality=("video",),
    )
)
register(
    ModelAdapter(
        name="wan-animate-2",
        transformer="WanAnimate2Transformer3DModel",
        lists=(BlockList("blocks", ForwardPattern.Pattern_3, "num_layers"),),
        pipelines=(
            "WanAnimate2ModularPipeline",
            "WanAnimate2DistilledModularPipeline",
        ),
        guidance="two forwards a step, conditional first; before each segment one more fills the KV cache",
        modality=("video",),
        needs="0.40",
        note=(
            "The unconditional forward leaves out block 9, which therefore must not be the last of the "
            "middle; nor of the front, or nothing is reused there."
        ),
    )
)
