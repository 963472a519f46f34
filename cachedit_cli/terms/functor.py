"""PatchFunctor: the last resort for a model whose loop or blocks fit no pattern."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn

__all__ = ["PatchFunctor"]


class PatchFunctor(ABC):
    """Adapts a transformer before its blocks are wrapped.

    ``apply`` may set or replace attributes of the transformer and of its submodules (``block.forward = ...``). Every
    attribute that it changes on any of them is put back when caching is taken out again. It must not swap, add or
    remove modules or parameters, so that state dict, LoRA and offloading stay as they were.
    """

    @abstractmethod
    def apply(self, transformer: nn.Module) -> nn.Module:
        """Change ``transformer`` in place and return it."""
