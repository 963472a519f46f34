"""Files written whole or not at all, names that a person recognises, and JSON that a person can read.

Knows nothing of runs and recipes.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import RunError

__all__ = ["json_line", "readable_json", "reason", "slug", "storable", "write_whole"]

_LINE = 400  # characters up to which a flat object stays on one line


def slug(text: str, limit: int = 48) -> str:
    """Return a piece of a file name in which a person recognises the text; empty if nothing of it is left.

    Letters and digits of any script stay, symbols such as emoji are spelled out, all else becomes a dash.
    """
    spelled = (
        f" {unicodedata.name(char, '')} " if unicodedata.category(char) == "So" else char
        for char in unicodedata.normalize("NFC", text[: 20 * limit])
    )
    kept = (char if unicodedata.category(char)[0] in "LMN" else "-" for char in "".join(spelled).lower())
    words = [word for word in "".join(kept).replace("\ufe0f", "").split("-") if word]
    found = ""
    for word in words:
        longer = f"{found}-{word}" if found else word
        if len(longer) > limit or len(longer.encode()) > 2 * limit:
            break
        found = longer
    # A script without spaces is one long word.
    return found or "".join(words[:1])[:limit].encode()[: 2 * limit].decode(errors="ignore")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file at once: nobody ever sees half of it, and a failure leaves what was there before."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise RunError(f"{path}: could not be written: {reason(error)}") from error
        raise


def reason(error: OSError) -> str:
    """Return what the system said, without the path."""
    return error.strerror or str(error)


def storable(value: str) -> str:
    """Return text that a file can hold: a command line in another encoding leaves lone surrogates."""
    return value.encode(errors="replace").decode()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {storable(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int)) else storable(str(value))


def readable_json(value: Any) -> str:
    """Return JSON with a line for each flat object; infinities become null, what JSON does not know becomes text."""
    return _lines(_plain(value)) + "\n"


def json_line(value: Any) -> str:
    """Return JSON on one line, with infinities and the like as in ``readable_json``."""
    return json.dumps(_plain(value), ensure_ascii=False) + "\n"


def _lines(value: Any, indent: str = "") -> str:
    items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    line = json.dumps(value, ensure_ascii=False)
    flat = len(line) <= _LINE and not any(isinstance(item, (dict, list)) for item in items)
    if flat or not items:
        return line
    inner = indent + "  "
    if isinstance(value, dict):
        parts = [f"{json.dumps(key, ensure_ascii=False)}: {_lines(item, inner)}" for key, item in value.items()]
    else:
        parts = [_lines(item, inner) for item in items]
    left, right = "{}" if isinstance(value, dict) else "[]"
    return left + "\n" + ",\n".join(inner + part for part in parts) + "\n" + indent + right
