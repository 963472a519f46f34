"""Which processes share one sample, and sums over all of it.

Knows what diffusers' ``enable_parallelism`` leaves on a model (0.36 to 0.42). A public way to ask for the group would
let us delete ``group_of``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["group_of", "ratio", "total"]


def group_of(model: nn.Module) -> Any:
    """Return the process group whose members hold parts of the same sample; None where each has samples of its own."""
    config = getattr(model, "_parallel_config", None)
    context = getattr(config, "context_parallel_config", None)
    if context is not None:
        return context._flattened_mesh.get_group()
    tensor = getattr(config, "tensor_parallel_config", None)
    return tensor._mesh.get_group() if tensor is not None else None


def ratio(model: nn.Module, part: Tensor, whole: Tensor) -> Tensor:
    """Return ``part / whole``, two sums over what this process holds, for the whole sample.

    So that all processes that share it decide alike. Both travel together, and nobody waits before the number is read.
    """
    if group_of(model) is None:
        return part / whole
    sums = total(model, torch.stack((part, whole)))
    return sums[0] / sums[1]


def total(model: nn.Module, sums: Tensor) -> Tensor:
    """Return sums over what this process holds as sums over the whole sample; they may be changed in place."""
    group = group_of(model)
    if group is not None:
        torch.distributed.all_reduce(sums, group=group)
    return sums
