"""Bria 3, Bria FIBO and FIBO 2.

FIBO hands every block another layer of the text encoder, and FIBO 2 some of its blocks another bundle of the text.
"""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern, Streams

register(
    ModelAdapter(
        name="bria",
        transformer="BriaTransformer2DModel",
        lists=(
            BlockList("transformer_blocks", ForwardPattern.Pattern_1, "num_layers"),
            BlockList("single_transformer_blocks", ForwardPattern.Pattern_1, "num_single_layers"),
        ),
        chain=True,
        pipelines=("BriaPipeline",),
        guidance="one forward, both branches in a batch",
    )
)
register(
    ModelAdapter(
        name="bria-fibo",
        transformer="BriaFiboTransformer2DModel",
        lists=(
            BlockList("transformer_blocks", ForwardPattern.Pattern_1, "num_layers"),
            BlockList("single_transformer_blocks", ForwardPattern.Pattern_3, "num_single_layers"),
        ),
        pipelines=(
            "BriaFiboEditPipeline",
            "BriaFiboPipeline",
        ),
        guidance="one forward, both branches in a batch",
        note=(
            "Half of the text channels is replaced before every block, so that the double blocks forecast "
            "little of the text."
        ),
    )
)
register(
    ModelAdapter(
        name="bria-fibo2",
        transformer="BriaFibo2Transformer2DModel",
        lists=(BlockList("layers", Streams(("x",), ("x",)), "n_layers"),),
        pipelines=("BriaFibo2Pipeline",),
        guidance="two forwards a step, conditional first",
        needs="0.42",
        note=("The prompt may be switched in mid run (text_images_max_noise_level); the step after that is computed."),
    )
)
