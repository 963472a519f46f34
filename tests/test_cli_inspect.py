"""`cachedit inspect`: families measured without weights, against tiny models with inputs; targets and refusals."""

from __future__ import annotations

import json
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from cachedit_cli import demo, recipe, registry
from cachedit_cli.cli import main
from cachedit_cli.inspect_model import inspect
from cachedit_cli.terms.pattern import as_streams
from cachedit_cli.trace import Trace, Watch, candidates
from tests.tiny_models import TINY

CAUGHT = pytest.CaptureFixture[str]

ALL = registry.all_adapters()


def ran(*arguments: str, caught: CAUGHT) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = caught.readouterr()
    return code, out, err


def called(transformer: str, path: str) -> tuple[str, list[str], list[str]]:
    """Return block class and arguments of a tiny model of the class, for which the inputs are known."""
    tiny = next(each for each in TINY.values() if each.class_name == transformer)
    model = tiny.build()
    trace = next(Trace(each) for each in candidates(model) if each.path == path)
    Watch(model, [trace], lambda: None)
    with torch.no_grad():
        model(**tiny.inputs())
    return type(trace.candidate.blocks[0]).__name__, list(trace.positional), list(trace.keywords)


def model_of(target: str, caught: CAUGHT) -> dict[str, Any]:
    code, out, err = ran("inspect", target, "--json", caught=caught)
    assert (code, err) == (0, "")
    found: dict[str, Any] = json.loads(out)["models"][0]
    return found


def needed(adapter: registry.ModelAdapter) -> None:
    if not hasattr(diffusers, adapter.transformer):
        pytest.skip(f"diffusers {diffusers.__version__} has no {adapter.transformer}; it came with {adapter.needs}")


@pytest.mark.parametrize("adapter", ALL, ids=lambda adapter: adapter.name)
@pytest.mark.filterwarnings("ignore")  # of the models
def test_every_class_is_measured_without_weights_and_agrees_with_its_adapter(adapter: registry.ModelAdapter) -> None:
    """And shows what a tiny model shows, for which the inputs are known."""
    needed(adapter)
    (model,) = inspect(adapter.transformer).models
    assert (model.adapter, model.reason) == (adapter.name, None)
    assert model.traced is not None
    lists = {each.path: each for each in model.lists}
    defaults = {
        name: each.default
        for name, each in signature(getattr(diffusers, adapter.transformer).__init__).parameters.items()
    }
    for entry in adapter.lists:
        found, pattern = lists[entry.path], str(as_streams(entry.pattern))
        assert (found.pattern, found.registered, found.problem) == (pattern, pattern, None)
        assert 0 < found.parameters < model.parameters
        assert entry.length is None or found.blocks == defaults[entry.length]
        assert (found.block, found.positional, found.keywords) == called(adapter.transformer, entry.path)
    assert not any("this forward shows" in note for note in model.notes)


def test_what_the_loop_does_between_blocks_is_told() -> None:
    """VACE adds its hints after every fifth block."""
    (model,) = inspect("wan-vace").models
    blocks = next(each for each in model.lists if each.path == "blocks")
    assert blocks.changed == {"hidden_states": [0, 5, 10, 15, 20, 25, 30, 35]}
    (model,) = inspect("chroma").models
    assert all(each.differing == ["temb"] for each in model.lists if each.registered is not None)


def test_the_text_shows_lists_pattern_share_and_a_section_to_paste(capsys: CAUGHT) -> None:
    code, out, err = ran("inspect", "FluxTransformer2DModel", caught=capsys)
    assert (code, err) == (0, "")
    assert (
        out
        == """\
transformer class FluxTransformer2DModel

transformer: FluxTransformer2DModel, 11.89 B parameters
  adapter   flux: registered for the class FluxTransformer2DModel by cachedit
  guidance  one forward; with true_cfg_scale > 1 two, conditional first
  measured  in a forward of the model (full size, no weights, default configuration)
  note      its lists are decided as one

  transformer_blocks: 19 x FluxTransformerBlock, 6.46 B parameters, 54 % of all
    called    (hidden_states=, encoder_hidden_states=, temb=, image_rotary_emb=, joint_attention_kwargs=)
    pattern   Pattern_1, measured
    between   nothing: the next block takes what one returned

  single_transformer_blocks: 38 x FluxSingleTransformerBlock, 5.38 B parameters, 45 % of all
    called    (hidden_states=, encoder_hidden_states=, temb=, image_rotary_emb=, joint_attention_kwargs=)
    pattern   Pattern_1, measured
    between   nothing: the next block takes what one returned

  to paste into a recipe, in place of `adapter`:
blocks:
  - path: [transformer.transformer_blocks, transformer.single_transformer_blocks]
    pattern: 1
"""
    )


