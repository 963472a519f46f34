"""Modular pipelines, whose loops are made of blocks and announce nothing: branches and steps are told all the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cachedit_cli.api import cached
from tests.adapters.brute_force import counted, identical, units
from tests.adapters.modular import MODULAR
from tests.adapters.test_pipelines import OLDEST, STEPS, Strips, _adapter, settings, strips_of
from tests.tiny_models import tensors

pytestmark = [
    pytest.mark.skipif(OLDEST, reason="the guider of modular pipelines came into use after diffusers 0.36"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
]

ONE = {("transformer", "0"): "C·····"}
TWO = ONE | {("transformer", "1"): "C·····"}
PART = ONE | {("transformer", "1"): "C··   "}

#: As in ``test_pipelines``: what each branch does at each step, an entry for each loop.
EXPECTED: dict[str, list[Strips]] = {
    "flux3": [PART],
    "minimax_h3": [{("transformer", "0"): "C···· "}],  # its scheduler makes one step less
    "minimax_music3": [TWO, TWO],
    "qwen_image": [PART],
    "wan_animate_2": [
        {  # first the forward that fills the KV cache
            ("transformer", "0"): "C     ",
            ("transformer", "1"): "C·····",
            ("transformer", "2"): "C·····",
        }
    ],
}


@pytest.fixture
def _attention_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wan Animate 2 compiles its mask and its attention in every forward, which takes seconds."""
    from torch.nn.attention import flex_attention

    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    if not OLDEST:
        from diffusers.models.transformers import transformer_wan_animate_2 as module

        made = module.create_block_mask
        monkeypatch.setattr(module, "create_block_mask", lambda *args, _compile, **kwargs: made(*args, **kwargs))


def run(built: tuple[Any, dict[str, Any], str]) -> list[Tensor]:
    pipe, call, output = built
    fresh = {name: value.clone() if isinstance(value, Tensor) else value for name, value in call.items()}
    if any(each.name == "generator" for each in pipe.blocks.inputs):
        fresh["generator"] = torch.Generator().manual_seed(0)
    made = pipe(**fresh, num_inference_steps=STEPS, output=output)
    found = [each.clone() for each in tensors(made)]
    assert found
    return found


@pytest.mark.usefixtures("_attention_is_not_compiled")
@pytest.mark.parametrize("name", EXPECTED)
def test_a_modular_pipeline_is_followed_and_computes_what_it_should(name: str) -> None:
    built = MODULAR[name]()
    transformer = built[0].transformer
    plain = run(built)
    with cached(built[0], settings(0.0)):
        assert identical(run(built), plain)
    every = units(transformer, _adapter(transformer))
    with counted(every) as calls, cached(built[0], settings(1.0)) as cache:
        first = run(built)
        computed, calls[0] = calls[0], 0
        assert identical(run(built), first)
        assert calls[0] == computed
    assert not identical(first, plain)
    expected = EXPECTED[name]
    for generation, strips in enumerate(expected * 2):
        rows = [row for row in cache.log.rows if row.generation == generation]
        for info in cache.log.contexts:
            assert strips_of(rows, info.name) == strips
    should = 0
    for loop in expected:
        for (_, branch), strip in loop.items():
            left_out = 1 if name == "wan_animate_2" and branch == "2" else 0
            should += strip.count("C") * (sum(len(unit.blocks) for unit in every) - left_out)
            should += strip.count("·") * len(every)
    assert computed == should
    assert identical(run(built), plain)
