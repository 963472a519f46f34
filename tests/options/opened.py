"""The bundled model, opened with options as a recipe gives them, and drawn with and without caching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cachedit_cli import demo, generate, pipeline, recipe

__all__ = ["Drawn", "opened", "picture", "state", "with_and_without"]

STEPS = 3
# One computed step, and two that the threshold decides about.
CACHE = ("cache.max_warmup_steps=1", f"generate.num_inference_steps={STEPS}", "model.device=cpu")
REUSING = "cache.residual_diff_threshold=1.0"
NEVER = "cache.residual_diff_threshold=0.0"


@dataclass
class Drawn:
    """What one opened pipeline drew."""

    plain: Tensor
    never: Tensor
    cached: Tensor
    saved: int


def opened(*changes: str, source: str = "demo") -> tuple[recipe.Recipe, generate.Opened]:
    made = recipe.load(source, [*CACHE, *changes])
    with pipeline.quiet():
        return made, generate.open_model(made, pipeline.pick_device(made.model.device))


def picture(pipe: Any, seed: int = 0, **more: Any) -> Tensor:
    call = {"num_inference_steps": STEPS, "output_type": "pt", **demo.DEFAULTS, **more}
    tensor: Tensor = pipe("red heart", generator=torch.Generator().manual_seed(seed), **call).images
    return tensor


def state(pipe: Any) -> list[tuple[str, Any]]:
    """Return what caching could leave behind: the attributes of each module, by identity.

    But for accelerate's hooks, which a pipeline that offloads whole models puts on anew after each call.
    """
    parts = [(name, part) for name, part in pipe.components.items() if isinstance(part, nn.Module)]
    anew = ("_hf_hook", "_old_forward", "forward")
    return [
        (f"{name}.{path}", {key: key in anew or id(value) for key, value in vars(module).items()})
        for name, part in parts
        for path, module in part.named_modules()
    ]


def with_and_without(*changes: str, source: str = "demo", **more: Any) -> Drawn:
    """Draw without caching, with threshold 0 and with reuse, and check that nothing is left behind."""
    _, ready = opened(*changes, source=source)
    plain = picture(ready.pipe, **more)
    pictures, before = [], state(ready.pipe)
    for threshold in (NEVER, REUSING):
        with pipeline.quiet(), generate.caching(recipe.load(source, [*CACHE, *changes, threshold]), ready) as log:
            pictures.append(picture(ready.pipe, **more))
    after = state(ready.pipe)
    assert [change for change in zip(after, before, strict=True) if change[0] != change[1]] == []
    assert torch.equal(picture(ready.pipe, **more), plain)

    return Drawn(plain, pictures[0], pictures[1], sum(row.saved for row in log.rows))
