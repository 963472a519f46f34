"""`model.attention`: the kernel of the attention layers, through diffusers' dispatcher.

A kernel is tried on a small input before weights are loaded, as packages, devices and number formats all have a say.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["check", "choose", "trial"]

# Heads of 64 in 128 tokens: the smallest input that every kernel takes.
_SHAPE = (1, 128, 2, 64)


def check(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a kernel that does not run on the device."""
    problem = trial(name, device, dtype)
    if problem is not None:
        raise InputError(f"model.attention: {name} does not work here: {problem}")


def trial(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why a kernel does not run on the device in this number format; None if it does.

    Kernels from the hub (`..._hub`) are downloaded by diffusers if they are not there.
    """
    import torch
    from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn

    query = torch.linspace(-1, 1, 128 * 2 * 64, device=device).reshape(_SHAPE).to(dtype)
    try:
        with attention_backend(name), torch.no_grad():
            output = dispatch_attention_fn(query, query, query)
    except Exception as error:  # kernels raise anything
        return str(error).strip().partition("\n")[0] or type(error).__name__
    if output.shape != query.shape or not bool(torch.isfinite(output).all()):
        return "its output is not finite"
    return None


def choose(name: str, transformers: Iterable[Any]) -> None:
    """Set the kernel of transformers, and of nothing else.

    Raises:
        InputError: A transformer's attention layers would not use it, of which diffusers says nothing.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

    for transformer in transformers:
        with attention_backend("native"):  # which puts the process's own choice back, as setting one changes that too
            transformer.set_attention_backend(name)
        chosen = {
            getattr(getattr(each, "processor", None), "_attention_backend", None) for each in transformer.modules()
        }
        if AttentionBackendName(name) not in chosen:
            raise InputError(
                f"model.attention: {type(transformer).__name__} calls torch's attention itself and takes no other "
                "kernel (leave it out)"
            )
