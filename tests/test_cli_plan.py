"""Plans: what configuration files tell of a model that is not loaded, and what they do not."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from cachedit_cli import demo, plan, recipe, runs
from cachedit_cli.cli import main
from cachedit_cli.errors import InputError
from cachedit_cli.models import hub_cache, locate
from cachedit_cli.report import Plan

CAUGHT = pytest.CaptureFixture[str]


def planned(*changes: str, source: str = "demo") -> Plan:
    return plan.build(recipe.load(source, changes))


def a_model(folder: Path, transformer: str, config: dict[str, Any], tensors: list[str] | None = None) -> Path:
    """Write the configuration of a pipeline, and weights that are nothing but their names."""
    part = folder / "transformer"
    part.mkdir(parents=True)
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", transformer], "scheduler": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    (part / "config.json").write_text(json.dumps(config))
    if tensors is not None:
        header = json.dumps({"__metadata__": {}, **{name: {} for name in tensors}}).encode()
        (part / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return folder


def test_the_demos_plan_tells_model_adapter_blocks_and_settings() -> None:
    found = planned("generate.num_images=3")
    assert (found.model, found.pipeline, found.transformer) == ("demo", "FluxPipeline", "FluxTransformer2DModel")
    assert (found.adapter, found.steps, found.images, found.size) == ("flux", 28, 3, (64, 64))
    (context,) = found.contexts
    assert context.name == "transformer.transformer_blocks + transformer.single_transformer_blocks"
    assert (context.blocks, context.pattern, found.notes) == (18, "Pattern_1", [])
    config = recipe.load("demo").cache_config(28)
    assert config is not None
    assert found.settings == config.as_dict()


@pytest.mark.parametrize(
    ("changes", "source"),
    [
        ((), "demo"),
        (("calibrator={type: taylorseer, taylorseer_order: 2}",), "demo"),
        (("calibrator={type: auto}", "cache.budget=4"), "demo"),
        (("cache.steps_computation_mask=ultra", "cache.steps_computation_policy=static"), "demo"),
        (("generate.true_cfg_scale=3", "generate.negative_prompt=dog"), "demo"),
        (("generate.batch_size=2", "generate.num_images=2"), "demo"),
        (("model.dtype=bfloat16",), "demo"),
        ((), "demo-hybrid"),
        (("cache.Bn_compute_blocks=2", "cache.non_prune_block_ids=[0, 5]"), "demo-prune"),
        ((), "demo-scm-fast-static"),
    ],
)
def test_the_estimate_of_cache_memory_is_what_a_run_holds(
    changes: tuple[str, ...], source: str, tmp_path: Path, capsys: CAUGHT
) -> None:
    settings = [*changes, "model.device=cpu", "generate.num_inference_steps=6"]
    options = [word for change in settings for word in ("--set", change)]
    assert main(["run", source, *options, "--json", "--output-dir", str(tmp_path)]) == 0
    most: dict[tuple[str, str], int] = {}
    for row in runs.load(json.loads(capsys.readouterr().out)["folder"]).record.log.rows:
        key = (row.context, row.branch)
        most[key] = max(most.get(key, 0), row.bytes)
    assert planned(*settings, source=source).cache_bytes == sum(most.values()) > 0


def test_a_default_that_gives_way_to_the_model_is_noted(tmp_path: Path) -> None:
    folder = a_model(tmp_path / "m", "FluxTransformer2DModel", {"num_layers": 2, "num_single_layers": 3})
    file = tmp_path / "small.yaml"
    file.write_text(f"version: 1\nmodel: {{id: {folder}}}\ngenerate: {{prompt: a}}\n")
    found = planned(source=str(file))
    (context,) = found.contexts
    assert (context.blocks, context.settings) == (5, {"Fn_compute_blocks": 2})
    assert context.notes == ["Fn_compute_blocks is 2 instead of the default 8: 5 blocks"]
    assert found.notes == ["the number of steps is the pipeline's default, and shows when it is loaded"]
    assert (found.steps, found.cache_bytes) == (None, None)


def test_a_front_that_one_of_two_lists_cannot_take_is_cut_for_it(tmp_path: Path) -> None:
    lengths = {"num_mmdit_layers": 4, "num_single_dit_layers": 32}
    folder = a_model(tmp_path / "m", "AuraFlowTransformer2DModel", lengths)
    file = tmp_path / "aura.yaml"
    text = f"version: 1\nmodel: {{id: {folder}}}\nadapter: auraflow\ncache: {{Fn_compute_blocks: 8}}\n"
    file.write_text(f"{text}generate: {{prompt: a}}\n")
    joint, single = planned(source=str(file)).contexts
    assert joint.settings == {"Fn_compute_blocks": 4}
    assert joint.notes == ["Fn_compute_blocks is 4 instead of 8: 4 blocks, all of them computed"]
    assert (single.settings, single.notes) == ({}, [])
    with pytest.raises(InputError, match="Fn_compute_blocks is 33, but the block lists have 4 and 32 blocks"):
        planned("cache.Fn_compute_blocks=33", source=str(file))


def test_a_model_without_blocks_is_refused(tmp_path: Path) -> None:
    folder = a_model(tmp_path / "m", "FluxTransformer2DModel", {"num_layers": 0, "num_single_layers": 0})
    file = tmp_path / "empty.yaml"
    file.write_text(f"version: 1\nmodel: {{id: {folder}}}\nadapter: flux\ngenerate: {{prompt: a}}\n")
    with pytest.raises(InputError, match="single_transformer_blocks: this block list is empty, as the model's"):
        planned(source=str(file))


def test_a_policys_mask_is_laid_out_over_the_steps() -> None:
    found = planned("cache.steps_computation_mask=fast")
    assert "".join(map(str, found.mask or ())) == "1111110100010000100000100001"


def test_a_mask_may_differ_from_the_steps_where_a_schedule_is_given() -> None:
    found = planned("cache.steps_computation_mask='1101'", "generate.extra.sigmas=[1.0, 0.7, 0.4, 0.1]")
    assert found.mask == [1, 1, 0, 1]


def test_block_lists_of_an_unknown_model_are_counted_by_their_weights(tmp_path: Path) -> None:
    tensors = ["layers.0.a", "layers.0.b", "layers.1.a", "layers.10.a", "layers.norm", "layersx.3.a"]
    folder = a_model(tmp_path / "m", "SomeTransformer", {}, tensors)
    file = tmp_path / "own.yaml"
    file.write_text(
        f"version: 1\nmodel: {{id: {folder}}}\ncache: {{Fn_compute_blocks: 1}}\ngenerate: {{prompt: a}}\n"
        "blocks: [{path: transformer.layers, pattern: 3, params: {residual_diff_threshold: 0.3}}]\n"
    )
    (context,) = planned(source=str(file)).contexts
    assert (context.blocks, context.pattern, context.model) == (3, "Pattern_3", "SomeTransformer")
    assert context.settings == {"residual_diff_threshold": 0.3}


def test_weights_in_several_files_are_counted_by_their_index(tmp_path: Path) -> None:
    folder = a_model(tmp_path / "m", "SomeTransformer", {})
    names = {"layers.0.a": "1.safetensors", "layers.1.a": "2.safetensors"}
    (folder / "transformer" / "x.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert locate(str(folder)).count("transformer", "layers") == 2
    assert locate(str(folder)).count("transformer", "other") is None


def test_a_hub_model_is_looked_up_in_the_cache_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    file = tmp_path / "hub.yaml"
    file.write_text(
        "version: 1\nmodel: {id: some/flux}\nadapter: flux\ngenerate: {prompt: a, num_inference_steps: 4}\n"
    )
    unknown = planned(source=str(file))
    assert (unknown.adapter, unknown.pipeline, unknown.contexts) == ("flux", None, [])
    assert unknown.notes == [
        "the model is not in the hub's cache: its download will tell what it consists of",
        "transformer.transformer_blocks + transformer.single_transformer_blocks: "
        "how many blocks it has is not known yet",
    ]
    repo = tmp_path / "models--some--flux"
    snapshot = a_model(
        repo / "snapshots" / "abc", "FluxTransformer2DModel", {"num_layers": 19, "num_single_layers": 38}
    )
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    assert (locate("some/flux").folder, locate("some/flux").source) == (snapshot, "some/flux")
    known = planned(source=str(file))
    assert [context.blocks for context in known.contexts] == [57]
    assert planned("model.revision=abc", source=str(file)) == known
    assert planned("model.revision=other", source=str(file)) == unknown


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"HF_HUB_CACHE": "/a/hub"}, "/a/hub"),
        ({"HF_HOME": "/b"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({}, "/home-of/.cache/huggingface/hub"),
    ],
)
def test_the_hubs_cache_is_where_its_variables_say(
    variables: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home-of")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hub_cache() == Path(folder)


def test_a_model_without_an_adapter_is_refused_with_the_ways_out(tmp_path: Path) -> None:
    folder = a_model(tmp_path / "m", "FluxTransformer3DModel", {})
    change = f"model.id={folder}"
    with pytest.raises(InputError) as caught:
        planned(change)
    assert str(caught.value) == (
        f"adapter: 'flux' is for FluxTransformer2DModel, but {folder} has FluxTransformer3DModel"
    )
    found = planned(change, "adapter=auto")
    assert (found.adapter, found.contexts) == ("auto", [])
    assert found.notes == [
        "no adapter is registered for FluxTransformer3DModel (the nearest that is: FluxTransformer2DModel): the block "
        "lists are found at the first forward, by what their blocks take and return"
    ]
    assert planned(change, "cache.type=none").notes == []


def test_auto_takes_the_adapter_of_a_registered_class_and_says_so() -> None:
    found = planned("adapter=auto")
    assert (found.adapter, found.notes) == ("flux", ["auto: FluxTransformer2DModel is registered as 'flux'"])
    assert found.contexts == planned().contexts


def test_a_model_without_a_transformer_is_refused(tmp_path: Path) -> None:
    index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError) as caught:
        planned(f"model.id={tmp_path}", "adapter=auto")
    assert str(caught.value) == (
        f"adapter: {tmp_path} has no transformer whose blocks could be cached, but UNet2DConditionModel; generate with "
        "--no-cache"
    )


def test_a_pipeline_that_diffusers_has_not_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^model\.pipeline: diffusers [0-9.]+ has no pipeline 'FluxPipline' \(did"):
        planned("model.pipeline=FluxPipline")
    assert planned("model.pipeline=FluxImg2ImgPipeline").pipeline == "FluxImg2ImgPipeline"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "model.id: {}: no diffusers pipeline, the folder has no model_index.json"),
        ("{", "{}/model_index.json: cannot be read: "),
        ("[]", "{}/model_index.json: holds no JSON object"),
    ],
)
def test_a_folder_that_is_no_pipeline_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(InputError) as caught:
        planned(f"model.id={tmp_path}")
    assert str(caught.value).startswith(message.format(tmp_path))


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_text("")
    with pytest.raises(InputError, match=r"a file; name the pipeline that it belongs to as model.config$"):
        planned(f"model.id={tmp_path / 'weights.bin'}")


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    folder = a_model(tmp_path / "m", "SomeTransformer", {})
    (folder / "transformer" / "x.safetensors").write_bytes(b"nonsense that is long enough")
    with pytest.raises(InputError, match=r"x\.safetensors: damaged: its header is not valid JSON$"):
        locate(str(folder)).count("transformer", "layers")


def test_the_demos_own_arguments_lie_below_the_recipes() -> None:
    arguments = plan.call_arguments(recipe.load("demo", ["generate.height=128", "generate.extra.sigmas=[1.0]"]))
    assert arguments == {**demo.DEFAULTS, "height": 128, "num_inference_steps": 28, "sigmas": [1.0]}
