"""Scores of forecasts against forecasts by hand, what follows from them, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cachedit_cli.audit import Board, Mean, Score
from cachedit_cli.calibrators import CANDIDATES, HOLD, TaylorSeer
from cachedit_cli.engine.install import install
from cachedit_cli.snapshots import Calibration, Snapshots
from cachedit_cli.terms.config import (
    AutoCalibratorConfig,
    CacheConfig,
    CalibratorConfig,
    DBCacheConfig,
    DBPruneConfig,
    TaylorSeerCalibratorConfig,
)
from cachedit_cli.terms.pattern import ForwardPattern
from tests.tiny import TinyTransformer, adapter, context, run, times, walk
from tests.told import told

H = "hidden_states"


def static(mask: str, **settings: Any) -> DBCacheConfig:
    return DBCacheConfig(
        Fn_compute_blocks=0, steps_computation_mask=mask, steps_computation_policy="static", **settings
    )


def randoms(count: int, seed: int = 0, size: int = 6) -> list[Tensor]:
    return list(torch.randn(count, 1, 2, size, generator=torch.Generator().manual_seed(seed)))


def by_hand(history: Sequence[tuple[int, Tensor]], now: int, order: int, damping: float) -> Tensor:
    """Return the paper's series over backward differences, what it adds to the last value being damped."""
    derivatives: list[Tensor] = []
    before = history[0][0]
    for step, value in history:
        fresh = [value.double()]
        for old in derivatives[:order]:
            fresh.append((fresh[-1] - old) / (step - before))
        derivatives, before = fresh, step
    added = [d * (now - before) ** i / math.factorial(i) for i, d in enumerate(derivatives) if i]
    return derivatives[0] + damping * sum(added, torch.zeros_like(derivatives[0]))


# ---- scores


@pytest.mark.parametrize("gaps", [(1, 1, 1, 1), (1, 2, 3, 1), (5, 1, 4, 7)])
@pytest.mark.parametrize("absolute", [False, True], ids=["residual", "hidden_states"])
def test_every_candidate_is_scored_by_what_its_forecast_would_have_missed(gaps: Sequence[int], absolute: bool) -> None:
    snapshots = Snapshots(Calibration(CANDIDATES, absolute=absolute), H)
    starts, changes = randoms(len(gaps) + 1, seed=1), randoms(len(gaps) + 1, seed=2)
    history: list[tuple[int, Tensor]] = []
    step = 0
    for gap, start, change in zip((0, *gaps), starts, changes, strict=True):
        step += gap
        score = snapshots.learn({H: start}, {H: start + change}, step, audit=True)
        truth = start + change if absolute else change
        if not history:
            assert score is None
        else:
            assert score is not None
            expected = {}
            for candidate in CANDIDATES:
                order, damping = (candidate.order, candidate.damping) if isinstance(candidate, TaylorSeer) else (0, 1)
                missed = by_hand(history, step, order, damping) - truth.double()
                expected[str(candidate)] = float(missed.abs().sum() / change.double().abs().sum())
            assert score.distance == gap
            assert score.errors() == pytest.approx(expected, rel=1e-4)
            assert score.error_of_used() == score.errors()[score.used]
        history.append((step, truth))


def test_a_change_of_nothing_has_no_relative_error() -> None:
    score = Score((HOLD,), HOLD, 1.0, torch.tensor([0.0, 3.0]))
    assert score.errors() == {"hold": None}
    assert Score((HOLD,), HOLD, 1.0, torch.tensor([math.inf, 3.0])).errors() == {"hold": 0.0}
    assert Score((HOLD,), HOLD, 1.0, torch.tensor([math.nan, 3.0])).errors() == {"hold": None}


def test_blocks_that_choose_their_own_calibrator_are_told_as_the_mean_of_what_each_would_have_used() -> None:
    first, second = CANDIDATES[:2]
    scores = [
        Score((first, second), first, 2.0, torch.tensor([1.0, 0.1, 0.5])),
        Score((first, second), second, 4.0, torch.tensor([1.0, 0.7, 0.3])),
        Score((first, second), second, 3.0, torch.tensor([0.0, 0.7, 0.3])),
    ]
    mean = Mean(scores)
    assert mean.errors() == pytest.approx({str(first): 0.4, str(second): 0.4})
    assert mean.error_of_used() == pytest.approx(0.2)
    assert (mean.distance, mean.used) == (3.0, str(second))


# ---- the board


