"""What the tiny models are made of: numbers that depend on nothing but their names, and the entry type.

The noisy latent travels along a smooth path (about six percent of its norm a step) and the time falls a little; the
conditioning is constant over steps and differs between branches.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cachedit_cli import registry
from cachedit_cli.registry import ModelAdapter

__all__ = [
    "TINY",
    "Inputs",
    "TinyModel",
    "add",
    "ids",
    "installed",
    "latent",
    "noise",
    "numbers",
    "sigma",
    "tensors",
    "text",
    "timestep",
]

Inputs = dict[str, Any]

#: Angle in radians by which the latent turns from one step to the next, its relative change.
STEP_ANGLE = 0.06
#: Fall of the noise level a step. Small: embeddings of time with random weights, unlike trained ones, answer the usual
#: jumps of twenty units with unrelated vectors.
STEP_SIGMA = 2e-4


def _generator(*salt: object) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(repr(salt).encode()))


def noise(shape: tuple[int, ...], *salt: object) -> Tensor:
    """Return standard normal numbers that depend on ``shape`` and ``salt`` only."""
    return torch.randn(shape, generator=_generator(tuple(shape), *salt))


def latent(step: int, shape: tuple[int, ...], salt: str = "latent") -> Tensor:
    """Return numbers of unit variance that move smoothly with ``step``."""
    angle = STEP_ANGLE * step
    return math.cos(angle) * noise(shape, salt, 0) + math.sin(angle) * noise(shape, salt, 1)


def sigma(step: int) -> float:
    """Return the noise level of a step, which falls linearly from 0.9."""
    return 0.9 - STEP_SIGMA * step


def timestep(step: int, batch: int, scale: float = 1000.0) -> Tensor:
    return torch.full((batch,), sigma(step) * scale)


def text(batch: int, length: int, dim: int, branch: str, salt: str = "text") -> Tensor:
    """Return prompt embeddings: constant over steps, another for each branch."""
    return noise((batch, length, dim), salt, branch)


def ids(*sizes: int) -> Tensor:
    """Return the coordinates of a grid, of shape (prod(sizes), len(sizes))."""
    axes = [torch.arange(size, dtype=torch.float32) for size in sizes]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, len(sizes))


def numbers(version: str) -> tuple[int, ...]:
    """Return a version's first two numbers, to compare."""
    return tuple(int(part) for part in version.split(".")[:2])


def installed() -> tuple[int, ...]:
    """Return the numbers of the installed diffusers."""
    import diffusers

    return numbers(diffusers.__version__)


def tensors(output: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in a model's output, whatever wraps them."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, (Mapping, tuple, list)):
        for item in output.values() if isinstance(output, Mapping) else output:
            yield from tensors(item)


def _randomise(model: nn.Module, seed: int) -> None:
    """Draw all weights anew: gates and projections that begin at zero would hide mistakes."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point() or parameter.numel() == 0:
                continue
            fresh = torch.randn(parameter.shape, generator=_generator(seed, name))
            if parameter.ndim >= 2:
                parameter.copy_(fresh / math.sqrt(parameter[0].numel()))
            else:
                parameter.add_(0.1 * fresh.to(parameter.dtype))


@dataclass(frozen=True)
class TinyModel:
    """One variant of a transformer class in miniature: less than a million weights, four blocks and more in a list.

    Attributes:
        name: Key in ``TINY``.
        class_name: Class in diffusers.
        config: Arguments of its constructor.
        make_inputs: (step, batch, branch) -> arguments of one forward.
        max_batch: Largest batch that ``make_inputs`` can do.
        prepare: Called on the new model before its weights are drawn, where the configuration is not enough.
        note: What is special about it.
        needs: The diffusers version that brought the variant, where that is later than its class.
    """

    name: str
    class_name: str
    config: dict[str, Any]
    make_inputs: Callable[[int, int, str], Inputs]
    max_batch: int = 64
    prepare: Callable[[Any], None] | None = None
    note: str = ""
    needs: str = registry.OLDEST_DIFFUSERS

    @property
    def available(self) -> bool:
        """Whether the installed diffusers has the class and the variant."""
        import diffusers

        return hasattr(diffusers, self.class_name) and installed() >= numbers(self.needs)

    @property
    def adapter(self) -> ModelAdapter:
        found = registry.find(self.class_name)
        assert found is not None, f"{self.class_name} has no adapter"
        return found

    def build(self, seed: int = 0) -> nn.Module:
        """Return a new model, in evaluation mode, whose weights depend on ``seed`` only.

        Where the installed diffusers lacks it, the test is skipped.
        """
        import diffusers

        if not self.available:
            pytest.skip(
                f"the installed diffusers has no {self.name}: {self.class_name} came with {self.adapter.needs}, "
                f"this variant of it with {max(self.needs, self.adapter.needs, key=numbers)}"
            )

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: nn.Module = getattr(diffusers, self.class_name)(**self.config)
            if self.prepare is not None:
                self.prepare(model)
        _randomise(model, seed)
        return model.eval().requires_grad_(False)

    def inputs(self, step: int = 0, batch: int = 1, branch: str = "cond") -> Inputs:
        """Return the arguments of one forward, always the same for the same arguments."""
        assert batch <= self.max_batch
        return {"return_dict": False, **self.make_inputs(step, batch, branch)}


TINY: dict[str, TinyModel] = {}


def add(
    name: str,
    class_name: str,
    config: dict[str, Any],
    make_inputs: Callable[[int, int, str], Inputs],
    max_batch: int = 64,
    prepare: Callable[[Any], None] | None = None,
    note: str = "",
    needs: str = registry.OLDEST_DIFFUSERS,
) -> None:
    assert name not in TINY
    TINY[name] = TinyModel(name, class_name, config, make_inputs, max_batch, prepare, note, needs)
