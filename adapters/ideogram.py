"""Ideogram 4: one transformer for each guidance branch."""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(
    ModelAdapter(
        name="ideogram4",
        transformer="Ideogram4Transformer2DModel",
        lists=(BlockList("layers", ForwardPattern.Pattern_3, "num_layers"),),
        pipelines=("Ideogram4Pipeline",),
        guidance="two transformers a step: `transformer`, then `unconditional_transformer`",
        needs="0.39",
        note="Cached in both transformers, each on its own.",
    )
)
