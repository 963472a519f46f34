"""Hand-written tiny transformers, one per forward pattern, and what the engine's tests do with them.

Knows nothing of the engine but the patterns' names. Real block computations are counted in ``TinyBlock.work``, which no
hook, wrapper or replaced ``forward`` can stand in for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cachedit_cli.terms.block_adapter import BlockAdapter
from cachedit_cli.terms.pattern import ForwardPattern

__all__ = [
    "PATTERNS",
    "STYLES",
    "Announcing",
    "NamedBlock",
    "TinyBlock",
    "TinyTransformer",
    "adapter",
    "computing",
    "context",
    "controls_like",
    "run",
    "seeded",
    "snapshot",
    "times",
    "walk",
]

PATTERNS = tuple(ForwardPattern)
WIDTH, TOKENS, WORDS = 8, 6, 3
_H, _E = "hidden_states", "encoder_hidden_states"


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TinyBlock(nn.Module):
    """Base of the blocks: what they compute. How they are called is their subclasses' matter."""

    computed: ClassVar[list[str]] = []  # labels of the blocks whose work was really done, in order

    def __init__(self, label: str, pattern: ForwardPattern, seed: int) -> None:
        super().__init__()
        generator = seeded(seed)
        self.label = label
        self.pattern = pattern
        self.error: BaseException | None = None  # raised instead of working
        self.mix = nn.Parameter(torch.randn(WIDTH, WIDTH, generator=generator) * 0.4)
        self.push = nn.Parameter(torch.randn(WIDTH, WIDTH, generator=generator) * 0.4)

    def work(self, h: Tensor, e: Tensor | None, temb: Tensor) -> Any:
        TinyBlock.computed.append(self.label)
        if self.error is not None:
            raise self.error
        takes, returns = self.pattern.value.takes, self.pattern.value.returns
        drive = h @ self.mix + temb
        if _E in takes:
            assert e is not None
            drive = drive + e.mean(1, keepdim=True) @ self.push
        after = {_H: h + 0.3 * torch.tanh(drive)}
        if _E in takes:
            assert e is not None
            after[_E] = e + 0.3 * torch.tanh(e @ self.push + h.mean(1, keepdim=True))
        else:
            after[_E] = torch.tanh(after[_H].mean(1, keepdim=True) @ self.push)
        return after[_H] if returns == (_H,) else tuple(after[name] for name in returns)


class NamedBlock(TinyBlock):
    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, temb: Any = None) -> Any:
        return self.work(hidden_states, encoder_hidden_states, temb)


class SwappedBlock(TinyBlock):
    def forward(self, encoder_hidden_states: Tensor | None, hidden_states: Tensor, temb: Tensor) -> Any:
        return self.work(hidden_states, encoder_hidden_states, temb)


class KeywordOnlyBlock(TinyBlock):
    def forward(self, *, temb: Tensor, encoder_hidden_states: Tensor | None = None, hidden_states: Tensor) -> Any:
        return self.work(hidden_states, encoder_hidden_states, temb)


class OddBlock(TinyBlock):
    def forward(self, x: Tensor, y: Tensor | None = None, vec: Any = None) -> Any:
        return self.work(x, y, vec)


class VariadicBlock(TinyBlock):
    def forward(self, *args: Any) -> Any:
        return self.work(*args)


Caller = Callable[[nn.Module, Tensor, Any, Tensor], Any]

#: Ways in which models define and call their blocks.
STYLES: Mapping[str, tuple[type[TinyBlock], Caller]] = {
    "positional": (NamedBlock, lambda block, h, e, t: block(h, e, t)),
    "keyword": (NamedBlock, lambda block, h, e, t: block(temb=t, encoder_hidden_states=e, hidden_states=h)),
    "mixed": (NamedBlock, lambda block, h, e, t: block(h, encoder_hidden_states=e, temb=t)),
    "swapped": (SwappedBlock, lambda block, h, e, t: block(e, h, t)),
    "keyword-only": (KeywordOnlyBlock, lambda block, h, e, t: block(hidden_states=h, encoder_hidden_states=e, temb=t)),
    "odd names": (OddBlock, lambda block, h, e, t: block(h, e, vec=t)),
    "odd keywords": (OddBlock, lambda block, h, e, t: block(x=h, y=e, vec=t)),
    "variadic": (VariadicBlock, lambda block, h, e, t: block(h, e, t)),
}


