"""Recipes: bundled ones, layers of files and options, and the engine settings they stand for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedit_cli.errors import InputError
from cachedit_cli.recipe import Override, Recipe, bundled, load, text
from cachedit_cli.terms.config import (
    CalibratorConfig,
    DBCacheConfig,
    DBPruneConfig,
    DefaultInt,
    TaylorSeerCalibratorConfig,
)
from cachedit_cli.terms.mask import POLICIES

BUNDLED = [recipe.name for recipe in bundled()]
MINIMAL = "version: 1\nmodel: {id: demo}\ngenerate: {prompt: a}\n"


def write(path: Path, content: str | dict[str, Any]) -> Path:
    # Quoted scalars with tags, so that nothing depends on how PyYAML, which follows YAML 1.1, reads plain ones.
    written = content if isinstance(content, str) else yaml.safe_dump(content, default_style='"', allow_unicode=True)
    path.write_text(written, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for property-based tests, which share it between examples."""
    return tmp_path_factory.mktemp("recipes")


# -------------------------------------------------------------------------------------------------------------- bundled


def test_the_bundled_recipes_show_each_feature_on_the_bundled_model() -> None:
    variants = ["hybrid", "prune", "scm-fast", "scm-fast-static", "taylorseer"]
    assert {"demo", *(f"demo-{variant}" for variant in variants), "flux1-dev-scm-fast"} <= set(BUNDLED)
    assert sorted(BUNDLED) == BUNDLED


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_recipe_loads_under_its_own_name_and_says_what_it_is_for(name: str) -> None:
    recipe = load(name)
    assert recipe.name == name
    assert recipe.description


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_recipe_opens_with_what_a_person_and_an_editor_need(name: str) -> None:
    lines = text(name).splitlines()
    header = lines[: lines.index("version: 1")]
    assert header[0] == "# yaml-language-server: $schema=schema.json"
    assert header[1].endswith(".")
    for word in ("Needs:", "Run:     cachedit run " + name, "Change:"):
        assert any(line.startswith(f"# {word}") for line in header), word


@pytest.mark.parametrize("name", BUNDLED)
def test_the_change_that_a_bundled_recipe_proposes_is_valid(name: str) -> None:
    (change,) = (line for line in text(name).splitlines() if line.startswith("# Change:"))
    overrides = [word.split(" ")[0] for word in change.split("--set ")[1:]]
    assert overrides
    load(name, overrides)


def test_titles_are_the_first_comment_that_is_not_for_editors() -> None:
    titles = {recipe.name: recipe.title for recipe in bundled()}
    assert titles["demo"] == "A picture from the bundled model: the quickest way to see caching at work."


def test_loading_takes_no_heavy_import() -> None:
    code = (
        "import sys\n"
        "from cachedit_cli.recipe import load\n"
        "load('demo-hybrid'), load('flux1-dev-scm-fast')\n"
        "print([name for name in ('torch', 'diffusers', 'transformers', 'numpy', 'rich') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --------------------------------------------------------------------------------------------------------------- layers


def test_a_recipe_without_a_name_is_called_like_its_file(tmp_path: Path) -> None:
    assert load(write(tmp_path / "My flux, fast!.yaml", MINIMAL)).name == "My-flux-fast"
    assert load(write(tmp_path / "\u732b.yml", MINIMAL)).name == "recipe"


@pytest.mark.parametrize("name", BUNDLED)
def test_an_empty_child_is_its_parent_but_for_what_that_says_of_itself(name: str, tmp_path: Path) -> None:
    child = load(write(tmp_path / "child.yaml", f"extends: {name}\n"))
    parent = load(name)
    assert (child.name, child.description) == ("child", None)
    assert child.model_copy(update={"name": parent.name, "description": parent.description}) == parent
    assert child.resolved().keys() == parent.resolved().keys() - {"description"}


def test_mappings_are_merged_and_lists_replaced(tmp_path: Path) -> None:
    write(
        tmp_path / "base.yaml",
        "version: 1\nmodel: {id: demo, dtype: float16}\ncache: {Fn_compute_blocks: 3, max_warmup_steps: 2}\n"
        "generate: {prompts: [a, b, c], extra: {x: {y: 1, z: 2}}}\n",
    )
    child = write(
        tmp_path / "child.yaml",
        "extends: ./base.yaml\ncache: {max_warmup_steps: 5}\ngenerate: {prompts: [d], extra: {x: {y: 3}}}\n",
    )
    assert load(child).resolved() == {
        "version": 1,
        "name": "child",
        "model": {"id": "demo", "dtype": "float16"},
        "cache": {"Fn_compute_blocks": 3, "max_warmup_steps": 5},
        "generate": {"prompts": ["d"], "extra": {"x": {"y": 3, "z": 2}}},
    }


def test_extends_is_found_from_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path / "base.yaml", MINIMAL)
    write(tmp_path / "deep" / "middle.yml", "extends: ../base.yaml\nmodel: {dtype: float16}\n")
    write(tmp_path / "child.yaml", "extends: deep/middle.yml\nmodel: {device: cpu}\n")
    monkeypatch.chdir(tmp_path)
    for source in ("child.yaml", "./child.yaml", Path("child.yaml"), tmp_path / "child.yaml"):
        assert load(source).model.model_dump(exclude_unset=True) == {"id": "demo", "dtype": "float16", "device": "cpu"}


