"""Reads files of prompts: text with a prompt a line; CSV and JSON lines, whose lines may have settings of their own.

Knows the three formats and everything that can be wrong in them; draws nothing.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from .errors import InputError
from .files import reason
from .recipe_check import in_words
from .recipe_fields import nearest
from .recipe_model import PROMPT_FILES, PromptLine
from .recipe_yaml import shorten

__all__ = ["COLUMNS", "read_prompts"]

COLUMNS = tuple(PromptLine.model_fields)
_SHOWN = 20  # problems; of a file that is something else altogether, each line has one


def read_prompts(file: str) -> list[PromptLine]:
    """Return the lines of a file that say something; its ending tells the format.

    Raises:
        InputError: It cannot be read, is not text, is empty, or some of its lines are broken: with their numbers.
    """
    path = Path(os.path.expanduser(file))
    suffix = path.suffix.lower()
    if suffix not in PROMPT_FILES:
        raise InputError(f"{file}: a file of prompts ends in {', '.join(PROMPT_FILES)}")
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{file}: is no file")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {reason(error)}") from error
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{file}:{number}: is not text in UTF-8") from error
    if "\0" in text:
        raise InputError(f"{file}:{text[: text.index(chr(0))].count(chr(10)) + 1}: is not text")
    found: list[PromptLine] = []
    problems: list[str] = []
    for number, entry in _FORMATS[suffix](text):
        if isinstance(entry, str):
            problems.append(f"{file}:{number}: {entry}")
            continue
        try:
            found.append(PromptLine.model_validate(entry))
        except ValidationError as error:
            kind = "column" if suffix == ".csv" else "key"
            problems += [f"{file}:{number}: {_problem(each, kind)}" for each in error.errors(include_url=False)]
    if problems:
        more = len(problems) - _SHOWN
        raise InputError("\n".join([*problems[:_SHOWN], *([f"{file}: and {more} more"] if more > 0 else [])]))
    if not found:
        what = {".txt": "a prompt a line", ".csv": "a line with the names of the columns, prompt among them, and more"}
        raise InputError(f"{file}: is empty; write {what.get(suffix, _EXAMPLE + ' a line')}")
    return found


_EXAMPLE = '{"prompt": "a cat"}'
Entries = Iterator[tuple[int, dict[str, Any] | str]]  # line numbers, and what is there or what is wrong


def _text(text: str) -> Entries:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, {"prompt": line.strip()}


def _csv(text: str) -> Entries:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] | None = None
    number = 1
    try:
        for row in rows:
            if any(cell.strip() for cell in row):
                if columns is None:
                    columns = [cell.strip() for cell in row]
                    if wrong := list(_about_columns(columns)):
                        yield from ((number, each) for each in wrong)
                        return
                elif len(row) != len(columns):
                    hint = " (put a cell with a comma in double quotes)" if len(row) > len(columns) else ""
                    yield number, f"has {len(row)} cells, but there are {len(columns)} columns{hint}"
                else:
                    yield number, {name: _value(name, cell) for name, cell in zip(columns, row, strict=True) if cell}
            number = rows.line_num + 1
    except csv.Error as error:
        yield number, f"is no CSV: {error}"


def _about_columns(columns: list[str]) -> Iterator[str]:
    for name, times in Counter(columns).items():
        if name not in COLUMNS:
            yield f"{name or 'a column without a name'}: unknown column ({nearest(name, COLUMNS, 'known are')})"
        elif times > 1:
            yield f"{name}: is a column twice"
    if "prompt" not in columns:
        yield "prompt: missing; the first line has the names of the columns"


def _value(column: str, cell: str) -> Any:
    text = cell.strip()
    if column in ("prompt", "negative_prompt") or not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text):
        return text
    return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)


def _json_lines(text: str) -> Entries:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_once, parse_constant=_refuse)
        except InputError as error:
            yield number, str(error)
        except json.JSONDecodeError as error:
            yield number, f"is no JSON: {error.msg} (column {error.colno})"
        except (ValueError, RecursionError) as error:
            yield number, f"is no JSON: {error}"
        else:
            yield number, value if isinstance(value, dict) else f"{shorten(value)} is no object such as {_EXAMPLE}"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = Counter(name for name, _ in pairs)
    twice = next((name for name, times in counts.items() if times > 1), None)
    if twice is not None:
        raise InputError(f"{twice}: is given twice")
    return dict(pairs)


def _refuse(name: str) -> Any:
    raise InputError(f"{name} is no number")


_FORMATS = {".txt": _text, ".csv": _csv, ".jsonl": _json_lines}


def _problem(error: ErrorDetails, kind: str) -> str:
    key = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown {kind} ({nearest(key, COLUMNS, 'known are')})"
    if error["type"] == "missing":
        return f"{key}: missing"
    return f"{key}: {in_words(error)}"
