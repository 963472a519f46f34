"""`cachedit inspect`: families measured without weights, against tiny models with inputs; targets and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from cachedit_cli import demo, recipe, registry
from cachedit_cli.cli import main
from cachedit_cli.inspect_model import inspect
from cachedit_cli.trace import Trace, Watch, candidates
from tests.tiny_models import TINY

CAUGHT = pytest.CaptureFixture[str]

#: Families: for each list its length by default, and its pattern.
MEASURED: dict[str, dict[str, tuple[int, str]]] = {
    "flux": {"transformer_blocks": (19, "Pattern_1"), "single_transformer_blocks": (38, "Pattern_1")},
    "sd3": {"transformer_blocks": (18, "Pattern_1")},
    "chroma": {"transformer_blocks": (19, "Pattern_1"), "single_transformer_blocks": (38, "Pattern_3")},
    "qwen-image": {"transformer_blocks": (60, "Pattern_1")},
    "wan": {"blocks": (40, "Pattern_2")},
    "wan-vace": {"blocks": (40, "Pattern_2")},
    "sana": {"transformer_blocks": (20, "Pattern_3")},
    "pixart": {"transformer_blocks": (28, "Pattern_3")},
    "dit": {"transformer_blocks": (28, "Pattern_3")},
    "hunyuan-video": {"transformer_blocks": (20, "Pattern_0"), "single_transformer_blocks": (40, "Pattern_0")},
    "hunyuan-video-15": {"transformer_blocks": (54, "Pattern_0")},
    "cogvideox": {"transformer_blocks": (30, "Pattern_0")},
    "cogview4": {"transformer_blocks": (30, "Pattern_0")},
    "ltx-video": {"transformer_blocks": (28, "Pattern_2")},
    "auraflow": {"joint_transformer_blocks": (4, "Pattern_1"), "single_transformer_blocks": (32, "Pattern_3")},
    "lumina2": {"layers": (26, "Pattern_3")},
    "mochi": {"transformer_blocks": (48, "Pattern_0")},
    "stable-audio": {"transformer_blocks": (24, "Pattern_3")},
    "allegro": {"transformer_blocks": (32, "Pattern_2")},
    "z-image": {"layers": (30, "x -> x")},
}


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


@pytest.mark.parametrize("family", MEASURED)
@pytest.mark.filterwarnings("ignore")  # of the tiny models
def test_a_family_is_measured_without_weights(family: str) -> None:
    adapter = registry.by_name(family)
    if not hasattr(diffusers, adapter.transformer):
        pytest.skip(f"this diffusers has no {adapter.transformer}")
    (model,) = inspect(family).models
    assert (model.adapter, model.reason) == (family, None)
    lists = {each.path: each for each in model.lists}
    for path, (count, pattern) in MEASURED[family].items():
        found = lists[path]
        assert (found.blocks, found.pattern, found.registered, found.problem) == (count, pattern, pattern, None)
        assert 0 < found.parameters < model.parameters
        tiny = called(adapter.transformer, path)
        assert (found.block, found.positional, found.keywords) == tiny
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


def test_what_cannot_be_traced_is_said_and_the_adapter_speaks(capsys: CAUGHT) -> None:
    if not hasattr(diffusers, "OmniGenTransformer2DModel"):
        pytest.skip("this diffusers has no OmniGen")
    code, out, err = ran("inspect", "omnigen", caught=capsys)
    assert (code, err) == (0, "")
    assert "measured  no: it could not be traced (" in out
    assert "--trace looks at the real model" in out
    assert "pattern   Pattern_3, as the adapter says, not measured" in out


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


def test_only_what_has_weights_can_be_traced_for_real(capsys: CAUGHT) -> None:
    code, _, err = ran("inspect", "flux", "--trace", caught=capsys)
    assert (code, err) == (2, "--trace: family 'flux' has no weights; give a recipe or the folder of a pipeline\n")