@pytest.mark.parametrize(
    ("lower", "upper", "kept"),
    [
        ("adapter: flux", "blocks: [{path: transformer.blocks, pattern: 1}]", {"blocks"}),
        ("blocks: [{path: transformer.blocks, pattern: 1}]", "adapter: flux", {"adapter"}),
        ("adapter: flux", "blocks: null\nadapter: auto", {"adapter"}),
    ],
)
def test_adapter_and_blocks_replace_each_other(lower: str, upper: str, kept: set[str], tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", MINIMAL + lower)
    if "null" in upper:
        upper = upper.replace("blocks: null\n", "")
    recipe = load(write(tmp_path / "child.yaml", f"extends: ./base.yaml\n{upper}\n"))
    assert recipe.resolved().keys() & {"adapter", "blocks"} == kept


@pytest.mark.parametrize(
    ("lower", "upper", "expected"),
    [
        ("prompt: a", "prompts: [b, c]", (("b", "c"), [0])),
        ("prompts: [b, c]", "prompt: a", (("a",), [0])),
        ("prompts: [b, c]", "prompt: null", (("b", "c"), [0])),
        ("prompt: a, seed: 3, num_images: 2", "seeds: [7, 5]", (("a",), [7, 5])),
        ("prompt: a, seeds: [7, 5]", "seed: 3", (("a",), [3])),
        ("prompt: a, seeds: [7, 5]", "num_images: 3", (("a",), [0, 1, 2])),
        ("prompt: a, seed: 3", "num_images: 3", (("a",), [3, 4, 5])),
    ],
)
def test_prompts_and_seeds_replace_each_other(
    lower: str, upper: str, expected: tuple[tuple[str, ...], list[int]], tmp_path: Path
) -> None:
    write(tmp_path / "base.yaml", f"version: 1\nmodel: {{id: demo}}\ngenerate: {{{lower}}}\n")
    generate = load(write(tmp_path / "child.yaml", f"extends: ./base.yaml\ngenerate: {{{upper}}}\n")).generate
    assert (generate.all_prompts(), list(generate.all_seeds())) == expected


def test_another_cache_type_drops_the_inherited_settings_that_it_lacks(tmp_path: Path) -> None:
    write(
        tmp_path / "prune.yaml",
        MINIMAL + "cache: {type: DBPrune, Fn_compute_blocks: 2, enable_dynamic_prune_threshold: true}\n",
    )
    child = write(tmp_path / "child.yaml", "extends: ./prune.yaml\ncache: {type: DBCache}\n")
    assert load(child).resolved()["cache"] == {"type": "DBCache", "Fn_compute_blocks": 2}
    assert load(tmp_path / "prune.yaml", ["cache.type=none"]).resolved()["cache"] == {"type": "none"}


def test_another_calibrator_type_drops_the_inherited_settings_that_it_lacks() -> None:
    recipe = load("demo-taylorseer", ["calibrator.type=hold"])
    assert recipe.calibrator_config() == CalibratorConfig()


def test_a_wrong_key_is_not_dropped_with_the_inherited_type(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", MINIMAL + "cache: {type: DBPrune, Fn_compute_block: 2}\n")
    child = write(tmp_path / "child.yaml", "extends: ./base.yaml\ncache: {type: DBCache}\n")
    with pytest.raises(InputError, match="did you mean 'Fn_compute_blocks'"):
        load(child)


# -------------------------------------------------------------------------------------------------------------- options

SETTINGS = st.one_of(
    st.tuples(st.just(("cache", "residual_diff_threshold")), st.floats(0, 1)),
    st.tuples(st.just(("cache", "Fn_compute_blocks")), st.integers(0, 10**6)),
    st.tuples(st.just(("cache", "steps_computation_mask")), st.sampled_from([*POLICIES, "1101", [1, 0, 1], None])),
    st.tuples(st.just(("cache", "steps_computation_mask", "policy")), st.sampled_from(POLICIES)),
    st.tuples(st.just(("cache", "enable_separate_cfg")), st.sampled_from([True, False, None])),
    st.tuples(st.just(("generate", "prompt")), st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]))),
    st.tuples(st.just(("generate", "seed")), st.integers(0, 2**63 - 1)),
    st.tuples(st.just(("generate", "extra", "eta")), st.one_of(st.none(), st.floats(-1, 1), st.lists(st.booleans()))),
    st.tuples(st.just(("output", "dir")), st.text("abc: #'\"[]{}&*!|>%@`-", min_size=1)),
    st.tuples(st.just(("model", "dtype")), st.sampled_from(["auto", "float32"])),
)
CONTENTS = st.fixed_dictionaries(
    {
        "version": st.just(1),
        "model": st.just({"id": "demo"}),
        "generate": st.fixed_dictionaries({"prompt": st.sampled_from(["a cat", "no", "1e3", "- [", ""])}),
    },
    optional={"cache": st.just({"Fn_compute_blocks": 1}), "output": st.just({"dir": "here"})},
)


