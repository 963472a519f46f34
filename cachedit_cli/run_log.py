"""The file ``log.jsonl`` of a run: a line for each pipeline call, appended when it is finished.

With thousands of pictures the decisions are too many to be kept in memory, or to be written anew with each picture.
Knows no torch and no models.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from .errors import InputError, RunError
from .files import json_line, reason, write_whole
from .terms.stats import Reset, Row

__all__ = ["FILE", "Finished", "Image", "append", "read_log", "renumber"]

FILE = "log.jsonl"


@dataclass
class Image:
    """One product of a run: a picture, or a video, a sound or latents. Unknown, or not there, is None.

    Attributes:
        file: Name in the run's folder.
        width: Pixels, as ``height``, of pictures and video.
        overrides: Arguments of the pipeline's call that were this product's own, above the recipe's.
        seconds: Wall time of its pipeline call, divided by the products that the call made.
        timings: Seconds of the call's parts: ``text``, ``denoise``, ``decode``.
        generation: The call's number in the log.
        others: Further files of the same product: layers, or the sound of a video whose format has none.
        frames: Of a video; ``fps`` of them are shown a second.
        sampling_rate: Samples a second of its sound.
        sha256: Of ``file`` and of each of the ``others``, in hexadecimal.
    """

    file: str
    prompt: str | None
    seed: int
    width: int | None
    height: int | None
    negative_prompt: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    seconds: float | None = None
    timings: dict[str, float] = field(default_factory=dict)
    generation: int = 0
    kind: Literal["image", "video", "audio", "latents"] = "image"
    others: list[str] = field(default_factory=list)
    frames: int | None = None
    fps: float | None = None
    sampling_rate: int | None = None
    sha256: list[str] = field(default_factory=list)


@dataclass
class Finished:
    """A pipeline call that is finished: a line of the file."""

    generation: int
    images: list[Image]
    rows: list[Row]
    resets: list[Reset]


def append(
    folder: Path, generation: int, images: Sequence[Image], rows: Sequence[Row], resets: Sequence[Reset]
) -> None:
    """Add a line; it is on the disk when this returns.

    Raises:
        RunError: It could not be written.
    """
    path = folder / FILE
    try:
        with path.open("ab") as file:
            file.write(_line(generation, images, rows, resets).encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunError(f"{path}: could not be written: {reason(error)}") from error


def _line(generation: int, images: Sequence[Image], rows: Sequence[Row], resets: Sequence[Reset]) -> str:
    facts = {
        "generation": generation,
        "images": [{**asdict(image), "generation": generation} for image in images],
        "rows": [_but_generation(row) for row in rows],
        "resets": [_but_generation(reset) for reset in resets],
    }
    return json_line(facts)


def _but_generation(entry: Row | Reset) -> dict[str, Any]:
    facts = asdict(entry)
    del facts["generation"]
    return facts


def _shared(call: Finished) -> Finished:
    """Have equal names of all rows be one object: of thousands of pictures they are most of what is read."""
    for row in call.rows:
        row.context, row.branch, row.reason = map(sys.intern, (row.context, row.branch, row.reason))
        row.decision = "compute" if row.decision == "compute" else "reuse"
    return call


def renumber(folder: Path, numbers: Mapping[int, int]) -> None:
    """Write the file anew with the calls that are kept, under other numbers.

    Raises:
        RunError: It could not be written.
    """
    lines = [
        _line(numbers[call.generation], call.images, call.rows, call.resets)
        for call in read_log(folder)
        if call.generation in numbers
    ]
    write_whole(folder / FILE, "".join(lines).encode())


def read_log(folder: Path) -> Iterator[Finished]:
    """Yield the calls in the order of their numbers; a last line that a killed run did not finish is left out.

    Raises:
        InputError: The file cannot be read, or a line is damaged: with its number.
    """
    from pydantic import TypeAdapter, ValidationError

    path, parse = folder / FILE, TypeAdapter(Finished)
    if not path.exists():
        return
    found = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    facts = json.loads(line)
                    generation = facts["generation"]
                    for entry in (*facts["rows"], *facts["resets"]):
                        entry["generation"] = generation
                    found.append(_shared(parse.validate_python(facts)))
                except ValidationError as error:
                    first = error.errors()[0]
                    place = ".".join(map(str, first["loc"]))
                    raise InputError(f"{path}:{number}: damaged, {place}: {first['msg']}") from error
                except (ValueError, TypeError, KeyError, RecursionError) as error:
                    raise InputError(f"{path}:{number}: damaged, no line of a log: {error!r}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error
    yield from sorted(found, key=lambda call: call.generation)
