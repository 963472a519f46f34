"""`cachedit models`: what is registered, found by a word, as table and JSON, without torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from cachedit_cli import registry
from cachedit_cli.cli import main

CAUGHT = pytest.CaptureFixture[str]


def ran(*arguments: str, caught: CAUGHT) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = caught.readouterr()
    return code, out, err


def test_every_adapter_is_in_the_table_with_lists_pattern_guidance_and_modality(capsys: CAUGHT) -> None:
    code, out, err = ran("models", caught=capsys)
    assert (code, err) == (0, "")
    for adapter in registry.all_adapters():
        assert adapter.transformer in out
        assert all(entry.path in out for entry in adapter.lists)
    wan = out.partition("WanTransformer3DModel")[2].partition("\nwan-animate ")[0]
    assert "video" in wan
    assert "blocks pattern 2" in wan
    assert "two forwards a step, conditional first" in wan


@pytest.mark.parametrize(
    ("word", "families"),
    [("cogvideox", {"cogvideox"}), ("StableAudioDiTModel", {"stable-audio"}), ("FluxKontextPipeline", {"flux"})],
)
def test_a_word_filters_by_family_class_and_pipeline(word: str, families: set[str], capsys: CAUGHT) -> None:
    code, out, _ = ran("models", word, "--json", caught=capsys)
    assert code == 0
    assert {entry["name"] for entry in json.loads(out)["adapters"]} == families


def test_a_word_that_nothing_has_names_the_nearest(capsys: CAUGHT) -> None:
    assert ran("models", "qwen_image", caught=capsys) == (
        2,
        "",
        "no adapter has 'qwen_image' in it (did you mean 'qwen-image'?)\n",
    )


def test_json_has_the_whole_of_an_adapter(capsys: CAUGHT) -> None:
    code, out, _ = ran("models", "FluxTransformer2DModel", "--json", caught=capsys)
    assert code == 0
    (entry,) = json.loads(out)["adapters"]
    assert entry["decided"] == "decided as one list"
    assert [(each["path"], each["pattern"]) for each in entry["lists"]] == [
        ("transformer_blocks", "pattern 1"),
        ("single_transformer_blocks", "pattern 1"),
    ]
    assert "demo" in entry["recipes"]
    assert entry.keys() >= {"pipelines", "guidance", "modality", "functor", "needs", "origin"}


def test_models_needs_no_torch() -> None:
    code = "import sys; from cachedit_cli.cli import main; main(['models']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
