"""Budgets and speed-ups in a model: exactly so many computed steps, whatever else decides."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cachedit_cli import cached
from cachedit_cli.engine.install import Installation, install
from cachedit_cli.errors import InputError
from cachedit_cli.terms.block_adapter import BlockAdapter
from cachedit_cli.terms.budget import budget_for, budget_mask
from cachedit_cli.terms.config import CalibratorConfig, DBCacheConfig, DBPruneConfig, TaylorSeerCalibratorConfig
from cachedit_cli.terms.mask import POLICIES
from cachedit_cli.terms.pattern import ForwardPattern
from cachedit_cli.terms.stats import Row
from tests.tiny import TinyTransformer, adapter, context, run, times, walk
from tests.told import told

Policy = Literal["static", "dynamic"]
CALIBRATORS: dict[str, CalibratorConfig | None] = {
    "hold": None,
    "taylorseer": TaylorSeerCalibratorConfig(taylorseer_order=3),
}


def generation(steps: int, calibrator: CalibratorConfig | None = None, pace: float = 1.0, **changes: Any) -> list[Row]:
    model = TinyTransformer(ForwardPattern.Pattern_3, blocks=3)
    config = DBCacheConfig(Fn_compute_blocks=1, num_inference_steps=steps, **changes)
    with install(adapter(model), config, calibrator) as cache:
        run(model, walk(steps, pace=pace))
    return cache.log.generation()


def bits(rows: list[Row]) -> list[int]:
    return [int(row.decision == "compute") for row in rows]


@given(
    steps=st.integers(1, 16),
    share=st.floats(0.01, 1),
    policy=st.sampled_from(["static", "dynamic"]),
    threshold=st.sampled_from([0.0, 0.02, 0.2, 0.9, 1.0]),
    caps=st.tuples(st.integers(-1, 3), st.integers(-1, 3)),
    placed=st.sampled_from(["policy", "shape", "mask", "profile"]),
    calibrator=st.sampled_from(list(CALIBRATORS)),
    pace=st.sampled_from([0.05, 1.0]),
    seed=st.integers(0, 5),
)
@settings(deadline=None, derandomize=True, max_examples=120)
def test_exactly_as_many_steps_are_computed_as_were_asked_for(
    steps: int,
    share: float,
    policy: Policy,
    threshold: float,
    caps: tuple[int, int],
    placed: str,
    calibrator: str,
    pace: float,
    seed: int,
) -> None:
    """Whatever the guard, the caps and the threshold ask for."""
    count = max(1, round(share * steps))
    generator = torch.Generator().manual_seed(seed)
    ways: dict[str, dict[str, Any]] = {
        "policy": {},
        "shape": {"steps_computation_mask": POLICIES[seed % 4]},
        "mask": {"steps_computation_mask": [1, *torch.randint(0, 2, (9,), generator=generator).tolist()]},
        "profile": {"error_profile": torch.rand(7, generator=generator).tolist()},
    }
    extra = ways[placed]
    rows = generation(
        steps,
        CALIBRATORS[calibrator],
        pace,
        budget=count if seed % 2 else share,
        steps_computation_policy=policy,
        residual_diff_threshold=threshold,
        max_cached_steps=caps[0],
        max_continuous_cached_steps=caps[1],
        **extra,
    )
    assert sum(bits(rows)) == count
    if policy == "static" and "guard" not in {row.reason for row in rows}:
        shape, profile = extra.get("steps_computation_mask"), extra.get("error_profile")
        assert bits(rows) == budget_mask(count, steps, profile, shape)


def test_a_step_that_was_not_planned_takes_the_place_of_the_next_planned_one() -> None:
    """The threshold asks for steps 3 and 5; the planned steps 4 and 8 are reused for them."""
    mask = [1, 1, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0]
    changes = [torch.full((1, 2, 2), size) for size in [1.0] * 3 + [3.0] * 2 + [-2.0] * 7]
    config = DBCacheConfig(
        Fn_compute_blocks=1,
        num_inference_steps=12,
        budget=sum(mask),
        steps_computation_mask=mask,
        residual_diff_threshold=0.3,
    )
    rows = told({"a": changes}, config).rows["a"]
    found = [(row.decision, row.reason) for row in rows]
    assert found[3:5] == [("compute", "threshold"), ("reuse", "budget")]
    assert found[5:9] == [("compute", "threshold"), *[("reuse", "threshold")] * 2, ("reuse", "budget")]
    assert found[9:] == [("reuse", "threshold"), ("compute", "budget"), ("reuse", "threshold")]
    assert sum(bits(rows)) == sum(mask)


def test_a_threshold_that_every_step_exceeds_moves_each_planned_step_but_spends_none_of_the_later_ones() -> None:
    rows = generation(14, budget=5, residual_diff_threshold=0.0, steps_computation_mask="11000100010001")
    assert "".join(map(str, bits(rows))) == "11100010001000"
    assert {row.reason for row in rows if row.decision == "reuse"} == {"budget"}


def test_a_forecast_that_the_guard_refuses_is_held_where_no_step_is_left_to_compute() -> None:
    rows = generation(12, CALIBRATORS["taylorseer"], budget=6, residual_diff_threshold=0.1)
    assert sum(bits(rows)) == 6
    spent = [row for row in rows if row.decision == "reuse" and row.calibrator == "hold"]
    assert spent
    assert all((row.decision, row.reason) == ("reuse", "budget") for row in spent)


@pytest.mark.parametrize("policy", ["static", "dynamic"])
def test_each_branch_computes_its_own_budget(policy: Policy) -> None:
    config = DBCacheConfig(
        Fn_compute_blocks=1,
        num_inference_steps=10,
        budget=4,
        residual_diff_threshold=0.05,
        steps_computation_policy=policy,
    )
    calm, rough = [torch.ones(1, 2, 2)] * 10, [torch.full((1, 2, 2), 1.5**step) for step in range(10)]
    made = told({"cond": calm, "uncond": rough}, config)
    found = {branch: bits(rows) for branch, rows in made.rows.items()}
    assert [sum(mine) for mine in found.values()] == [4, 4]
    assert (found["cond"] == found["uncond"]) is (policy == "static")


class Two(nn.Module):
    """A first transformer for the noisy steps and a second one for the others, or both in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.first = TinyTransformer(ForwardPattern.Pattern_3, blocks=3)
        self.second = TinyTransformer(ForwardPattern.Pattern_3, blocks=3, seed=1)

    def adapter(self) -> BlockAdapter:
        models = [self.first, self.second]
        return BlockAdapter(
            transformer=models,
            blocks=[[model.blocks] for model in models],
            forward_pattern=[[ForwardPattern.Pattern_3]] * 2,
        )

    def run(self, steps: int, split: int | None) -> None:
        with torch.no_grad():
            for step, (sample, time) in enumerate(zip(walk(steps), times(steps), strict=True)):
                for model, mine in (
                    (self.first, split is None or step < split),
                    (self.second, split is None or step >= split),
                ):
                    if mine:
                        model(sample, time, context())


