"""Number formats of single parts, a transformer from a file of its own, and `device_map`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file

from cachedit_cli import demo, opening, plan, recipe
from cachedit_cli.errors import InputError
from tests.options.opened import Drawn, opened, picture, with_and_without

# --------------------------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize(
    "option",
    [
        "model={id: demo, device: cpu, dtype: bfloat16, component_dtypes: {vae: float32, text_encoder_2: float32}}",
        "model={id: demo, device: cpu, component_dtypes: {vae: bfloat16, text_encoder: bfloat16}}",
    ],
)
def test_parts_may_have_other_formats_and_are_cached_right(option: str, plain: Drawn) -> None:
    """Though FLUX hands on what its parts return as it is."""
    drawn = with_and_without(option)
    assert torch.equal(drawn.never, drawn.plain)
    assert drawn.saved == plain.saved
    assert torch.allclose(drawn.plain.float(), plain.plain, atol=0.1)
    _, ready = opened(option)
    wanted = recipe.load("demo", [option]).model
    for name in ("vae", "text_encoder", "text_encoder_2", "transformer"):
        given = wanted.component_dtypes.get(name, "bfloat16" if wanted.dtype == "bfloat16" else "float32")
        assert getattr(ready.pipe, name).dtype == getattr(torch, given), name


def test_a_part_in_more_precision_comes_nearer_to_all_parts_in_it(plain: Drawn) -> None:
    _, half = opened("model.dtype=bfloat16")
    _, mixed = opened("model={id: demo, device: cpu, dtype: bfloat16, component_dtypes: {vae: float32}}")
    assert picture(mixed.pipe).dtype == torch.float32
    far, near = ((picture(each.pipe).float() - plain.plain).abs().mean() for each in (half, mixed))
    assert near < far


def test_a_part_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(InputError, match=r"model.component_dtypes.vea: demo has no such part .did you mean 'vae'\?"):
        plan.build(recipe.load("demo", ["model.component_dtypes={vea: float32}"]))


# ---------------------------------------------------------------------------------------------------- single file


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the transformer as it is shared: weights in one file, here a little changed."""
    model: Any = FluxTransformer2DModel.from_pretrained(demo.path(), subfolder="transformer")
    path = tmp_path_factory.mktemp("shared") / "changed.safetensors"
    save_file({name: weight * 0.98 for name, weight in model.state_dict().items()}, path)
    return path


def test_a_transformer_comes_from_its_file_and_the_rest_from_the_pipeline(file: Path, plain: Drawn) -> None:
    options = [f"model.id={file}", "model.config=demo"]
    drawn = with_and_without(*options)
    assert torch.equal(drawn.never, drawn.plain)
    assert drawn.saved == plain.saved
    _, ready = opened()
    with torch.no_grad():
        for weight in ready.pipe.transformer.parameters():
            weight *= 0.98
    assert torch.equal(drawn.plain, picture(ready.pipe))
    shown = plan.build(recipe.load("demo", options))
    assert (shown.pipeline, [context.blocks for context in shown.contexts]) == ("FluxPipeline", [18])


def test_a_file_that_is_not_there_has_no_pipeline_or_does_not_fit_is_refused(file: Path, tmp_path: Path) -> None:
    def said(*options: str) -> str:
        with pytest.raises(InputError) as error:
            opened(*options)
        return str(error.value)

    assert said(f"model.id={file}") == (
        f"model.id: {file}: a file; name the pipeline that it belongs to as model.config"
    )
    assert said(f"model.id={tmp_path}/x.safetensors", "model.config=demo") == (
        f"model.id: {tmp_path}/x.safetensors: no such file"
    )
    assert said("model.config=demo") == "model.config: goes with a model.id that is a file"
    assert said(f"model.id={file}", f"model.config={tmp_path}") == (
        f"model.config: {tmp_path}: no diffusers pipeline, the folder has no model_index.json"
    )
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert said(f"model.id={tmp_path}/other.safetensors", "model.config=demo").startswith(
        f"model.id: {tmp_path}/other.safetensors: does not fit the transformer of "
    )


# ----------------------------------------------------------------------------------------------------- device map


def test_a_pipeline_may_be_loaded_by_a_device_map(plain: Drawn) -> None:
    drawn = with_and_without("model.device=auto", "model.device_map=cpu")
    assert torch.equal(drawn.plain, plain.plain)
    assert torch.equal(drawn.cached, plain.cached)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["model.device_map=cpu"], "model.device_map: cannot be combined with device cpu (keep one of them)"),
        (
            ["model.device=auto", "model.device_map=cpu", "model.offload=model"],
            "model.device_map: places the parts for good, and offload moves them (keep one of them)",
        ),
        (
            ["model.device=auto", "model.device_map=balanced"],
            "model.device_map: there is no accelerator here, which balanced needs (leave it out)",
        ),
    ],
)
def test_what_does_not_go_with_a_device_map_is_refused(
    options: list[str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(opening, "load", lambda *_: pytest.fail("weights are loaded"))
    with pytest.raises(InputError) as error:
        opened(*options)
    assert str(error.value).endswith(problem)
