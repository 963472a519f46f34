"""How far a run of many pictures is: a bar with the time that is left on a terminal, a line a picture anywhere."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from cachedit_cli.jobs import Job
from cachedit_cli.progress import failures
from cachedit_cli.runs import Failed, Record
from cachedit_cli.screen import Screen
from cachedit_cli.terms.stats import Row

PICTURES = [Job("cat\nface", 3), Job("red heart", 4)]


def shown(terminal: bool, pictures: int) -> str:
    """Return what is written of a run of which one picture was there, one is saved, and one fails."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=80, color_system=None, highlight=False)
    with Screen(console) as screen:
        screen.planned(pictures, 1)
        screen.opened("cpu", "float32", 1.0)
        screen.begins(PICTURES[:1], 2)
        screen.row(Row(0, 0, "blocks", "cond", "compute", "warmup"))
        screen.saved(PICTURES[:1], [[Path("out/a.png"), Path("out/a.wav")]], 0.5)
        screen.begins(PICTURES[1:], 2)
        screen.failed(PICTURES[1:], "no room")
    return out.getvalue()


def test_where_there_is_no_terminal_each_picture_has_a_line() -> None:
    assert shown(terminal=False, pictures=4) == (
        "loaded in 1.0 s: cpu, float32\n2/4 seed 3: cat face: 0.50 s, a.png\n3/4 seed 4: red heart: failed: no room\n"
    )


def test_a_terminal_shows_how_many_there_are_and_the_time_that_is_left() -> None:
    text = shown(terminal=True, pictures=4)
    assert "2/4 seed 3: cat face: 0.50 s, a.png" in text
    assert "cond |█ | 1/2" in text
    counts = re.findall(r"all [━╸╺ ]*(\d/4) +[-\d]+:\S+ left", text)
    assert list(dict.fromkeys(counts)) == ["1/4", "2/4", "3/4"]


def test_a_run_of_one_picture_has_no_bar() -> None:
    assert "left" not in shown(terminal=True, pictures=1)


def test_failures_are_summed_up_by_their_causes() -> None:
    failed = [Failed("a", 0, "no room"), Failed(None, 1, "too large"), Failed("b", 2, "no room")]
    record = Record("1", {}, error="3 of 9 pictures failed", failures=failed)
    assert failures(record) == ("3 of 9 pictures failed:\n  seed 0: a (and 1 more): no room\n  seed 1: too large")