class TinyTransformer(nn.Module):
    """Loops over ``blocks``, then over ``more``; may add a ControlNet-like residual after every block.

    Args:
        pattern: Of ``blocks``.
        blocks: Number of blocks in the first list.
        style: How blocks are defined and called, a key of ``STYLES``.
        more: Number of blocks in the second list.
        more_pattern: Of the second list; None takes the first one's.
        seed: Of the weights.
    """

    def __init__(
        self,
        pattern: ForwardPattern,
        blocks: int = 5,
        style: str = "positional",
        more: int = 0,
        more_pattern: ForwardPattern | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        kind, self.caller = STYLES[style]
        second = more_pattern or pattern
        self.blocks = nn.ModuleList(kind(f"a{i}", pattern, 100 * seed + i) for i in range(blocks))
        self.more = nn.ModuleList(kind(f"b{i}", second, 100 * seed + 50 + i) for i in range(more))

    def every(self) -> list[TinyBlock]:
        return [block for block in (*self.blocks, *self.more) if isinstance(block, TinyBlock)]

    def embed(self, timestep: Any) -> Tensor:
        time = torch.as_tensor(0.0 if timestep is None else timestep, dtype=torch.float32).reshape(-1, 1, 1) / 1000
        return torch.sin(time * torch.arange(1, WIDTH + 1))

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Any = None,
        encoder_hidden_states: Tensor | None = None,
        controls: Sequence[Tensor] | None = None,
    ) -> Tensor:
        h, e, temb = hidden_states, encoder_hidden_states, self.embed(timestep)
        for index, block in enumerate(self.every()):
            output = self.caller(block, h, e, temb)
            values = output if isinstance(output, tuple) else (output,)
            state = dict(zip(block.pattern.value.returns, values, strict=True))
            h, e = state[_H], state.get(_E, e)
            if controls is not None:
                h = h + controls[index]
        return h if e is None else h + e.mean(1, keepdim=True)


class Announcing(TinyTransformer):
    """A transformer with diffusers' ``cache_context``."""

    @contextmanager
    def cache_context(self, name: str, step_index: int | None = None) -> Iterator[None]:
        yield


def context(seed: int = 7, batch: int = 1, words: int = WORDS) -> Tensor:
    """Return encoder states."""
    return torch.randn(batch, words, WIDTH, generator=seeded(seed))


def walk(steps: int, seed: int = 0, pace: float = 0.1, batch: int = 1, tokens: int = TOKENS) -> list[Tensor]:
    """Return samples on a smooth path, ``pace`` of their size away from each other."""
    start, way, bend = (torch.randn(batch, tokens, WIDTH, generator=seeded(1000 * seed + i)) for i in range(3))
    return [start + pace * (k * way + math.sin(k) * bend) for k in range(steps)]


def times(steps: int, rising: bool = False) -> list[float]:
    """Return the times of a schedule from 1000 down to above 0, or up."""
    falling = [1000.0 * (steps - k) / steps for k in range(steps)]
    return falling[::-1] if rising else falling


def controls_like(model: TinyTransformer, seed: int = 3, size: float = 0.5) -> list[Tensor]:
    """Return a ControlNet-like residual for each block."""
    generator = seeded(seed)
    return [size * torch.randn(1, TOKENS, WIDTH, generator=generator) for _ in model.every()]


def run(
    model: nn.Module,
    samples: Sequence[Tensor],
    encoder: Tensor | None = None,
    schedule: Sequence[Any] | None = None,
    controls: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Call the model once a sample."""
    if encoder is None:
        encoder = context(batch=samples[0].shape[0])
    with torch.no_grad():
        return [
            model(sample, time, encoder, controls)
            for sample, time in zip(samples, schedule or times(len(samples)), strict=True)
        ]


def adapter(model: TinyTransformer, **settings: Any) -> BlockAdapter:
    """Return a BlockAdapter for the lists that the model has."""
    lists = [item for item in (model.blocks, model.more) if len(item)]
    patterns = [next(block.pattern for block in item if isinstance(block, TinyBlock)) for item in lists]
    return BlockAdapter(transformer=model, blocks=lists, forward_pattern=patterns, **settings)


@contextmanager
def computing() -> Iterator[list[str]]:
    """Collect the labels of the blocks that really work inside the ``with``."""
    labels: list[str] = []
    before, TinyBlock.computed = TinyBlock.computed, labels
    try:
        yield labels
    finally:
        TinyBlock.computed = before


def snapshot(*owners: object) -> list[tuple[object, list[tuple[str, int, object]], list[str]]]:
    """Return what ``vars()`` of the owners, and of all modules in them, holds: names in order, identities, contents."""
    parts = [part for owner in owners for part in (owner.modules() if isinstance(owner, nn.Module) else [owner])]
    return [
        (
            part,
            [(name, id(value), _contents(value)) for name, value in vars(part).items()],
            list(part.state_dict()) if isinstance(part, nn.Module) else [],
        )
        for part in parts
    ]


def _contents(value: object) -> object:
    return [(key, id(item)) for key, item in value.items()] if isinstance(value, dict) else None
