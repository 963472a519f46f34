"""Recipes name a PatchFunctor that a plugin registered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from cachedit_cli import PatchFunctor, registry
from cachedit_cli.cli import main
from cachedit_cli.errors import InputError
from cachedit_cli.recipe import load

RECIPE = """\
version: 1
name: patched
model: {id: demo}
blocks: [{path: transformer.transformer_blocks, pattern: 1}]
patch_functor: noting
cache: {Fn_compute_blocks: 1, max_warmup_steps: 1, residual_diff_threshold: 0.5}
generate: {prompt: red heart, num_inference_steps: 3}
"""
PLUGIN = """\
from cachedit_cli import PatchFunctor
from cachedit_cli.registry import register_functor

class Noting(PatchFunctor):
    def apply(self, transformer):
        print(f"patched {type(transformer).__name__}")
        return transformer

register_functor("noting", Noting)
"""


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.names()  # loads what ships
    monkeypatch.setattr(registry._registry, "functors", {})
    monkeypatch.setattr(registry._registry, "plugins", {})


def test_a_plugins_functor_is_applied_for_a_recipe_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "patched.yaml").write_text(RECIPE)
    (tmp_path / "noting.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    assert main(["run", "patched.yaml", "--plugin", "noting.py"]) == 0
    assert "patched FluxTransformer2DModel" in capfd.readouterr().out


def test_an_unknown_functor_is_named_with_those_that_there_are(tmp_path: Path) -> None:
    class Other(PatchFunctor):
        def apply(self, transformer: nn.Module) -> nn.Module:
            return transformer

    registry.register_functor("other", Other)
    file = tmp_path / "patched.yaml"
    file.write_text(RECIPE)
    with pytest.raises(InputError) as caught:
        load(file)
    message = "patch_functor: no patch functor is called 'noting' (registered: other)"
    assert str(caught.value) == f"{file}:5:16: {message}"


def test_a_functor_without_blocks_is_refused(tmp_path: Path) -> None:
    registry.register_functor("noting", dict)
    file = tmp_path / "patched.yaml"
    file.write_text(RECIPE.replace("blocks: [{path: transformer.transformer_blocks, pattern: 1}]\n", ""))
    with pytest.raises(InputError, match="patch_functor: goes with `blocks`; an adapter brings its own"):
        load(file)


def test_two_functors_of_one_name_are_refused() -> None:
    def make() -> Any:
        return None

    registry.register_functor("noting", make)
    registry.register_functor("noting", make)
    with pytest.raises(InputError, match="two patch functors are called 'noting'"):
        registry.register_functor("noting", dict)
