"""Every bundled recipe against the classes of diffusers that it names: pipeline, transformer, blocks and arguments.

A recipe's settings run on a tiny transformer of its class; its weights, and what they draw, are out of reach here.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import diffusers
import pytest
import torch
from torch import nn

from cachedit_cli import inputs, media, pipeline, plan, recipe, registry
from cachedit_cli.api import cached
from cachedit_cli.registry import BlockList, ModelAdapter
from cachedit_cli.terms.block_adapter import BlockAdapter, ParamsModifier
from cachedit_cli.terms.config import CacheConfig, DBCacheConfig, fit, merge
from cachedit_cli.terms.mask import steps_mask
from cachedit_cli.terms.pattern import ForwardPattern, as_streams
from tests.adapters import pipelines
from tests.tiny_models import TINY, TinyModel, tensors

Config = TypeVar("Config", bound=CacheConfig)

STEPS = 8
WARMUP = 3  # at most, of these
FEW = 9  # steps of a model that is distilled to few

#: The tiny model of a recipe, where the first of its class is not the one.
VARIANT = {
    "flux1-kontext-dev": "flux_kontext",
    "qwen-image-edit": "qwen_image_edit",
    "qwen-image-layered": "qwen_image_layered",
    "sana-sprint": "sana_sprint",
    "sd3.5-medium": "sd35",
    "skyreels-v2-df-1.3b": "skyreels_v2_df",
    "wan2.1-i2v-14b-480p": "wan21_i2v",
    "wan2.2-ti2v-5b": "wan22_ti2v",
}
#: Recipes that leave guidance alone although the pipeline takes it: the weights have it in them.
DISTILLED = {"ace-step-1.5-turbo"}
#: Step at which the second of two transformers takes over.
BOUNDARY = 5

MODELS = [found.name for found in recipe.bundled() if not found.name.startswith("demo")]

pytestmark = [
    pytest.mark.filterwarnings("ignore:In CPU autocast, but the target dtype"),  # Mochi
    pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning"),  # Chroma
]

every_recipe = pytest.mark.parametrize("name", MODELS)


def pipeline_class(settings: recipe.Recipe) -> type[Any]:
    found = pipelines.pipeline_class(settings.model.pipeline or "FluxPipeline")
    assert isinstance(found, type)
    return found


def adapter_of(settings: recipe.Recipe) -> ModelAdapter:
    """Return the adapter that a recipe names, or that its pipeline belongs to."""
    if settings.adapter not in (None, "auto"):
        return registry.by_name(settings.adapter)
    (found,) = [each for each in registry.all_adapters() if settings.model.pipeline in each.pipelines]
    return found


def config_of(settings: recipe.Recipe) -> CacheConfig:
    config = settings.cache_config(settings.generate.num_inference_steps, adapter_of(settings).defaults)
    assert config is not None
    return config


@dataclass
class Unit:
    """Block lists that are decided together, and their settings."""

    lists: list[BlockList]
    config: CacheConfig


def units(settings: recipe.Recipe) -> list[Unit]:
    shared, adapter = config_of(settings), adapter_of(settings)
    if settings.blocks:
        modifiers = settings.modifiers(settings.generate.num_inference_steps)
        return [
            Unit([list_at(adapter, path) for path in entry.paths()], merge(shared, own))
            for entry, (own, _) in zip(settings.blocks, modifiers, strict=True)
        ]
    if adapter.chain:
        return [Unit(list(adapter.lists), shared)]
    return [Unit([each], shared) for each in adapter.lists]


def list_at(adapter: ModelAdapter, path: str) -> BlockList:
    (found,) = [each for each in adapter.lists if each.path == path.partition(".")[2]]
    return found


def real_length(adapter: ModelAdapter, entry: BlockList) -> int:
    """Return how many blocks the class has unless it is told otherwise, which is a published model's number."""
    parameters = inspect.signature(getattr(diffusers, adapter.transformer)).parameters
    assert entry.length is not None
    length = parameters[entry.length].default
    assert isinstance(length, int)
    return length


