"""`model.lora`: loaded, scaled, fused and unloaded, with caching as without; files that do not fit are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import cachedit_cli as cachedit
from cachedit_cli import opening
from cachedit_cli.errors import InputError
from tests.options.adapter_files import lora
from tests.options.opened import Drawn, opened, picture, with_and_without


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora(tmp_path_factory.mktemp("loras") / "a.safetensors")


@pytest.mark.parametrize("fuse", ["false", "true"])
def test_a_lora_changes_the_picture_by_its_scale_and_is_cached_right(file: Path, fuse: str, plain: Drawn) -> None:
    drawn = with_and_without(f"model.lora=[{{id: {file}, scale: 0.7, fuse: {fuse}}}]")
    assert torch.equal(drawn.never, drawn.plain)
    assert drawn.saved == plain.saved
    assert not torch.allclose(drawn.plain, plain.plain, atol=1e-2)
    _, ready = opened()
    ready.pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name="by_hand")
    ready.pipe.set_adapters(["by_hand"], [0.7])
    by_hand = picture(ready.pipe)
    assert torch.equal(drawn.plain, by_hand) if fuse == "false" else torch.allclose(drawn.plain, by_hand, atol=1e-3)


def test_scale_zero_changes_nothing_and_several_add_up(file: Path, plain: Drawn) -> None:
    _, none = opened(f"model.lora=[{{id: {file}, scale: 0}}]")
    assert torch.allclose(picture(none.pipe), plain.plain, atol=1e-5)
    _, halves = opened(f"model.lora=[{{id: {file}, scale: 0.5, name: a}}, {{id: {file.parent}, scale: 0.5}}]")
    _, fused = opened(f"model.lora=[{{id: {file}, scale: 0.5}}, {{id: {file}, scale: 0.5, fuse: true}}]")
    _, whole = opened(f"model.lora=[{{id: {file}}}]")
    wanted = picture(whole.pipe)
    assert torch.allclose(picture(halves.pipe), wanted, atol=1e-3)
    assert torch.allclose(picture(fused.pipe), wanted, atol=1e-3)
    assert halves.pipe.get_active_adapters() == ["a", "lora_1"]


def test_a_lora_that_is_changed_or_unloaded_meanwhile_never_meets_what_was_stored(file: Path, plain: Drawn) -> None:
    _, ready = opened(f"model.lora=[{{id: {file}, name: a}}]")
    pipe, never = ready.pipe, cachedit.DBCacheConfig(Fn_compute_blocks=1, residual_diff_threshold=0.0)
    with cachedit.cached(pipe, never):
        whole = picture(pipe)
        pipe.set_adapters(["a"], [0.5])
        half = picture(pipe)
        pipe.unload_lora_weights()
        assert torch.equal(picture(pipe), plain.plain)
    assert not torch.equal(whole, half)
    assert torch.equal(picture(pipe), plain.plain)


def changed(file: Path, to: Path, change: Any) -> Path:
    save_file({name: value for key, tensor in load_file(file).items() for name, value in [change(key, tensor)]}, to)
    return to


def refused(option: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(opening, "load", lambda *_: pytest.fail("weights are loaded"))
    with pytest.raises(InputError) as error:
        opened(f"model.lora={option}")
    return str(error.value)


def test_a_file_that_does_not_fit_is_refused_before_weights_are_loaded(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers would leave out the layers, or fill them up with zeros, and say nothing."""
    other = changed(file, tmp_path / "o.safetensors", lambda key, tensor: (key.replace("to_q", "to_z"), tensor))
    assert refused(f"[{{id: {other}}}]", monkeypatch) == (
        f"model.lora[0].id: {other}: does not fit demo, which lacks 18 of its layers, the first is "
        "transformer.single_transformer_blocks.0.attn.to_z"
    )
    wide = changed(
        file, tmp_path / "w.safetensors", lambda key, x: (key, x[:, :64].contiguous() if "lora_A" in key else x)
    )
    assert refused(f"[{{id: {wide}}}]", monkeypatch) == (
        f"model.lora[0].id: {wide}: does not fit demo: 36 sizes differ, the first is "
        "transformer.single_transformer_blocks.0.attn.to_q: 64 instead of 128"
    )
    save_file({"a.weight": torch.zeros(1)}, tmp_path / "n.safetensors")
    assert refused(f"[{{id: {tmp_path / 'n.safetensors'}}}]", monkeypatch) == (
        f"model.lora[0].id: {tmp_path / 'n.safetensors'}: holds no LoRA, but tensors such as a.weight"
    )


def test_what_is_not_there_is_said_with_what_is(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = f"[{{id: {tmp_path}/x.safetensors, name: a}}, {{id: {file.parent}, weight_name: b.safetensors, name: a}}]"
    assert refused(both, monkeypatch).splitlines() == [
        f"model.lora[0].id: {tmp_path}/x.safetensors: no such file or folder",
        "model.lora[1].name: 'a' is the name of another one",
        f"model.lora[1].weight_name: {file.parent} has no 'b.safetensors' (did you mean 'a.safetensors'?)",
    ]
    assert refused(f"[{{id: {tmp_path}}}]", monkeypatch) == (
        f"model.lora[0].weight_name: missing: {tmp_path} has no .safetensors file"
    )


def test_a_file_that_changes_no_layer_is_refused(file: Path, tmp_path: Path) -> None:
    """Which only shows when it is loaded, as its names are of no part that is known."""
    other = changed(file, tmp_path / "o.safetensors", lambda key, x: (key.replace("transformer.", "other.", 1), x))
    with pytest.raises(InputError, match=r"o\.safetensors: changes no layer of FluxPipeline"):
        opened(f"model.lora=[{{id: {other}}}]")