@given(
    changes=st.integers(2, 5).flatmap(
        lambda n: st.lists(
            st.lists(st.integers(-72, 72).map(lambda eighths: eighths / 8), min_size=3, max_size=3),
            min_size=n,
            max_size=n,
        )
    ),
    gaps=st.lists(st.integers(1, 5), min_size=5, max_size=5),
    ahead=st.integers(1, 6),
    order=st.integers(1, 4),
    damping=st.sampled_from([0.5, 1.0]),
)
@settings(deadline=None, derandomize=True, max_examples=200)
def test_the_leap_is_never_less_than_how_far_the_forecast_really_is_from_the_last_change(
    changes: list[list[float]], gaps: list[int], ahead: int, order: int, damping: float
) -> None:
    calibrator = TaylorSeer(order, damping)
    snapshots, step, times_ = Snapshots(Calibration((calibrator,)), H), 0, list[int]()
    for gap, change in zip(gaps, changes, strict=False):
        step += gap
        snapshots.learn({H: torch.zeros(3)}, {H: torch.tensor(change)}, step, audit=True)
        times_.insert(0, step)
    forecast = snapshots.forecast({H: torch.zeros(3)}, step + ahead)[H]
    assert forecast is not None
    last = torch.tensor(changes[-1])
    if not last.abs().sum():
        return
    weights = calibrator.weights([float(time) for time in times_[: order + 1]], step + ahead)
    assert float((forecast - last).abs().sum() / last.abs().sum()) <= snapshots._board.leap(weights) * (1 + 1e-4) + 1e-4


@given(
    rounds=st.lists(
        st.tuples(st.integers(1, 3), st.lists(st.floats(0.01, 2), min_size=5, max_size=5)), min_size=1, max_size=8
    ),
    ask=st.integers(1, 3),
)
@settings(deadline=None, derandomize=True)
def test_the_choice_is_the_candidate_with_the_smallest_error_at_that_distance(
    rounds: list[tuple[int, list[float]]], ask: int
) -> None:
    board = Board(CANDIDATES)
    known: dict[int, list[float]] = {}
    for distance, errors in rounds:
        board.add(Score(CANDIDATES, HOLD, distance, torch.tensor([1.0, *errors])))
        before = known.get(distance)
        known[distance] = errors if before is None else [(a + b) / 2 for a, b in zip(before, errors, strict=True)]
    nearest = min(known, key=lambda distance: (abs(distance - ask), distance))
    expected = [error * (ask / nearest) ** each.growth for error, each in zip(known[nearest], CANDIDATES, strict=True)]
    assert expected[CANDIDATES.index(board.choose(ask))] == pytest.approx(min(expected), rel=1e-5)


def test_without_any_audit_the_most_careful_candidate_is_taken_and_also_where_all_are_equal() -> None:
    board = Board(CANDIDATES)
    assert board.choose(2) == HOLD
    board.add(Score(CANDIDATES, HOLD, 1.0, torch.tensor([1.0, *[0.5] * 5])))
    assert board.choose(1) == HOLD


def test_a_candidate_whose_forecast_is_not_finite_is_not_chosen() -> None:
    board = Board(CANDIDATES[1:3])
    board.add(Score(CANDIDATES[1:3], HOLD, 1.0, torch.tensor([1.0, math.inf, 0.9])))
    assert board.choose(1) == CANDIDATES[2]


# ---- auto, in a model


def test_auto_goes_on_along_a_straight_branch_and_repeats_one_that_jumps() -> None:
    """Each branch has its own calibrator; the straight one is reused without any error."""
    base, way = randoms(2, seed=3)
    straight = [4 * base.abs() + 0.3 * step * way.abs() for step in range(12)]
    jumping = [base + 0.8 * jump for jump in randoms(12, seed=4)]
    mask = "111111101001"
    made = told({"a": straight, "b": jumping}, static(mask), AutoCalibratorConfig())
    used = {branch: {row.calibrator for row in rows if row.decision == "reuse"} for branch, rows in made.rows.items()}
    assert used == {"a": {"taylorseer 1"}, "b": {"hold"}}
    assert [row.distance for row in made.rows["a"] if row.decision == "reuse"] == [1.0, 1.0, 2.0]
    for output, change in zip(made.outputs["a"], straight, strict=True):
        assert torch.allclose(output, change, rtol=1e-4, atol=1e-4)
    for row in made.rows["b"]:
        if row.audits is not None and row.step >= 3:
            assert all(row.audits["hold"] < error for name, error in row.audits.items() if name != "hold")  # type: ignore[operator]


@pytest.mark.parametrize("kind", [DBCacheConfig, DBPruneConfig])
def test_what_a_row_tells_of_its_calibrator_is_the_smallest_audited_error_of_the_steps_before(
    kind: type[CacheConfig],
) -> None:
    model = TinyTransformer(ForwardPattern.Pattern_1)
    config = kind(Fn_compute_blocks=1, max_warmup_steps=9)
    with install(adapter(model), config, AutoCalibratorConfig()) as cache:
        run(model, walk(9))
    rows = cache.log.generation()
    names = [str(candidate) for candidate in CANDIDATES]
    assert [list(row.audits or {}) for row in rows] == [[]] + [names] * 8
    assert [row.distance for row in rows] == [None, *[1.0] * 8]
    if kind is DBCacheConfig:
        means: dict[str, float] = {}
        for row in rows[1:]:
            assert row.audits is not None
            if means:
                assert row.calibrator == min(means, key=lambda name: means[name])
            means = {n: e if n not in means else (means[n] + e) / 2 for n, e in row.audits.items() if e is not None}


