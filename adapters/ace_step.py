"""ACE-Step 1.5: sliding and full attention take turns in one list."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="ace-step",
        transformer="AceStepTransformer1DModel",
        lists=(BlockList("layers", ForwardPattern.Pattern_3, "num_hidden_layers"),),
        pipelines=("AceStepPipeline",),
        guidance="one forward, both branches in a batch within the guidance interval; cover tasks: one more",
        modality=("audio",),
        needs="0.38",
    )
)
