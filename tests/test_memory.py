"""Two hundred pictures in one run: nothing is kept of a picture but its entry in the record."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from cachedit_cli.jobs import Job
from cachedit_cli.recipe import load
from cachedit_cli.run import generate
from cachedit_cli.runs import load as load_run
from cachedit_cli.terms.stats import ContextInfo, Row

PICTURES, STEPS = 200, 1


def _rows() -> int:
    gc.collect()
    return sum(type(each) is Row for each in gc.get_objects())


class Measuring:
    """A watcher that measures what is held after some of the pictures."""

    def __init__(self) -> None:
        self.saved_pictures = 0
        self.rows: dict[int, int] = {}
        self.objects: dict[int, int] = {}
        self.process: dict[int, int] = {}
        self._before = _rows()  # that earlier tests left in this process

    def planned(self, pictures: int, there: int) -> None: ...

    def opened(self, device: str, dtype: str, seconds: float) -> None: ...

    def begins(self, batch: Sequence[Job], steps: int | None) -> None: ...

    def found(self, lists: Sequence[ContextInfo]) -> None: ...

    def row(self, row: Row) -> None: ...

    def failed(self, batch: Sequence[Job], error: str) -> None:
        pytest.fail(error)

    def saved(self, batch: Sequence[Job], files: Sequence[Sequence[Path]], seconds: float) -> None:
        self.saved_pictures += 1
        if self.saved_pictures in (PICTURES // 2, PICTURES):
            gc.collect()
            self.objects[self.saved_pictures] = len(gc.get_objects())
            self.rows[self.saved_pictures] = _rows() - self._before
            self.process[self.saved_pictures] = psutil.Process().memory_info().rss


def test_memory_does_not_grow_with_the_pictures_but_by_their_entries_in_the_record(tmp_path: Path) -> None:
    sizes = (
        "generate.height=16",
        "generate.width=16",
        "generate.max_sequence_length=16",
        f"generate.num_inference_steps={STEPS}",
    )
    changes = ("model.device=cpu", f"output.dir={tmp_path}", f"generate.num_images={PICTURES}", *sizes)
    watcher = Measuring()
    outcome = generate(load("demo", changes), command=["test"], version="0", watcher=watcher)
    half, whole = PICTURES // 2, PICTURES
    assert watcher.rows[whole] == watcher.rows[half] <= STEPS
    assert watcher.objects[whole] - watcher.objects[half] < 10 * half
    assert watcher.process[whole] - watcher.process[half] < 16 * 2**20
    # Each picture's decisions are written once: the record says nothing of them.
    assert len(load_run(outcome.folder).record.log.rows) == PICTURES * STEPS
    assert (outcome.folder / "log.jsonl").read_text().count("\n") == PICTURES
    assert '"decision"' not in (outcome.folder / "run.json").read_text()