# ---- what it costs


CALIBRATORS: dict[str, tuple[CalibratorConfig | None, int]] = {
    "hold": (None, 1),
    "taylorseer": (TaylorSeerCalibratorConfig(), 2),
    "auto": (AutoCalibratorConfig(), 5),
}


@pytest.fixture
def norms(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that grows with each norm that is taken."""
    taken: list[Any] = []
    real = torch.linalg.vector_norm

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        taken.append(args)
        norm: Tensor = real(*args, **kwargs)
        return norm

    monkeypatch.setattr(torch.linalg, "vector_norm", counted)
    return taken


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows with each number that is read from a tensor."""
    read: list[str] = []

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: Tensor, *args: Any) -> Any:
            read.append(name)
            return real(self, *args)

        return method

    for name in ("item", "tolist", "__float__", "__bool__"):
        monkeypatch.setattr(torch.Tensor, name, counted(name, getattr(torch.Tensor, name)))
    return read


@pytest.mark.parametrize("name", CALIBRATORS)
@pytest.mark.parametrize("target", ["residual", "hidden_states"])
def test_a_computed_step_takes_a_norm_and_one_more_for_each_candidate_and_a_cached_step_at_most_one(
    name: str, target: Literal["residual", "hidden_states"], norms: list[Any]
) -> None:
    config, candidates = CALIBRATORS[name]
    kind = CalibratorConfig if config is None else type(config)
    model, samples, encoder = TinyTransformer(ForwardPattern.Pattern_1), walk(8, pace=0.02), context()
    mask = "11101001"
    taken: list[int] = []
    with install(adapter(model), static(mask), kind(calibrator_cache_type=target)) as cache, torch.no_grad():
        for sample, time in zip(samples, times(8), strict=True):
            before = len(norms)
            model(sample, time, encoder)
            taken.append(len(norms) - before)
        rows = cache.log.generation()
    assert [row.decision == "compute" for row in rows] == [bit == "1" for bit in mask]
    computed = [count for count, row in zip(taken, rows, strict=True) if row.decision == "compute"]
    reused = [count for count, row in zip(taken, rows, strict=True) if row.decision == "reuse"]
    assert computed == [0, *[candidates + 1] * 4]
    assert max(reused) <= (0 if name == "hold" else 1)


@pytest.mark.parametrize("name", CALIBRATORS)
def test_a_cached_step_takes_no_norm_where_the_scores_bound_its_forecast(name: str, norms: list[Any]) -> None:
    config, candidates = CALIBRATORS[name]
    base, way = randoms(2)
    made = told({"a": [base + 0.05 * step * way for step in range(8)]}, static("11101001"), config)
    assert {row.reason for row in made.rows["a"]} == {"no-history", "warmup", "mask"}
    assert len(norms) == 4 * (candidates + 1)


def test_hold_reads_no_tensor_whatever_is_audited(reads: list[str]) -> None:
    """A series and auto read each score once, when a forecast is made; without audit they read nothing either."""
    model, samples, encoder = TinyTransformer(ForwardPattern.Pattern_1), walk(8, pace=0.02), context()
    mask = "11101001"
    with install(adapter(model), static(mask)):
        run(model, samples, encoder)
        assert reads == []
    for calibrator in (TaylorSeerCalibratorConfig(), AutoCalibratorConfig()):
        with install(adapter(model), static(mask), calibrator):
            run(model, samples, encoder)
            assert 0 < len(reads) <= mask.count("1") - 1
        reads.clear()
        with install(adapter(model), static(mask, audit=False), calibrator):
            run(model, samples, encoder)
            assert reads == []


def test_a_measured_decision_reads_one_number_and_the_audit_of_hold_none(reads: list[str]) -> None:
    model, samples, encoder = TinyTransformer(ForwardPattern.Pattern_1), walk(8, pace=0.02), context()
    with install(adapter(model), DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2)) as cache:
        run(model, samples, encoder)
        assert reads == ["item"] * sum(row.diff is not None for row in cache.log.rows)


def test_without_audit_nothing_is_scored_and_nothing_is_normed(norms: list[Any]) -> None:
    model = TinyTransformer(ForwardPattern.Pattern_1)
    with install(adapter(model), static("11101001", audit=False), AutoCalibratorConfig()) as cache:
        run(model, walk(8))
    assert norms == []
    assert {(row.audit, row.audits) for row in cache.log.generation()} == {(None, None)}
    assert {row.calibrator for row in cache.log.generation() if row.decision == "reuse"} == {"hold"}
