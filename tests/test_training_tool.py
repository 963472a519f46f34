"""The training script of the bundled model: all its stages, a few steps each, on emoji drawn here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from cachedit_cli import demo

TOOL = Path(__file__).parents[1] / "tools" / "train_emoji_flux.py"
TINY = ["--vae-steps", "1", "--steps", "1", "--decoder-steps", "1", "--double", "1", "--single", "1", "--batch", "2"]

# Name, short names, category, subcategory. `pet` means two of them; the last one's category is not learnt.
EMOJI = [
    ("HEAVY BLACK HEART", ["heart"], "Smileys & Emotion", "emotion"),
    ("DOG FACE", ["dog", "pet"], "Animals & Nature", "animal-mammal"),
    ("CAT FACE", ["cat", "pet"], "Animals & Nature", "animal-mammal"),
    ("KEYCAP 7", ["seven"], "Symbols", "keycap"),
]


def train(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, TOOL, "--threads", "1", *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder in the form of the npm package emoji-datasource-google."""
    folder = tmp_path_factory.mktemp("package")
    images = folder / "img" / "google" / "64"
    images.mkdir(parents=True)
    rows = []
    for order, (name, short, category, subcategory) in enumerate(EMOJI):
        picture = np.zeros((64, 64, 4), np.uint8)
        picture[16:48, 16:48] = (60 * order, 120, 200, 255)
        Image.fromarray(picture).save(images / f"{order}.png")
        rows.append(
            {
                "name": name,
                "short_names": short,
                "category": category,
                "subcategory": subcategory,
                "has_img_google": True,
                "image": f"{order}.png",
                "sort_order": order,
                "unified": f"1F60{order}",
            }
        )
    (folder / "emoji_pretty.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run every stage and return the pipeline folder."""
    folder = tmp_path_factory.mktemp("training")
    done = train("--data", data, "--work", folder / "work", "--out", folder / "model", *TINY)
    assert done.returncode == 0, done.stderr
    assert "3 emoji for the autoencoder, 3 for the captions, on cpu" in done.stdout
    return folder / "model"


def files(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_all_stages_together_write_the_files_of_the_bundled_model(trained: Path) -> None:
    assert files(trained) >= files(demo.path()) - {"README.md"}


def test_the_written_pipeline_is_made_of_the_same_classes_as_the_bundled_one(trained: Path) -> None:
    written, bundled = (json.loads((folder / "model_index.json").read_text()) for folder in (trained, demo.path()))
    assert {**written, "_diffusers_version": None} == {**bundled, "_diffusers_version": None}


def test_the_written_weights_have_the_names_of_the_bundled_ones(trained: Path) -> None:
    weights = Path("text_encoder", "model.safetensors")
    with safe_open(trained / weights, "pt") as written, safe_open(demo.path() / weights, "pt") as bundled:
        assert set(written.keys()) == set(bundled.keys())


def test_the_vocabulary_holds_the_names_that_mean_one_emoji(trained: Path) -> None:
    words = json.loads((trained / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    assert {"red", "heart", "dog", "cat", "face"} <= words.keys()
    assert words.keys().isdisjoint({"pet", "heavy", "keycap", "seven"})


def test_a_folder_without_emoji_is_refused_in_a_sentence(data: Path, tmp_path: Path) -> None:
    (tmp_path / "emoji_pretty.json").write_text("[]")
    done = train("--data", tmp_path, "--work", tmp_path / "work")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"{tmp_path} has no emoji with images: is it the unpacked npm package emoji-datasource-google?"
    ]
