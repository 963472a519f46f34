"""`model.quantize`: linear layers in eight or four bits, through torchao or bitsandbytes and diffusers' loading.

A format is tried on one small layer before weights are loaded, as packages and devices both have a say.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..models import ModelFiles
from ..recipe_fields import nearest
from ..recipe_options import TRANSFORMERS
from .names import class_names

if TYPE_CHECKING:
    import torch

    from ..recipe_options import Quantize

__all__ = ["check", "config", "problems", "trial"]

# torchao's classes of settings.
_TORCHAO = {
    "float8": "Float8DynamicActivationFloat8WeightConfig",
    "float8-weights": "Float8WeightOnlyConfig",
    "int8": "Int8DynamicActivationInt8WeightConfig",
    "int8-weights": "Int8WeightOnlyConfig",
    "int4-weights": "Int4WeightOnlyConfig",
}
# Parts of pipelines whose classes are diffusers', where no configuration file tells.
_DIFFUSERS = ("transformer", "vae", "unet", "controlnet")


def package(kind: str) -> str:
    """Return which package quantises in this format."""
    return "torchao" if kind in _TORCHAO else "bitsandbytes"


def problems(options: Mapping[str, Quantize], files: ModelFiles) -> Iterator[str]:
    """Yield what is wrong as far as names and installed packages tell."""
    for part, each in options.items():
        where = "model.quantize" if part == TRANSFORMERS else f"model.quantize.{part}"
        if part != TRANSFORMERS and files.components and part not in files.components:
            yield f"{where}: {files.id} has no such part ({nearest(part, [*files.components, TRANSFORMERS])})"
        needed = package(each.type)
        if importlib.util.find_spec(needed) is None:
            yield f"{where}: {each.type} needs the package {needed} (pip install 'cachedit[{needed}]')"


def check(options: Mapping[str, Quantize], device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a format that the device cannot compute."""
    for part, each in options.items():
        problem = trial(each.type, device, dtype)
        if problem is not None:
            where = "model.quantize" if part == TRANSFORMERS else f"model.quantize.{part}"
            raise InputError(f"{where}: {each.type} does not work on {device}: {problem}")


def trial(kind: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why a layer of this format does not work on a device; None if it does."""
    import torch

    needed = package(kind)
    if importlib.util.find_spec(needed) is None:
        return f"{needed} is not installed (pip install 'cachedit[{needed}]')"
    if needed == "bitsandbytes" and device.type == "cpu":
        return "diffusers loads it on a GPU only"
    layer = torch.nn.Sequential(torch.nn.Linear(256, 256)).to(device, dtype)
    tokens = torch.ones(32, 256, device=device, dtype=dtype)
    try:
        if kind in _TORCHAO:
            import torchao.quantization

            torchao.quantization.quantize_(layer, getattr(torchao.quantization, _TORCHAO[kind])())
        else:
            import bitsandbytes

            weight = layer[0].state_dict()
            eight = kind == "bnb-8bit"
            made = bitsandbytes.nn.Linear8bitLt if eight else bitsandbytes.nn.Linear4bit
            layer = made(256, 256, **({"has_fp16_weights": False} if eight else {"compute_dtype": dtype}))
            layer.load_state_dict(weight)
            layer = layer.to(device)
        with torch.no_grad():
            output = layer(tokens)
    except Exception as error:  # kernels raise anything
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return None if bool(torch.isfinite(output).all()) else "its output is not finite"


def config(options: Mapping[str, Quantize], files: ModelFiles, dtype: torch.dtype) -> Any:
    """Return diffusers' settings for loading a pipeline."""
    import diffusers

    parts = dict[str, "Quantize"]()
    for part, each in options.items():
        known = list(files.transformers()) or ["transformer", "transformer_2"]
        parts |= dict.fromkeys(known if part == TRANSFORMERS else [part], each)
    mapping = {part: _of_part(each, _is_diffusers(part, files), dtype) for part, each in parts.items()}
    return diffusers.PipelineQuantizationConfig(quant_mapping=mapping)


def _is_diffusers(part: str, files: ModelFiles) -> bool:
    cls = files.components.get(part)
    return part.startswith(_DIFFUSERS) if cls is None else cls in class_names()


def _of_part(options: Quantize, is_diffusers: bool, dtype: torch.dtype) -> Any:
    import diffusers
    import transformers

    library: Any = diffusers if is_diffusers else transformers
    skip = options.skip or None
    if options.type in _TORCHAO:
        import torchao.quantization

        return library.TorchAoConfig(
            getattr(torchao.quantization, _TORCHAO[options.type])(), modules_to_not_convert=skip
        )
    if options.type == "bnb-8bit":
        return library.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return library.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=skip
    )
