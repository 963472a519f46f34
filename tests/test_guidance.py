"""Guidance: however a pipeline computes its branches, each is cached as if it were alone."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from torch import Tensor

from cachedit_cli import DBCacheConfig, DBPruneConfig, TaylorSeerCalibratorConfig, cached, demo, steps_mask, summary
from cachedit_cli.terms.config import CacheConfig
from cachedit_cli.terms.pattern import ForwardPattern
from cachedit_cli.terms.stats import DecisionLog, Row, collect
from tests.reference import reference
from tests.tiny import Announcing, TinyTransformer, adapter, computing, context, run, times, walk

P1 = ForwardPattern.Pattern_1
STEPS = 9
TEXTS = {"cond": context(1), "uncond": context(2), "third": context(3)}
PACES = {"cond": 0.12, "uncond": 0.3, "third": 0.2}  # so that branches that were taken for each other decide otherwise
MEASURED = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.25)
Step = Sequence[str]  # the names of the branches that are computed in a step, in order


def sample(name: str, step: int) -> Tensor:
    """Return a branch's noisy input; the branches of one step have different ones, as with perturbed attention."""
    return walk(STEPS, seed=4, pace=PACES[name])[step]


def loop(model: TinyTransformer, steps: Sequence[Step], told: str) -> dict[str, list[Tensor]]:
    """Run a denoising loop whose branches are named, told apart by time and text only, or by nothing but order."""
    outputs: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for step, (names, time) in enumerate(zip(steps, times(len(steps)), strict=True)):
            for name in names:
                call = (sample(name, step), None if told == "counted" else time, TEXTS[name])
                if told == "named":
                    assert isinstance(model, Announcing)
                    with model.cache_context(name):
                        outputs.setdefault(name, []).append(model(*call))
                else:
                    outputs.setdefault(name, []).append(model(*call))
    return outputs


def settings(config: DBCacheConfig, steps: Sequence[Step], told: str) -> DBCacheConfig:
    if told != "counted":
        return config
    return DBCacheConfig(
        **{**config.as_dict(), "num_inference_steps": len(steps), "enable_separate_cfg": len(steps[0]) == 2}
    )


def by_branch(log: DecisionLog) -> list[list[Row]]:
    return [branch.rows for context in collect(log.generation()) for branch in context.branches]


def alone(name: str, steps: Sequence[Step], told: str, config: DBCacheConfig) -> tuple[list[Tensor], list[Row]]:
    """Run one branch without the others, at the same times."""
    model = Announcing(P1)
    mine = [[name] if name in names else [] for names in steps]
    with cached(adapter(model), settings(config, [[name]] * len(steps), told)) as cache:
        outputs = loop(model, mine, told)[name]
    return outputs, cache.log.rows


ORDERS = {
    "one forward": [["cond"]] * STEPS,
    "two forwards, conditional first": [["cond", "uncond"]] * STEPS,
    "two forwards, unconditional first": [["uncond", "cond"]] * STEPS,
    "three forwards": [["cond", "uncond", "third"]] * STEPS,
    "early guidance": [["cond", "uncond"]] * 5 + [["cond"]] * 4,
    "early guidance, unconditional first": [["uncond", "cond"]] * 5 + [["cond"]] * 4,
    "late guidance": [["cond"]] * 3 + [["cond", "uncond"]] * 6,
    "late guidance, unconditional first": [["cond"]] * 3 + [["uncond", "cond"]] * 6,
    "guidance in the middle": [["cond"]] * 2 + [["uncond", "cond"]] * 5 + [["cond"]] * 2,
}


@pytest.mark.parametrize(
    ("order", "told"),
    [
        *itertools.product(ORDERS, ["named", "timed"]),
        # Where nothing but the count is left, a step has one forward or two, all the way.
        *((order, "counted") for order in list(ORDERS)[:3]),
    ],
)
def test_each_branch_is_cached_as_if_it_were_alone(order: str, told: str) -> None:
    steps = ORDERS[order]
    names = list(dict.fromkeys(name for step in steps for name in step))
    model = Announcing(P1)
    with cached(adapter(model), settings(MEASURED, steps, told)) as cache:
        for _ in range(2):
            outputs = loop(model, steps, told)
            rows = by_branch(cache.log)
            assert len(rows) == len(names)
            for name, mine in zip(names, rows, strict=True):
                expected, wanted = alone(name, steps, told, MEASURED)
                assert mine[0].step == next(k for k, step in enumerate(steps) if name in step)
                assert [(row.step - mine[0].step, row.decision, row.reason, row.diff) for row in mine] == [
                    (row.step, row.decision, row.reason, row.diff) for row in wanted
                ]
                assert all(torch.equal(a, b) for a, b in zip(outputs[name], expected, strict=True))
    assert {row.decision for row in cache.log.rows} == {"compute", "reuse"}


