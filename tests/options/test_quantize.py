"""`model.quantize`: layers in eight bits, cached as others are; what is missing is said before weights are loaded."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import Any

import diffusers
import pytest
import torch
import transformers

from cachedit_cli import opening, recipe
from cachedit_cli.errors import InputError
from cachedit_cli.models import ModelFiles, locate
from cachedit_cli.options import quantizing
from cachedit_cli.recipe_options import Quantize
from tests.options.opened import Drawn, opened, with_and_without

CPU = torch.device("cpu")


def weight_of(module: Any) -> str:
    return type(module.weight).__name__


@pytest.mark.parametrize("option", ["model.quantize=int8-weights", "model.quantize=float8-weights"])
def test_quantised_layers_are_cached_right(option: str, plain: Drawn) -> None:
    drawn = with_and_without(option)
    assert torch.equal(drawn.never, drawn.plain)
    assert drawn.saved == plain.saved
    assert not torch.equal(drawn.plain, plain.plain)
    assert torch.allclose(drawn.plain, plain.plain, atol=0.2)


def test_quantised_layers_can_be_offloaded_by_groups() -> None:
    option = "model.quantize=int8-weights"
    assert torch.equal(with_and_without(option, "model.offload=group").cached, with_and_without(option).cached)


def test_each_part_has_a_format_of_its_own_and_layers_can_be_left_out() -> None:
    _, ready = opened("model.quantize={transformer: {type: int8, skip: [proj_out]}, text_encoder_2: float8-weights}")
    pipe = ready.pipe
    assert weight_of(pipe.transformer.transformer_blocks[0].attn.to_q) == "Int8Tensor"
    assert weight_of(pipe.transformer.proj_out) == "Parameter"
    assert weight_of(pipe.text_encoder_2.encoder.block[0].layer[0].SelfAttention.q) == "Float8Tensor"
    assert {type(weight).__name__ for weight in pipe.text_encoder.parameters()} == {"Parameter"}


def test_bitsandbytes_gets_settings_of_the_library_that_loads_the_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as goes without a GPU, on which alone diffusers loads it."""
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.50.2" if name == "bitsandbytes" else version(name)
    )
    options = {"transformers": Quantize(type="bnb-4bit", skip=["proj_out"]), "text_encoder": Quantize(type="bnb-8bit")}
    made = quantizing.config(options, locate("demo"), torch.bfloat16).quant_mapping
    assert list(made) == ["transformer", "text_encoder"]
    assert isinstance(made["transformer"], diffusers.BitsAndBytesConfig)
    assert made["transformer"].load_in_4bit
    assert made["transformer"].bnb_4bit_compute_dtype == torch.bfloat16
    assert made["transformer"].llm_int8_skip_modules == ["proj_out"]
    assert isinstance(made["text_encoder"], transformers.BitsAndBytesConfig)
    assert made["text_encoder"].load_in_8bit


def test_a_model_that_is_not_here_yet_may_have_two_transformers() -> None:
    made = quantizing.config({"transformers": Quantize(type="bnb-8bit")}, ModelFiles("a/b", None), torch.float16)
    assert list(made.quant_mapping) == ["transformer", "transformer_2"]


def refused(option: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(opening, "load", lambda *_: pytest.fail("weights are loaded"))
    with pytest.raises(InputError) as error:
        opened(f"model.{option}")
    return str(error.value)


def test_a_part_that_is_not_there_and_a_format_that_does_not_work_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused("quantize={transfomer: int8}", monkeypatch) == (
        "model.quantize.transfomer: demo has no such part (did you mean 'transformer'?)"
    )
    assert refused("quantize={text_encoder: int4-weights}", monkeypatch).startswith(
        "model.quantize.text_encoder: int4-weights does not work on cpu: "
    )
    with pytest.raises(
        InputError, match=r"model\.quantize\.transformers\.type: 'int9' is unknown .did you mean 'int8'"
    ):
        recipe.load("demo", ["model.quantize=int9"])


def test_a_package_that_is_not_installed_is_said_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("torchao", "bitsandbytes") else find(name)
    )
    assert refused("quantize={transformer: float8, text_encoder: bnb-8bit}", monkeypatch) == (
        "model.quantize.transformer: float8 needs the package torchao (pip install 'cachedit[torchao]')\n"
        "model.quantize.text_encoder: bnb-8bit needs the package bitsandbytes (pip install 'cachedit[bitsandbytes]')"
    )


def test_a_lora_is_not_fused_with_rounded_weights() -> None:
    with pytest.raises(InputError, match=r"model\.lora\.0\.fuse: changes weights, which quantize has rounded by then"):
        recipe.load("demo", ["model.quantize=int8", "model.lora=[{id: a/b, fuse: true}]"])