# ------------------------------------------------------------------------------------------------------------ as a file


def test_there_are_recipes_for_many_models() -> None:
    assert len(MODELS) >= 45
    assert len({adapter_of(recipe.load(name)).transformer for name in MODELS}) >= 35


@every_recipe
def test_a_recipe_opens_with_what_it_is_for_what_it_needs_how_to_run_and_to_change_it(name: str) -> None:
    lines = recipe.text(name).splitlines()
    head = lines[: next(index for index, line in enumerate(lines) if not line.startswith("#"))]
    assert head[0] == "# yaml-language-server: $schema=schema.json"
    assert re.match(r"# [A-Z].*[.:]", head[1])
    comment = "\n".join(head)
    assert re.search(r"^# Needs: .*(GPU|memory)", comment, re.M)
    assert f"# Run:     cachedit run {name}" in comment or f'settings = recipe.load("{name}")' in comment
    assert "# Change:  " in comment
    for command, other in re.findall(r"cachedit run (\S+)|the recipe `([^`]+)`", comment):
        assert (command or other) in MODELS, f"{name} speaks of {command or other}"


@every_recipe
def test_overrides_that_the_comment_proposes_are_valid(name: str) -> None:
    comment = "\n".join(line for line in recipe.text(name).splitlines() if line.startswith("#"))
    for change in re.findall(r"--set ([^\s`]+)", comment):
        recipe.load(name, [change])