def test_guidance_in_one_batch_is_decided_over_both_halves() -> None:
    """As a plain loop over the batch does; neither half alone decides so."""
    model = TinyTransformer(P1)
    samples = [torch.cat([sample("uncond", k), sample("cond", k)]) for k in range(STEPS)]
    texts = torch.cat([TEXTS["uncond"], TEXTS["cond"]])
    expected, story = reference(model, samples, texts, times(STEPS), MEASURED)
    with cached(adapter(model), MEASURED) as cache:
        for _ in range(2):
            outputs = run(model, samples, texts)
            assert [row.decision for row in cache.log.generation()] == [step.decision for step in story]
            assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(outputs, expected, strict=True))
    (rows,) = by_branch(cache.log)
    together = [row.decision for row in rows]
    assert together.count("reuse") > 0
    assert together not in ([row.decision for row in alone(n, [[n]] * STEPS, "timed", MEASURED)[1]] for n in TEXTS)


# ---- one difference for both


@pytest.mark.parametrize("told", ["named", "timed", "counted"])
@pytest.mark.parametrize("first", ["cond", "uncond"])
def test_the_second_branch_takes_the_difference_of_the_first_and_its_own_history(told: str, first: str) -> None:
    """Its outputs are those of a branch that is alone and computes where the first one does."""
    second = "uncond" if first == "cond" else "cond"
    steps = [[first, second]] * STEPS
    config = DBCacheConfig(**{**MEASURED.as_dict(), "cfg_diff_compute_separate": False})
    model = Announcing(P1)
    with cached(adapter(model), settings(config, steps, told)) as cache:
        outputs = loop(model, steps, told)
    leading, following = by_branch(cache.log)
    assert [(row.decision, row.diff) for row in following] == [(row.decision, row.diff) for row in leading]
    assert {row.decision for row in leading[2:]} == {"compute", "reuse"}
    assert [row.decision for row in leading] != [row.decision for row in alone(second, steps, told, MEASURED)[1]]
    wanted, rows = alone(first, steps, told, MEASURED)
    assert [(row.decision, row.diff) for row in leading] == [(row.decision, row.diff) for row in rows]
    assert all(torch.equal(a, b) for a, b in zip(outputs[first], wanted, strict=True))
    mask = [int(row.decision == "compute") for row in leading]
    forced = DBCacheConfig(
        Fn_compute_blocks=1, max_warmup_steps=0, steps_computation_mask=mask, steps_computation_policy="static"
    )
    wanted, _ = alone(second, steps, told, forced)
    assert all(torch.equal(a, b) for a, b in zip(outputs[second], wanted, strict=True))


@pytest.mark.parametrize("told", ["named", "timed", "counted"])
@pytest.mark.parametrize("separate", [True, False])
def test_guidance_that_is_computed_first_is_measured_and_counted_as_guidance(told: str, separate: bool) -> None:
    """Guidance may take the other's difference, never the other way round, and here it is not known yet."""
    steps = [["uncond", "cond"]] * STEPS
    changes = {"cfg_compute_first": True, "cfg_diff_compute_separate": separate}
    config = settings(DBCacheConfig(**{**MEASURED.as_dict(), **changes}), steps, told)
    model = Announcing(P1)
    with cached(adapter(model), config):
        loop(model, steps, told)
        (stats,) = summary(model)
    (cond, uncond) = (alone(name, steps, told, MEASURED)[1] for name in ("cond", "uncond"))
    assert stats.cached_steps == [row.step for row in cond if row.decision == "reuse"]
    assert stats.cfg_cached_steps == [row.step for row in uncond if row.decision == "reuse"]
    assert stats.residual_diffs == {row.step: row.diff for row in cond if row.diff is not None}
    assert stats.cfg_residual_diffs == {row.step: row.diff for row in uncond if row.diff is not None}
    assert stats.cached_steps != stats.cfg_cached_steps