@settings(deadline=None)
@given(content=CONTENTS, setting=SETTINGS)
def test_setting_a_key_is_like_editing_the_file(
    content: dict[str, Any], setting: tuple[tuple[str, ...], Any], folder: Path
) -> None:
    (*sections, key), value = setting
    option = f"{'.'.join(setting[0])}={yaml.safe_dump(value, default_style=chr(34), width=10**6, allow_unicode=True)}"
    by_option = load(write(folder / "same.yaml", content), [option])
    place = content = {
        name: dict(section) if isinstance(section, dict) else section for name, section in content.items()
    }
    for section in sections:
        place = place.setdefault(section, {})
    place[key] = value
    assert by_option == load(write(folder / "same.yaml", content))
    assert by_option == load(write(folder / "same.yaml", content), [Override("--option", ".".join(setting[0]), value)])


@settings(deadline=None)
@given(content=CONTENTS, changes=st.lists(SETTINGS, max_size=4))
def test_a_resolved_recipe_loads_as_the_same_recipe(
    content: dict[str, Any], changes: list[tuple[tuple[str, ...], Any]], folder: Path
) -> None:
    overrides = [Override("--option", ".".join(path), value) for path, value in changes]
    recipe = load(write(folder / "first.yaml", content), overrides)
    again = load(write(folder / "second.yaml", recipe.resolved()))
    assert again == recipe
    assert again.resolved() == recipe.resolved()
    assert again.cache_config(28) == recipe.cache_config(28)


@pytest.mark.parametrize("name", BUNDLED)
def test_a_resolved_bundled_recipe_loads_as_the_same_recipe(name: str, tmp_path: Path) -> None:
    recipe = load(name)
    assert load(write(tmp_path / "resolved.yaml", recipe.resolved())) == recipe


def test_items_of_lists_are_set_by_their_number() -> None:
    recipe = load(
        "demo-hybrid", ["blocks.1.params.Fn_compute_blocks=4", "blocks.0.path=[transformer.a, transformer.b]"]
    )
    assert [blocks.paths() for blocks in recipe.blocks] == [
        ("transformer.a", "transformer.b"),
        ("transformer.single_transformer_blocks",),
    ]
    overrides = [settings for settings, _ in recipe.modifiers()]
    assert [settings.Fn_compute_blocks for settings in overrides if settings] == [1, 4]


def test_of_two_values_for_one_key_the_later_counts() -> None:
    assert load("demo", ["generate.seed=1", "generate.seed=2"]).generate.seed == 2


def test_an_option_takes_text_as_it_is() -> None:
    assert load("demo", [Override("--prompt", "generate.prompt", "a: [b")]).generate.prompt == "a: [b"


# ------------------------------------------------------------------------------------------------------ engine settings


def recipe_of(content: str, tmp_path: Path) -> Recipe:
    return load(write(tmp_path / "recipe.yaml", MINIMAL + content))


def test_what_a_recipe_leaves_out_comes_from_the_adapter_and_then_from_the_engine(tmp_path: Path) -> None:
    recipe = recipe_of("cache: {residual_diff_threshold: 0.2}\n", tmp_path)
    adapter = DBCacheConfig.reset(residual_diff_threshold=0.1, max_warmup_steps=3, enable_separate_cfg=True)
    assert recipe.cache_config(28) == DBCacheConfig(residual_diff_threshold=0.2)
    assert recipe.cache_config(28, adapter) == DBCacheConfig(
        residual_diff_threshold=0.2, max_warmup_steps=3, enable_separate_cfg=True
    )


