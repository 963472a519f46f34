"""Z-Image, also Turbo, Omni and ControlNet.

The two blocks each of `noise_refiner` and `context_refiner` are left out: they are few, and the text's do not depend
on the sample.
"""

from __future__ import annotations

from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.config import DBCacheConfig, DefaultInt
from cachedit_cli.terms.pattern import Streams

register(
    ModelAdapter(
        name="z-image",
        transformer="ZImageTransformer2DModel",
        lists=(BlockList("layers", Streams(("x",), ("x",)), "n_layers"),),
        pipelines=(
            "ZImageControlNetInpaintPipeline",
            "ZImageControlNetPipeline",
            "ZImageImg2ImgPipeline",
            "ZImageInpaintPipeline",
            "ZImageOmniPipeline",
            "ZImagePipeline",
        ),
        guidance="one forward, both branches in a batch, conditional first; Turbo: one branch",
        note="With cfg_truncation the batch halves in mid run, and the step after that is computed.",
        defaults=DBCacheConfig.reset(Fn_compute_blocks=DefaultInt(4)),
    )
)
