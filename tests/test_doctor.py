"""`cachedit doctor`: what it finds here, and what it says where something is missing."""

from __future__ import annotations

import builtins
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from cachedit_cli import __version__, demo, doctor
from cachedit_cli.cli import main
from cachedit_cli.doctor_checks import Check
from cachedit_cli.recipe_options import Model

CAUGHT = pytest.CaptureFixture[str]


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.what: check for check in checks}


def test_json_is_one_document_with_versions_devices_and_options(capsys: CAUGHT) -> None:
    code = main(["doctor", "--json"])
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert (code, err, facts["healthy"]) == (0, "", True)
    versions = {check["what"]: check["note"] for check in facts["versions"]}
    assert versions["cachedit"] == __version__
    assert versions["torch"] == metadata.version("torch")
    assert {check["what"]: check["works"] for check in facts["devices"]} == {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    assert facts["options"][0]["what"] == "model.device: auto"


def test_each_finding_is_a_line(capsys: CAUGHT) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith("  ")] == ["versions", "devices", "options of recipes"]
    assert f"  yes  cachedit      {__version__}" in lines
    assert "  yes  model.dtype: float32 on cpu" in lines


def test_a_missing_package_gets_code_1_and_what_is_needed(monkeypatch: pytest.MonkeyPatch, capsys: CAUGHT) -> None:
    find = metadata.version

    def version(name: str) -> str:
        if name == "accelerate":
            raise metadata.PackageNotFoundError(name)
        return "0.1.0" if name == "diffusers" else find(name)

    monkeypatch.setattr(metadata, "version", version)
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("  no   accelerate    missing; accelerate>=") for line in lines)
    assert any(line.startswith("  no   diffusers     0.1.0, but diffusers>=") for line in lines)


def test_a_torch_that_cannot_be_imported_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def broken(name: str, *rest: Any) -> Any:
        if name == "torch":
            raise OSError("libcudart.so.13: cannot open shared object file")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", broken)
    found = doctor.examine()
    assert not found.healthy
    assert found.versions[-1] == Check(
        "torch", False, "cannot be imported: libcudart.so.13: cannot open shared object file"
    )
    assert found.devices == []


def test_folders_that_cannot_be_written_and_a_missing_model_are_findings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "outputs").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(demo, "path", lambda: tmp_path / "gone")
    found = by_name(doctor.examine().options)
    assert found["output.dir: outputs"] == Check(
        "output.dir: outputs", False, f"outputs: {tmp_path / 'outputs'} cannot be written"
    )
    assert found["model.id: hub ids"] == Check(
        "model.id: hub ids", False, f"HF_HUB_OFFLINE is set: only what {tmp_path / 'hub'} holds"
    )
    assert not found["model.id: demo"].works
    assert str(tmp_path / "gone") in found["model.id: demo"].note


def test_a_number_format_that_a_device_cannot_compute_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = torch.nn.functional.conv2d

    def picky(tokens: Any, weight: Any) -> Any:
        if tokens.dtype == torch.float16:
            raise RuntimeError("\"slow_conv2d_cpu\" not implemented for 'Half'\nmore")
        return conv(tokens, weight) * (torch.nan if tokens.dtype == torch.bfloat16 else 1.0)

    monkeypatch.setattr(torch.nn.functional, "conv2d", picky)
    found = by_name(doctor.examine().options)
    assert found["model.dtype: float16 on cpu"].note == "\"slow_conv2d_cpu\" not implemented for 'Half'"
    assert found["model.dtype: bfloat16 on cpu"].note == "does not compute finite numbers"
    assert [found[f"model.dtype: {name} on cpu"].works for name in ("float32", "bfloat16", "float16")] == [
        True,
        False,
        False,
    ]


def test_each_option_of_a_model_is_tried_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    found = by_name(doctor.examine().options)
    named = {what.removeprefix("model.").partition(":")[0] for what in found if what.startswith("model.")}
    unnamed = set(Model.model_fields) - named
    assert unnamed == {"pipeline", "revision", "variant", "parallel"}  # which work with every model that there is
    assert not found["model.offload: group"].works
    assert found["model.attention: native"] == Check("model.attention: native", True, "")
    assert not found["model.attention: sage"].works
    assert "install `sageattention>=" in found["model.attention: sage"].note
    assert found["model.attention: flash_hub"].note == "needs CUDA and the package kernels (pip install kernels)"
    assert found["model.quantize: int8"] == Check("model.quantize: int8", True, "by torchao")
    assert found["model.quantize: bnb-8bit"].note.startswith(("diffusers loads it on", "bitsandbytes is not installed"))
    assert found["model.lora"].works
