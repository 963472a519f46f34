"""Builds a transformer from its class alone: without memory on the meta device, or with few and narrow layers.

Knows constructors and the usual names of their sizes; values that a constructor wants and has no default for are found
by what its errors point at. Makes the inputs that an adapter's sample describes.
"""

from __future__ import annotations

import inspect
import linecache
import re
import warnings
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError
from .terms.sample import Made, Numbers

__all__ = ["build", "real", "shrunk", "weightless"]

_LAYERS = 4
_HEADS = 2
_NARROW = 256
_ROUNDS = 12
#: For what has no default, in the order in which names are looked for.
_USUAL: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "sample_size": 32,
    "caption_channels": [1024, 1024],
    "num_key_value_heads": 8,
    "n_kv_heads": 8,
    "num_kv_heads": 8,
    "max_resolution": (128, 128),
    "rope_scaling": {"long_factor": [1.0] * 48, "short_factor": [1.0] * 48},
    "axes_dims_rope": (32, 16, 16),
}


def weightless(cls: type[nn.Module], config: Mapping[str, Any]) -> nn.Module:
    """Return an instance of full size without weights.

    Raises:
        InputError: The class cannot be built so; with the reason.
    """
    return build(cls, config, torch.device("meta"))


def build(cls: type[nn.Module], config: Mapping[str, Any], device: torch.device) -> nn.Module:
    """Return an instance on a device, with what the configuration says above the constructor's defaults.

    Raises:
        InputError: The class cannot be built from it; with the reason.
    """
    parameters = inspect.signature(cls.__init__).parameters
    taken = {name: value for name, value in config.items() if name in parameters}
    for _ in range(_ROUNDS):
        try:
            with device, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return cls(**taken).eval().requires_grad_(False)
        except Exception as error:
            name = _lacking(error, taken, parameters)
            if name is None:
                said = str(error).strip().splitlines()
                raise InputError(
                    f"{cls.__name__} cannot be built: {said[0] if said else type(error).__name__}"
                ) from error
            taken[name] = _usual(parameters[name])
    raise InputError(f"{cls.__name__} cannot be built from its defaults")


def _usual(parameter: inspect.Parameter) -> Any:
    """Return the usual value of an argument; one number where it is several elsewhere, if the annotation says so."""
    value = _USUAL[parameter.name]
    several = re.search("list|tuple|sequence", str(parameter.annotation), re.IGNORECASE)
    return value[0] if isinstance(value, list) and not several else value


def real(value: Any) -> Any:
    """Return what an entry of a sample's inputs stands for, on the CPU; numbers that are drawn are always the same."""
    if isinstance(value, Numbers):
        return _tensor(value)
    if isinstance(value, Made):
        return getattr(import_module(value.module), value.name)(*value.arguments)
    if isinstance(value, (list, tuple)):
        return type(value)(real(each) for each in value)
    if isinstance(value, Mapping):
        return {name: real(each) for name, each in value.items()}
    return value


def _tensor(numbers: Numbers) -> Tensor:
    kind = {"float": torch.float32, "long": torch.long, "bool": torch.bool, "complex": torch.complex64}[numbers.kind]
    if isinstance(numbers.value, list):
        return torch.tensor(numbers.value, dtype=kind)
    if numbers.value is not None:
        return torch.full(numbers.shape, numbers.value, dtype=kind)
    drawn = torch.randn(numbers.shape, generator=torch.Generator().manual_seed(0))
    return torch.polar(torch.ones(numbers.shape), drawn) if numbers.kind == "complex" else drawn


def _lacking(error: Exception, taken: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> str | None:
    """Return the argument without a value that the error is about."""
    free = [name for name in _USUAL if name in parameters and taken.get(name) is None]
    free = [name for name in free if parameters[name].default in (None, inspect.Parameter.empty)]
    lines = []
    trace = error.__traceback__
    while trace is not None:
        lines.append(linecache.getline(trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    said = [str(error), *reversed(lines)]
    pointed = [name for text in said for name in free if re.search(rf"\b{name}\b", text)]
    return next(iter(pointed or free), None)


def shrunk(cls: type[nn.Module], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration of the same kind with few layers and two heads."""
    defaults = {
        name: each.default
        for name, each in inspect.signature(cls.__init__).parameters.items()
        if each.default is not each.empty
    }
    full = {**defaults, **config}
    heads = next((full[name] for name in full if re.fullmatch(r"(num_|n_)?(attention_)?heads", name)), None)
    small = dict(full)
    for name, value in full.items():
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        if re.search(r"(^|_)(num|n)_(\w+_)?(layers|blocks)$|(^|_)depth$|^num_layers", name):
            small[name] = min(value, _LAYERS)
        elif re.search(r"(kv|key_value)_heads$", name):
            small[name] = _HEADS if value == heads else 1
        elif re.search(r"heads$", name):
            small[name] = min(value, _HEADS)
        elif re.fullmatch(r"hidden_size|dim|hidden_dim|inner_dim|model_dim|cross_attention_dim", name):
            if isinstance(heads, int) and value % heads == 0:
                small[name] = value // heads * min(heads, _HEADS)
        elif re.search(r"intermediate|ffn|ff_dim|mlp_dim", name):
            small[name] = min(value, _NARROW)
    return small
