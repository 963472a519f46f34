"""Which options of a recipe's `model` section work on this machine, for `cachedit doctor`.

Knows how each is tried: kernels and formats on a small input, the rest by packages and devices. Imports diffusers,
which takes seconds.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING, get_args

from .doctor_checks import Check
from .options import attention, compiling, quantizing
from .options.names import attention_backends
from .recipe_options import QuantizeType

if TYPE_CHECKING:
    import torch

__all__ = ["model_options"]


def model_options(device: torch.device) -> Iterator[Check]:
    """Try each option on a device; what cannot be tried is judged by what it needs."""
    import torch

    there = device.type != "cpu"
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    saves = "" if there else "no accelerator to offload from; with model.device: cpu it is tried out in main memory"
    for kind in ("model", "sequential", "group"):
        yield Check(f"model.offload: {kind}", there, saves)
    streams = device.type == "cuda"
    yield Check("model.offload: group, streams", streams, "" if streams else "needs CUDA")
    count = torch.accelerator.device_count() if there else 0
    yield Check("model.device_map: balanced", there, f"over {count}" if there else "no accelerator found")
    lacks = compiling.missing(device)
    yield Check("model.compile: blocks", lacks is None, lacks or "")
    yield Check("model.compile: full", lacks is None, lacks or "with cache.type: none only")
    for name in attention_backends():
        yield _kernel(name, device, dtype)
    for kind in get_args(QuantizeType):
        problem = quantizing.trial(kind, device, dtype)
        yield Check(f"model.quantize: {kind}", problem is None, problem or f"by {quantizing.package(kind)}")
    peft = importlib.util.find_spec("peft") is not None
    note = f"by peft {metadata.version('peft')}" if peft else "peft is not installed (pip install 'cachedit[lora]')"
    yield Check("model.lora", peft, note)
    for option in ("scheduler", "vae", "component_dtypes", "controlnet", "ip_adapter", "config"):
        yield Check(f"model.{option}", True, f"by diffusers {metadata.version('diffusers')}")


def _kernel(name: str, device: torch.device, dtype: torch.dtype) -> Check:
    what = f"model.attention: {name}"
    if name.endswith("_hub"):
        there = importlib.util.find_spec("kernels") is not None and device.type != "cpu"
        lacks = "needs CUDA and the package kernels (pip install kernels)"
        return Check(what, there, "is downloaded when it is first used" if there else lacks)
    problem = attention.trial(name, device, dtype)
    return Check(what, problem is None, problem or "")
