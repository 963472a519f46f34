"""Where a model's files lie and what its configuration says, without loading it.

Knows the layout of a diffusers folder and of the hub's cache. Opens no network, no weights and no torch.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import demo
from .errors import InputError

__all__ = ["ModelFiles", "hub_cache", "locate", "read_json", "tensor_shapes"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_INDEX = "model_index.json"
_METADATA = "__metadata__"
_LONGEST_HEADER = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class ModelFiles:
    """What is known of a model before it is loaded.

    Attributes:
        id: As the recipe names it.
        folder: Where its files are; None for a hub model that is not in the cache yet.
        pipeline: Class of the pipeline, from ``model_index.json``.
        components: Class of each part that the pipeline loads, by its name.
        file: The file that the transformer's weights are in; None for a folder or hub model.
        base: What ``file`` takes the rest from, as the recipe names it.
    """

    id: str
    folder: Path | None
    pipeline: str | None = None
    components: dict[str, str] = field(default_factory=dict)
    file: Path | None = None
    base: str | None = None

    @property
    def source(self) -> str:
        """What to hand to ``from_pretrained``."""
        named = self.base or self.id
        on_hub = self.folder is None or (named != "demo" and not Path(named).expanduser().is_dir())
        return named if on_hub else str(self.folder)

    def transformers(self) -> dict[str, str]:
        """Return the diffusion transformers of the pipeline, class by name of the part."""
        return {name: cls for name, cls in self.components.items() if name.startswith("transformer")}

    def count(self, part: str, path: str) -> int | None:
        """Return how many blocks a list of one part has, by the names of its weights; None where they are not there."""
        names = self._weight_names(part)
        found = {name[len(path) + 1 :].partition(".")[0] for name in names if name.startswith(f"{path}.")}
        return len([index for index in found if index.isdigit()]) or None

    def shapes(self, part: str) -> dict[str, tuple[int, ...]]:
        """Return the sizes of a part's weights by name; empty where its files are not there."""
        in_file = self.file is not None and part.startswith("transformer")  # under names of its own, perhaps
        folder = self.folder / part if self.folder and not in_file else None
        files = sorted(folder.glob("*.safetensors")) if folder is not None else []
        return {name: shape for file in files for name, shape in tensor_shapes(file).items()}

    def _weight_names(self, part: str) -> list[str]:
        folder = self.folder / part if self.folder else None
        if folder is None:
            return []
        for index in sorted(folder.glob("*.safetensors.index*.json")):
            return list(read_json(index).get("weight_map", ()))
        for weights in sorted(folder.glob("*.safetensors")):
            return list(tensor_shapes(weights))
        return []

    def config(self, part: str) -> dict[str, Any]:
        """Return the configuration of one part; empty where it is not known."""
        path = self.folder / part / "config.json" if self.folder else None
        return read_json(path) if path is not None and path.is_file() else {}


def locate(model_id: str, revision: str | None = None, config: str | None = None) -> ModelFiles:
    """Find a model by recipe id: ``demo``, a local folder or file, or a hub id.

    Hub ids are looked up in the hub's cache only. A file needs ``config``, the pipeline that it belongs to.
    """
    if config is not None:
        return _of_file(model_id, revision, config)
    if model_id == "demo":
        return _read(model_id, demo.path())
    folder = Path(model_id).expanduser()
    if folder.is_dir():
        if not (folder / _INDEX).is_file():
            raise InputError(f"model.id: {model_id}: no diffusers pipeline, the folder has no {_INDEX}")
        return _read(model_id, folder)
    if folder.exists():
        raise InputError(f"model.id: {model_id}: a file; name the pipeline that it belongs to as model.config")
    if not _HUB_ID.fullmatch(model_id):
        raise InputError(f"model.id: {model_id}: no such folder (and not of the form of a hub id, 'owner/name')")
    repo = hub_cache() / ("models--" + model_id.replace("/", "--"))
    ref = repo / "refs" / (revision or "main")
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision or "main"
    snapshot = repo / "snapshots" / commit
    return _read(model_id, snapshot) if (snapshot / _INDEX).is_file() else ModelFiles(model_id, None)


def _of_file(model_id: str, revision: str | None, config: str) -> ModelFiles:
    file = Path(model_id).expanduser()
    if not file.is_file():
        problem = "goes with a model.id that is a file" if model_id == "demo" or file.exists() else "no such file"
        where = "model.config" if problem.startswith("goes") else f"model.id: {model_id}"
        raise InputError(f"{where}: {problem}")
    try:
        base = locate(config, revision)
    except InputError as error:
        raise InputError(str(error).replace("model.id", "model.config", 1)) from error
    return replace(base, id=model_id, file=file, base=config)


def hub_cache() -> Path:
    """Return the folder in which the hub's client keeps what it downloaded (its documented variables)."""
    if path := os.environ.get("HF_HUB_CACHE"):
        return Path(path).expanduser()
    home = os.environ.get("HF_HOME")
    if not home:
        home = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "hub"


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a configuration file of a model."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: holds no JSON object")
    return data


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the sizes in a safetensors file by name: eight bytes say how long the JSON header after them is."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, _LONGEST_HEADER)))
        except ValueError as error:
            raise InputError(f"{path}: damaged: its header is not valid JSON") from error
    entries = header.items() if isinstance(header, dict) else ()
    return {
        name: tuple(entry.get("shape", ())) for name, entry in entries if isinstance(entry, dict) and name != _METADATA
    }


def _read(model_id: str, folder: Path) -> ModelFiles:
    index = read_json(folder / _INDEX)
    parts = {
        name: part[1]
        for name, part in index.items()
        if isinstance(part, list) and len(part) == 2 and isinstance(part[1], str)
    }
    pipeline = index.get("_class_name")
    return ModelFiles(model_id, folder, pipeline if isinstance(pipeline, str) else None, parts)
