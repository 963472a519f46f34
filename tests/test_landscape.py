"""Landscapes: what is watched is what the blocks did, on the bundled model."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch

from cachedit_cli import DBCacheConfig, cached, demo
from cachedit_cli.landscape import Landscape, Part, Watch

STEPS = 4


def test_inner_products_and_differences_are_those_of_the_states(flux: Any) -> None:
    """By hand: the image stream in front of the second block and behind the last one."""
    fronts: list[torch.Tensor] = []
    entries: list[torch.Tensor] = []
    afters: list[torch.Tensor] = []
    first, last = flux.transformer.transformer_blocks[0], flux.transformer.single_transformer_blocks[-1]
    handles = [
        first.register_forward_pre_hook(
            lambda module, args, kwargs: entries.append(kwargs["hidden_states"]), with_kwargs=True
        ),
        first.register_forward_hook(lambda module, args, output: fronts.append(output[1])),
        last.register_forward_hook(lambda module, args, output: afters.append(output[1])),
    ]
    watch = Watch(STEPS)
    with cached(flux, DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=99, residual_diff_threshold=0.5)) as cache:
        cache.log.observer = watch
        flux(
            "red heart",
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
            **demo.DEFAULTS,
        )
    for handle in handles:
        handle.remove()
    (((context, branch), part),) = watch.parts().items()
    assert (context.endswith("single_transformer_blocks"), branch) == (True, "cond")
    changes = [(after - front).flatten().double() for after, front in zip(afters, fronts, strict=True)]
    alike = numpy.array([[float(one @ other) for other in changes] for one in changes])
    assert part.alike == pytest.approx(alike / numpy.diagonal(alike).mean(), rel=1e-4)
    moves = [front - entry for front, entry in zip(fronts, entries, strict=True)]
    assert part.moved[0, 2] == pytest.approx(float((moves[2] - moves[0]).abs().sum() / moves[0].abs().sum()), rel=1e-4)
    assert numpy.isnan(part.moved[2, 0])


def test_generations_are_averaged_and_steps_that_were_not_seen_are_unknown() -> None:
    found = Landscape(2)
    for value in (1.0, 3.0):
        watch = Watch(2)
        watch("blocks", "cond", 1, torch.full((1, 2, 2), value), torch.full((1, 2, 2), value))
        found.add(watch.parts())
    part = found.parts[("blocks", "cond")]
    assert found.generations == 2
    assert part.alike[1, 1] == 1.0
    assert numpy.isnan(part.alike[0]).all()
    found.add({("blocks", "cond"): Part(numpy.full((2, 2), 4.0), numpy.zeros((2, 2)))})
    assert part.alike[1, 1] == 2.0
