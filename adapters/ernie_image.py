"""ERNIE-Image, also Turbo. The state's second axis is the batch."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import Streams

register(
    ModelAdapter(
        name="ernie-image",
        transformer="ErnieImageTransformer2DModel",
        lists=(BlockList("layers", Streams(("x",), ("x",)), "num_layers"),),
        pipelines=("ErnieImagePipeline",),
        guidance="one forward, both branches in a batch",
        needs="0.38",
    )
)
