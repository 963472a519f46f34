"""HiDream-I1: double blocks with two streams, then single blocks on the joined sequence.

The model appends another Llama layer to the sequence before every block and cuts it off afterwards.
"""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="hidream",
        transformer="HiDreamImageTransformer2DModel",
        lists=(
            BlockList("double_stream_blocks", ForwardPattern.Pattern_0, "num_layers"),
            BlockList("single_stream_blocks", ForwardPattern.Pattern_3, "num_single_layers"),
        ),
        pipelines=("HiDreamImagePipeline",),
        guidance="one forward, both branches in a batch",
    )
)
