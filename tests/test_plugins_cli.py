"""A transformer that diffusers has not: through `adapter: auto`, through a plugin, and from another package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from cachedit_cli import registry, runs
from cachedit_cli.cli import main
from tests.hand_written import PLUGIN, a_pipeline

CAUGHT = pytest.CaptureFixture[str]
WITH_CLASS = ("--plugin", "my_transformer.py")
SETTINGS = "cache: {type: DBCache, Fn_compute_blocks: 2, max_warmup_steps: 2, residual_diff_threshold: 0.9}"
RECIPE = """\
version: 1
model: {{id: {model}, device: cpu}}
{what}
{settings}
generate: {{prompt: a, height: 64, width: 64, max_sequence_length: 16, num_inference_steps: 6}}
"""


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_pipeline(tmp_path_factory.mktemp("made"), "my_transformer")


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    registry.all_adapters()
    now = registry._registry
    copy = replace(now, adapters=dict(now.adapters), origins=dict(now.origins), plugins={})
    monkeypatch.setattr(registry, "_registry", copy)
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        if name.startswith(("cachedit_plugin_", "my_transformer", "mine", "other")):
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path, pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the module that defines the class, and a plugin that registers it."""
    monkeypatch.chdir(tmp_path)
    code = (pipeline.parent / "my_transformer.py").read_text()
    (tmp_path / "my_transformer.py").write_text(code)
    (tmp_path / "mine.py").write_text(PLUGIN)
    return tmp_path


def a_recipe(folder: Path, pipeline: Path, what: str, settings: str = SETTINGS) -> str:
    (folder / "mine.yaml").write_text(RECIPE.format(model=pipeline, what=what, settings=settings))
    return "mine.yaml"


def ran(*arguments: str, caught: CAUGHT) -> tuple[int, str, str]:
    caught.readouterr()
    code = main(arguments)
    out, err = caught.readouterr()
    return code, out, err


def decisions(out: str) -> list[tuple[str, int, int]]:
    rows = runs.load(json.loads(out)["folder"]).record.log.rows
    return [(row.decision, row.computed, row.saved) for row in rows]


HALF = [("compute", 6, 0)] * 2 + [("reuse", 2, 4)] * 4


def test_auto_finds_the_lists_of_a_class_that_nobody_registered(folder: Path, pipeline: Path, capsys: CAUGHT) -> None:
    recipe = a_recipe(folder, pipeline, "adapter: auto")
    code, out, err = ran("run", recipe, "--dry-run", caught=capsys)
    assert (code, err) == (0, "")
    assert "the block lists are found at the first forward" in " ".join(out.split())
    code, out, err = ran("run", recipe, *WITH_CLASS, caught=capsys)
    assert (code, err) == (0, "")
    assert "found transformer.layers: MyTransformer, 6 blocks (MyBlock), image, words -> words, image\n" in out
    code, out, err = ran("run", recipe, "--json", *WITH_CLASS, caught=capsys)
    assert code == 0
    assert decisions(out) == HALF
    (context,) = json.loads(out)["log"]["contexts"]
    assert (context["name"], context["pattern"]) == ("transformer.layers", "image, words -> words, image")
    code, out, _ = ran("stats", caught=capsys)
    assert code == 0
    assert "layers" in out


def test_auto_and_a_plugin_make_the_same_picture(folder: Path, pipeline: Path, capsys: CAUGHT) -> None:
    pictures = []
    for what, options in (
        ("adapter: auto", ()),
        ("adapter: mine", ("--plugin", "mine.py")),
    ):
        recipe = a_recipe(folder, pipeline, what)
        code, out, err = ran("run", recipe, "--json", *WITH_CLASS, *options, caught=capsys)
        assert code == 0, err
        assert decisions(out) == HALF
        facts = json.loads(out)
        pictures.append(Image.open(Path(facts["folder"]) / facts["images"][0]["file"]).tobytes())
    assert pictures[0] == pictures[1]


def test_blocks_with_a_pattern_that_the_model_contradicts_are_refused(
    folder: Path, pipeline: Path, capsys: CAUGHT
) -> None:
    recipe = a_recipe(folder, pipeline, "blocks: [{path: transformer.layers, pattern: 1}]")
    code, _, err = ran("run", recipe, *WITH_CLASS, caught=capsys)
    assert code == 2
    assert err == (
        "transformer.layers: Pattern_1 says that blocks return hidden_states as value 2, but they take one of shape "
        "(1, 16, 24), and what they return there is of shape (1, 64, 24); Pattern_0 fits what they return\n"
    )


def test_a_recipe_alone_never_runs_a_plugin(folder: Path, pipeline: Path, capsys: CAUGHT) -> None:
    recipe = a_recipe(folder, pipeline, "adapter: mine")
    code, _, err = ran("validate", recipe, caught=capsys)
    assert code == 2
    assert "no adapter is called 'mine'" in err
    assert ran("validate", recipe, "--plugin", "mine.py", caught=capsys) == (0, "mine.yaml: ok\n", "")


