"""In and out of a model, beside whatever else is in it: hooks, compilation, functors, threads, other models."""

from __future__ import annotations

import copy
import importlib
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cachedit_cli import demo
from cachedit_cli.engine.install import install, installed
from cachedit_cli.errors import InputError, RunError
from cachedit_cli.terms.block_adapter import BlockAdapter, ParamsModifier
from cachedit_cli.terms.config import DBCacheConfig, DBPruneConfig, TaylorSeerCalibratorConfig
from cachedit_cli.terms.functor import PatchFunctor
from cachedit_cli.terms.pattern import ForwardPattern
from tests.tiny import (
    PATTERNS,
    Announcing,
    TinyBlock,
    TinyTransformer,
    adapter,
    computing,
    context,
    run,
    snapshot,
    times,
    walk,
)

P1 = ForwardPattern.Pattern_1
EAGER = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=0, residual_diff_threshold=1.0)
NEVER = replace(EAGER, residual_diff_threshold=0.0)


def same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def cached_run(seed: int = 0, samples: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Return what a fresh model gives with EAGER."""
    model = TinyTransformer(P1, seed=seed)
    with install(adapter(model), EAGER):
        return run(model, samples or walk(4))


# ---- side by side


def test_two_models_of_one_class_do_not_know_of_each_other() -> None:
    one, two, three = (TinyTransformer(P1, seed=seed) for seed in range(3))
    left, right = walk(4, seed=1), walk(4, seed=2)
    plain = run(three, left)
    with install(adapter(one), EAGER) as first, install(adapter(two), EAGER) as second:
        mine: list[Tensor] = []
        other: list[Tensor] = []
        for k, time in enumerate(times(4)):
            mine += run(one, [left[k]], schedule=[time])
            other += run(two, [right[k]], schedule=[time])
        assert same(run(three, left), plain)
    assert same(mine, cached_run(0, left))
    assert same(other, cached_run(1, right))
    assert [row.step for row in first.log.rows] == [row.step for row in second.log.rows] == [0, 1, 2, 3]


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_lists_of_a_model_are_decided_each_for_itself(pattern: ForwardPattern) -> None:
    model = TinyTransformer(pattern, blocks=3, more=4)
    modifiers = [
        ParamsModifier(DBCacheConfig.reset(residual_diff_threshold=0.0)),
        ParamsModifier(DBCacheConfig.reset(Fn_compute_blocks=2, Bn_compute_blocks=1)),
    ]
    with install(adapter(model, params_modifiers=modifiers), EAGER) as cache, computing() as blocks:
        run(model, walk(3))
    everything = ["a0", "a1", "a2", "b0", "b1", "b2", "b3"]
    assert blocks == everything + ["a0", "a1", "a2", "b0", "b1", "b3"] * 2
    assert [(row.context, row.decision) for row in cache.log.rows[2:4]] == [
        ("transformer.blocks", "compute"),
        ("transformer.more", "reuse"),
    ]


def test_chained_lists_are_decided_as_one() -> None:
    model, samples = TinyTransformer(P1, blocks=3, more=4), walk(4)
    whole = TinyTransformer(P1, blocks=7)
    for own, other in zip(model.every(), whole.every(), strict=True):
        other.load_state_dict(own.state_dict())
        other.label = own.label
    with install(adapter(whole), EAGER):
        expected = run(whole, samples)
    with install(adapter(model, chain=True), EAGER) as cache, computing() as blocks:
        assert same(run(model, samples), expected)
    assert blocks[7:] == ["a0"] * 3
    assert {row.context for row in cache.log.rows} == {"transformer.blocks + transformer.more"}
    assert [info.blocks for info in cache.log.contexts] == [7]


def test_lists_of_two_patterns_cannot_be_chained() -> None:
    model = TinyTransformer(P1, blocks=3, more=4, more_pattern=ForwardPattern.Pattern_3)
    with pytest.raises(InputError, match="chain joins lists of one pattern"):
        install(adapter(model, chain=True), EAGER)


def test_lists_of_two_patterns_work_in_one_model() -> None:
    model = TinyTransformer(P1, blocks=3, more=4, more_pattern=ForwardPattern.Pattern_3)
    samples = walk(1) * 3
    plain = run(model, samples, schedule=[5.0] * 3)
    with install(adapter(model), replace(EAGER, num_inference_steps=3)) as cache, computing() as blocks:
        outputs = run(model, samples, schedule=[5.0] * 3)
    assert blocks[7:] == ["a0", "b0"] * 2
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(outputs, plain, strict=True))
    assert [info.pattern for info in cache.log.contexts] == ["Pattern_1", "Pattern_3"]


def test_settings_in_force_are_in_the_log() -> None:
    model = TinyTransformer(P1, blocks=3, more=4)
    modifiers = [
        ParamsModifier(calibrator_config=TaylorSeerCalibratorConfig.reset(taylorseer_order=3)),
        ParamsModifier(DBCacheConfig.reset(max_warmup_steps=2)),
    ]
    with install(adapter(model, params_modifiers=modifiers), EAGER, TaylorSeerCalibratorConfig()) as cache:
        first, second = cache.log.contexts
    assert (first.model, first.block, first.blocks) == ("TinyTransformer", "NamedBlock", 3)
    assert first.settings["calibrator"]["taylorseer_order"] == 3
    assert second.settings["calibrator"]["taylorseer_order"] == 1
    assert (first.settings["max_warmup_steps"], second.settings["max_warmup_steps"]) == (0, 2)
    assert first.settings["type"] == "DBCache"


# ---- copies


def test_a_deep_copy_of_a_cached_model_is_a_plain_model() -> None:
    model, samples = Announcing(P1), walk(4)
    plain = run(model, samples)
    with install(adapter(model), EAGER) as cache:
        run(model, samples)
        rows = len(cache.log.rows)
        twin = copy.deepcopy(model)
        assert installed(twin) is None
        assert same(run(twin, samples), plain)
        with twin.cache_context("cond"):
            assert same(run(twin, samples), plain)
        assert len(cache.log.rows) == rows
    assert same(run(twin, samples), plain)
    # The copies of our methods may stay on the instance; they are the class's, bound to the copy.
    assert set(vars(twin)) - {"cache_context", "compile"} == set(vars(model))
    assert twin.cache_context == Announcing.cache_context.__get__(twin)


def test_a_deep_copy_can_be_cached_beside_the_original() -> None:
    model, samples = Announcing(P1), walk(4)
    with install(adapter(model), EAGER) as cache:
        twin = copy.deepcopy(model)
        with install(adapter(twin), EAGER) as other:
            outputs = run(twin, samples)
            assert cache.log.rows == []
            assert len(other.log.rows) == 4
    assert same(outputs, cached_run())


# ---- beside other changes of the model

Change = Callable[[TinyTransformer], Callable[[], None]]


def hooked(model: TinyTransformer) -> Callable[[], None]:
    """Add one to what the third block is given, and to what it returns."""
    block = model.blocks[2]
    handles = [
        block.register_forward_pre_hook(lambda module, args: (args[0] + 1, *args[1:])),
        block.register_forward_hook(lambda module, args, output: (output[0], output[1] + 1)),
    ]

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo


def offloaded(model: TinyTransformer) -> Callable[[], None]:
    """Wrap every block's forward with an accelerate hook, as model offloading does."""
    hooks: Any = importlib.import_module("accelerate.hooks")

    class Adding(hooks.ModelHook):
        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return (args[0] + 1, *args[1:]), kwargs

    for block in model.blocks:
        hooks.add_hook_to_module(block, Adding())

    def undo() -> None:
        for block in model.blocks:
            hooks.remove_hook_from_module(block)

    return undo


def compiled(model: TinyTransformer) -> Callable[[], None]:
    """Take the slot that ``Module.compile`` takes, as it does, without the seconds that a compiler needs to load."""
    for block in model.blocks:
        inner = block._call_impl
        vars(block)["_compiled_call_impl"] = lambda *args, _inner=inner, **kwargs: _inner(*args, **kwargs)

    def undo() -> None:
        for block in model.blocks:
            block.__dict__.pop("_compiled_call_impl", None)

    return undo


def replaced(model: TinyTransformer) -> Callable[[], None]:
    """Replace a block's forward on the instance."""
    block = model.blocks[2]
    original = block.forward
    vars(block)["forward"] = lambda h, e=None, temb=None: original(h + 1, e, temb)
    return lambda: vars(block).pop("forward")


CHANGES = [hooked, offloaded, compiled, replaced]


def names(model: nn.Module) -> list[list[str]]:
    """Return the attributes of every module; accelerate leaves some behind, with a cache or without."""
    return [list(vars(module)) for module in model.modules()]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("order", ["before", "after"])
def test_other_changes_of_the_blocks_keep_working_and_can_be_taken_out(change: Change, order: str) -> None:
    samples = walk(5)
    model, changed = TinyTransformer(P1), TinyTransformer(P1)
    undo = change(changed)
    plain, wanted = run(model, samples), run(changed, samples)
    undo()

    if order == "before":
        undo = change(model)
        inside = snapshot(model)
        cache = install(adapter(model), NEVER)
    else:
        cache = install(adapter(model), NEVER)
        undo = change(model)
    assert same(run(model, samples), wanted)
    cache.remove()
    if order == "before":
        assert snapshot(model) == inside
    assert same(run(model, samples), wanted)
    undo()
    assert same(run(model, samples), plain)
    assert names(model) == names(changed)


@pytest.mark.parametrize("change", CHANGES)
def test_other_changes_taken_out_while_the_cache_is_in_place_leave_it_working(change: Change) -> None:
    samples = walk(4)
    model, changed = TinyTransformer(P1), TinyTransformer(P1)
    change(changed)()
    undo = change(model)
    with install(adapter(model), EAGER) as cache:
        run(model, samples)
        undo()
        cache.restart()
        outputs = run(model, samples)
        assert [row.decision for row in cache.log.rows[4:]] == ["compute", "reuse", "reuse", "reuse"]
    assert same(outputs, cached_run())
    assert same(run(model, samples), run(TinyTransformer(P1), samples))
    if change is not compiled:  # whose undo takes the cache's own slot, to be filled anew
        assert names(model) == names(changed)


@pytest.mark.parametrize("change", CHANGES)
def test_reused_blocks_run_no_hooks_and_computed_ones_all(change: Change) -> None:
    """Offloaded blocks that are reused are not fetched."""
    model, samples = TinyTransformer(P1), walk(1) * 4
    change(model)
    schedule = [5.0] * 4
    plain = run(model, samples, schedule=schedule)
    with install(adapter(model), replace(EAGER, num_inference_steps=4)), computing() as blocks:
        outputs = run(model, samples, schedule=schedule)
    assert blocks == ["a0", "a1", "a2", "a3", "a4", "a0", "a0", "a0"]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(outputs, plain, strict=True))


