"""Where a file that an option names is: on this machine, or on the hub.

Knows paths and safetensors headers; opens no network and reads no weights.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..recipe_fields import nearest

__all__ = ["folder_of", "weight_file"]


def _is_path(source: str) -> bool:
    return source.endswith((".safetensors", ".bin")) or source.startswith((".", "~", "/")) or source.count("/") > 1


def folder_of(source: str, where: str) -> Path | None:
    """Return the local folder or file that is named; None for a hub id.

    Raises:
        InputError: It is a path, and nothing is there.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    if _is_path(source):
        raise InputError(f"{where}: {source}: no such file or folder")
    return None


def weight_file(source: str, name: str | None, where: str) -> Path | None:
    """Return the local file of weights that a source and a name in it stand for; None if it is on the hub.

    Args:
        source: A hub id, a folder or a file.
        name: The file in it; may be left out where there is only one.
        where: The key in the recipe, for errors.

    Raises:
        InputError: It is not there, or is one of several.
    """
    path = folder_of(source, f"{where}.id")
    if path is None or path.is_file():
        return path
    files = {file.name: file for file in sorted(path.glob("*.safetensors")) + sorted(path.glob("*.bin"))}
    listed = ", ".join(files) or "no .safetensors file"
    if name is not None:
        inside = path / name
        if not inside.is_file():
            hint = nearest(name, files, "it has") if files else "it has no .safetensors file"
            raise InputError(f"{where}.weight_name: {source} has no {name!r} ({hint})")
        return inside
    if len(files) != 1:
        raise InputError(f"{where}.weight_name: missing: {source} has {listed}")
    return next(iter(files.values()))
