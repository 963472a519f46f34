"""Writes records as runs do: ``run.json``, and a line in ``log.jsonl`` for each call."""

from __future__ import annotations

from pathlib import Path

from cachedit_cli.runs import Record, RunFolder


def written(folder: RunFolder, record: Record) -> Path:
    """Write a record with its log, and return the path of ``run.json``."""
    log = record.log
    for number in sorted({*record.generations, *(image.generation for image in record.images)}):
        images = [image for image in record.images if image.generation == number]
        rows = [row for row in log.rows if row.generation == number]
        folder.log(number, images, rows, [reset for reset in log.resets if reset.generation == number])
    return folder.write(record)