def test_blocks_compiled_after_installing_are_reused_all_the_same() -> None:
    model = TinyTransformer(P1)
    with install(adapter(model), EAGER) as cache:
        undo = compiled(model)
        outputs = run(model, walk(4))
        assert [row.saved for row in cache.log.rows] == [0, 4, 4, 4]
    undo()
    assert same(outputs, cached_run())


COMPILING = """
import torch
from cachedit_cli.terms.config import DBCacheConfig
from cachedit_cli.engine.install import install
from tests.tiny import PATTERNS, TinyBlock, TinyTransformer, adapter, run, times, walk

config = DBCacheConfig(1, 0, residual_diff_threshold=1.0, max_warmup_steps=0, max_continuous_cached_steps=1)
compiled = []
TinyBlock.work = lambda self, h, e, temb: (e + 0.1, h + torch.tanh(h @ self.mix + temb))  # counts nothing

def backend(graph, inputs):
    compiled.append(graph)
    return graph.forward

for compile_first in (True, False):
    model, plain = TinyTransformer(PATTERNS[1], 3), TinyTransformer(PATTERNS[1], 3)
    with install(adapter(plain), config):
        wanted = run(plain, walk(6))
    for first in (compile_first, not compile_first):
        if first:
            for block in model.blocks:
                block.compile(backend=backend)
        else:
            cache = install(adapter(model), config)
    with cache:
        outputs = run(model, walk(6)[:1], schedule=times(6)[:1])
        before = len(compiled)
        outputs += run(model, walk(6)[1:], schedule=times(6)[1:])
    assert len(compiled) == before > 0
    assert [row.saved for row in cache.log.rows] == [0, 2] * 3
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(outputs, wanted, strict=True))
"""