@every_recipe
def test_a_plan_can_be_made_of_a_recipe(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    settings = recipe.load(name, ["model.id=owner/name"] if recipe.load(name).model.id.startswith("./") else [])
    pipeline_class(settings)
    made = plan.build(settings)
    assert made.steps == settings.generate.num_inference_steps
    assert made.pipeline == settings.model.pipeline or settings.model.pipeline is None
    assert made.cache == "DBCache"


# --------------------------------------------------------------------------------------------------- against diffusers


@every_recipe
def test_the_pipeline_takes_every_argument(name: str) -> None:
    settings = recipe.load(name)
    cls = pipeline_class(settings)
    arguments = plan.call_arguments(settings)
    prompted = settings.generate.all_prompts() != (None,)
    pipeline.check_arguments(cls, arguments, settings.generate.extra, prompted)
    inputs.check_call(settings.generate, cls)
    media.check_output(settings.output, cls, arguments)
    own = inspect.signature(cls.__call__).parameters  # by name: what goes into **kwargs is not looked at
    assert not [argument for argument in arguments if argument not in own]


@every_recipe
def test_adapter_paths_and_patterns_are_those_of_the_pipelines_transformer(name: str) -> None:
    settings = recipe.load(name)
    adapter = adapter_of(settings)
    assert pipeline_class(settings).__name__ in adapter.pipelines
    parts = inspect.signature(pipeline_class(settings).__init__).parameters
    assert "transformer" in parts
    for entry in settings.blocks:
        for path in entry.paths():
            assert path.partition(".")[0] in parts
            assert as_streams(list(ForwardPattern)[entry.pattern]) == as_streams(list_at(adapter, path).pattern)
    model = tiny_of(name).build()
    for each in adapter.lists:
        assert isinstance(model.get_submodule(each.path), nn.ModuleList)


@every_recipe
def test_front_and_back_leave_most_blocks_of_the_real_lists_to_reuse(name: str) -> None:
    settings = recipe.load(name)
    pipeline_class(settings)
    for unit in units(settings):
        length = sum(real_length(adapter_of(settings), each) for each in unit.lists)
        config, notes = fit(unit.config, length, name)
        assert not notes
        assert config.Fn_compute_blocks + config.Bn_compute_blocks <= length / 2
        if adapter_of(settings).skips:
            assert config.Bn_compute_blocks <= config.Fn_compute_blocks


@every_recipe
def test_a_recipe_with_another_front_than_its_familys_says_why(name: str) -> None:
    settings = recipe.load(name)
    family = merge(DBCacheConfig(), adapter_of(settings).defaults)
    own = config_of(settings)
    assert isinstance(own, DBCacheConfig)
    if own.Fn_compute_blocks == family.Fn_compute_blocks:
        return
    lines = (line.strip() for line in recipe.text(name).splitlines())
    (reason,) = (line.partition("#")[2] for line in lines if line.startswith("Fn_compute_blocks: "))
    assert "the steps are few" in reason or "the family's default" in reason


FAMILIES = [each for each in registry.all_adapters() if each.defaults is not None]


@pytest.mark.parametrize("adapter", FAMILIES, ids=lambda each: each.name)
def test_a_recipe_that_says_nothing_gets_what_its_adapter_says(adapter: ModelAdapter, tmp_path: Any) -> None:
    silent, loud = tmp_path / "silent.yaml", tmp_path / "loud.yaml"
    head = f"version: 1\nmodel: {{id: owner/name}}\nadapter: {adapter.name}\ngenerate: {{prompt: a}}\n"
    silent.write_text(head + "cache: {type: DBCache}\n")
    loud.write_text(head + "cache: {type: DBCache, Fn_compute_blocks: 3}\n")
    assert adapter.defaults is not None
    front = adapter.defaults.Fn_compute_blocks
    assert front is not None
    assert plan.build(recipe.load(str(silent))).settings["Fn_compute_blocks"] == front
    assert plan.build(recipe.load(str(loud))).settings["Fn_compute_blocks"] == 3


@pytest.mark.parametrize("adapter", FAMILIES, ids=lambda each: each.name)
def test_a_familys_front_is_a_small_part_of_its_lists(adapter: ModelAdapter) -> None:
    if not hasattr(diffusers, adapter.transformer):
        pytest.skip(f"the installed diffusers has no {adapter.transformer}")
    front = merge(DBCacheConfig(), adapter.defaults).Fn_compute_blocks
    assert front < DBCacheConfig().Fn_compute_blocks
    if adapter.name != "latte":  # whose class has one block in a list unless it is told otherwise
        assert front <= max(real_length(adapter, each) for each in adapter.lists) / 4


@every_recipe
def test_the_steps_leave_room_to_reuse(name: str) -> None:
    settings = recipe.load(name)
    steps = settings.generate.num_inference_steps
    assert steps is not None
    for unit in units(settings):
        assert unit.config.max_warmup_steps <= steps / 2
        mask = unit.config.steps_computation_mask
        bits = steps_mask(mask_policy=mask, total_steps=steps) if isinstance(mask, str) else mask
        if bits is not None:
            assert len(bits) == steps
            assert 0 in bits
        if steps <= FEW:
            assert unit.config.Fn_compute_blocks == 1
            assert unit.config.max_continuous_cached_steps == 1
            assert settings.calibrator is None  # too few computed steps for a trend


@every_recipe
def test_guidance_that_is_asked_for_takes_place(name: str) -> None:
    settings = recipe.load(name).generate
    parameters = inspect.signature(pipeline_class(recipe.load(name)).__call__).parameters
    if "true_cfg_scale" in parameters and (settings.true_cfg_scale or 1) > 1:
        assert settings.negative_prompt is not None
    if settings.guidance_scale is None and settings.true_cfg_scale is None:
        assert "guidance_scale" not in parameters or name in DISTILLED


# ------------------------------------------------------------------------------------------------- on tiny transformers


def tiny_of(name: str) -> TinyModel:
    adapter = adapter_of(recipe.load(name))
    tiny = TINY[VARIANT[name]] if name in VARIANT else next(t for t in TINY.values() if t.adapter is adapter)
    assert tiny.adapter is adapter
    return tiny


def scaled(config: Config, blocks: int, threshold: float | None) -> Config:
    """Return settings, whole or overriding, for a short list and few steps; None keeps the threshold."""
    most = {"Fn_compute_blocks": blocks // 2, "Bn_compute_blocks": blocks // 2 - 1, "max_warmup_steps": WARMUP}
    changes: dict[str, Any] = {
        field: min(value, limit) for field, limit in most.items() if (value := getattr(config, field)) is not None
    }
    if threshold is not None:
        changes["residual_diff_threshold"] = threshold
    if isinstance(config.steps_computation_mask, tuple):
        changes["steps_computation_mask"] = config.steps_computation_mask[:STEPS]
    return replace(config, num_inference_steps=STEPS, **changes)


def target(settings: recipe.Recipe, models: Sequence[nn.Module], threshold: float | None) -> Any:
    """Return what is to be cached of the tiny transformers: one itself, or the recipe's `blocks`."""
    if not settings.blocks:
        return models[0]
    parts = dict(zip(("transformer", "transformer_2"), models, strict=False))
    found: dict[str, list[tuple[Any, ForwardPattern, ParamsModifier]]] = {}
    for entry, (own, calibrator) in zip(settings.blocks, settings.modifiers(STEPS), strict=True):
        for path in entry.paths():
            part, _, inner = path.partition(".")
            blocks: Any = parts[part].get_submodule(inner)
            own = scaled(own, len(blocks), threshold) if own is not None else None
            modifier = ParamsModifier(own, calibrator)
            found.setdefault(part, []).append((blocks, list(ForwardPattern)[entry.pattern], modifier))
    return BlockAdapter(
        transformer=[parts[part] for part in found],
        blocks=[[each[0] for each in lists] for lists in found.values()],
        forward_pattern=[[each[1] for each in lists] for lists in found.values()],
        params_modifiers=[[each[2] for each in lists] for lists in found.values()],
    )


@contextlib.contextmanager
def counted(blocks: Sequence[nn.Module]) -> Iterator[list[int]]:
    """Count the calls of blocks that are really computed."""
    calls = [0]

    def count(*_: object) -> None:
        calls[0] += 1

    handles = [block.register_forward_hook(count) for block in blocks]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@every_recipe
@torch.no_grad()
def test_the_settings_run_on_a_tiny_transformer_and_every_block_call_is_accounted_for(name: str) -> None:
    settings = recipe.load(name)
    tiny = tiny_of(name)
    two = any(path.startswith("transformer_2.") for entry in settings.blocks for path in entry.paths())
    models = [tiny.build(seed) for seed in range(1 + two)]
    lists = [[*_blocks(model, each)] for model in models for each in tiny.adapter.lists]
    whole = sum(map(len, lists)) // len(models)  # of one forward
    shortest = sum(map(len, lists)) if tiny.adapter.chain else min(map(len, lists))
    for threshold in (None, 1.0):
        config = scaled(config_of(settings), shortest, threshold)
        with (
            counted([block for each in lists for block in each]) as calls,
            cached(target(settings, models, threshold), config, settings.calibrator_config()) as cache,
        ):
            for step in range(STEPS):
                model = models[two and step >= BOUNDARY]
                for tensor in tensors(model(**tiny.inputs(step))):
                    assert tensor.isfinite().all()
        assert sum(row.computed for row in cache.log.rows) == calls[0]
        assert sum(row.computed + row.saved for row in cache.log.rows) == STEPS * whole
        if threshold is not None:  # as soon as the differences allow it, each list reuses, after a warm-up of its own
            for info in cache.log.contexts:
                decisions = [bool(row.saved) for row in cache.log.rows if row.context == info.name]
                assert True in decisions, info.name
                assert not decisions[0], info.name


def _blocks(model: nn.Module, entry: BlockList) -> Iterator[nn.Module]:
    blocks: Any = model.get_submodule(entry.path)
    return iter(blocks)
