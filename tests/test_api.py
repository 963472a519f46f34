"""The Python API on the bundled pipeline and on bare transformers."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cachedit_cli
from cachedit_cli import (
    BlockAdapter,
    BlockAdapterRegister,
    DBCacheConfig,
    DBPruneConfig,
    ForwardPattern,
    ParamsModifier,
    TaylorSeerCalibratorConfig,
    cached,
    demo,
    disable_cache,
    enable_cache,
    refresh_context,
    summary,
)
from cachedit_cli.engine.install import installed
from cachedit_cli.errors import InputError
from tests.tiny import TinyTransformer, adapter, computing, run, snapshot, walk

P1 = ForwardPattern.Pattern_1
EAGER = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=0, residual_diff_threshold=1.0)


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def draw(pipe: Any, steps: int = 4, **more: Any) -> Any:
    call = {**demo.DEFAULTS, "num_inference_steps": steps, "generator": torch.Generator().manual_seed(0), **more}
    return pipe("red heart on a white background", output_type="np", **call).images[0]


@pytest.fixture
def pipe(flux: Any) -> Iterator[Any]:
    """The bundled pipeline, which every test has to leave as it was."""
    draw(flux, steps=1)  # whose first call leaves diffusers' own attributes behind
    parts = [part for part in flux.components.values() if isinstance(part, nn.Module)]
    before, attributes = snapshot(*parts), list(vars(flux))
    yield flux
    disable_cache(flux)
    assert snapshot(*parts) == before
    assert list(vars(flux)) == attributes


# ---- names


def test_the_public_names_are_exactly_these() -> None:
    assert sorted(cachedit_cli.__all__) == [
        "AutoCalibratorConfig",
        "BlockAdapter",
        "BlockAdapterRegister",
        "CalibratorConfig",
        "DBCacheConfig",
        "DBPruneConfig",
        "ForwardPattern",
        "ParamsModifier",
        "PatchFunctor",
        "Streams",
        "TaylorSeerCalibratorConfig",
        "cached",
        "disable_cache",
        "enable_cache",
        "refresh_context",
        "steps_mask",
        "summary",
    ]
    assert set(cachedit_cli.__all__) <= set(dir(cachedit_cli))
    for name in cachedit_cli.__all__:
        assert getattr(cachedit_cli, name).__name__ == name


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    name = "DBCache"
    with pytest.raises(AttributeError) as caught:
        getattr(cachedit_cli, name)
    assert str(caught.value) == "module 'cachedit_cli' has no attribute 'DBCache'"


@pytest.mark.parametrize(
    "code",
    [
        "import cachedit_cli",
        "from cachedit_cli import steps_mask; steps_mask(total_steps=28)",
        "from cachedit_cli import DBCacheConfig, TaylorSeerCalibratorConfig, ForwardPattern; DBCacheConfig()",
    ],
)
def test_importing_and_what_needs_no_model_loads_no_torch(code: str) -> None:
    check = f"import sys; {code}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


# ---- a registered pipeline


def test_one_line_caches_a_registered_pipeline_and_another_takes_it_out(pipe: Any) -> None:
    plain = draw(pipe)
    assert enable_cache(pipe, EAGER) is pipe
    pictures = [draw(pipe), draw(pipe)]
    stats = summary(pipe)
    disable_cache(pipe)
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[0] != plain).any()
    assert (draw(pipe) == plain).all()
    assert [entry.name for entry in stats] == [
        "transformer.transformer_blocks + transformer.single_transformer_blocks",
    ]
    assert stats[0].cached_steps == [1, 2, 3]
    assert stats[0].saved == 3 * (stats[0].block_calls // 4 - 1)


def test_the_pipeline_its_transformer_and_an_adapter_by_hand_give_the_same_picture(pipe: Any) -> None:
    model = pipe.transformer
    by_hand = BlockAdapter(
        pipe=pipe,
        transformer=model,
        blocks=[model.transformer_blocks, model.single_transformer_blocks],
        forward_pattern=[P1, P1],
        chain=True,
    )
    pictures = []
    for target in (pipe, model, by_hand):
        with cached(target, EAGER) as cache:
            pictures.append(draw(pipe))
            assert [row.decision for row in cache.log.rows] == ["compute", "reuse", "reuse", "reuse"]
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[0] == pictures[2]).all()


def test_the_defaults_fit_a_model_that_is_shorter_than_they_are_and_say_so(pipe: Any) -> None:
    with cached(pipe) as cache:
        info = cache.log.contexts[0]
    blocks = len(pipe.transformer.transformer_blocks) + len(pipe.transformer.single_transformer_blocks)
    assert info.blocks == blocks
    assert info.settings["max_warmup_steps"] == 8
    assert info.settings["residual_diff_threshold"] == 0.08
    assert (info.settings["Fn_compute_blocks"] == 8) is (blocks > 8)
    assert bool(info.notes) is (blocks <= 8)


def test_caching_a_shallow_copy_of_a_pipeline_follows_its_shared_transformer(pipe: Any) -> None:
    with cached(pipe, EAGER):
        expected = draw(pipe)
    twin = copy.copy(pipe)
    with cached(pipe, EAGER) as cache:
        assert (draw(twin) == expected).all()
        assert (draw(pipe) == expected).all()
    assert [row.generation for row in cache.log.rows] == [0] * 4 + [1] * 4


@pytest.mark.skipif(
    version("transformers").startswith("4."), reason="CLIP of transformers 4 makes its mask in float32 only"
)
def test_changing_the_type_of_the_weights_between_pictures_leaves_nothing_behind(pipe: Any) -> None:
    types = (torch.float32, torch.float64, torch.float32)
    fresh = []
    for dtype in types:
        pipe.to(dtype)
        with cached(pipe, EAGER):
            fresh.append(draw(pipe))
    with cached(pipe, EAGER):
        for dtype, expected in zip(types, fresh, strict=True):
            pipe.to(dtype)
            assert (draw(pipe) == expected).all()


# ---- a bare transformer


def test_a_bare_transformer_works_with_a_block_adapter() -> None:
    model, samples = TinyTransformer(P1), walk(4)
    plain, before = run(model, samples), snapshot(model)
    data = adapter(model)
    assert enable_cache(data, EAGER) is data
    with computing() as blocks:
        run(model, samples)
    assert len(blocks) == 5 + 3
    assert summary(model)[0].cached_steps == summary(data)[0].cached_steps == [1, 2, 3]
    disable_cache(model)
    assert snapshot(model) == before
    assert same(run(model, samples), plain)


def test_enabling_twice_replaces_the_first() -> None:
    model, samples = TinyTransformer(P1), walk(4)
    before = snapshot(model)
    enable_cache(adapter(model), EAGER)
    first = installed(model)
    enable_cache(adapter(model), DBCacheConfig(Fn_compute_blocks=3, max_warmup_steps=0, residual_diff_threshold=1.0))
    assert first is not None
    with computing() as blocks:
        run(model, samples)
    assert len(blocks) == 5 + 3 * 3
    assert first.log.rows == []
    disable_cache(model)
    assert snapshot(model) == before


def test_disabling_what_is_not_cached_does_nothing() -> None:
    model = TinyTransformer(P1)
    before = snapshot(model)
    disable_cache(model)
    disable_cache(adapter(model))
    assert snapshot(model) == before


def test_the_context_manager_takes_the_cache_out_after_an_error() -> None:
    model = TinyTransformer(P1)
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt), cached(adapter(model), EAGER):
        raise KeyboardInterrupt
    assert snapshot(model) == before


def test_modifiers_and_calibrators_can_be_given_when_enabling() -> None:
    model = TinyTransformer(P1, blocks=3, more=4)
    modifiers = [
        ParamsModifier(DBCacheConfig.reset(Fn_compute_blocks=2)),
        ParamsModifier(calibrator_config=TaylorSeerCalibratorConfig(taylorseer_order=2)),
    ]
    with cached(adapter(model), EAGER, TaylorSeerCalibratorConfig(), modifiers) as cache:
        first, second = cache.log.contexts
    assert (first.settings["Fn_compute_blocks"], second.settings["Fn_compute_blocks"]) == (2, 1)
    orders = [info.settings["calibrator"]["taylorseer_order"] for info in (first, second)]
    assert orders == [1, 2]


def test_pruning_is_chosen_by_its_settings() -> None:
    model = TinyTransformer(P1)
    with cached(adapter(model), DBPruneConfig(Fn_compute_blocks=1, max_warmup_steps=0, residual_diff_threshold=1.0)):
        run(model, walk(3))
        (stats,) = summary(model)
    assert stats.pruned_blocks == {1: 4, 2: 4}
    assert stats.pruned_steps == [1, 2]
    assert stats.cached_steps == []


# ---- refresh and summary


def test_refreshing_begins_a_generation_with_other_settings() -> None:
    model, samples = TinyTransformer(P1), walk(8)
    config = DBCacheConfig(
        Fn_compute_blocks=1, max_warmup_steps=0, steps_computation_mask="fast", steps_computation_policy="static"
    )
    enable_cache(adapter(model), config)
    with pytest.raises(InputError, match="set num_inference_steps"):
        run(model, samples, schedule=[None] * 8)
    refresh_context(model, num_inference_steps=8)
    run(model, samples, schedule=[None] * 8)
    eight = [row.decision == "compute" for row in _rows(model)]
    refresh_context(model, num_inference_steps=4)
    run(model, samples[:4], schedule=[None] * 4)
    four = [row.decision == "compute" for row in _rows(model)[8:]]
    refresh_context(model, cache_config=DBCacheConfig.reset(Fn_compute_blocks=1, residual_diff_threshold=0.0))
    run(model, samples[:4])
    assert eight == [bool(bit) for bit in cachedit_cli.steps_mask(total_steps=8, mask_policy="fast")]
    assert four == [bool(bit) for bit in cachedit_cli.steps_mask(total_steps=4, mask_policy="fast")]
    assert [row.decision for row in _rows(model)[12:]] == ["compute"] * 4
    disable_cache(model)


def _rows(model: nn.Module) -> Any:
    there = installed(model)
    assert there is not None
    return there.log.rows


def test_a_refresh_drops_what_is_stored() -> None:
    model, samples = TinyTransformer(P1), walk(6)
    with cached(adapter(model), EAGER) as cache:
        run(model, samples[:3], schedule=[9.0, 8.0, 7.0])
        refresh_context(model)
        assert cache.nbytes == 0
        run(model, samples[3:], schedule=[6.0, 5.0, 4.0])
        assert [row.decision for row in _rows(model)] == ["compute", "reuse", "reuse"] * 2
        disable_cache(model)


def test_a_refresh_that_fails_leaves_the_old_settings_in_force() -> None:
    model, samples = TinyTransformer(P1), walk(4)
    enable_cache(adapter(model), EAGER)
    with pytest.raises(InputError, match="Fn_compute_blocks is 9, but the list has 5 blocks"):
        refresh_context(model, cache_config=DBCacheConfig(Fn_compute_blocks=9))
    with computing() as blocks:
        run(model, samples)
    assert len(blocks) == 5 + 3
    disable_cache(model)
    assert installed(model) is None


def test_a_verbose_refresh_prints_the_settings_in_force(capsys: pytest.CaptureFixture[str]) -> None:
    model = TinyTransformer(P1)
    with cached(adapter(model), EAGER):
        refresh_context(model, num_inference_steps=17, verbose=True)
        disable_cache(model)
    assert "17" in capsys.readouterr().out


def test_the_summary_is_of_the_last_generation_and_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    model = TinyTransformer(P1)
    enable_cache(adapter(model), DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=0.9))
    run(model, walk(3))
    run(model, walk(5))
    (stats,) = summary(model, details=True)
    disable_cache(model)
    assert (stats.name, stats.cached_steps, list(stats.residual_diffs)) == (
        "transformer.blocks",
        [1, 2, 3, 4],
        [1, 2, 3, 4],
    )
    assert "transformer.blocks" in capsys.readouterr().out


# ---- errors say what to do


def test_an_unknown_model_is_told_how_to_be_cached() -> None:
    with pytest.raises(InputError) as caught:
        enable_cache(TinyTransformer(P1), EAGER)
    assert str(caught.value) == (
        "TinyTransformer: no adapter is registered for it or its parts (TinyTransformer). "
        "Pass a BlockAdapter that names its block lists and their forward pattern."
    )


def test_a_class_with_nearly_the_name_of_a_known_one_is_told_so() -> None:
    class FluxTransformer3DModel(TinyTransformer): ...

    with pytest.raises(InputError, match="The nearest class with an adapter is FluxTransformer2DModel"):
        enable_cache(FluxTransformer3DModel(P1), EAGER)


@pytest.mark.parametrize("call", [summary, refresh_context])
def test_asking_of_what_is_not_cached_names_the_way_out(call: Any) -> None:
    with pytest.raises(InputError) as caught:
        call(TinyTransformer(P1))
    assert str(caught.value) == "TinyTransformer is not cached; call enable_cache first"


def test_a_front_longer_than_the_list_names_both_numbers() -> None:
    model = TinyTransformer(P1)
    before = snapshot(model)
    with pytest.raises(InputError) as caught:
        enable_cache(adapter(model), DBCacheConfig(Fn_compute_blocks=6))
    assert str(caught.value) == "transformer.blocks: Fn_compute_blocks is 6, but the list has 5 blocks"
    assert snapshot(model) == before


# ---- adapters of one's own


class TinyPipeline:
    def __init__(self, model: nn.Module) -> None:
        self.transformer = model


def test_an_adapter_registered_as_a_function_serves_its_pipelines() -> None:
    register: Any = BlockAdapterRegister.register("TinyPipe")

    @register
    def tiny(pipe: Any, **options: Any) -> BlockAdapter:
        return BlockAdapter(pipe=pipe, transformer=pipe.transformer, blocks=pipe.transformer.blocks, forward_pattern=P1)

    try:
        pipe = TinyPipeline(TinyTransformer(P1))
        with cached(pipe, EAGER) as cache:
            run(pipe.transformer, walk(3))
            assert [row.decision for row in cache.log.rows] == ["compute", "reuse", "reuse"]
    finally:
        BlockAdapterRegister.unregister("TinyPipe")
    with pytest.raises(InputError, match="no adapter is registered"):
        enable_cache(pipe, EAGER)


def test_a_function_that_returns_no_adapter_is_named() -> None:
    register: Any = BlockAdapterRegister.register("TinyPipe")
    register(lambda pipe: None)
    try:
        with pytest.raises(InputError, match="the adapter registered for TinyPipeline returned no BlockAdapter"):
            enable_cache(TinyPipeline(TinyTransformer(P1)), EAGER)
    finally:
        BlockAdapterRegister.unregister("TinyPipe")


def test_settings_that_do_not_fit_leave_the_cache_in_place() -> None:
    model = TinyTransformer(ForwardPattern.Pattern_1)
    enable_cache(adapter(model), DBCacheConfig(Fn_compute_blocks=2))
    with pytest.raises(InputError, match="Fn_compute_blocks is 9, but the list has 5 blocks"):
        enable_cache(adapter(model), DBCacheConfig(Fn_compute_blocks=9))
    there = installed(model)
    assert there is not None
    assert there.cache_config.Fn_compute_blocks == 2
    disable_cache(model)


def test_leaving_cached_puts_an_earlier_cache_in_place_again() -> None:
    model = TinyTransformer(ForwardPattern.Pattern_1)
    enable_cache(adapter(model), DBCacheConfig(Fn_compute_blocks=2))
    with cached(adapter(model), DBCacheConfig(Fn_compute_blocks=1)):
        pass
    there = installed(model)
    assert there is not None
    assert there.cache_config.Fn_compute_blocks == 2
    disable_cache(model)


def test_a_transformer_compiled_as_a_whole_is_refused_before_and_after() -> None:
    message = "TinyTransformer is to be compiled as a whole, and nothing can be decided inside one graph"
    for compiled in (TinyTransformer(ForwardPattern.Pattern_1), TinyTransformer(ForwardPattern.Pattern_1)):
        before = dict(vars(compiled))
        enable_cache(adapter(compiled))
        with pytest.raises(InputError, match=message):
            compiled.compile(backend="eager")
        disable_cache(compiled)
        assert vars(compiled) == before
        compiled.compile(backend="eager")
        with pytest.raises(InputError, match=message):
            enable_cache(adapter(compiled))
