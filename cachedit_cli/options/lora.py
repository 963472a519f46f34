"""`model.lora`: low-rank changes of the weights, through diffusers' loaders and peft.

diffusers leaves out what does not fit with no more than a warning, so that names and shapes in a file are compared with
those of the model first, as far as both are here and the file names layers as diffusers does.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..models import ModelFiles, tensor_shapes
from .local import weight_file

if TYPE_CHECKING:
    from ..recipe_options import Lora

__all__ = ["check", "load", "problems"]

_DOWN, _UP = (".lora_A.weight", ".lora.down.weight"), (".lora_B.weight", ".lora.up.weight")


def problems(loras: Sequence[Lora], files: ModelFiles) -> Iterator[str]:
    """Yield what is wrong with files that are here and names, before anything is loaded."""
    if loras and importlib.util.find_spec("peft") is None:
        yield "model.lora: the package peft is not installed (pip install 'cachedit[lora]')"
    names = _names(loras)
    for index, (lora, name) in enumerate(zip(loras, names, strict=True)):
        where = f"model.lora[{index}]"
        if name in names[:index]:
            yield f"{where}.name: {name!r} is the name of another one"
        try:
            file = weight_file(lora.id, lora.weight_name, where)
            if file is not None and file.suffix == ".safetensors":
                yield from _misfits(tensor_shapes(file), files, f"{where}.id: {file}")
        except InputError as error:
            yield str(error)


def _misfits(tensors: Mapping[str, Sequence[int]], files: ModelFiles, where: str) -> Iterator[str]:
    """Compare a file's layers with the model's, part by part."""
    known = {part: shapes for part in files.components if (shapes := files.shapes(part))}
    missing, unlike = list[str](), list[str]()
    for key, shape in tensors.items():
        part, _, rest = key.partition(".")
        ending = next((each for each in (*_DOWN, *_UP) if rest.endswith(each)), None)
        if part not in known or ending is None:
            continue
        layer = rest.removesuffix(ending)
        weight = known[part].get(f"{layer}.weight")
        if weight is None:
            missing.append(f"{part}.{layer}")
        # An input of another width is how control LoRAs change the embedder of a model.
        elif len(weight) == len(shape) == 2 and not layer.endswith("x_embedder"):
            side, wanted = (shape[1], weight[1]) if ending in _DOWN else (shape[0], weight[0])
            if side != wanted:
                unlike.append(f"{part}.{layer}: {side} instead of {wanted}")
    if missing:
        named = list(dict.fromkeys(missing))
        yield f"{where}: does not fit {files.id}, which lacks {len(named)} of its layers, the first is {named[0]}"
    if unlike:
        yield f"{where}: does not fit {files.id}: {len(unlike)} sizes differ, the first is {unlike[0]}"
    if not any(ending in key for key in tensors for ending in ("lora", "hada_", "lokr_", ".diff")):
        yield f"{where}: holds no LoRA, but tensors such as {next(iter(tensors), 'none at all')}"


def _names(loras: Sequence[Lora]) -> list[str]:
    return [lora.name or f"lora_{index}" for index, lora in enumerate(loras)]


def check(pipeline: type[Any]) -> None:
    """Refuse pipelines that take none."""
    if not hasattr(pipeline, "load_lora_weights"):
        raise InputError(f"model.lora: {pipeline.__name__} takes no LoRA")


def load(pipe: Any, loras: Sequence[Lora]) -> None:
    """Load each, in its strength; those that are fused become part of the weights first.

    Raises:
        InputError: One does not fit.
    """
    named = list(zip(loras, _names(loras), range(len(loras)), strict=True))
    for lora, name, index in named:
        if lora.fuse:
            _load(pipe, lora, name, f"model.lora[{index}]")
            pipe.set_adapters([name], [lora.scale])
            pipe.fuse_lora(adapter_names=[name], components=list(pipe.get_list_adapters()))
            pipe.unload_lora_weights()
    apart = [(lora, name, index) for lora, name, index in named if not lora.fuse]
    for lora, name, index in apart:
        _load(pipe, lora, name, f"model.lora[{index}]")
    if apart:
        pipe.set_adapters([name for _, name, _ in apart], [lora.scale for lora, _, _ in apart])


def _load(pipe: Any, lora: Lora, name: str, where: str) -> None:
    file = weight_file(lora.id, lora.weight_name, where)
    source, weight_name = (lora.id, lora.weight_name) if file is None else (str(Path(file).parent), file.name)
    try:
        pipe.load_lora_weights(source, weight_name=weight_name, adapter_name=name)
    except (ValueError, KeyError, RuntimeError, OSError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{where}.id: {file or lora.id}: cannot be loaded: {reason}") from error
    if not any(name in names for names in pipe.get_list_adapters().values()):
        raise InputError(f"{where}.id: {file or lora.id}: changes no layer of {type(pipe).__name__}")
