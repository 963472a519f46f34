"""The bundled model: it is where demo.py says, whole, licensed, and draws what it is asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from safetensors import safe_open

from cachedit_cli import demo

MODEL_FILES = {
    "README.md",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder_2/config.json",
    "text_encoder_2/model.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer_2/tokenizer.json",
    "tokenizer_2/tokenizer_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
}


def draw(pipeline: Any, prompt: str, **changes: Any) -> Any:
    """Return the picture as an array of rows, columns and RGB from 0 to 1."""
    import torch

    call = {**demo.DEFAULTS, "num_inference_steps": 8, "generator": torch.Generator().manual_seed(0), **changes}
    return pipeline(prompt, output_type="np", **call).images[0]


def test_the_folder_holds_every_file_of_the_pipeline() -> None:
    present = {file.relative_to(demo.path()).as_posix() for file in demo.path().rglob("*") if file.is_file()}
    assert present == MODEL_FILES


def test_the_folder_names_the_pipeline_that_loads_it() -> None:
    assert json.loads((demo.path() / "model_index.json").read_text())["_class_name"] == "FluxPipeline"


def test_the_model_card_keeps_the_notices_of_the_training_data() -> None:
    card = (demo.path() / "README.md").read_text()
    assert "Apache License 2.0, Copyright Google LLC" in card
    assert "MIT, Copyright Cal Henderson" in card


def test_the_defaults_are_the_sizes_that_the_weights_were_trained_with() -> None:
    vae = json.loads((demo.path() / "vae" / "config.json").read_text())
    tokenizer = json.loads((demo.path() / "tokenizer" / "tokenizer_config.json").read_text())
    assert demo.DEFAULTS["height"] == demo.DEFAULTS["width"] == vae["sample_size"]
    assert demo.DEFAULTS["max_sequence_length"] == tokenizer["model_max_length"]


def test_the_text_encoder_has_the_weight_names_that_every_transformers_reads() -> None:
    """transformers 5 also reads and writes them without the prefix; 4 then starts from random weights."""
    with safe_open(demo.path() / "text_encoder" / "model.safetensors", "pt") as weights:
        names = list(weights.keys())
    assert all(name.startswith("text_model.") for name in names)


def test_asking_where_the_model_is_imports_no_torch() -> None:
    code = "import sys; from cachedit_cli import demo; demo.path(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_red_heart_on_a_white_background_is_red_in_the_middle_and_white_in_the_corners(flux: Any) -> None:
    picture = draw(flux, "red heart on a white background")
    assert picture.shape == (64, 64, 3)
    red, green, blue = picture[24:40, 24:40].mean((0, 1))
    assert red > 0.6
    assert max(green, blue) < 0.4
    corners = picture[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.min() > 0.9


def test_the_background_has_the_colour_of_the_prompt(flux: Any) -> None:
    picture = draw(flux, "cat face on a navy blue background")
    red, green, blue = picture[:4].mean((0, 1)) * 255
    assert (red, green, blue) == pytest.approx((28, 44, 110), abs=12)


def test_the_same_seed_draws_the_same_picture_and_another_seed_another_one(flux: Any) -> None:
    import torch

    first = draw(flux, "rocket on a navy blue background")
    again = draw(flux, "rocket on a navy blue background")
    other = draw(flux, "rocket on a navy blue background", generator=torch.Generator().manual_seed(1))
    assert (first == again).all()
    assert abs(first - other).mean() > 0.01