@pytest.mark.parametrize("policy", ["static", "dynamic"])
@pytest.mark.parametrize("count", [4, 6, 12])
def test_two_transformers_that_follow_each_other_share_a_budget(policy: Policy, count: int) -> None:
    """The second one's first step has nothing to reuse: where it was not planned, a later one gives way, if one is."""
    two = Two()
    config = DBCacheConfig(
        Fn_compute_blocks=1,
        num_inference_steps=12,
        budget=count,
        steps_computation_mask="110010010101",
        steps_computation_policy=policy,
    )
    with install(two.adapter(), config) as cache:
        for _ in range(2):
            two.run(12, split=5)
            rows = cache.log.generation()
            late = [row.step for row in rows if row.reason == "no-history"] == [0, 5]
            spent = sum(bits(rows[:5])) == count
            assert (sum(bits(rows)), late) == (count + spent, True)


def test_more_steps_than_there_are_is_an_error_before_anything_is_computed() -> None:
    model = TinyTransformer(ForwardPattern.Pattern_3)
    with install(adapter(model), DBCacheConfig(Fn_compute_blocks=1, num_inference_steps=4, budget=5)) as cache:
        with pytest.raises(InputError, match="budget: 5 steps are to be computed, but there are only 4"):
            run(model, walk(4))
        assert cache.log.rows == []


@pytest.mark.parametrize("dial", [{"budget": 5}, {"speedup": 1.5}])
def test_without_the_number_of_steps_a_dial_says_what_it_needs(dial: dict[str, Any]) -> None:
    model, name = TinyTransformer(ForwardPattern.Pattern_3), next(iter(dial))
    message = f"transformer.blocks: {name} needs the number of steps; set num_inference_steps"
    with install(adapter(model), DBCacheConfig(Fn_compute_blocks=1, **dial)), pytest.raises(InputError, match=message):
        run(model, walk(4))


def test_two_dials_at_once_are_refused_and_so_is_each_for_dbprune() -> None:
    with pytest.raises(InputError, match="DBCacheConfig: budget and speedup say the same in two ways; set one of them"):
        DBCacheConfig(budget=4, speedup=1.5)
    for dial in ({"budget": 4}, {"speedup": 1.5}):
        with pytest.raises(InputError, match=f"{next(iter(dial))}: DBPrune decides block by block"):
            DBPruneConfig(**dial)


