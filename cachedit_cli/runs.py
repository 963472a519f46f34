"""Runs on disk: a folder with what was made, ``log.jsonl`` and ``run.json``, written whole or not at all.

Knows no torch and no models; what a product looks like as bytes, ``encode`` knows. docs/run-json.md describes both.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .errors import InputError, RunError
from .files import readable_json, reason, slug, write_whole
from .run_log import Image, append, read_log, renumber
from .terms.stats import ContextInfo, ContextStats, DecisionLog, Reset, Row, collect

if TYPE_CHECKING:
    from .media import Product

__all__ = ["SCHEMA", "Facts", "Failed", "Image", "Record", "Run", "RunFolder", "Status", "load", "provenance"]

SCHEMA = 1
_FILE = "run.json"
_STARTED = re.compile(r"\d{8}-\d{6}")
_REQUIRED = ("schema", "cachedit", "recipe", "status", "started", "log")

Status = Literal["running", "done", "interrupted", "failed"]


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


@dataclass
class Failed:
    """One picture that could not be drawn.

    Attributes:
        error: Why.
        overrides: Arguments that were this picture's own.
        generation: The call's number.
    """

    prompt: str | None
    seed: int
    error: str
    overrides: dict[str, Any] = field(default_factory=dict)
    generation: int = 0


@dataclass
class Facts:
    """What ``run.json`` says, but for the log.

    Attributes:
        cachedit: Version that made the run.
        recipe: The recipe as it was resolved.
        command: The command line.
        environment: Versions, platform, device, dtype, threads.
        status: ``running`` also stays behind when the process is killed.
        error: Why it failed.
        started: ISO 8601 with the offset to UTC; so is ``finished``.
        timings: Seconds of the whole run: ``load``, ``text``, ``denoise``, ``decode``, ``total``.
        resumed: The command lines that went on with it.
        images: What is finished: pictures, video, sound, latents; in the order of their calls.
        failures: What could not be drawn.
        inputs: SHA-256 of the pictures and videos that the recipe names, by path.
    """

    cachedit: str
    recipe: dict[str, Any]
    command: list[str] = field(default_factory=list)
    resumed: list[list[str]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    status: Status = "running"
    error: str | None = None
    started: str = field(default_factory=_now)
    finished: str | None = None
    timings: dict[str, float | None] = field(default_factory=dict)
    images: list[Image] = field(default_factory=list)
    failures: list[Failed] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)


@dataclass
class Record(Facts):
    """What a run says of itself; the log holds every decision of every generation, once the run is read back."""

    log: DecisionLog = field(default_factory=DecisionLog)

    @property
    def kept(self) -> bool:
        """Whether there is anything to keep."""
        return bool(self.images or self.failures)

    @property
    def generations(self) -> list[int]:
        """Numbers of the generations in the log, in order."""
        return sorted({row.generation for row in self.log.rows})

    def finish(self, status: Status, error: str | None = None) -> None:
        """Say how the run ended."""
        self.status, self.error, self.finished = status, error, _now()

    def as_dict(self) -> dict[str, Any]:
        """Return what ``run.json`` holds; the rows of the log have a file of their own."""
        images = sorted(self.images, key=lambda image: image.generation)
        return {
            "schema": SCHEMA,
            **vars(self),
            "images": [asdict(image) for image in images],
            "failures": [asdict(failure) for failure in self.failures],
            "log": {"contexts": [asdict(info) for info in self.log.contexts]},
        }

    def stats(self, generation: int | None = None) -> list[ContextStats]:
        """Return the statistics of one generation, or of all of them together."""
        self.log.settle()
        rows = [row for row in self.log.rows if generation in (None, row.generation)]
        return collect(rows, self.log.contexts)


def provenance(
    recipe: str, prompt: str | None, negative_prompt: str | None, seed: int, cachedit: str, settings: Mapping[str, Any]
) -> dict[str, str]:
    """Return what the metadata of a file says of how it was made; ``settings`` become JSON."""
    facts = {
        "Software": f"cachedit {cachedit}",
        "recipe": recipe,
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "seed": str(seed),
        "settings": readable_json(settings).rstrip(),
    }
    return {key: value for key, value in facts.items() if value is not None}


class RunFolder:
    """The folder of a run that is being made."""

    def __init__(self, path: Path, recipe: str) -> None:
        self.path = path
        self._recipe = recipe

    @classmethod
    def create(cls, recipe_name: str, out_dir: str | Path, now: datetime | None = None) -> RunFolder:
        """Make ``<out_dir>/<YYYYMMDD-HHMMSS>-<recipe name>``, numbered if it exists; call it before the long work."""
        stem = f"{now or datetime.now():%Y%m%d-%H%M%S}-{slug(recipe_name) or 'run'}"
        parent, number = Path(out_dir), 1
        while True:
            path = parent / (stem if number == 1 else f"{stem}-{number}")
            try:
                parent.mkdir(parents=True, exist_ok=True)
                path.mkdir()
            except FileExistsError as error:
                if not parent.is_dir():
                    raise InputError(f"{parent}: is a file, but the runs need a folder (output.dir)") from error
                number += 1
            except OSError as error:
                kind = RunError if error.errno in (errno.ENOSPC, errno.EDQUOT) else InputError
                raise kind(f"{parent}: cannot make a folder for the run here (output.dir): {reason(error)}") from error
            else:
                return cls(path, recipe_name)

    def save(
        self,
        product: Product,
        form: str,
        *,
        prompt: str | None,
        seed: int,
        cachedit: str,
        negative_prompt: str | None = None,
        settings: Mapping[str, Any] | None = None,
        quality: int | None = None,
    ) -> list[str]:
        """Save a product with what made it inside, and return the names of its files, the main one first.

        Args:
            product: Pictures, video, sound or latents.
            form: The format, one that the kind of product has.
            prompt: Its prompt; None where the pipeline takes none.
            seed: Its seed.
            cachedit: Version of cachedit.
            negative_prompt: What it should not show.
            settings: Further facts, kept as JSON.
            quality: 1 to 100, for formats with loss; None is the format's default.
        """
        from .encode import encoded

        facts = provenance(self._recipe, prompt, negative_prompt, seed, cachedit, settings or {})
        parts = [slug(self._recipe) or "run", slug(prompt or ""), f"s{seed}"]
        stem = "-".join(part for part in parts if part)
        saved = []
        for suffix, data in encoded(product, form, quality, facts):
            name, number = f"{stem}{suffix}", 1
            while (self.path / name).exists():
                number += 1
                name = f"{stem}-{number}{suffix}"
            write_whole(self.path / name, data)
            saved.append(name)
        return saved

    def store(self, stem: str, files: Sequence[tuple[str, bytes]]) -> list[str]:
        """Write the files of one product, given as suffix and bytes, and return their names."""
        names: list[str] = []
        for suffix, data in files:
            number = sum(name.endswith(suffix) for name in names) + 1
            names.append(f"{stem}{suffix}" if number == 1 else f"{stem}.{number}{suffix}")
            write_whole(self.path / names[-1], data)
        return names

    def renumber(self, numbers: Mapping[int, int]) -> None:
        """Keep only some calls in ``log.jsonl``, under other numbers."""
        renumber(self.path, numbers)

    def log(self, generation: int, images: Sequence[Image], rows: Sequence[Row], resets: Sequence[Reset]) -> None:
        """Append what one pipeline call made and decided to ``log.jsonl``."""
        append(self.path, generation, images, rows, resets)

    def write(self, record: Record) -> Path:
        """Write ``run.json``, replacing the earlier one at once."""
        path = self.path / _FILE
        write_whole(path, readable_json(record.as_dict()).encode())
        return path

    def discard(self) -> None:
        """Remove the folder if nothing was written into it."""
        try:
            self.path.rmdir()
        except OSError:
            return


@dataclass(frozen=True)
class Run:
    """A run that was read back."""

    folder: Path
    record: Record


@dataclass
class _Log:
    contexts: list[ContextInfo]


@dataclass
class _Stored(Facts):
    """A record as JSON has it."""

    log: _Log = field(default_factory=lambda: _Log([]))


def load(source: str | Path | None = None, outputs: str | Path = "outputs") -> Run:
    """Read a run.

    Args:
        source: A run's folder, its ``run.json``, or a folder of runs, of which the newest is taken; None for the
            newest below ``outputs``.
        outputs: Folder of runs.
    """
    path = Path(outputs if source is None else source)
    try:
        if source is None and not path.is_dir():
            raise InputError(f"{path}: no runs yet (`cachedit run demo` makes one)")
        if path.is_dir() and not (path / _FILE).exists():
            found = [file for file in path.glob(f"*/{_FILE}") if file.is_file()]
            if not found:
                hint = "no runs yet" if source is None else f"no {_FILE} here or in a folder below, so this is no run"
                raise InputError(f"{path}: {hint} (`cachedit run demo` makes one)")
            path = max(found, key=_age)
        elif path.is_dir():
            path /= _FILE
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such run (`cachedit stats` without a name takes the newest)") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error
    return Run(path.parent, _parse(path, data))


def _age(file: Path) -> tuple[str, int]:
    changed = file.stat().st_mtime
    named = _STARTED.match(file.parent.name)
    return (named[0] if named else f"{datetime.fromtimestamp(changed):%Y%m%d-%H%M%S}", file.stat().st_mtime_ns)


def _parse(path: Path, data: bytes) -> Record:
    try:
        facts = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged, not valid JSON: {error}") from error
    missing = [key for key in _REQUIRED if key not in facts] if isinstance(facts, dict) else list(_REQUIRED)
    if "schema" in missing or (missing and facts["schema"] == SCHEMA):
        raise InputError(f"{path}: not the record of a run: {missing[0]!r} is missing")
    if facts["schema"] != SCHEMA:
        raise InputError(f"{path}: written with schema {facts['schema']!r}; this version of cachedit reads {SCHEMA}")
    from pydantic import TypeAdapter, ValidationError

    try:
        stored = TypeAdapter(_Stored).validate_python(facts)
    except ValidationError as error:
        first, *more = error.errors()
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
        others = f" (and {len(more)} more)" if more else ""
        raise InputError(f"{path}: damaged, {place}: {first['msg']}{others}") from error
    record = Record(**{**vars(stored), "log": DecisionLog(stored.log.contexts)})
    known = {image.file for image in record.images}
    for call in read_log(path.parent):
        record.log.rows += call.rows
        record.log.resets += call.resets
        # A run that was killed had not brought its record up to date.
        record.images += [image for image in call.images if image.file not in known]
    record.images.sort(key=lambda image: image.generation)
    return record