def test_really_compiled_blocks_are_reused_without_recompiling() -> None:
    """In a process of its own: the compiler follows every line of Python, and is slow under a coverage tool."""
    done = subprocess.run([sys.executable, "-c", COMPILING], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_hook_on_the_transformer_sees_every_forward() -> None:
    model = TinyTransformer(P1)
    seen: list[Tensor] = []
    handle = model.register_forward_hook(lambda module, args, output: seen.append(output))
    with install(adapter(model), EAGER):
        outputs = run(model, walk(4))
    handle.remove()
    assert same(seen, outputs)


def test_weights_can_be_loaded_moved_and_trained_while_cached() -> None:
    model = TinyTransformer(P1)
    keys = list(model.state_dict())
    with install(adapter(model), EAGER):
        assert list(model.state_dict()) == keys
        model.load_state_dict(TinyTransformer(P1, seed=5).state_dict())
        model.double().float()
        assert same(run(model, walk(4)), cached_run(5))


# ---- what a generation leaves behind


@pytest.mark.parametrize(
    ("change", "resets"),
    [
        (lambda samples: [sample[:, :4] for sample in samples], [(3, "shape")]),
        (lambda samples: [torch.cat([sample, sample]) for sample in samples], [(3, "shape")]),
        (lambda samples: [sample.double() for sample in samples], []),  # conditioning changes too: another branch
    ],
    ids=["resolution", "batch", "dtype"],
)
def test_states_of_another_form_are_never_reused(
    change: Callable[[list[Tensor]], list[Tensor]], resets: list[tuple[int, str]]
) -> None:
    """In the middle of a generation too, where a pipeline changes its resolution."""
    samples = [*walk(6)[:3], *change(walk(6))[3:]]
    model = TinyTransformer(P1)
    with install(adapter(model), EAGER) as cache, torch.no_grad():
        for sample, time in zip(samples, times(6), strict=True):
            model.to(sample.dtype)
            model(sample, time, context().to(sample.dtype))
    assert [row.decision for row in cache.log.rows] == ["compute", "reuse", "reuse"] * 2
    assert cache.log.rows[3].reason == "no-history"
    assert [(reset.step, reset.reason) for reset in cache.log.resets] == resets


def test_a_longer_prompt_in_the_next_generation_is_computed() -> None:
    model = TinyTransformer(P1)
    with install(adapter(model), EAGER) as cache:
        run(model, walk(2), context(words=3))
        run(model, walk(2), context(words=5))
    assert [row.decision for row in cache.log.rows] == ["compute", "reuse"] * 2


def test_blocks_that_change_the_shape_in_the_middle_are_computed_step_after_step() -> None:
    class Growing(TinyBlock):
        def forward(self, hidden_states: Tensor, encoder_hidden_states: Any = None, temb: Any = None) -> Tensor:
            return torch.cat([hidden_states, hidden_states[:, :1]], 1)

    model = TinyTransformer(ForwardPattern.Pattern_3, 4)
    model.blocks[2] = Growing("grow", ForwardPattern.Pattern_3, 0)
    for config in (EAGER, DBPruneConfig(Fn_compute_blocks=1, max_warmup_steps=0, residual_diff_threshold=1.0)):
        with install(adapter(model), config) as cache:
            outputs = run(model, walk(3))
        growing = [row.computed for row in cache.log.rows]
        assert growing == ([4, 4, 4] if isinstance(config, DBCacheConfig) else [4, 2, 2])
        assert outputs[2].shape[1] == walk(1)[0].shape[1] + 1


# ---- functors


class Doubling(PatchFunctor):
    """Stands for an adaptation: replaces a forward, adds an attribute, changes one, and takes one away."""

    def apply(self, transformer: nn.Module) -> nn.Module:
        original = transformer.forward
        # The signature stays: the engine reads it.
        vars(transformer)["forward"] = lambda hidden_states, timestep=None, encoder_hidden_states=None, controls=None: (
            2 * original(hidden_states, timestep, encoder_hidden_states, controls)
        )
        vars(transformer)["extra"] = 1
        vars(transformer.get_submodule("blocks.0"))["label"] = "patched"
        del vars(transformer)["spare"]
        return transformer


def test_a_functor_works_while_cached_and_is_undone_without_touching_what_was_set_meanwhile() -> None:
    model, samples = TinyTransformer(P1), walk(3)
    vars(model)["spare"] = "taken away by the functor"
    plain = run(model, samples)
    before = {module: dict(vars(module)) for module in model.modules()}
    with install(adapter(model, patch_functor=Doubling()), NEVER), computing() as blocks:
        assert same(run(model, samples), [output * 2 for output in plain])
        assert blocks[0] == "patched"
        vars(model)["later"] = "set meanwhile"
    assert vars(model).pop("later") == "set meanwhile"
    assert {module: dict(vars(module)) for module in model.modules()} == before
    assert same(run(model, samples), plain)


# ---- threads


def test_a_second_thread_in_one_transformer_is_an_error_and_the_first_goes_on() -> None:
    model, inside, leave = TinyTransformer(P1), threading.Event(), threading.Event()
    samples = walk(3)
    caught: list[BaseException] = []

    def wait(module: nn.Module, args: Any, output: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        inside.set()
        assert leave.wait(10)

    def intrude() -> None:
        inside.wait(10)
        try:
            run(model, samples[:1])
        except RunError as error:
            caught.append(error)
        leave.set()

    handle = model.blocks[3].register_forward_hook(wait)
    with install(adapter(model), EAGER) as cache:
        thread = threading.Thread(target=intrude)
        thread.start()
        outputs = run(model, samples)
        thread.join()
        handle.remove()
        assert [row.decision for row in cache.log.rows] == ["compute", "reuse", "reuse"]
    assert [str(error) for error in caught] == [
        "TinyTransformer: two threads are in this transformer at once, and its cache can only follow one; "
        "give each thread a pipeline with a transformer of its own"
    ]
    assert same(outputs, cached_run(samples=samples))


def test_two_threads_with_a_model_each_are_right() -> None:
    together = threading.Barrier(2)
    results: dict[int, list[list[Tensor]]] = {0: [], 1: []}

    def work(seed: int) -> None:
        model = TinyTransformer(P1, seed=seed)
        with install(adapter(model), EAGER):
            for _ in range(5):
                together.wait(10)
                results[seed].append(run(model, walk(6, seed)))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, runs in results.items():
        expected = cached_run(seed, walk(6, seed))
        assert len(runs) == 5
        assert all(same(outputs, expected) for outputs in runs)


# ---- models that leave blocks out


def test_a_model_that_leaves_out_the_last_reused_block_is_an_error_not_a_wrong_picture() -> None:
    class Leaving(TinyTransformer):
        short = False

        def every(self) -> list[TinyBlock]:
            return super().every()[: 3 if self.short else 5]

    model = Leaving(P1)
    with install(adapter(model), EAGER):
        run(model, walk(1), schedule=[9.0])
        model.short = True
        with pytest.raises(RunError, match="the model left out the last of the blocks that were to be reused"):
            run(model, walk(1), schedule=[8.0])


def test_blocks_called_outside_of_a_forward_are_computed() -> None:
    model = TinyTransformer(P1)
    h, e, temb = walk(1)[0], context(), model.embed(5.0)
    for config in (EAGER, DBPruneConfig(Fn_compute_blocks=1)):
        with install(adapter(model), config) as cache, computing() as blocks, torch.no_grad():
            for block in model.blocks:
                wanted = block.forward(h, e, temb)
                assert same(block(h, e, temb), wanted)
        assert len(blocks) == 10
        assert cache.log.rows == []


# ---- what a BlockAdapter may be


def test_lists_patterns_and_modifiers_have_to_correspond() -> None:
    model = TinyTransformer(P1, more=2)
    whole = adapter(model)
    for wrong, message in [
        (replace(whole, blocks=None), "BlockAdapter: blocks are missing; name the block lists, or set auto=True"),
        (replace(whole, forward_pattern=None), "BlockAdapter: forward_pattern is missing; see ForwardPattern"),
        (replace(whole, forward_pattern=[P1] * 3), "BlockAdapter: forward_pattern: 3 given for 2 block lists"),
        (
            replace(whole, params_modifiers=[ParamsModifier()]),
            "BlockAdapter: params_modifiers: 1 given for 2 block lists",
        ),
        (
            replace(whole, blocks=[TinyTransformer(P1).blocks], forward_pattern=P1),
            "BlockAdapter: blocks: a list given is no part of TinyTransformer",
        ),
        (replace(whole, transformer=None), "BlockAdapter: give a transformer, or a pipe that has one"),
        (
            replace(whole, transformer=[model, TinyTransformer(P1)], blocks=[model.blocks]),
            "BlockAdapter: blocks: 1 entries for 2 transformers",
        ),
    ]:
        with pytest.raises(InputError) as caught:
            install(wrong, EAGER)
        assert str(caught.value) == message


def test_an_empty_list_is_an_error() -> None:
    model = TinyTransformer(P1, more=0)
    with pytest.raises(InputError, match=r"transformer\.more: this block list is empty"):
        install(BlockAdapter(transformer=model, blocks=model.more, forward_pattern=P1), EAGER)


# ---- the bundled pipeline


def draw(pipe: Any, steps: int = 4, seed: int = 0, **more: Any) -> Any:
    call = {**demo.DEFAULTS, "num_inference_steps": steps, "generator": torch.Generator().manual_seed(seed), **more}
    return pipe("red heart on a white background", output_type="np", **call).images[0]


def flux_adapter(pipe: Any) -> BlockAdapter:
    model = pipe.transformer
    return BlockAdapter(
        pipe=pipe,
        transformer=model,
        blocks=[model.transformer_blocks, model.single_transformer_blocks],
        forward_pattern=P1,
        chain=True,
    )


def test_the_bundled_pipeline_is_exact_without_reuse_and_as_before_afterwards(flux: Any) -> None:
    plain = draw(flux)
    attributes = list(vars(flux))
    before = snapshot(flux, *(part for part in flux.components.values() if isinstance(part, nn.Module)))
    with install(flux_adapter(flux), NEVER):
        assert (draw(flux) == plain).all()
    with install(flux_adapter(flux), EAGER) as cache:
        assert (draw(flux) != plain).any()
        assert [row.decision for row in cache.log.rows] == ["compute", "reuse", "reuse", "reuse"]
    after = snapshot(flux, *(part for part in flux.components.values() if isinstance(part, nn.Module)))
    assert after[1:] == before[1:]
    assert list(vars(flux)) == attributes
    assert (draw(flux) == plain).all()


def test_buffers_are_freed_before_the_pipeline_decodes(flux: Any) -> None:
    held: list[int] = []
    decode = flux.vae.decode
    with install(flux_adapter(flux), EAGER) as cache:

        def watch(*args: Any, **kwargs: Any) -> Any:
            held.append(cache.nbytes)
            return decode(*args, **kwargs)

        vars(flux.vae)["decode"] = watch
        try:
            draw(flux)
        finally:
            del vars(flux.vae)["decode"]
        assert max(row.bytes for row in cache.log.rows) > 0
        assert cache.nbytes == 0
    assert held == [0]


def test_an_interrupted_picture_leaves_nothing_to_the_next(flux: Any) -> None:
    def stop(pipe: Any, step: int, time: Any, tensors: Any) -> Any:
        if step == 1:
            raise KeyboardInterrupt
        return tensors

    def end(pipe: Any, step: int, time: Any, tensors: Any) -> Any:
        pipe._interrupt = step >= 1
        return tensors

    with install(flux_adapter(flux), EAGER) as cache:
        expected = draw(flux, seed=1)
        with pytest.raises(KeyboardInterrupt):
            draw(flux, callback_on_step_end=stop)
        assert (draw(flux, seed=1) == expected).all()
        draw(flux, callback_on_step_end=end)
        assert (draw(flux, seed=1) == expected).all()
    steps = {g: [row.step for row in cache.log.rows if row.generation == g] for g in range(5)}
    assert steps == {0: [0, 1, 2, 3], 1: [0, 1], 2: [0, 1, 2, 3], 3: [0, 1], 4: [0, 1, 2, 3]}


def test_other_steps_sizes_and_batches_follow_each_other_as_in_fresh_processes(flux: Any) -> None:
    calls: list[dict[str, Any]] = [
        {"steps": 4},
        {"steps": 3, "seed": 2},
        {"steps": 4, "height": 32},
        {"steps": 4, "num_images_per_prompt": 2},
        {"steps": 1},
        {"steps": 1},
    ]
    alone = []
    for call in calls:
        with install(flux_adapter(flux), EAGER):
            alone.append(draw(flux, **call))
    with install(flux_adapter(flux), EAGER) as cache:
        for call, expected in zip(calls, alone, strict=True):
            assert (draw(flux, **call) == expected).all()
    assert [row.generation for row in cache.log.rows if row.step == 0] == [0, 1, 2, 3, 4, 5]


def test_true_guidance_is_two_branches_by_name(flux: Any) -> None:
    with install(flux_adapter(flux), EAGER) as cache:
        draw(flux, steps=3, true_cfg_scale=2.0, negative_prompt="blue")
    assert [(row.step, row.branch) for row in cache.log.rows] == [
        (k, name) for k in range(3) for name in ("cond", "uncond")
    ]


def test_two_pipelines_that_share_a_transformer_follow_each_other(flux: Any) -> None:
    twin = type(flux)(**flux.components)
    twin.set_progress_bar_config(disable=True)
    with install(flux_adapter(flux), EAGER):
        expected = draw(flux)
    with install(flux_adapter(flux), EAGER) as cache:
        assert (draw(flux) == expected).all()
        assert (draw(twin) == expected).all()
        assert (draw(flux) == expected).all()
    assert [row.generation for row in cache.log.rows] == [g for g in range(3) for _ in range(4)]
