"""What holds for every transformer class that has an adapter, as one contract over all tiny models."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cachedit_cli import registry
from cachedit_cli.api import cached, enable_cache
from cachedit_cli.errors import InputError
from cachedit_cli.terms.config import DBCacheConfig
from tests.adapters.brute_force import Hold, counted, distance, identical, units
from tests.tiny_models import TINY, TinyModel, tensors

STEPS = 4
NEVER, ALWAYS = 0.0, 1.0
SIDES = [(1, 0), (2, 1)]

#: Blocks that the model itself leaves out, by number.
LEFT_OUT = {"sd3_skip_layers": {1, 2}}
#: (fixture, F, B) of which nothing is reused, and why.
ALWAYS_COMPUTED = {
    ("sd3_skip_layers", 2, 1): "the model leaves out the last block of the front, after which is decided"
}
#: Fixtures whose forward is told no time, and says in its context which branch it is.
ANNOUNCED = {"cosmos3"}

#: Fixtures without text, which have one branch.
UNCONDITIONAL = {"kandinsky6_sr"}

pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:Initializing zero-element tensors"),
    pytest.mark.filterwarnings("ignore:In CPU autocast, but the target dtype"),  # Mochi
    pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning"),  # Chroma
]

every_model = pytest.mark.parametrize("tiny", [pytest.param(tiny, id=name) for name, tiny in TINY.items()])
both_sides = pytest.mark.parametrize(("front", "back"), SIDES, ids=[f"F{f}B{b}" for f, b in SIDES])


@functools.cache
def built(name: str) -> nn.Module:
    return TINY[name].build()


def model_of(tiny: TinyModel) -> nn.Module:
    """Return the fixture's model; tests leave it as it was."""
    return built(tiny.name)


def settings(front: int, back: int, threshold: float) -> DBCacheConfig:
    return DBCacheConfig(
        Fn_compute_blocks=front,
        Bn_compute_blocks=back,
        residual_diff_threshold=threshold,
        max_warmup_steps=1,
        num_inference_steps=STEPS,
    )


@torch.no_grad()
def forward(model: nn.Module, tiny: TinyModel, step: int, branch: str = "cond") -> list[Tensor]:
    context = contextlib.nullcontext()
    if tiny.name in ANNOUNCED:
        announce: Any = model.cache_context
        context = announce(branch)
    with context:
        return list(tensors(model(**tiny.inputs(step, branch=branch))))


@functools.cache
def computed(name: str, step: int, branch: str = "cond") -> list[Tensor]:
    """Return what the model makes of a step without any cache."""
    return forward(built(name), TINY[name], step, branch)


def expected(tiny: TinyModel, model: nn.Module, front: int, back: int) -> int:
    """Return how many block calls a reused step saves."""
    if (tiny.name, front, back) in ALWAYS_COMPUTED:
        return 0
    left_out = LEFT_OUT.get(tiny.name, set())
    return sum(
        len([index for index in range(front, len(unit.blocks) - back) if index not in left_out])
        for unit in units(model, tiny.adapter)
    )


def by_brute_force(
    model: nn.Module, tiny: TinyModel, front: int, back: int, branch: str = "cond"
) -> list[list[Tensor]]:
    """Return the outputs of a generation whose first step is computed and whose others are reused."""
    held = [Hold(unit, front, back) for unit in units(model, tiny.adapter)]
    handles = [handle for each in held for handle in each.hooks()]
    outputs = []
    try:
        for step in range(STEPS):
            for each in held:
                each.reuse = step > 0
            outputs.append(forward(model, tiny, step))
    finally:
        for handle in handles:
            handle.remove()
    return outputs


class Attributes:
    """Every attribute of every module of a model, by identity, but for tables that its own forward makes anew."""

    def __init__(self, model: nn.Module, tiny: TinyModel) -> None:
        self._model = model
        forward(model, tiny, 0)
        self._before = [dict(vars(module)) for module in model.modules()]
        forward(model, tiny, 0)
        self._own = {(index, name) for index, name, _ in self._changed()}

    def _changed(self) -> Iterator[tuple[int, str, str]]:
        for index, (module, before) in enumerate(zip(self._model.modules(), self._before, strict=True)):
            for name in {*before, *vars(module)}:
                if name not in before or name not in vars(module) or vars(module)[name] is not before[name]:
                    yield index, name, type(module).__name__

    def changed(self) -> list[str]:
        return [f"{kind}.{name}" for index, name, kind in self._changed() if (index, name) not in self._own]


@every_model
def test_never_reusing_is_bit_identical_and_leaves_nothing_behind(tiny: TinyModel) -> None:
    model = model_of(tiny)
    attributes, weights = Attributes(model, tiny), list(model.state_dict())
    for front, back in SIDES:
        with cached(model, settings(front, back, NEVER)) as cache:
            assert list(model.state_dict()) == weights
            for step in range(2):
                assert identical(forward(model, tiny, step), computed(tiny.name, step)), f"F{front}B{back}"
            assert not any(row.saved for row in cache.log.rows)
        assert not attributes.changed(), f"F{front}B{back}"
    assert list(model.state_dict()) == weights


@every_model
def test_reusing_at_constant_input_equals_computing_to_rounding(tiny: TinyModel) -> None:
    model = model_of(tiny)
    for front, back in SIDES:
        with cached(model, settings(front, back, ALWAYS)) as cache:
            for _ in range(3):
                output = forward(model, tiny, 0)
                assert distance(output, computed(tiny.name, 0)) < 2e-5, f"F{front}B{back}"
            assert sum(row.saved for row in cache.log.rows) == 2 * expected(tiny, model, front, back)