def test_null_in_a_recipe_overrides_an_adapter(tmp_path: Path) -> None:
    recipe = recipe_of("cache: {enable_separate_cfg: null}\n", tmp_path)
    assert recipe.cache_config(28, DBCacheConfig.reset(enable_separate_cfg=True)) == DBCacheConfig()


def test_an_unset_front_stays_a_default_that_gives_way_to_short_models(tmp_path: Path) -> None:
    config = recipe_of("cache: {max_warmup_steps: 1}\n", tmp_path).cache_config(28)
    assert config is not None
    assert isinstance(config.Fn_compute_blocks, DefaultInt)


def test_each_cache_type_gives_its_own_settings(tmp_path: Path) -> None:
    assert recipe_of("", tmp_path).cache_config(28) == DBCacheConfig()
    assert recipe_of("cache: {type: DBPrune, non_prune_block_ids: [3]}\n", tmp_path).cache_config(28) == DBPruneConfig(
        non_prune_block_ids=[3]
    )
    assert recipe_of("cache: {type: none}\n", tmp_path).cache_config(28) is None


@pytest.mark.parametrize(
    ("written", "bits"),
    [
        ("{policy: fast}", "fast"),
        ("fast", "fast"),
        ("'1101'", (1, 1, 0, 1)),
        ("1101", (1, 1, 0, 1)),
        ("[1, 1, 0, 1]", (1, 1, 0, 1)),
        ("{compute_bins: [2, 1], cache_bins: [1, 9]}", (1, 1, 0, 1)),
        ("null", None),
    ],
)
def test_a_mask_can_be_written_in_several_ways(written: str, bits: object, tmp_path: Path) -> None:
    config = recipe_of(f"cache: {{steps_computation_mask: {written}}}\n", tmp_path).cache_config(4)
    assert config is not None
    assert config.steps_computation_mask == bits


def test_bins_are_laid_out_in_full_where_the_steps_are_unknown(tmp_path: Path) -> None:
    config = recipe_of("cache: {steps_computation_mask: {compute_bins: [1], cache_bins: [2]}}\n", tmp_path)
    settings = config.cache_config(None)
    assert settings is not None
    assert settings.steps_computation_mask == (1, 0, 0)


def test_calibrators_are_those_of_the_engine(tmp_path: Path) -> None:
    assert recipe_of("", tmp_path).calibrator_config() is None
    assert recipe_of("calibrator: {type: hold}\n", tmp_path).calibrator_config() == CalibratorConfig()
    assert recipe_of(
        "calibrator: {type: taylorseer, taylorseer_order: 2}\n", tmp_path
    ).calibrator_config() == TaylorSeerCalibratorConfig(taylorseer_order=2)


def test_blocks_override_only_what_they_set(tmp_path: Path) -> None:
    recipe = recipe_of(
        "calibrator: {type: taylorseer}\n"
        "blocks:\n"
        "  - {path: transformer.a, pattern: 1}\n"
        "  - path: transformer.b\n"
        "    pattern: 3\n"
        "    params: {Fn_compute_blocks: 2, steps_computation_mask: {compute_bins: [1], cache_bins: [9]}}\n"
        "    calibrator: {type: taylorseer, taylorseer_order: 2}\n"
        "  - {path: transformer.c, pattern: 0, calibrator: {type: hold}}\n",
        tmp_path,
    )
    assert recipe.modifiers(3) == [
        (None, None),
        (
            DBCacheConfig.reset(Fn_compute_blocks=2, steps_computation_mask=[1, 0, 0]),
            TaylorSeerCalibratorConfig.reset(taylorseer_order=2),
        ),
        (None, CalibratorConfig()),
    ]


def test_blocks_override_in_the_type_of_the_cache(tmp_path: Path) -> None:
    blocks = "blocks: [{path: transformer.a, pattern: 1, params: {Fn_compute_blocks: 2}}]\n"
    pruned = recipe_of("cache: {type: DBPrune}\n" + blocks, tmp_path)
    assert pruned.modifiers() == [(DBPruneConfig.reset(Fn_compute_blocks=2), None)]
    assert recipe_of("cache: {type: none}\n" + blocks, tmp_path).modifiers() == [(None, None)]


def test_a_pipeline_without_prompt_gets_its_arguments_in_extra(tmp_path: Path) -> None:
    path = write(tmp_path / "dit.yaml", "version: 1\nmodel: {id: a/b}\ngenerate: {extra: {class_labels: [207]}}\n")
    generate = load(path).generate
    assert (generate.all_prompts(), generate.extra) == ((None,), {"class_labels": [207]})