# ---- speed-ups


def fast(speedup: float, steps: int = 12, **changes: Any) -> DBCacheConfig:
    return DBCacheConfig(Fn_compute_blocks=1, num_inference_steps=steps, speedup=speedup, **changes)


def share(cache: Installation) -> float:
    found = cache._site.pace.share
    assert found is not None
    return found


@pytest.mark.parametrize("policy", ["static", "dynamic"])
@pytest.mark.parametrize("known", [0.4, 0.8])
@pytest.mark.parametrize("speedup", [1.0, 1.2, 1.5])
def test_as_many_steps_are_computed_as_the_measured_share_allows(policy: Policy, known: float, speedup: float) -> None:
    model = TinyTransformer(ForwardPattern.Pattern_3)
    with install(adapter(model), fast(speedup, steps_computation_policy=policy)) as cache:
        cache._site.pace.share = known
        for _ in range(2):
            run(model, walk(12))
            assert sum(bits(cache.log.generation())) == budget_for(speedup, 12, known)


def slow(model: TinyTransformer) -> None:
    """Let the blocks take most of a step's time, whatever the machine."""
    import time

    for block in model.blocks:
        block.register_forward_hook(lambda *_: time.sleep(0.003))


def test_the_share_is_measured_in_the_second_step_and_holds_from_then_on() -> None:
    """Two steps compute until it is known; what they were beyond the plan is made up for in the same generation."""
    model = TinyTransformer(ForwardPattern.Pattern_3)
    slow(model)
    with install(
        adapter(model), fast(1.5, error_profile=[0.0] * 6 + [1.0] * 6, steps_computation_policy="static")
    ) as cache:
        run(model, walk(12))
        first, measured = cache.log.generation(), share(cache)
        run(model, walk(12))
        second = cache.log.generation()
    assert 0.4 < measured < 0.8 + 1e-9  # 4 of 5 blocks
    wanted = budget_for(1.5, 12, measured)
    assert bits(first)[:2] == [1, 1]
    assert (sum(bits(first)), sum(bits(second)), share(cache)) == (wanted, wanted, measured)
    assert bits(second) == budget_mask(wanted, 12, [0.0] * 6 + [1.0] * 6)
    assert bits(second)[1] == 0  # which the first generation had computed already


def test_transformers_that_are_both_called_in_each_step_share_what_was_measured() -> None:
    two = Two()
    slow(two.first)
    slow(two.second)
    with install(two.adapter(), fast(1.5, steps_computation_policy="static")) as cache:
        two.run(12, split=None)
    wanted = budget_for(1.5, 12, share(cache))
    for name in {row.context for row in cache.log.rows}:
        assert sum(bits([row for row in cache.log.generation() if row.context == name])) == wanted


def test_a_speedup_that_cannot_be_reached_is_an_error_that_names_the_most_there_is() -> None:
    model = TinyTransformer(ForwardPattern.Pattern_3)
    with install(adapter(model), fast(11.9)) as cache:
        with pytest.raises(
            InputError, match=r"speedup: 11\.9 cannot be reached: .* which allows [1-5]\.\d\d at the most"
        ):
            run(model, walk(12))
        assert [row.step for row in cache.log.rows] == [0, 1]


def test_a_speedup_over_two_steps_computes_both() -> None:
    model = TinyTransformer(ForwardPattern.Pattern_3)
    with install(adapter(model), fast(1.5, steps=2)) as cache:
        run(model, walk(2))
    assert bits(cache.log.generation()) == [1, 1]


def test_a_budget_also_holds_where_forwards_are_counted() -> None:
    model = TinyTransformer(ForwardPattern.Pattern_3)
    config = DBCacheConfig(Fn_compute_blocks=1, num_inference_steps=6, budget=0.5)
    with install(adapter(model), config) as cache, torch.no_grad():
        for sample in walk(12):
            model(sample, None, context())
    assert [sum(bits([row for row in cache.log.rows if row.generation == number])) for number in (0, 1)] == [3, 3]


def test_lists_that_the_first_forward_finds_keep_to_the_budget() -> None:
    """That forward computed everything, as the plan of every budget begins."""
    model = TinyTransformer(ForwardPattern.Pattern_3)
    data = BlockAdapter(transformer=model, auto=True)
    config = DBCacheConfig(Fn_compute_blocks=1, num_inference_steps=10, budget=4, steps_computation_policy="static")
    with cached(data, config) as cache:
        for _ in range(2):
            run(model, walk(10))
            assert sum(bits(cache.log.generation())) == 4
