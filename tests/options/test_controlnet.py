"""`model.controlnet` and `model.ip_adapter`: loaded, drawn with, and cached right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cachedit_cli import opening, plan, recipe
from cachedit_cli.errors import InputError
from cachedit_cli.options.controlnet import pipeline_name
from tests.options import adapter_files
from tests.options.opened import Drawn, opened, picture, with_and_without

# Upstream's own: its ControlNet imports a name of its own from where it was.
pytestmark = pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


def stripes(width: int) -> Image.Image:
    return Image.frombytes("L", (64, 64), bytes(255 * (x // width % 2) for _ in range(64) for x in range(64)))


def shown(width: int, file: Path) -> Path:
    stripes(width).save(file)
    return file


def test_a_control_image_changes_the_picture_and_is_cached_right(folder: Path, plain: Drawn) -> None:
    network = adapter_files.controlnet(folder / "control")
    option = f"model.controlnet={network}"
    lines = shown(8, folder / "lines.png")
    control: dict[str, Any] = {"control_image": stripes(8).convert("RGB"), "controlnet_conditioning_scale": 1.0}
    drawn = with_and_without(option, f"generate.control_image={lines}", **control)
    assert torch.equal(drawn.never, drawn.plain)
    assert drawn.saved == plain.saved
    _, ready = opened(option, f"generate.control_image={lines}")
    assert type(ready.pipe).__name__ == "FluxControlNetPipeline"
    assert plan.build(recipe.load("demo", [option])).pipeline == "FluxControlNetPipeline"
    off = picture(ready.pipe, **{**control, "controlnet_conditioning_scale": 0.0})
    assert not torch.allclose(drawn.plain, off, atol=1e-2)


def test_a_picture_as_prompt_changes_the_picture_and_is_cached_right(folder: Path, plain: Drawn) -> None:
    file, encoder = adapter_files.ip_adapter(folder / "ip.safetensors"), adapter_files.image_encoder(folder / "clip")
    option = f"model.ip_adapter={{id: {file}, image_encoder: {encoder}, scale: 0.8}}"
    given: dict[str, Any] = {"ip_adapter_image": stripes(4).convert("RGB"), "true_cfg_scale": 1.0}
    style = f"generate.inputs.ip_adapter_image={shown(4, folder / 'style.png')}"
    drawn = with_and_without(option, style, **given)
    assert torch.equal(drawn.never, drawn.plain)
    assert drawn.saved == plain.saved
    assert not torch.allclose(drawn.plain, plain.plain, atol=1e-2)
    _, ready = opened(option.replace("scale: 0.8", "scale: 0.0"), style)
    assert torch.allclose(picture(ready.pipe, **given), plain.plain, atol=1e-5)


def test_the_picture_that_a_network_follows_is_asked_for_before_weights_are_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = adapter_files.controlnet(folder / "another")
    assert refused(f"controlnet={network}", monkeypatch) == (
        "generate.control_image: missing, and FluxControlNetPipeline follows a picture (give the path of a file)"
    )
    file, encoder = adapter_files.ip_adapter(folder / "ip2.safetensors"), adapter_files.image_encoder(folder / "clip2")
    assert refused(f"ip_adapter={{id: {file}, image_encoder: {encoder}}}", monkeypatch) == (
        "generate.inputs.ip_adapter_image: missing, and model.ip_adapter takes a picture as a prompt"
    )


@pytest.mark.parametrize(
    ("name", "with_controlnet"),
    [
        ("FluxPipeline", "FluxControlNetPipeline"),
        ("FluxImg2ImgPipeline", "FluxControlNetImg2ImgPipeline"),
        ("FluxInpaintPipeline", "FluxControlNetInpaintPipeline"),
        ("StableDiffusion3Pipeline", "StableDiffusion3ControlNetPipeline"),
        ("QwenImagePipeline", "QwenImageControlNetPipeline"),
        ("FluxControlNetPipeline", "FluxControlNetPipeline"),
        ("WanPipeline", None),
    ],
)
def test_the_pipeline_with_a_controlnet_is_found_by_the_name_of_the_one_without(
    name: str, with_controlnet: str | None
) -> None:
    assert pipeline_name(name) == with_controlnet


def refused(option: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(opening, "load", lambda *_: pytest.fail("weights are loaded"))
    with pytest.raises(InputError) as error:
        opened(f"model.{option}")
    return str(error.value)


def test_what_does_not_fit_or_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(f"controlnet={tmp_path}/x", monkeypatch) == (
        f"model.controlnet.id: {tmp_path}/x: no such file or folder"
    )
    assert refused(f"controlnet={tmp_path}", monkeypatch) == (
        f"model.controlnet.id: {tmp_path}: no folder of a diffusers model, it has no config.json"
    )
    network = adapter_files.controlnet(tmp_path / "wide", num_attention_heads=1)
    assert refused(f"controlnet={network}", monkeypatch) == (
        f"model.controlnet.id: {network}: does not fit demo: num_attention_heads 1 instead of 4"
    )
    (tmp_path / "config.json").write_text('{"_class_name": "FluxTransformer2DModel"}')
    assert refused(f"controlnet={tmp_path}", monkeypatch) == (
        f"model.controlnet.id: {tmp_path}: is FluxTransformer2DModel, which is no ControlNet of diffusers"
    )
    assert refused(f"ip_adapter={{id: {tmp_path}/x.safetensors, image_encoder: ./y}}", monkeypatch) == (
        f"model.ip_adapter.id: {tmp_path}/x.safetensors: no such file or folder"
    )
    file = adapter_files.ip_adapter(tmp_path / "ip.safetensors")
    assert refused(f"ip_adapter={{id: {file}}}", monkeypatch) == (
        "model.ip_adapter.image_encoder: missing: demo brings no model that reads the picture; name the CLIP vision "
        "model that the IP-Adapter was trained with"
    )
    assert refused("ip_adapter={id: some/repository}", monkeypatch) == (
        "model.ip_adapter.weight_name: missing: the name of a file in the repository"
    )