def test_auto_refuses_a_model_in_which_nothing_fits_with_the_reasons(folder: Path, capsys: CAUGHT) -> None:
    apart = "image = image + sum(layer(words, image, moment)[1] for layer in self.layers)"
    recipe = a_recipe(folder, a_pipeline(folder, "my_transformer", apart), "adapter: auto")
    code, _, err = ran("run", recipe, *WITH_CLASS, "--output-dir", "out", caught=capsys)
    assert code == 2
    assert err == (
        "MyTransformer: no block list can be cached:\n  layers: what its blocks return is not what the next ones take\n"
    )
    assert not any(Path("out").iterdir())


def test_blocks_that_are_no_list_are_named_with_those_that_are(folder: Path, pipeline: Path, capsys: CAUGHT) -> None:
    recipe = a_recipe(folder, pipeline, "blocks: [{path: transformer.enter, pattern: 3}]")
    code, _, err = ran("run", recipe, *WITH_CLASS, caught=capsys)
    assert code == 2
    assert err == "blocks[0].path: MyTransformer has no block list 'enter' (it has layers)\n"


def test_models_and_inspect_show_what_a_plugin_registers(folder: Path, pipeline: Path, capsys: CAUGHT) -> None:
    code, out, _ = ran("models", "mine", "--json", "--plugin", "mine.py", caught=capsys)
    assert code == 0
    (entry,) = json.loads(out)["adapters"]
    assert (entry["transformer"], entry["origin"]) == ("MyTransformer", "mine.py")
    code, out, err = ran("inspect", "mine", "--plugin", "mine.py", caught=capsys)
    assert (code, out) == (2, "")
    assert err.startswith("MyTransformer: this diffusers has no such class")


def test_inspect_finds_a_class_that_a_plugin_defines(folder: Path, pipeline: Path, capsys: CAUGHT) -> None:
    code, out, err = ran("inspect", "mine", *WITH_CLASS, "--plugin", "mine.py", "--json", caught=capsys)
    assert (code, err) == (0, "")
    (model,) = json.loads(out)["models"]
    (entry,) = model["lists"]
    assert model["adapter"] == "mine"
    assert (entry["path"], entry["blocks"], entry["block"]) == ("layers", 6, "MyBlock")
    assert entry["pattern"] == entry["registered"] == "image, words -> words, image"
    assert (entry["positional"], entry["keywords"]) == (["words", "image", "moment"], ["strength"])
    assert entry["differing"] == ["strength"]
    assert entry["changed"] == {}


def test_inspect_says_why_a_class_could_not_be_traced(folder: Path, capsys: CAUGHT) -> None:
    module = (folder / "my_transformer.py").read_text()
    (folder / "other.py").write_text(module.replace("timestep,", "schedule,").replace("timestep.", "schedule.now."))
    code, out, err = ran("inspect", "MyTransformer", "--plugin", "other.py", caught=capsys)
    assert (code, err) == (0, "")
    assert "measured  no: it could not be traced (AttributeError: 'Tensor' object has no attribute 'now')" in out
    assert "--trace looks at the real model" in " ".join(out.split())


def test_trace_looks_at_the_real_model(folder: Path, pipeline: Path, capsys: CAUGHT) -> None:
    for target in (a_recipe(folder, pipeline, "adapter: auto"), str(pipeline)):
        code, out, err = ran("inspect", target, "--trace", "--json", *WITH_CLASS, caught=capsys)
        assert (code, err) == (0, "")
        (model,) = json.loads(out)["models"]
        assert (model["adapter"], model["traced"]) == (None, "the first forward of the real model")
        assert model["lists"][0]["pattern"] == "image, words -> words, image"


@pytest.mark.parametrize(
    "command", [["run", "demo", "--dry-run"], ["models"], ["inspect", "flux"], ["validate", "demo"]]
)
def test_a_plugin_that_raises_ends_every_command_with_its_place(
    command: list[str], folder: Path, capsys: CAUGHT
) -> None:
    (folder / "bad.py").write_text("\n\nraise KeyError('gone')\n")
    code, out, err = ran(*command, "--plugin", "bad.py", caught=capsys)
    assert (code, out, err) == (2, "", "--plugin: bad.py:3: KeyError: 'gone'\n")


def test_two_plugins_for_one_class_are_refused(folder: Path, capsys: CAUGHT) -> None:
    (folder / "other.py").write_text(PLUGIN.replace('"mine"', '"other"'))
    code, _, err = ran("models", "--plugin", "mine.py", "--plugin", "other.py", caught=capsys)
    assert code == 2
    assert "two adapters for MyTransformer: 'mine' of mine.py and 'other' of other.py; there can only be one" in err


def test_an_installed_package_brings_its_adapter(tmp_path: Path) -> None:
    """Really installed, by pip, into a folder of its own."""
    project, site = tmp_path / "project", tmp_path / "site"
    project.mkdir()
    (project / "my_adapters.py").write_text(PLUGIN)
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n\n'
        '[project]\nname = "my-adapters"\nversion = "1.0"\n\n'
        '[project.entry-points."cachedit.adapters"]\nmine = "my_adapters"\n\n'
        '[tool.setuptools]\npy-modules = ["my_adapters"]\n'
    )
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
        pytest.skip("this environment has no pip")
    subprocess.run([*pip, "--target", str(site), str(project)], check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(Path(__file__).parents[1])])}
    command = [sys.executable, "-m", "cachedit_cli", "models", "mine", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert [(entry["name"], entry["origin"]) for entry in json.loads(done.stdout)["adapters"]] == [
        ("mine", "the package my-adapters 1.0")
    ]
