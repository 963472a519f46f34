"""Options of the model that need no more than a setting: VAE, scheduler, attention; and what the plan shows of them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from diffusers import FlowMatchLCMScheduler
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

from cachedit_cli import opening, plan, recipe
from cachedit_cli.cli import main
from cachedit_cli.errors import InputError
from cachedit_cli.options import attention
from cachedit_cli.options.names import attention_backends
from tests.options.opened import Drawn, opened, picture, with_and_without
from tests.tiny_models import TINY

CAUGHT = pytest.CaptureFixture[str]


def problem(*options: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what is said of options before any weights are loaded."""
    monkeypatch.setattr(opening, "load", lambda *_: pytest.fail("weights are loaded"))
    with pytest.raises(InputError) as error:
        opened(*options)
    return str(error.value)


# ------------------------------------------------------------------------------------------------------------ scheduler


def test_a_scheduler_keeps_the_models_configuration_but_for_the_arguments() -> None:
    _, own = opened()
    _, other = opened("model.scheduler={type: FlowMatchLCMScheduler, arguments: {shift: 2.0}}")
    before, made = own.pipe.scheduler.config, other.pipe.scheduler
    assert isinstance(made, FlowMatchLCMScheduler)
    assert (before.shift, made.config.shift) == (1.0, 2.0)
    assert made.config.num_train_timesteps == before.num_train_timesteps


def test_another_shift_draws_another_picture_and_caching_is_right_with_it(plain: Drawn) -> None:
    drawn = with_and_without("model.scheduler.arguments={shift: 3.0}")
    assert torch.equal(drawn.never, drawn.plain)
    assert not torch.equal(drawn.plain, plain.plain)
    assert drawn.saved == plain.saved


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            "{type: FlowMatchLCMSheduler}",
            "model.scheduler: diffusers has no 'FlowMatchLCMSheduler' (did you mean 'FlowMatchLCMScheduler'?)",
        ),
        (
            "{arguments: {shft: 2, shift: high, use_karras_sigmas: 1.5}}",
            "model.scheduler.arguments.shft: FlowMatchEulerDiscreteScheduler has no such argument (did you mean "
            "'shift'?)\n"
            "model.scheduler.arguments.shift: 'high' is not float\n"
            "model.scheduler.arguments.use_karras_sigmas: 1.5 is not bool",
        ),
    ],
)
def test_a_scheduler_that_does_not_exist_or_fit_is_refused(
    options: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert problem(f"model.scheduler={options}", monkeypatch=monkeypatch) == said


def test_arguments_that_do_not_go_together_are_refused_in_the_classs_words() -> None:
    """Which it says when it is made, of the whole configuration."""
    options = "{use_karras_sigmas: true, use_exponential_sigmas: true}"
    with pytest.raises(InputError, match=r"model\.scheduler: FlowMatchEulerDiscreteScheduler: Only one of"):
        opened(f"model.scheduler.arguments={options}")


# ------------------------------------------------------------------------------------------------------------------ VAE


def test_the_vae_is_tiled_and_sliced() -> None:
    _, ready = opened("model.vae={tiling: true, slicing: true}")
    assert (ready.pipe.vae.use_tiling, ready.pipe.vae.use_slicing) == (True, True)
    _, ready = opened("model.vae={slicing: true}")
    assert (ready.pipe.vae.use_tiling, ready.pipe.vae.use_slicing) == (False, True)


# ------------------------------------------------------------------------------------------------------------ attention


def test_the_names_of_kernels_are_diffusers_own() -> None:
    assert list(attention_backends()) == [backend.value for backend in AttentionBackendName]


def test_a_kernel_is_used_by_the_transformer_alone_and_only_by_this_pipeline(plain: Drawn) -> None:
    before = _AttentionBackendRegistry.get_active_backend()
    drawn = with_and_without("model.attention=_native_math")
    assert torch.equal(drawn.never, drawn.plain)
    assert drawn.saved == plain.saved
    assert torch.allclose(drawn.plain, plain.plain, atol=1e-3)
    _, ready = opened("model.attention=_native_math")
    processors = [block.attn.processor for block in ready.pipe.transformer.transformer_blocks]
    assert {processor._attention_backend for processor in processors} == {AttentionBackendName._NATIVE_MATH}
    assert _AttentionBackendRegistry.get_active_backend() == before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("flsh", r"model.attention: diffusers has no backend 'flsh' \(did you mean 'flash'\?\)"),
        ("sage", r"model.attention: sage does not work here: .*install `sageattention>=2.*"),
        ("flash_hub", r"model.attention: flash_hub does not work here: .*pip install kernels.*"),
    ],
)
def test_a_kernel_that_is_not_there_is_refused_with_what_to_install(
    name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert re.fullmatch(said, problem(f"model.attention={name}", monkeypatch=monkeypatch))


# ------------------------------------------------------------------------------------------------------------- the plan


def test_the_plan_shows_each_option_that_is_set(capsys: CAUGHT) -> None:
    options = ["model.offload={type: group, level: leaf_level}", "model.attention=native", "model.vae.tiling=true"]
    arguments = [word for option in options for word in ("--set", option)]
    assert main(["run", "demo", *arguments, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert (
        "options     offload: group (level leaf_level)\n            vae: tiling True\n            attention: native\n"
    ) in shown
    assert main(["run", "demo", *arguments, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["options"] == {
        "offload": {"type": "group", "level": "leaf_level"},
        "vae": {"tiling": True},
        "attention": "native",
    }


@pytest.mark.parametrize("option", ["scheduler=Euler", "attention=sagge"])
def test_a_plan_refuses_names_that_do_not_exist(option: str) -> None:
    with pytest.raises(InputError, match=rf"model\.{option.partition('=')[0]}: diffusers has no"):
        plan.build(recipe.load("demo", [f"model.{option}"]))


def test_a_model_without_vae_cannot_tile_it(tmp_path: Any) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline", "transformer": ["diffusers", "F"]}')
    made = recipe.load("demo", [f"model={{id: {tmp_path}, vae: {{tiling: true}}}}", "cache={type: none}"])
    with pytest.raises(InputError, match=r"model.vae: .* has no part 'vae', but transformer"):
        plan.build(made)


def test_each_picture_has_noise_of_its_own_from_the_cpu() -> None:
    """A seed is the same noise on every device and in every batch."""
    _, ready = opened()
    assert torch.equal(picture(ready.pipe, seed=3), picture(ready.pipe, seed=3))
    assert not torch.equal(picture(ready.pipe, seed=3), picture(ready.pipe, seed=4))


def test_a_model_that_would_not_use_the_kernel_says_so() -> None:
    """diffusers takes the name and leaves such layers as they are."""
    with pytest.raises(InputError, match="SD3Transformer2DModel calls torch's attention itself and takes no other"):
        attention.choose("_native_math", [TINY["sd3"].build()])
