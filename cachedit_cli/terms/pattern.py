"""Where the streams of a block are: what it takes, what it returns, and how to read both.

Knows names and positions; knows neither tensors nor models. Needs no torch.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ..errors import InputError

__all__ = ["ForwardPattern", "Slot", "Streams", "as_streams", "find_slots", "nearest", "numbered", "pack", "unpack"]

_H, _E = "hidden_states", "encoder_hidden_states"


@dataclass(frozen=True)
class Streams:
    """The states that blocks hand on: names as taken (the denoised one first), names in the order returned."""

    takes: tuple[str, ...]
    returns: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.takes or not self.returns or self.main not in self.returns:
            raise InputError(f"streams {self.takes} -> {self.returns}: the first one taken has to be returned")

    @property
    def main(self) -> str:
        """The denoised stream, whose change decides."""
        return self.takes[0]

    @property
    def carried(self) -> tuple[str, ...]:
        """Streams that go in and come out."""
        return tuple(name for name in self.takes if name in self.returns)

    def __str__(self) -> str:
        for pattern in ForwardPattern:
            if pattern.value == self:
                return pattern.name
        return f"{', '.join(self.takes)} -> {', '.join(self.returns)}"


class ForwardPattern(Enum):
    """The six input and output patterns of the Unified Cache APIs."""

    Pattern_0 = Streams((_H, _E), (_H, _E))
    Pattern_1 = Streams((_H, _E), (_E, _H))
    Pattern_2 = Streams((_H, _E), (_H,))
    Pattern_3 = Streams((_H,), (_H,))
    Pattern_4 = Streams((_H,), (_H, _E))
    Pattern_5 = Streams((_H,), (_E, _H))


def as_streams(pattern: ForwardPattern | Streams) -> Streams:
    """Return the streams of a pattern; streams stay as they are."""
    return pattern.value if isinstance(pattern, ForwardPattern) else pattern


@dataclass(frozen=True)
class Slot:
    """One argument of a call, which may come by position or by keyword."""

    name: str
    position: int

    def read(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the argument, or None if the call leaves it out."""
        if self.name in kwargs:
            return kwargs[self.name]
        return args[self.position] if 0 <= self.position < len(args) else None


def find_slots(forward: Callable[..., Any], streams: Streams) -> dict[str, Slot]:
    """Find the carried streams among the parameters of a block's forward, once, at install.

    A stream is looked for by name; where a block calls its states otherwise, the n-th stream taken is its n-th
    positional parameter.
    """
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(forward).parameters.values()
    positional = [parameter.name for parameter in parameters if parameter.kind in kinds]
    keywords = [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    variadic = any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters)
    slots = {}
    for index, stream in enumerate(streams.takes):
        if stream in positional:
            slot = Slot(stream, positional.index(stream))
        elif stream in keywords:
            slot = Slot(stream, -1)
        elif index < len(positional):
            slot = Slot(positional[index], index)
        elif variadic:
            slot = Slot(stream, index)
        else:
            raise InputError(
                f"forward({', '.join(positional + keywords)}) has no place for {stream!r}, which {streams} takes"
            )
        if stream in streams.returns:
            slots[stream] = slot
    return slots


def numbered(forward: Callable[..., Any], streams: Streams) -> ForwardPattern | None:
    """Return the pattern that has the same states at the same places of a block's forward; None if none has."""
    for pattern in sorted(ForwardPattern, key=lambda each: len(each.value.takes) != len(streams.takes)):
        try:
            places = {name: slot.name for name, slot in find_slots(forward, pattern.value).items()}
            theirs = {name: slot.name for name, slot in find_slots(forward, streams).items()}
        except InputError:
            continue
        same = [places.get(name) for name in pattern.value.returns] == [theirs.get(name) for name in streams.returns]
        if same and places[pattern.value.main] == theirs[streams.main]:
            return pattern
    return None


def nearest(said: Streams, taken: Mapping[str, Any], output: Any) -> str:
    """Return what to do about a pattern that what a block returned contradicts: which one has the shapes that it took.

    Args:
        said: The pattern that somebody named.
        taken: What the block took for the streams that it carries.
        output: What it returned.
    """
    values = output if isinstance(output, (tuple, list)) else (output,)
    if said in [pattern.value for pattern in ForwardPattern]:
        alone = len(said.takes) == 1 < len(said.returns)
        others = [
            each.value for each in ForwardPattern if (len(each.value.takes) == 1 < len(each.value.returns)) == alone
        ]
    else:
        others = [Streams(said.takes, order) for order in itertools.permutations(said.carried)]
    for other in others:
        pairs = list(zip(other.returns, values, strict=False))
        if len(other.returns) == len(values) and all(_alike(taken.get(name), value) for name, value in pairs):
            return f"{other} fits what they return"
    return "`cachedit inspect` shows the pattern that they have"


def _alike(taken: Any, returned: Any) -> bool:
    shape = getattr(returned, "shape", None)
    return shape is not None and (taken is None or taken.shape == shape)


def unpack(output: Any, names: Sequence[str]) -> dict[str, Any]:
    """Name what a block returned; a stream that it did not return is None."""
    values = output if isinstance(output, (tuple, list)) else (output,)
    return {name: values[index] if index < len(values) else None for index, name in enumerate(names)}


def pack(values: Mapping[str, Any], names: Sequence[str], like: Any) -> Any:
    """Return streams in the form of another output of the same kind of block, its further items kept."""
    if not isinstance(like, (tuple, list)):
        return values[names[0]]
    items = (*(values[name] for name in names[: len(like)]), *like[len(names) :])
    return list(items) if isinstance(like, list) else items
