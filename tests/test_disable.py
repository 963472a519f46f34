"""Taking the cache out leaves pipeline and modules as they were, whatever else was done to them before or meanwhile."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn

from cachedit_cli import (
    DBCacheConfig,
    DBPruneConfig,
    TaylorSeerCalibratorConfig,
    cached,
    demo,
    disable_cache,
    enable_cache,
    refresh_context,
)
from cachedit_cli.engine.install import installed
from cachedit_cli.errors import InputError
from tests.tiny import snapshot

MEASURED = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.9)
PRUNED = DBPruneConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.9)


def make(flux: Any) -> Any:
    """Return a pipeline of its own around a transformer of two and two blocks with fixed weights."""
    torch.manual_seed(0)
    config = {**flux.transformer.config, "num_layers": 2, "num_single_layers": 2}
    small = FluxTransformer2DModel.from_config(config).eval()
    pipe = FluxPipeline(**{**flux.components, "scheduler": copy.deepcopy(flux.scheduler), "transformer": small})
    pipe.set_progress_bar_config(disable=True)
    draw(pipe)  # what pipelines set on themselves in a call is no matter of the cache
    return pipe


def draw(pipe: Any) -> Tensor:
    picture: Tensor = pipe(
        "red heart on a white background",
        **demo.DEFAULTS,
        num_inference_steps=6,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images
    return picture


def modules(pipe: Any) -> list[nn.Module]:
    return [part for part in pipe.components.values() if isinstance(part, nn.Module)]


def state(pipe: Any) -> Any:
    """Return what ``vars()`` of the pipeline and of all modules hold; a call sets numbers on the pipeline anew."""
    own = [(name, repr(value) if isinstance(value, (float, dict)) else id(value)) for name, value in vars(pipe).items()]
    return own, snapshot(*modules(pipe))


def names(pipe: Any) -> list[list[str]]:
    """Return the attributes of pipeline and modules, for pipelines that share nothing."""
    return [list(vars(pipe)), *(list(vars(module)) for part in modules(pipe) for module in part.modules())]


def reusing(pipe: Any) -> Tensor:
    """Draw, and make sure that something was reused."""
    picture = draw(pipe)
    there = installed(pipe.transformer)
    assert there is not None
    assert any(row.saved for row in there.log.generation())
    return picture


# ---- what others change


def untouched(pipe: Any) -> None:
    pass


def lora(pipe: Any) -> None:
    from peft import LoraConfig

    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]), adapter_name="style")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, weight in pipe.transformer.named_parameters():
            if ".style." in key:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)


def fused_lora(pipe: Any) -> None:
    lora(pipe)
    pipe.transformer.fuse_lora()


def unloaded_lora(pipe: Any) -> None:
    lora(pipe)
    pipe.unload_lora_weights()


def accelerate_hooks(pipe: Any) -> None:
    """As offloading does: on the transformer, and on every block."""
    hooks: Any = importlib.import_module("accelerate.hooks")

    class Scaling(hooks.ModelHook):
        def post_forward(self, module: nn.Module, output: Any) -> Any:
            return tuple(value * 1.01 for value in output)

    for block in (*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks):
        hooks.add_hook_to_module(block, Scaling())
    hooks.add_hook_to_module(pipe.transformer, hooks.ModelHook())


def compiled_blocks(pipe: Any) -> None:
    for block in pipe.transformer.transformer_blocks:
        block.compile(backend="eager")


def compiled_repeated_blocks(pipe: Any) -> None:
    pipe.transformer.compile_repeated_blocks(backend="eager")


def test_a_transformer_put_back_compiled_as_a_whole_is_refused_at_the_next_picture(flux: Any) -> None:
    """torch.compile makes another module around the cached one, which then would reuse nothing and say nothing."""
    pipe = make(flux)
    with cached(pipe, DBCacheConfig(Fn_compute_blocks=1)):
        draw(pipe)
        own, pipe.transformer = pipe.transformer, torch.compile(pipe.transformer, backend="eager")
        with pytest.raises(InputError, match="FluxTransformer2DModel is to be compiled as a whole"):
            draw(pipe)
        pipe.transformer = own
        draw(pipe)


Change = Callable[[Any], None]
CHANGES: list[Change] = [
    untouched,
    lora,
    fused_lora,
    unloaded_lora,
    accelerate_hooks,
    compiled_blocks,
    compiled_repeated_blocks,
]
changes = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)


@changes
@pytest.mark.parametrize(
    ("config", "calibrator"),
    [(MEASURED, None), (MEASURED, TaylorSeerCalibratorConfig()), (PRUNED, None)],
    ids=["DBCache", "TaylorSeer", "DBPrune"],
)
def test_what_was_done_before_is_there_afterwards(change: Change, config: Any, calibrator: Any, flux: Any) -> None:
    pipe = make(flux)
    change(pipe)
    plain = draw(pipe)
    before = state(pipe)
    enable_cache(pipe, config, calibrator)
    assert state(pipe) != before
    assert not torch.equal(reusing(pipe), plain)
    disable_cache(pipe)
    assert state(pipe) == before
    assert torch.equal(draw(pipe), plain)
    assert state(pipe) == before


@changes
@pytest.mark.parametrize("drawing", [True, False], ids=["and a picture", "and nothing"])
def test_what_is_done_while_cached_stays(change: Change, drawing: bool, flux: Any) -> None:
    """As on a pipeline that was never cached, also if no picture comes between the change and the end of the cache."""
    other, pipe = make(flux), make(flux)
    change(other)
    expected = draw(other)
    enable_cache(pipe, MEASURED)
    reusing(pipe)
    change(pipe)
    if drawing:
        with cached(other, MEASURED):
            wanted = reusing(other)
        assert torch.equal(reusing(pipe), wanted)
    disable_cache(pipe)
    assert names(pipe) == names(other)
    assert torch.equal(draw(pipe), expected)


@pytest.mark.parametrize("change", [lora, accelerate_hooks], ids=["lora", "accelerate_hooks"])
def test_what_is_undone_while_cached_stays_undone(change: Change, flux: Any) -> None:
    hooks: Any = importlib.import_module("accelerate.hooks")
    other, pipe = make(flux), make(flux)
    plain = draw(pipe)
    for item in (other, pipe):
        change(item)
    enable_cache(pipe, MEASURED)
    reusing(pipe)
    for item in (other, pipe):
        if change is lora:
            item.unload_lora_weights()
        else:
            hooks.remove_hook_from_module(item.transformer, recurse=True)
    reusing(pipe)
    disable_cache(pipe)
    assert torch.equal(draw(pipe), plain)
    assert names(pipe) == names(other)


def test_enabling_and_refreshing_time_and_again_leaves_nothing_behind(flux: Any) -> None:
    pipe = make(flux)
    plain, before = draw(pipe), state(pipe)
    once: Tensor | None = None
    for _ in range(3):
        enable_cache(pipe, PRUNED)
        enable_cache(pipe, MEASURED)
        refresh_context(pipe, num_inference_steps=6)
        picture = reusing(pipe)
        once = picture if once is None else once
        assert torch.equal(picture, once)
    disable_cache(pipe)
    disable_cache(pipe)
    assert state(pipe) == before
    assert torch.equal(draw(pipe), plain)


def test_the_transformer_alone_takes_out_what_was_put_in_through_the_pipeline(flux: Any) -> None:
    pipe = make(flux)
    before = state(pipe)
    enable_cache(pipe, MEASURED)
    disable_cache(pipe.transformer)
    assert state(pipe) == before


def test_a_cache_that_is_taken_out_in_the_middle_of_a_picture_lets_it_be_finished(flux: Any) -> None:
    pipe = make(flux)
    before = state(pipe)

    def disabling(_: Any, step: int, time: Any, tensors: Any) -> Any:
        if step == 2:
            disable_cache(pipe)
        return tensors

    enable_cache(pipe, MEASURED)
    half = installed(pipe.transformer)
    assert half is not None
    pipe("red heart", **demo.DEFAULTS, num_inference_steps=6, output_type="latent", callback_on_step_end=disabling)
    assert [row.step for row in half.log.rows] == [0, 1, 2]
    assert half.nbytes == 0
    assert state(pipe) == before


def test_an_exception_inside_the_with_block_takes_the_cache_out(flux: Any) -> None:
    pipe = make(flux)
    plain, before = draw(pipe), state(pipe)

    def work() -> None:
        with cached(pipe, MEASURED):
            reusing(pipe)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert state(pipe) == before
    assert torch.equal(draw(pipe), plain)
