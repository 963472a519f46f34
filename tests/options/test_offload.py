"""`model.offload`: weights wait elsewhere, the picture is the same, and reused blocks are not fetched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook
from diffusers.hooks.group_offloading import ModuleGroup

from cachedit_cli import generate, opening, pipeline, recipe
from cachedit_cli.errors import InputError
from tests.options.opened import CACHE, REUSING, Drawn, opened, picture, with_and_without

MODEL, SEQUENTIAL, GROUP = "model.offload=model", "model.offload=sequential", "model.offload=group"
BY_THREE = "model.offload={type: group, blocks_per_group: 3}"
LEAVES = "model.offload={type: group, level: leaf_level}"


@pytest.mark.parametrize("option", [MODEL, SEQUENTIAL, BY_THREE, LEAVES])
def test_the_pictures_are_those_without_offloading(option: str, plain: Drawn) -> None:
    drawn = with_and_without(option)
    assert torch.equal(drawn.plain, plain.plain)
    assert torch.equal(drawn.never, drawn.plain)
    assert torch.equal(drawn.cached, plain.cached)
    assert drawn.saved == plain.saved == 2 * 17


@contextmanager
def fetches(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Collect the name of each module of the transformer whose weights are moved to the device."""
    names = {id(module): name for name, module in pipe.transformer.named_modules()}
    seen: list[str] = []
    onload, before = ModuleGroup.onload_, AlignDevicesHook.pre_forward

    def onloading(group: Any) -> None:
        seen.extend(names[id(module)] for module in group.modules if id(module) in names)
        onload(group)

    def aligning(hook: Any, module: Any, *args: Any, **kwargs: Any) -> Any:
        if hook.offload and id(module) in names:
            seen.append(names[id(module)])
        return before(hook, module, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ModuleGroup, "onload_", onloading)
        patch.setattr(AlignDevicesHook, "pre_forward", aligning)
        yield seen


@pytest.mark.parametrize("option", [SEQUENTIAL, GROUP, BY_THREE, LEAVES])
def test_reused_blocks_are_not_fetched(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, ready = opened(option)
    with fetches(ready.pipe, monkeypatch) as every:
        picture(ready.pipe)
    cached = recipe.load("demo", [*CACHE, option, REUSING])
    with pipeline.quiet(), generate.caching(cached, ready) as log, fetches(ready.pipe, monkeypatch) as some:
        picture(ready.pipe)
    blocks = {f"transformer_blocks.{index}" for index in range(6)}
    blocks |= {f"single_transformer_blocks.{index}" for index in range(12)}

    def fetched(names: list[str], block: str) -> int:
        return sum(f"{name}.".startswith(f"{block}.") for name in names)

    front = {"transformer_blocks.0"}
    if option == BY_THREE:
        front |= {"transformer_blocks.1", "transformer_blocks.2"}  # which the front block fetches along
    assert sum(row.decision == "reuse" for row in log.rows) == 2
    for block in blocks:
        whole = fetched(every, block)
        assert whole > 0
        assert fetched(some, block) == (whole if block in front else whole // 3), block  # 1 of 3 steps


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            ["model.offload=model", "model.device=auto"],
            "model.offload: there is no accelerator here to offload from (leave it out; with model.device: cpu it is "
            "tried out in main memory)",
        ),
        (
            ["model.offload={type: group, streams: true}"],
            "model.offload.streams: cpu has no streams, CUDA has (leave it out)",
        ),
    ],
)
def test_what_cannot_be_offloaded_here_is_refused_before_weights_are_loaded(
    options: list[str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(opening, "load", lambda *_: pytest.fail("weights are loaded"))
    with pytest.raises(InputError) as error:
        opened(*options)
    assert str(error.value) == problem


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("offload: grup", "r.yaml:5:12: model.offload.type: 'grup' is unknown (did you mean 'group'?)"),
        (
            "offload: {type: model, level: leaf_level}",
            "r.yaml:5:12: model.offload: level goes with the type group, not model",
        ),
        (
            "offload: {type: group, level: leaf_level, blocks_per_group: 2}",
            "r.yaml:5:12: model.offload: blocks_per_group goes with block_level; of leaf_level, each layer is a group",
        ),
        (
            "offload: {type: group, streams: true, blocks_per_group: 2}",
            "r.yaml:5:12: model.offload: streams move one block at a time: leave blocks_per_group out",
        ),
        (
            "offload: {type: group, block_per_group: 2}",
            "r.yaml:5:26: model.offload.block_per_group: unknown key (did you mean 'blocks_per_group'?)",
        ),
        (
            "offload: {type: group, blocks_per_group: 2}\ncache: {Bn_compute_blocks: 1}",
            "r.yaml:5:44: model.offload.blocks_per_group: the first block of a group fetches it, which a reused one "
            "does not do, and Bn_compute_blocks computes some behind them (write 1)",
        ),
        (
            "offload: {type: group, blocks_per_group: 2}\ncache: {type: DBPrune}",
            "r.yaml:5:44: model.offload.blocks_per_group: the first block of a group fetches it, which a reused one "
            "does not do, and DBPrune reuses single blocks (write 1)",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused_by_the_recipe(
    options: str, problem: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(f"version: 1\ngenerate: {{prompt: a}}\nmodel:\n  id: demo\n  {options}\n")
    with pytest.raises(InputError) as error:
        recipe.load("r.yaml")
    assert str(error.value) == problem
