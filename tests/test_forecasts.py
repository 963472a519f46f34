"""Calibrators of their own per block list, and masks that are refused before anything is computed."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from cachedit_cli import (
    BlockAdapter,
    CalibratorConfig,
    DBCacheConfig,
    ForwardPattern,
    ParamsModifier,
    TaylorSeerCalibratorConfig,
    cached,
)
from cachedit_cli.errors import InputError
from tests.tiny import NamedBlock, TinyTransformer, adapter, computing, run, times, walk

P3 = ForwardPattern.Pattern_3
MASK = "1111010010"
# Without the guard: the forecasts of so rough a path are compared however bad they are.
STATIC = DBCacheConfig(Fn_compute_blocks=0, steps_computation_mask=MASK, steps_computation_policy="static", audit=False)


class Lists(nn.Module):
    """Runs its block lists one after another, and nothing else."""

    def __init__(self, *lists: nn.ModuleList) -> None:
        super().__init__()
        self.lists = nn.ModuleList(lists)

    def forward(self, hidden_states: Tensor, timestep: float) -> Tensor:
        temb = torch.full((1, 1, 8), timestep / 1000)
        for blocks in self.lists:
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks:
                hidden_states = block(hidden_states, None, temb)
        return hidden_states


def blocks(seed: int) -> nn.ModuleList:
    return nn.ModuleList(NamedBlock(f"{seed}.{index}", P3, 10 * seed + index) for index in range(3))


def through(model: Lists, samples: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [model(sample, time) for sample, time in zip(samples, times(len(samples)), strict=True)]


def adapter_of(model: Lists, **settings: Any) -> BlockAdapter:
    return BlockAdapter(
        transformer=model,
        blocks=[item for item in model.lists if isinstance(item, nn.ModuleList)],
        forward_pattern=P3,
        **settings,
    )


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("target", ["residual", "hidden_states"])
@pytest.mark.parametrize("shared", [None, CalibratorConfig(), TaylorSeerCalibratorConfig(taylorseer_order=1)])
@pytest.mark.parametrize("given", ["adapter", "enable_cache"])
def test_each_list_is_forecast_as_a_model_of_that_list_alone_with_its_calibrator(
    order: int, target: Literal["residual", "hidden_states"], shared: Any, given: str
) -> None:
    """And keeps the tensors that its own order needs, n + 1, and no more."""
    first, second = blocks(1), blocks(2)
    own = TaylorSeerCalibratorConfig(taylorseer_order=order, calibrator_cache_type=target)
    modifiers = [None, ParamsModifier(calibrator_config=own)]
    both, a, b = Lists(first, second), Lists(first), Lists(second)
    samples = walk(len(MASK), pace=0.3)
    with cached(adapter_of(a), STATIC, shared):
        middle = through(a, samples)
    with cached(adapter_of(b), STATIC, own):
        expected = through(b, middle)

    data = adapter_of(both, params_modifiers=modifiers if given == "adapter" else None)
    with cached(data, STATIC, shared, modifiers if given == "enable_cache" else None) as cache:
        outputs = through(both, samples)
    assert all(torch.equal(x, y) for x, y in zip(outputs, expected, strict=True))
    rows = {info.name: [row for row in cache.log.rows if row.context == info.name] for info in cache.log.contexts}
    size = samples[0].nbytes
    held = 2 if isinstance(shared, TaylorSeerCalibratorConfig) else 1
    assert [mine[-1].bytes // size for mine in rows.values()] == [held, order + 1]
    assert ["".join("1" if row.decision == "compute" else "0" for row in mine) for mine in rows.values()] == [MASK] * 2


def test_a_mask_that_begins_with_0_is_refused_when_it_is_written_down() -> None:
    for mask in ("0110", [0, 1, 1, 0]):
        with pytest.raises(InputError) as caught:
            DBCacheConfig(steps_computation_mask=mask)
        assert str(caught.value) == (
            "DBCacheConfig.steps_computation_mask: begins with 0, but the first step has nothing to reuse; begin with 1"
        )


@pytest.mark.parametrize("policy", ["static", "dynamic"])
def test_a_mask_of_the_wrong_length_is_refused_before_any_block_is_called(policy: Any) -> None:
    model = TinyTransformer(ForwardPattern.Pattern_1)
    config = DBCacheConfig(
        Fn_compute_blocks=1, steps_computation_mask="11010", steps_computation_policy=policy, num_inference_steps=6
    )
    with cached(adapter(model), config) as cache:
        with computing() as labels, pytest.raises(InputError) as caught:
            run(model, walk(6))
        assert labels == []
        assert cache.log.rows == []
    assert str(caught.value) == (
        "transformer.blocks: steps_computation_mask: has 5 bits, but this generation has 6 steps"
    )


def test_a_mask_of_the_wrong_length_is_refused_before_the_bundled_model_computes(flux: Any) -> None:
    called: list[str] = []
    handles = [
        block.register_forward_pre_hook(lambda *_, name=name: called.append(name))
        for name, block in flux.transformer.named_modules()
        if name.count(".") == 1
    ]
    with cached(flux, DBCacheConfig(Fn_compute_blocks=1, steps_computation_mask="11010")):
        with pytest.raises(InputError) as caught:
            flux("red heart", height=64, width=64, max_sequence_length=16, num_inference_steps=6)
        assert [name for name in called if "transformer_blocks" in name] == []
        flux("red heart", height=64, width=64, max_sequence_length=16, num_inference_steps=5)
    for handle in handles:
        handle.remove()
    assert len([name for name in called if "transformer_blocks" in name]) > 0
    assert str(caught.value) == (
        "transformer.transformer_blocks + transformer.single_transformer_blocks: steps_computation_mask: "
        "has 5 bits, but this generation has 6 steps"
    )
