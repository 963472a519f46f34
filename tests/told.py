"""A model whose blocks do what a test says, step by step and branch by branch, so that every forecast is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cachedit_cli.engine.install import install
from cachedit_cli.terms.block_adapter import BlockAdapter
from cachedit_cli.terms.config import CacheConfig, CalibratorConfig
from cachedit_cli.terms.pattern import ForwardPattern
from cachedit_cli.terms.stats import Row

__all__ = ["Told", "told"]


class Plus(nn.Module):
    def forward(self, hidden_states: Tensor, change: Tensor) -> Tensor:
        return hidden_states + change


class TwoPlus(nn.Module):
    """Adds ``change`` to the states, half of it in each of two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Plus(), Plus()])

    @contextmanager
    def cache_context(self, name: str, step_index: int | None = None) -> Iterator[None]:
        yield

    def forward(self, hidden_states: Tensor, timestep: float, change: Tensor) -> Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states, change / 2)
        return hidden_states


@dataclass
class Told:
    """What came of it, by branch."""

    outputs: dict[str, list[Tensor]] = field(default_factory=dict)
    rows: dict[str, list[Row]] = field(default_factory=dict)


@torch.no_grad()
def told(
    changes: Mapping[str, Sequence[Tensor]],
    config: CacheConfig,
    calibrator: CalibratorConfig | None = None,
    starts: Sequence[Tensor] | None = None,
) -> Told:
    """Run a generation in which the blocks make these changes to each step's start, by default zeros."""
    model, found = TwoPlus(), Told()
    steps = len(next(iter(changes.values())))
    adapter = BlockAdapter(transformer=model, blocks=model.blocks, forward_pattern=ForwardPattern.Pattern_3)
    with install(adapter, config, calibrator) as cache:
        for step in range(steps):
            for branch, mine in changes.items():
                start = torch.zeros_like(mine[step]) if starts is None else starts[step]
                with model.cache_context(branch, step_index=step):
                    found.outputs.setdefault(branch, []).append(model(start, 1000.0 - step, mine[step]))
        for row in cache.log.generation():
            found.rows.setdefault(row.branch, []).append(row)
    return found
