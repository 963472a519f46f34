"""The share of a step's time that reuse saves, by a clock that the test turns."""

from __future__ import annotations

import pytest

from cachedit_cli import pace
from cachedit_cli.pace import Pace
from cachedit_cli.terms.stats import Row

SAVES = {"blocks": 0.75, "more": 0.5}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(pace, "_now", made)
    return made


def row(step: int, ms: float | None, context: str = "blocks", generation: int = 0) -> Row:
    return Row(generation, step, context, "cond", "compute", "warmup", computed=4, ms=ms)


def test_the_share_is_what_the_middle_blocks_took_of_the_second_step(clock: Clock) -> None:
    found, rows = Pace(), [row(0, 9999.0), row(1, 40.0), row(1, 20.0, "more")]
    assert not found.reach(0, 1, rows[:1], SAVES)
    clock.now += 0.1
    assert found.reach(0, 2, rows, SAVES)
    assert found.share == pytest.approx((40 * 0.75 + 20 * 0.5) / 100)


def test_it_is_measured_once(clock: Clock) -> None:
    found = Pace()
    found.reach(0, 1, [], SAVES)
    clock.now += 0.1
    assert found.reach(0, 2, [row(1, 40.0)], SAVES)
    for step in (1, 2):
        clock.now += 5
        assert not found.reach(1, step, [row(1, 40.0, generation=1)], SAVES)
    assert found.share == pytest.approx(0.3)


def test_a_generation_that_ended_early_is_not_measured_into_the_next_one(clock: Clock) -> None:
    found = Pace()
    found.reach(0, 1, [], SAVES)
    clock.now += 9
    assert not found.reach(1, 2, [row(1, 40.0, generation=1)], SAVES)
    found.reach(2, 1, [], SAVES)
    clock.now += 0.2
    assert found.reach(2, 2, [row(1, 40.0, generation=2)], SAVES)
    assert found.share == pytest.approx(0.15)


@pytest.mark.parametrize("rows", [[], [row(1, None)], [row(1, 40.0, "unknown")]], ids=["none", "no time", "no saving"])
def test_without_times_of_blocks_that_can_be_left_out_nothing_is_known(clock: Clock, rows: list[Row]) -> None:
    found = Pace()
    found.reach(0, 1, [], SAVES)
    clock.now += 0.1
    assert not found.reach(0, 2, rows, SAVES)
    assert found.share is None


def test_the_share_stays_below_one_also_where_rounding_says_otherwise(clock: Clock) -> None:
    found = Pace()
    found.reach(0, 1, [], {"blocks": 1.0})
    clock.now += 0.04
    assert found.reach(0, 2, [row(1, 40.1)], {"blocks": 1.0})
    assert found.share == 0.999