@every_model
@both_sides
def test_hold_equals_brute_force_saves_what_it_should_and_changes_the_output(
    tiny: TinyModel, front: int, back: int
) -> None:
    model = model_of(tiny)
    attributes = Attributes(model, tiny)
    reference = by_brute_force(model, tiny, front, back)
    saved = expected(tiny, model, front, back)
    with counted(units(model, tiny.adapter)) as calls:
        forward(model, tiny, 0)
        whole = calls[0]
        calls[0] = 0
        with cached(model, settings(front, back, ALWAYS)) as cache:
            outputs = [forward(model, tiny, step) for step in range(STEPS)]
        assert calls[0] == STEPS * whole - (STEPS - 1) * saved
    assert sum(row.saved for row in cache.log.rows) == (STEPS - 1) * saved
    assert sum(row.computed for row in cache.log.rows) == calls[0]
    for output, right in zip(outputs, reference, strict=True):
        assert distance(output, right) < 1e-5
    full = [computed(tiny.name, step) for step in range(STEPS)]
    assert identical(outputs[0], full[0])
    if saved:
        assert all(distance(output, right) > 1e-4 for output, right in zip(outputs[1:], full[1:], strict=True))
    assert not attributes.changed()


@every_model
def test_neither_branches_nor_generations_mix(tiny: TinyModel) -> None:
    model = model_of(tiny)
    branches = ["cond"] if tiny.name in UNCONDITIONAL else ["cond", "uncond"]
    alone = {}
    for branch in branches:
        with cached(model, settings(1, 0, ALWAYS)):
            alone[branch] = [forward(model, tiny, step, branch) for step in range(STEPS)]
    with cached(model, settings(1, 0, ALWAYS)) as cache:
        for generation in range(2):
            for step in range(STEPS):
                for branch in branches:
                    output = forward(model, tiny, step, branch)
                    assert identical(output, alone[branch][step]), f"generation {generation}, step {step}, {branch}"
    rows = {(row.generation, row.step, row.branch) for row in cache.log.rows}
    names = branches if tiny.name in ANNOUNCED else [str(index) for index in range(len(branches))]
    assert rows == {(generation, step, name) for generation in range(2) for step in range(STEPS) for name in names}
    if len(branches) > 1:
        assert distance(alone["cond"][0], alone["uncond"][0]) > 1e-4


def test_every_adapter_has_a_tiny_model() -> None:
    shipped = {adapter.transformer for adapter in registry.all_adapters() if registry.origin(adapter) == "cachedit"}
    assert {tiny.class_name for tiny in TINY.values()} == shipped


@every_model
def test_the_config_tells_the_length_of_every_list(tiny: TinyModel) -> None:
    model = model_of(tiny)
    config: Any = model.config
    for entry in tiny.adapter.lists:
        blocks: Any = model.get_submodule(entry.path)
        assert entry.length is not None
        assert len(blocks) == config[entry.length]


@pytest.mark.parametrize("threshold", [0.03, 0.08, 0.2, 0.4])
def test_lists_that_take_turns_share_every_decision(threshold: float) -> None:
    tiny = TINY["latte"]
    model = model_of(tiny)
    with cached(model, settings(1, 0, threshold)) as cache:
        for step in range(12):
            forward(model, tiny, 3 * step)
    spatial, temporal = (
        [(row.step, row.decision, row.reason) for row in cache.log.rows if row.context.endswith(f".{entry.path}")]
        for entry in tiny.adapter.lists
    )
    assert spatial == temporal
    assert len(spatial) == 12


def test_long_skips_need_a_back_that_is_no_larger_than_the_front() -> None:
    tiny = TINY["hunyuan_dit"]
    model = model_of(tiny)
    attributes = Attributes(model, tiny)
    with pytest.raises(InputError, match=r"transformer\.blocks: Bn_compute_blocks is 2 and Fn_compute_blocks is 1"):
        enable_cache(model, settings(1, 2, ALWAYS))
    assert not attributes.changed()
    for front, back in ((2, 2), (1, 7)):  # nothing is left to reuse in the second
        with cached(model, settings(front, back, ALWAYS)):
            for _ in range(2):
                assert distance(forward(model, tiny, 0), computed(tiny.name, 0)) < 2e-5


def test_blocks_that_begin_anew_are_a_list_of_their_own() -> None:
    tiny = TINY["motif_video_decoder"]
    with cached(model_of(tiny), settings(1, 0, ALWAYS)) as cache:
        assert [(info.name, info.blocks) for info in cache.log.contexts] == [
            ("transformer.transformer_blocks", 4),
            ("transformer.single_transformer_blocks[0:4]", 4),
            ("transformer.single_transformer_blocks[4:8]", 4),
        ]


def test_a_front_larger_than_one_of_two_lists_computes_all_of_it() -> None:
    tiny = replace(TINY["auraflow"], config={**TINY["auraflow"].config, "num_mmdit_layers": 2})
    model = tiny.build()
    with cached(model, settings(3, 0, 1.0)) as cache:
        for step in range(STEPS):
            forward(model, tiny, step)
    joint, single = cache.log.contexts
    assert (joint.blocks, joint.settings["Fn_compute_blocks"], single.settings["Fn_compute_blocks"]) == (2, 2, 3)
    assert joint.notes == ["Fn_compute_blocks is 2 instead of 3: 2 blocks, all of them computed"]
    assert not single.notes
    saved = {
        info.name: sum(row.saved for row in cache.log.rows if row.context == info.name) for info in (joint, single)
    }
    assert saved == {joint.name: 0, single.name: STEPS - 1}
