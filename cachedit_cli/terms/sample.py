"""The smallest instance of a transformer class and inputs for one forward of it, as data.

For classes whose inputs cannot be guessed from the signature of the forward. Knows numbers and shapes; tensors are made
of them where the forward is watched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Made", "Numbers", "Sample", "floats", "grid", "whole"]


@dataclass(frozen=True)
class Numbers:
    """A tensor.

    Attributes:
        shape: Of the tensor.
        kind: Of its numbers; ``complex`` ones lie on the unit circle.
        value: What it holds: one number for all places, or all of them in nested lists; None draws them.
    """

    shape: tuple[int, ...]
    kind: Literal["float", "long", "bool", "complex"] = "float"
    value: Any = None


@dataclass(frozen=True)
class Made:
    """An object of a class of diffusers that takes no tensors: where the class is, and its arguments."""

    module: str
    name: str
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Sample:
    """A small instance and its inputs.

    Attributes:
        config: Arguments of the constructor; the rest keep their defaults.
        inputs: Arguments of the forward: ``Numbers``, ``Made``, or plain values, also inside lists and dicts.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)


def floats(*shape: int, value: float | None = None) -> Numbers:
    """Return random numbers, or one for all places."""
    return Numbers(shape, "float", value)


def whole(*values: Any) -> Numbers:
    """Return whole numbers: those given, which may be nested lists."""
    return Numbers((), "long", list(values))


def grid(*sizes: int, before: int = 0) -> list[list[int]]:
    """Return the places of a grid, row by row, each moved by ``before`` along every axis."""
    places: list[list[int]] = [[]]
    for size in sizes:
        places = [[*place, before + index] for place in places for index in range(size)]
    return places
