"""ERNIE-Image, also Turbo. The state's second axis is the batch."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import Streams
from cachedit_cli.terms.sample import Sample, floats, whole

register(
    ModelAdapter(
        name="ernie-image",
        transformer="ErnieImageTransformer2DModel",
        lists=(BlockList("layers", Streams(("x",), ("x",)), "num_layers"),),
        pipelines=("ErnieImagePipeline",),
        guidance="one forward, both branches in a batch",
        needs="0.38",
        sample=Sample(
            {
                "hidden_size": 32,
                "num_attention_heads": 2,
                "num_layers": 4,
                "ffn_hidden_size": 32,
                "in_channels": 4,
                "out_channels": 4,
                "patch_size": 1,
                "text_in_dim": 16,
                "rope_axes_dim": (8, 4, 4),
            },
            {
                "hidden_states": floats(1, 4, 4, 4),
                "timestep": floats(1, value=900.0),
                "text_bth": floats(1, 6, 16),
                "text_lens": whole(6),
            },
        ),
    )
)