def test_the_section_can_be_pasted(tmp_path: Path, capsys: CAUGHT) -> None:
    section = model_of("demo", capsys)["blocks"]
    file = tmp_path / "pasted.yaml"
    file.write_text(f"version: 1\nmodel: {{id: demo}}\ngenerate: {{prompt: a}}\n{section}")
    (entry,) = recipe.load(file).blocks
    assert entry.pattern == 1
    options = ["--steps", "4", "--set", "cache.max_warmup_steps=2", "--set", "cache.Fn_compute_blocks=1"]
    assert main(["run", str(file), *options, "--output-dir", str(tmp_path), "--json"]) == 0
    contexts = json.loads(capsys.readouterr().out)["log"]["contexts"]
    assert [context["blocks"] for context in contexts] == [18]


@pytest.mark.parametrize("target", ["demo", str(demo.path()), str(demo.path() / "transformer")])
def test_a_recipe_and_a_folder_show_the_models_own_sizes(target: str, capsys: CAUGHT) -> None:
    model = model_of(target, capsys)
    lengths = {each["path"]: each["blocks"] for each in model["lists"]}
    config = json.loads((demo.path() / "transformer" / "config.json").read_text())
    assert lengths == {
        "transformer_blocks": config["num_layers"],
        "single_transformer_blocks": config["num_single_layers"],
    }
    assert model["traced"] == "a forward of the model (full size, no weights)"


def test_the_real_model_shows_the_same(capsys: CAUGHT) -> None:
    code, out, err = ran("inspect", "demo", "--trace", "--json", caught=capsys)
    assert (code, err) == (0, "")
    (real,) = json.loads(out)["models"]
    without = model_of("demo", capsys)
    assert real.pop("traced") == "the first forward of the real model"
    del without["traced"]
    assert real == without


def test_a_pipeline_class_stands_for_its_transformer(capsys: CAUGHT) -> None:
    assert model_of("StableDiffusion3Pipeline", capsys)["transformer"] == "SD3Transformer2DModel"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "FluxTransformer3DModel",
            "'FluxTransformer3DModel' is no recipe, folder, family, or class of a transformer or",
        ),
        ("fluxx", "'fluxx' is no recipe, folder, family, or class of a transformer or pipeline (did you mean 'flux'?)"),
        ("./nowhere", "./nowhere: no such folder, recipe or class"),
        ("StableDiffusionPipeline", "StableDiffusionPipeline has no transformer"),
    ],
)
def test_an_unknown_target_names_the_nearest(target: str, message: str, capsys: CAUGHT) -> None:
    code, out, err = ran("inspect", target, caught=capsys)
    assert (code, out) == (2, "")
    assert err.startswith(message)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, capsys: CAUGHT) -> None:
    assert ran("inspect", str(tmp_path), caught=capsys) == (
        2,
        "",
        f"{tmp_path}: neither a pipeline nor a part of one: the folder has no model_index.json, and no config.json "
        "that names a class\n",
    )


def test_a_model_without_blocks_is_refused(tmp_path: Path, capsys: CAUGHT) -> None:
    config = json.loads((demo.path() / "transformer" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_layers": 0, "num_single_layers": 0}))
    assert ran("inspect", str(tmp_path), caught=capsys) == (
        2,
        "",
        "transformer_blocks + single_transformer_blocks: this block list is empty, as the model's configuration says\n",
    )
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_single_layers": 0}))
    assert [each["path"] for each in model_of(str(tmp_path), capsys)["lists"]] == ["transformer_blocks"]


def test_only_what_has_weights_can_be_traced_for_real(capsys: CAUGHT) -> None:
    code, _, err = ran("inspect", "flux", "--trace", caught=capsys)
    assert (code, err) == (2, "--trace: family 'flux' has no weights; give a recipe or the folder of a pipeline\n")
