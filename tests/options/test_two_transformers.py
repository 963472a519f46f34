"""Options on a pipeline of two transformers, each for a part of the steps: both get them, and both are cached right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import cachedit_cli as cachedit
from cachedit_cli.opening import transformers
from cachedit_cli.options import attention, compiling, placing
from cachedit_cli.recipe_options import Compile, Offload
from tests.adapters.pipelines import BUILDERS

CPU = torch.device("cpu")
STEPS = 6


def offloaded(pipe: Any) -> None:
    placing.place(pipe, Offload(type="group"), CPU)


def offloaded_sequentially(pipe: Any) -> None:
    placing.place(pipe, Offload(type="sequential"), CPU)


def compiled(pipe: Any) -> None:
    compiling.compile_(Compile(type="blocks", backend="eager"), transformers(pipe), [])


def other_kernel(pipe: Any) -> None:
    attention.choose("_native_math", transformers(pipe))


@pytest.mark.parametrize("option", [offloaded, offloaded_sequentially, compiled, other_kernel])
def test_both_transformers_get_an_option_and_are_cached_right(option: Any) -> None:
    pipe, call = BUILDERS["wan_22"]()
    option(pipe)

    def film() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        made = pipe(**call, num_inference_steps=STEPS, generator=generator, output_type="latent", return_dict=False)
        tensor: Tensor = made[0]
        return tensor

    plain = film()
    settings: dict[str, Any] = {"Fn_compute_blocks": 1, "max_warmup_steps": 1}
    with cachedit.cached(pipe, cachedit.DBCacheConfig(**settings, residual_diff_threshold=0.0)):
        assert torch.equal(film(), plain)
    with cachedit.cached(pipe, cachedit.DBCacheConfig(**settings, residual_diff_threshold=1.0)) as cache:
        film()
    saved = {row.context.partition(".")[0]: row.saved for row in cache.log.rows if row.saved}
    assert saved.keys() == {"transformer", "transformer_2"}
    assert torch.equal(film(), plain)
