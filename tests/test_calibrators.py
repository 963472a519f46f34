"""Forecasts: weights against closed forms and against the paper's recursion on tensors, and what is kept for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cachedit_cli.calibrators import CANDIDATES, Calibrator, Hold, TaylorSeer, calibrators_for
from cachedit_cli.engine.install import install
from cachedit_cli.snapshots import Calibration, Snapshots
from cachedit_cli.terms.config import AutoCalibratorConfig, CalibratorConfig, DBCacheConfig, TaylorSeerCalibratorConfig
from cachedit_cli.terms.pattern import ForwardPattern
from tests.reference import reference
from tests.tiny import PATTERNS, TinyTransformer, adapter, context, run, times, walk

H, E = "hidden_states", "encoder_hidden_states"
ORDERS = (1, 2, 3, 4)


class Recursion:
    """TaylorSeer as the paper writes it: the derivatives at the last computed step, updated at each computed one."""

    def __init__(self, order: int) -> None:
        self.order = order
        self.derivatives: list[Tensor] = []
        self.last = 0

    def update(self, step: int, value: Tensor) -> None:
        fresh = [value]
        for old in self.derivatives[: self.order]:
            fresh.append((fresh[-1] - old) / (step - self.last))
        self.derivatives, self.last = fresh, step

    def forecast(self, step: int) -> Tensor:
        terms = (d * (step - self.last) ** i / math.factorial(i) for i, d in enumerate(self.derivatives))
        return torch.stack(list(terms)).sum(0)


def taylor(order: int) -> Any:
    """Return the recursion as a forecast for the reference loop."""

    def forecast(history: Sequence[tuple[int, Tensor]], now: int) -> Tensor:
        recursion = Recursion(order)
        for step, value in history:
            recursion.update(step, value)
        return recursion.forecast(now)

    return forecast


# Computed steps with uneven gaps, and steps to forecast.
STEPS = st.lists(st.integers(1, 6), min_size=1, max_size=8).map(lambda gaps: [sum(gaps[:i]) for i in range(len(gaps))])


# ---- weights


@pytest.mark.parametrize("now", [5, 6, 20])
def test_hold_is_the_last_snapshot(now: int) -> None:
    assert Hold().weights([4.0], now) == [1.0]
    assert Hold().depth == 1


def test_one_snapshot_is_held_by_every_order() -> None:
    assert [TaylorSeer(order).weights([3.0], 7.0) for order in ORDERS] == [[1.0]] * 4


def test_the_first_order_goes_on_along_the_line_through_two_snapshots() -> None:
    # value + slope * elapsed with slope = (new - old) / 3 and elapsed 2
    assert TaylorSeer(1).weights([5.0, 2.0], 7.0) == pytest.approx([1 + 2 / 3, -2 / 3])


def test_the_second_order_adds_half_the_second_difference_times_elapsed_squared() -> None:
    # Even gaps of 1, elapsed 1: f + (f - g) + ((f - g) - (g - h)) / 2
    assert TaylorSeer(2).weights([2.0, 1.0, 0.0], 3.0) == pytest.approx([2.5, -2.0, 0.5])


@given(order=st.sampled_from(ORDERS), steps=STEPS, ahead=st.integers(1, 6), seed=st.integers(0, 9))
@settings(deadline=None, derandomize=True, max_examples=200)
def test_weights_forecast_what_the_papers_recursion_does_also_over_uneven_gaps(
    order: int, steps: list[int], ahead: int, seed: int
) -> None:
    values = torch.randn(len(steps), 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    recursion, calibrator = Recursion(order), TaylorSeer(order)
    for step, value in zip(steps, values, strict=True):
        recursion.update(step, value)
    newest = [float(step) for step in steps[::-1]][: calibrator.depth]
    weights = calibrator.weights(newest, steps[-1] + ahead)
    assert len(weights) == len(newest)
    total = sum(weight * value for weight, value in zip(weights, values.flip(0), strict=False))
    assert torch.allclose(torch.as_tensor(total), recursion.forecast(steps[-1] + ahead), rtol=1e-9, atol=1e-9)


@given(order=st.sampled_from(ORDERS), steps=STEPS, now=st.floats(0, 100))
def test_weights_sum_to_one_so_that_constants_are_exact(order: int, steps: list[int], now: float) -> None:
    times_ = [float(step) for step in steps[::-1]][: order + 1]
    weights = TaylorSeer(order).weights(times_, now)
    assert sum(weights) == pytest.approx(1.0, abs=1e-6 * max(1.0, max(map(abs, weights))))


@given(order=st.sampled_from(ORDERS), steps=STEPS.filter(lambda steps: len(steps) > 1), ahead=st.integers(1, 9))
def test_straight_lines_are_exact_over_any_gaps(order: int, steps: list[int], ahead: int) -> None:
    times_ = [float(step) for step in steps[::-1]][: order + 1]
    now = times_[0] + ahead
    weights = TaylorSeer(order).weights(times_, now)
    line = sum(weight * (2 * time - 7) for weight, time in zip(weights, times_, strict=True))
    assert line == pytest.approx(2 * now - 7, rel=1e-9, abs=1e-6 * max(1.0, max(map(abs, weights))))


def test_settings_choose_the_calibrator() -> None:
    assert calibrators_for(None) == calibrators_for(CalibratorConfig()) == (Hold(),)
    for order in ORDERS:
        assert calibrators_for(TaylorSeerCalibratorConfig(taylorseer_order=order)) == (TaylorSeer(order),)
    half = TaylorSeerCalibratorConfig(taylorseer_damping=0.5)
    assert calibrators_for(half) == (TaylorSeer(1, damping=0.5),)
    assert calibrators_for(AutoCalibratorConfig()) == CANDIDATES


@pytest.mark.parametrize(
    ("main", "other", "expected"),
    [
        (True, True, (TaylorSeer(2), TaylorSeer(2))),
        (True, False, (TaylorSeer(2), Hold())),
        (False, True, (Hold(), TaylorSeer(2))),
        (False, False, (Hold(), Hold())),
    ],
)
def test_each_stream_is_forecast_or_held(main: bool, other: bool, expected: tuple[Calibrator, Calibrator]) -> None:
    config = TaylorSeerCalibratorConfig(
        taylorseer_order=2, enable_calibrator=main, enable_encoder_calibrator=other, calibrator_cache_type="residual"
    )
    calibration = Calibration.of(config)
    chosen = tuple(calibration.choices[0] if on else Hold() for on in (calibration.main, calibration.other))
    assert (chosen, calibration.absolute) == (expected, False)


# ---- snapshots


@pytest.mark.parametrize("order", ORDERS)
def test_order_n_keeps_n_plus_one_tensors_of_a_stream(order: int) -> None:
    snapshots = Snapshots(Calibration((TaylorSeer(order),), other=False), H)
    size = torch.zeros(2, 3).nbytes
    for step in range(8):
        state = {H: torch.zeros(2, 3), E: torch.zeros(2, 3)}
        snapshots.learn(state, state, step, audit=False)
        assert snapshots.nbytes == size * (min(step + 1, order + 1) + 1)


@pytest.mark.parametrize("order", ORDERS)
def test_an_installed_cache_holds_no_more_than_snapshots_and_front(order: int) -> None:
    model, samples = TinyTransformer(ForwardPattern.Pattern_1), walk(9)
    config = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=9)
    with install(adapter(model), config, TaylorSeerCalibratorConfig(taylorseer_order=order)) as cache:
        run(model, samples)
        hidden, words = samples[0].nbytes, context().nbytes
        assert cache.nbytes == (order + 1) * (hidden + words) + hidden
        assert cache.log.rows[-1].bytes == cache.nbytes


def test_nothing_stored_is_false_and_something_is_true() -> None:
    snapshots = Snapshots(Calibration(), H)
    assert not snapshots
    snapshots.learn({H: torch.zeros(1)}, {H: torch.ones(1)}, 0, audit=False)
    assert snapshots


def test_residuals_are_added_to_the_state_and_absolute_values_replace_it() -> None:
    base, after, now = torch.tensor([1.0]), torch.tensor([4.0]), torch.tensor([10.0])
    for absolute, expected in ((False, 13.0), (True, 4.0)):
        snapshots = Snapshots(Calibration(absolute=absolute), H)
        snapshots.learn({H: base}, {H: after}, 0, audit=False)
        assert snapshots.forecast({H: now}, 1) == {H: torch.tensor([expected])}


def test_a_stream_that_the_blocks_do_not_return_stays_none() -> None:
    snapshots = Snapshots(Calibration(), H)
    snapshots.learn({H: torch.zeros(1)}, {H: torch.ones(1), E: None}, 0, audit=False)
    assert snapshots.forecast({H: torch.ones(1)}, 1) == {H: torch.tensor([2.0]), E: None}


def test_a_forecast_never_shares_memory_with_what_is_stored() -> None:
    snapshots = Snapshots(Calibration(absolute=True), H)
    snapshots.learn({H: torch.zeros(1)}, {H: torch.ones(1)}, 0, audit=False)
    first = snapshots.forecast({H: torch.zeros(1)}, 1)[H]
    assert first is not None
    first.add_(5.0)
    assert snapshots.forecast({H: torch.zeros(1)}, 2) == {H: torch.tensor([1.0])}


def test_a_stream_that_changes_its_shape_is_an_error_that_names_the_shapes() -> None:
    with pytest.raises(ValueError, match=r"hidden_states changes from \(1, 4\) to \(1, 5\) in the middle"):
        Snapshots(Calibration(), H).learn({H: torch.zeros(1, 4)}, {H: torch.zeros(1, 5)}, 0, audit=True)


# ---- in a model


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("target", ["residual", "hidden_states"])
@pytest.mark.parametrize("front", [0, 1])
def test_reused_steps_are_those_of_a_plain_loop_with_the_papers_recursion(
    pattern: ForwardPattern, order: int, target: Literal["residual", "hidden_states"], front: int
) -> None:
    model, samples, encoder = TinyTransformer(pattern), walk(12), context()
    config = DBCacheConfig(
        Fn_compute_blocks=front,
        Bn_compute_blocks=1,
        max_warmup_steps=0,
        steps_computation_mask="110110010010",
        steps_computation_policy="static",
    )
    expected, _ = reference(
        model, samples, encoder, times(12), config, forecast=taylor(order), absolute=target == "hidden_states"
    )
    calibrator = TaylorSeerCalibratorConfig(taylorseer_order=order, calibrator_cache_type=target)
    with install(adapter(model), config, calibrator) as cache:
        outputs = run(model, samples, encoder)
    assert [row.decision == "compute" for row in cache.log.rows] == [bit == "1" for bit in "110110010010"]
    for output, wanted in zip(outputs, expected, strict=True):
        assert torch.allclose(output, wanted, atol=1e-4)


@pytest.mark.parametrize("encoder_too", [False, True])
def test_the_encoder_stream_is_forecast_only_if_asked_for(encoder_too: bool) -> None:
    model, samples, encoder = TinyTransformer(ForwardPattern.Pattern_0), walk(6, pace=0.5), context()
    config = DBCacheConfig(
        Fn_compute_blocks=1,
        max_warmup_steps=0,
        steps_computation_mask="110101",
        steps_computation_policy="static",
    )
    # Blocks that leave the encoder's change to its own forecast: what the two settings differ in.
    both, _ = reference(model, samples, encoder, times(6), config, forecast=taylor(1))
    calibrator = TaylorSeerCalibratorConfig(enable_encoder_calibrator=encoder_too)
    with install(adapter(model), config, calibrator):
        outputs = run(model, samples, encoder)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(outputs, both, strict=True)) is encoder_too


@pytest.mark.parametrize("target", ["residual", "hidden_states"])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_the_audit_is_the_error_that_a_forecast_would_have_had(
    target: Literal["residual", "hidden_states"], order: int
) -> None:
    """By hand: the last block's output in every step, and a forecast of its change over the middle from the others."""
    model, samples, encoder = TinyTransformer(ForwardPattern.Pattern_3), walk(8), context()
    bases, afters = [], []
    handles = [
        model.blocks[0].register_forward_hook(lambda module, args, output: bases.append(output)),
        model.blocks[4].register_forward_hook(lambda module, args, output: afters.append(output)),
    ]
    config = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=8)
    calibrator = TaylorSeerCalibratorConfig(taylorseer_order=max(order, 1), calibrator_cache_type=target)
    hold = CalibratorConfig(calibrator_cache_type=target)
    with install(adapter(model), config, calibrator if order else hold) as cache:
        run(model, samples, encoder)
    for handle in handles:
        handle.remove()
    recursion = Recursion(order)
    expected: list[float | None] = []
    for step, (base, after) in enumerate(zip(bases, afters, strict=True)):
        truth = (after if target == "hidden_states" else after - base).double()
        if step:
            change = (after - base).double()
            expected.append(float((truth - recursion.forecast(step)).abs().mean() / change.abs().mean()))
        else:
            expected.append(None)
        recursion.update(step, truth)
    assert [row.audit for row in cache.log.generation()] == [
        value if value is None else pytest.approx(value, rel=1e-3, abs=1e-6) for value in expected
    ]


def test_without_audit_no_row_has_one() -> None:
    model = TinyTransformer(ForwardPattern.Pattern_1)
    with install(adapter(model), DBCacheConfig(Fn_compute_blocks=1, audit=False)) as cache:
        run(model, walk(4))
    assert [row.audit for row in cache.log.generation()] == [None] * 4
