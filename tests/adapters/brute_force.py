"""DBCache with ``hold`` written with forward hooks alone, which computes every block; and what to compare with it.

Shares nothing with the engine but the adapters' data.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cachedit_cli.registry import ModelAdapter
from cachedit_cli.terms.pattern import as_streams

__all__ = ["Hold", "Unit", "counted", "distance", "identical", "units"]


def distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Return the largest difference, in units of the largest number."""
    assert [a.shape for a in one] == [b.shape for b in other]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(one, other, strict=True) if b.numel())


def identical(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@dataclass
class Unit:
    """Blocks that are decided together."""

    blocks: list[nn.Module]
    returns: tuple[str, ...]


def units(model: nn.Module, adapter: ModelAdapter) -> list[Unit]:
    config: Any = model.config
    found = []
    for entry in adapter.lists:
        blocks: Any = model.get_submodule(entry.path)
        last = config[entry.tail] if entry.tail is not None else 0
        parts = [list(blocks)[: len(blocks) - last], list(blocks)[len(blocks) - last :]]
        found += [Unit(part, as_streams(entry.pattern).returns) for part in parts if part]
    if adapter.chain:
        return [Unit([block for unit in found for block in unit.blocks], found[0].returns)]
    return found


@contextlib.contextmanager
def counted(found: Iterable[Unit]) -> Iterator[list[int]]:
    """Count the calls of blocks that are really computed."""
    calls = [0]

    def count(*_: object) -> None:
        calls[0] += 1

    handles = [block.register_forward_hook(count) for unit in found for block in unit.blocks]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class Hold:
    """DBCache with ``hold``, by brute force: every block is computed, and on a reused step the last block of the
    middle returns the state after the front plus the change over the middle at the last computed step."""

    unit: Unit
    front: int
    back: int
    reuse: bool = False
    active: bool = True
    base: list[Any] = field(default_factory=list)
    change: list[Any] = field(default_factory=list)

    def hooks(self) -> list[Any]:
        end = len(self.unit.blocks) - self.back
        if end <= self.front:
            return []
        first, last = self.unit.blocks[self.front - 1], self.unit.blocks[end - 1]
        return [first.register_forward_hook(self._after_front), last.register_forward_hook(self._after_middle)]

    def _values(self, output: Any) -> list[Any]:
        values = list(output) if isinstance(output, (tuple, list)) else [output]
        return values[: len(self.unit.returns)]

    def _after_front(self, _module: nn.Module, _args: object, output: Any) -> None:
        if self.active:
            self.base = self._values(output)

    def _after_middle(self, _module: nn.Module, _args: object, output: Any) -> Any:
        values = self._values(output)
        if not self.active or not self.base:
            return None  # not this one's turn, or the model left out the end of the front
        if not self.reuse:
            self.change = [None if a is None else a - b for a, b in zip(values, self.base, strict=True)]
            return None
        new = [None if c is None else b + c for b, c in zip(self.base, self.change, strict=True)]
        if not isinstance(output, (tuple, list)):
            return new[0]
        return type(output)([*new, *output[len(new) :]])
