"""JoyAI-Image-Edit and Edit-Plus."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern
from cachedit_cli.terms.sample import Sample, floats

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
        sample=Sample(
            {
                "patch_size": [1, 2, 2],
                "in_channels": 4,
                "hidden_size": 32,
                "num_attention_heads": 2,
                "text_dim": 16,
                "mlp_width_ratio": 2.0,
                "num_layers": 4,
                "rope_dim_list": [4, 6, 6],
            },
            {
                "hidden_states": floats(1, 16, 4, 1, 2, 2),
                "timestep": floats(1, value=900.0),
                "encoder_hidden_states": floats(1, 6, 16),
                "shape_list": [[(1, 2, 4), (1, 2, 4)]],
            },
        ),
    )
)