def test_guidance_that_sets_in_later_and_comes_first_is_counted_as_guidance() -> None:
    steps = ORDERS["late guidance, unconditional first"]
    model = Announcing(P1)
    config = DBCacheConfig(**{**MEASURED.as_dict(), "cfg_compute_first": True})
    with cached(adapter(model), config) as cache:
        loop(model, steps, "named")
        (stats,) = collect(cache.log.generation(), cache.log.contexts)
    assert [branch.name for branch in stats.branches] == ["cond", "uncond"]
    assert [row.step for row in stats.branches[1].rows] == [3, 4, 5, 6, 7, 8]


def test_without_guidance_in_the_call_the_only_branch_is_no_guidance() -> None:
    model = Announcing(P1)
    config = DBCacheConfig(**{**MEASURED.as_dict(), "cfg_compute_first": True})
    with cached(adapter(model), config) as cache:
        loop(model, ORDERS["one forward"], "timed")
        (stats,) = collect(cache.log.generation(), cache.log.contexts)
    assert stats.cached_steps
    assert stats.cfg_cached_steps == []


# ---- on the bundled model


def guided(pipe: Any, **call: Any) -> Tensor:
    """Draw with true guidance: two forwards a step, which FluxPipeline names."""
    picture: Tensor = pipe(
        "red heart on a white background",
        negative_prompt="blue star",
        true_cfg_scale=2.0,
        **demo.DEFAULTS,
        num_inference_steps=8,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **call,
    ).images
    return picture


CONFIGS: list[tuple[CacheConfig, Any]] = [
    (DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.3), None),
    (
        DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=3, residual_diff_threshold=0.3),
        TaylorSeerCalibratorConfig(taylorseer_order=2),
    ),
    (DBPruneConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.5), None),
]


@pytest.mark.parametrize(("config", "calibrator"), CONFIGS, ids=["DBCache", "TaylorSeer", "DBPrune"])
def test_guidance_of_the_bundled_model_is_that_of_a_model_for_each_branch(
    flux: Any, config: CacheConfig, calibrator: Any
) -> None:
    """Two models with a cache each, one for the conditional and one for the other forwards, draw the same."""
    pipe = FluxPipeline(**flux.components)
    pipe.set_progress_bar_config(disable=True)
    other = copy.deepcopy(flux.transformer)
    pipe.transformer = split = Split(flux.transformer, other)
    with cached(flux.transformer, config, calibrator) as a, cached(other, config, calibrator) as b:
        expected = guided(pipe)
        assert split.calls == ["cond", "uncond"] * 8
        wanted = [[(row.step, row.saved, row.diff) for row in cache.log.rows] for cache in (a, b)]
    assert sum(saved for _, saved, _ in wanted[1]) > 0
    assert wanted[0] != wanted[1]
    with cached(flux, config, calibrator) as cache:
        for _ in range(2):
            assert torch.equal(guided(flux), expected)
            rows = by_branch(cache.log)
            assert [[(row.step, row.saved, row.diff) for row in branch] for branch in rows] == wanted


class Split(torch.nn.Module):
    """Sends each branch to a transformer of its own."""

    def __init__(self, cond: Any, uncond: Any) -> None:
        super().__init__()
        self.models = {"cond": cond, "uncond": uncond}
        self.calls: list[str] = []
        self.config, self.dtype, self.device = cond.config, cond.dtype, cond.device

    def cache_context(self, name: str) -> Any:
        self.calls.append(name)
        return self.models[name].cache_context(name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.models[self.calls[-1]](*args, **kwargs)


def test_a_mask_counts_steps_and_not_forwards(flux: Any) -> None:
    config = DBCacheConfig(
        Fn_compute_blocks=0,
        steps_computation_mask=steps_mask(compute_bins=[2, 1, 1], cache_bins=[2, 2]),
        steps_computation_policy="static",
    )
    with cached(flux, config) as cache:
        guided(flux)
    for branch in by_branch(cache.log):
        assert "".join("1" if row.decision == "compute" else "0" for row in branch) == "11001001"


def test_static_masks_without_front_blocks_compute_no_block_on_cached_steps() -> None:
    """With guidance, in both branches."""
    model = Announcing(P1)
    config = DBCacheConfig(Fn_compute_blocks=0, steps_computation_mask="110100101", steps_computation_policy="static")
    with cached(adapter(model), config), computing() as blocks:
        loop(model, ORDERS["two forwards, conditional first"], "named")
    assert len(blocks) == 5 * 5 * 2
