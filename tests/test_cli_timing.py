"""Seconds by part of a pipeline call, on a clock that the test moves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from cachedit_cli.timing import timed


class Part(nn.Module):
    """A module whose forward takes a known time."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        self.clock.now += self.seconds
        return state


class Clock:
    def __init__(self) -> None:
        self.now = 100.0


class Vae(nn.Module):
    """As in diffusers, ``decode`` is a method, and its parts are modules."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.decoder = Part(clock, 4.0)

    def decode(self, state: torch.Tensor) -> torch.Tensor:
        decoded: torch.Tensor = self.decoder(state)
        return decoded


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    moved = Clock()
    monkeypatch.setattr("cachedit_cli.timing.time.perf_counter", lambda: moved.now)
    return moved


def a_pipe(clock: Clock, vae: bool = True) -> Any:
    parts = {"text_encoder": Part(clock, 1.0), "transformer": Part(clock, 2.0), "scheduler": object()}
    return SimpleNamespace(components={**parts, **({"vae": Vae(clock)} if vae else {})})


def call(pipe: Any, clock: Clock, vae: bool = True) -> None:
    state = torch.zeros(1)
    pipe.components["text_encoder"](state)
    for _ in range(3):
        pipe.components["transformer"](state)
        clock.now += 0.5  # the scheduler
    if vae:
        pipe.components["vae"].decode(state)
    clock.now += 0.25  # to pixels


def test_the_parts_of_a_call_add_up_to_it(clock: Clock) -> None:
    pipe = a_pipe(clock)
    with timed(pipe, torch.device("cpu")) as seconds:
        call(pipe, clock)
    assert seconds == {"text": 1.0, "denoise": 7.5, "decode": 4.25}


def test_pictures_that_are_encoded_or_previewed_are_no_end_of_denoising(clock: Clock) -> None:
    pipe = a_pipe(clock)
    with timed(pipe, torch.device("cpu")) as seconds:
        pipe.components["vae"].decode(torch.zeros(1))
        pipe.components["transformer"](torch.zeros(1))
        pipe.components["vae"].decode(torch.zeros(1))
        call(pipe, clock)
    assert seconds == {"text": 4.0, "denoise": 2.0 + 4.0 + 1.0 + 7.5, "decode": 4.25}


def test_without_a_vae_denoising_ends_with_the_last_forward(clock: Clock) -> None:
    pipe = a_pipe(clock, vae=False)
    with timed(pipe, torch.device("cpu")) as seconds:
        call(pipe, clock, vae=False)
    assert seconds == {"text": 1.0, "denoise": 7.0, "decode": 0.75}


def test_no_hook_stays_behind_whatever_happens(clock: Clock) -> None:
    pipe = a_pipe(clock)
    modules = [module for part in pipe.components.values() if isinstance(part, nn.Module) for module in part.modules()]
    hooked: list[nn.Module] = []

    def fail() -> None:
        with timed(pipe, torch.device("cpu")):
            hooked.extend(module for module in modules if module._forward_pre_hooks)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert len(hooked) == 2  # the transformer and the decoder
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in modules)
