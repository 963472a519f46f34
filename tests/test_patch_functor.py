"""docs/patch-functor.md: its model needs a functor, and with its functor all is right."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cachedit_cli import BlockAdapter, DBCacheConfig, ForwardPattern, cached, disable_cache, enable_cache, registry
from tests.tiny import snapshot

DOCUMENT = Path(__file__).parent.parent / "docs" / "patch-functor.md"
STEPS = 10
EAGER = DBCacheConfig(
    Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=1.0, max_continuous_cached_steps=2
)


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is defined after all code blocks of the page have run, one after another."""
    own = copy.copy(registry._registry)
    own.adapters, own.origins = dict(own.adapters), dict(own.origins)
    monkeypatch.setattr(registry, "_registry", own)
    scope: dict[str, Any] = {}
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.M | re.S)):
        exec(compile(code, f"{DOCUMENT.name}, block {number + 1}", "exec"), scope)
    return scope


def adapter(page: dict[str, Any], functor: bool = True) -> BlockAdapter:
    model = page["transformer"]
    patch = page["AddInside"]() if functor else None
    return BlockAdapter(
        transformer=model, blocks=model.blocks, forward_pattern=ForwardPattern.Pattern_3, patch_functor=patch
    )


def run(model: Any, constant: bool = False) -> list[Tensor]:
    samples = [torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(1))] * STEPS
    moments = torch.linspace(1000, 100, STEPS)
    with torch.no_grad():
        return [
            model(sample if constant else sample * (1 + 0.05 * step), moments[0] if constant else moment)
            for step, (sample, moment) in enumerate(zip(samples, moments, strict=True))
        ]


def plain_loop(model: Any, computed: list[bool]) -> list[Tensor]:
    """Reuse by hand: the state after the first block plus what the others added at the last computed step."""
    outputs, added = [], torch.zeros(())
    samples = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(1))
    for step, (moment, compute) in enumerate(zip(torch.linspace(1000, 100, STEPS), computed, strict=True)):
        with torch.no_grad():
            temb, h = model.embed(moment), samples * (1 + 0.05 * step)
            front = h = h + model.blocks[0](h, temb)
            if compute:
                for block in model.blocks[1:]:
                    h = h + block(h, temb)
                added = h - front
            outputs.append(front + added)
    return outputs


def same(one: list[Tensor], other: list[Tensor], exactly: bool = True) -> bool:
    equal = torch.equal if exactly else torch.allclose
    return all(equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_example_caches_and_leaves_the_model_as_it_was(page: dict[str, Any]) -> None:
    fresh = page["UpdateTransformer"]()
    assert [list(vars(module)) for module in page["transformer"].modules()] == [
        list(vars(module)) for module in fresh.modules()
    ]
    assert page["sample"].isfinite().all()


def test_without_the_functor_no_threshold_helps_and_with_it_constant_input_is_exact(page: dict[str, Any]) -> None:
    model = page["transformer"]
    expected = run(model, constant=True)
    config = DBCacheConfig(**{**EAGER.as_dict(), "num_inference_steps": STEPS})
    for functor in (False, True):
        with cached(adapter(page, functor), config) as cache:
            outputs = run(model, constant=True)
        assert "reuse" in {row.decision for row in cache.log.rows}
        assert same(outputs, expected, exactly=False) is functor


def test_the_patched_model_computes_the_same_bits(page: dict[str, Any]) -> None:
    model = page["transformer"]
    expected, before = run(model), snapshot(model)
    with cached(adapter(page), DBCacheConfig(Fn_compute_blocks=1, residual_diff_threshold=0.0)):
        assert same(run(model), expected)
    assert snapshot(model) == before
    assert same(run(model), expected)


def test_reused_steps_are_those_of_a_plain_loop(page: dict[str, Any]) -> None:
    model = page["transformer"]
    with cached(adapter(page), EAGER) as cache:
        outputs = run(model)
    computed = [row.decision == "compute" for row in cache.log.rows]
    assert computed == [True, True, False, False, True, False, False, True, False, False]
    assert same(outputs, plain_loop(model, computed), exactly=False)
    assert not same(outputs, run(model), exactly=False)


def test_the_registered_model_brings_its_functor(page: dict[str, Any]) -> None:
    model = page["transformer"]
    before = snapshot(model)
    with cached(adapter(page), EAGER):
        expected = run(model)
    enable_cache(model, EAGER)
    assert same(run(model), expected)
    disable_cache(model)
    assert snapshot(model) == before
