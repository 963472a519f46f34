"""Which generation, step and branch a forward belongs to, told from what the model is called with."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from cachedit_cli.engine.install import Installation, install
from cachedit_cli.errors import InputError
from cachedit_cli.signature import Signature
from cachedit_cli.terms.block_adapter import BlockAdapter, ParamsModifier
from cachedit_cli.terms.config import DBCacheConfig
from cachedit_cli.terms.pattern import ForwardPattern
from tests.tiny import TOKENS, Announcing, TinyTransformer, adapter, context, run, times, walk

P1 = ForwardPattern.Pattern_1
COND, UNCOND, THIRD = context(1), context(2), context(3)
EAGER = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=0, residual_diff_threshold=1.0)


@dataclass
class Call:
    """One forward: its time, sample and conditioning, and the name that the pipeline announces, if it does."""

    time: Any
    sample: Tensor
    encoder: Tensor
    name: str | None = None
    step_index: int | None = None


def make(model: TinyTransformer, calls: Iterable[Call]) -> list[Tensor]:
    outputs = []
    with torch.no_grad():
        for call in calls:
            if call.name is None:
                outputs.append(model(call.sample, call.time, call.encoder))
                continue
            assert isinstance(model, Announcing)
            with model.cache_context(call.name, step_index=call.step_index):
                outputs.append(model(call.sample, call.time, call.encoder))
    return outputs


def told(cache: Installation) -> list[tuple[int, int, str]]:
    return [(row.generation, row.step, row.branch) for row in cache.log.rows]


def guided(
    schedule: Sequence[Any], branches: Sequence[Sequence[Tensor]], names: Sequence[Sequence[str | None]] | None = None
) -> list[Call]:
    """Return the calls of a loop that runs, at each time, the given branches."""
    samples = walk(len(schedule))
    return [
        Call(time, samples[k], encoder, names[k][i] if names is not None else None)
        for k, time in enumerate(schedule)
        for i, encoder in enumerate(branches[k])
    ]


# ---- branches


@pytest.mark.parametrize("names", [["cond", "uncond"], ["uncond", "cond"], ["a", "b", "c"]])
def test_a_cache_context_names_the_branch(names: list[str]) -> None:
    model = Announcing(P1)
    encoders = [COND, UNCOND, THIRD][: len(names)]
    with install(adapter(model), EAGER) as cache:
        make(model, guided(times(3), [encoders] * 3, [names] * 3))
    assert told(cache) == [(0, step, name) for step in range(3) for name in names]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("fresh", [False, True])
def test_the_same_time_with_other_conditioning_is_the_next_branch(count: int, fresh: bool) -> None:
    """``fresh``: a pipeline that joins or copies its embeddings anew in each step."""
    model = TinyTransformer(P1)
    encoders = [COND, UNCOND, THIRD][:count]
    steps = [[encoder.clone() if fresh else encoder for encoder in encoders] for _ in range(4)]
    with install(adapter(model), EAGER) as cache:
        make(model, guided(times(4), steps))
    assert told(cache) == [(0, step, str(branch)) for step in range(4) for branch in range(count)]


@pytest.mark.parametrize("conditional_first", [True, False])
@pytest.mark.parametrize("active", [range(3), range(2, 6), range(1, 4), range(1), range(5, 6)], ids=str)
@pytest.mark.parametrize("announced", [True, False])
def test_guidance_for_a_part_of_the_steps_does_not_mix_up_the_branches(
    conditional_first: bool, active: range, announced: bool
) -> None:
    model = Announcing(P1)
    both = [(COND, "cond"), (UNCOND, "uncond")] if conditional_first else [(UNCOND, "uncond"), (COND, "cond")]
    steps = [both if k in active else [(COND, "cond")] for k in range(6)]
    calls = guided(
        times(6),
        [[encoder for encoder, _ in step] for step in steps],
        [[name if announced else None for _, name in step] for step in steps],
    )
    with install(adapter(model), EAGER) as cache:
        make(model, calls)
    expected = [(0, k, name) for k, step in enumerate(steps) for _, name in step]
    rows = told(cache)
    assert [row[:2] for row in rows] == [row[:2] for row in expected]
    # Anonymous branches have numbers; each stands for one name.
    assert len({(row[2], wanted[2]) for row, wanted in zip(rows, expected, strict=True)}) == 2
    if announced:
        assert rows == expected


def test_guidance_in_one_batch_is_one_branch() -> None:
    model = TinyTransformer(P1)
    both = torch.cat([UNCOND, COND])
    with install(adapter(model), EAGER) as cache:
        run(model, walk(3, batch=2), both)
    assert told(cache) == [(0, k, "0") for k in range(3)]
    assert [row.decision for row in cache.log.rows] == ["compute", "reuse", "reuse"]


def test_branches_with_equal_conditioning_are_told_apart_by_the_sample() -> None:
    """Tiles, say: two samples at each time, one prompt."""
    model = TinyTransformer(P1)
    left, right = walk(4, seed=1), walk(4, seed=2)
    with install(adapter(model), EAGER) as cache:
        outputs = make(
            model,
            [Call(time, tile[k], COND) for k, time in enumerate(times(4)) for tile in (left, right)],
        )
    assert told(cache) == [(0, k, branch) for k in range(4) for branch in ("0", "1")]
    for tile, mine in ((left, outputs[0::2]), (right, outputs[1::2])):
        alone = TinyTransformer(P1)
        with install(adapter(alone), EAGER):
            assert all(torch.equal(a, b) for a, b in zip(run(alone, tile, COND), mine, strict=True))


def test_flags_tell_branches_apart() -> None:
    class Skipping(TinyTransformer):
        def forward(
            self,
            hidden_states: Tensor,
            timestep: Any = None,
            encoder_hidden_states: Any = None,
            controls: Any = None,
            skip: list[int] | None = None,
        ) -> Tensor:
            return super().forward(hidden_states, timestep, encoder_hidden_states)

    model = Skipping(P1)
    with install(adapter(model), EAGER) as cache, torch.no_grad():
        for k, time in enumerate(times(3)):
            for skip in (None, [1]):
                model(walk(3)[k], time, COND, skip=skip)
    assert told(cache) == [(0, k, branch) for k in range(3) for branch in ("0", "1")]


@st.composite
def stories(draw: st.DrawFn) -> list[tuple[int, int, str]]:
    """Draw generations of steps in which a guidance branch is active in a run of steps, as (generation, step, name)."""
    rows = []
    order = draw(st.sampled_from([("cond", "uncond"), ("uncond", "cond"), ("cond", "uncond", "third")]))
    for generation in range(draw(st.integers(1, 3))):
        steps = draw(st.integers(2, 6))
        start, stop = draw(st.integers(0, steps)), draw(st.integers(0, steps))
        for step in range(steps):
            for name in order if start <= step < stop else ("cond",):
                rows.append((generation, step, name))
    return rows


@given(story=stories(), announced=st.booleans(), rising=st.booleans(), tensors=st.booleans(), threshold=st.booleans())
@hypothesis_settings(max_examples=150, deadline=None, derandomize=True)
def test_every_branch_of_every_generation_is_as_if_it_were_alone(
    story: list[tuple[int, int, str]], announced: bool, rising: bool, tensors: bool, threshold: bool
) -> None:
    encoders = {"cond": COND, "uncond": UNCOND, "third": THIRD}
    doubtful = any(a[1:] == (0, "cond") and b[1:] == (1, "uncond") for a, b in itertools.pairwise(story))
    assume(announced or not doubtful)
    config = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=0, residual_diff_threshold=0.15 if threshold else 1.0)
    calls = []
    for generation, step, name in story:
        steps = max(row[1] for row in story if row[0] == generation) + 1
        time: Any = times(steps, rising)[step]
        sample = walk(steps, seed=generation)[step]
        calls.append(
            Call(torch.tensor([time]) if tensors else time, sample, encoders[name], name if announced else None)
        )
    model = Announcing(P1)
    with install(adapter(model), config) as cache:
        outputs = make(model, calls)
    assert [(generation, step) for generation, step, _ in told(cache)] == [row[:2] for row in story]
    for key in dict.fromkeys((generation, name) for generation, _, name in story):
        mine = [i for i, (generation, _, name) in enumerate(story) if (generation, name) == key]
        alone = Announcing(P1)
        with install(adapter(alone), config) as other:
            expected = make(alone, [calls[i] for i in mine])
        assert [cache.log.rows[i].decision for i in mine] == [row.decision for row in other.log.rows]
        assert all(torch.equal(outputs[i], output) for i, output in zip(mine, expected, strict=True))


# ---- steps


@pytest.mark.parametrize("rising", [False, True])
def test_time_may_fall_or_rise(rising: bool) -> None:
    model = TinyTransformer(P1)
    with install(adapter(model), EAGER) as cache:
        for _ in range(2):
            run(model, walk(4), schedule=times(4, rising))
    assert told(cache) == [(generation, k, "0") for generation in range(2) for k in range(4)]


def test_times_per_token_count_by_their_mean() -> None:
    """As in image-to-video models: the first frame's tokens stay at 0."""

    class PerToken(TinyTransformer):
        def embed(self, timestep: Any) -> Tensor:
            return super().embed(timestep.max())

    model = PerToken(P1)
    schedule = []
    for time in times(4):
        per_token = torch.full((1, TOKENS), time)
        per_token[:, :2] = 0.0
        schedule.append(per_token)
    with install(adapter(model), EAGER) as cache:
        run(model, walk(4), schedule=schedule)
        run(model, walk(4), schedule=schedule)
    assert told(cache) == [(generation, k, "0") for generation in range(2) for k in range(4)]


def test_the_step_index_of_a_cache_context_goes_before_the_time() -> None:
    model = Announcing(P1)
    calls = [
        Call(500.0, walk(4)[k], encoder, name, step_index=k)
        for k in range(4)
        for name, encoder in (("cond", COND), ("uncond", UNCOND))
    ]
    with install(adapter(model), EAGER) as cache:
        make(model, [*calls, *calls])
    assert told(cache) == [(g, k, name) for g in range(2) for k in range(4) for name in ("cond", "uncond")]


def test_a_second_call_at_a_later_time_is_a_step_of_its_own() -> None:
    """Heun's scheduler calls the model twice at every time but the first."""
    model = TinyTransformer(P1)
    schedule = [1000.0, 800.0, 800.0, 500.0, 500.0, 200.0]
    with install(adapter(model), EAGER) as cache:
        run(model, walk(6), COND, schedule)
        run(model, walk(6), COND, schedule)
    assert told(cache) == [(generation, k, "0") for generation in range(2) for k in range(6)]


@pytest.mark.parametrize("announced", [True, False])
def test_second_calls_work_with_guidance_too(announced: bool) -> None:
    model = Announcing(P1)
    names = [["cond", "uncond"] if announced else [None, None]] * 5
    with install(adapter(model), EAGER) as cache:
        make(model, guided([1000.0, 800.0, 800.0, 500.0, 500.0], [[COND, UNCOND]] * 5, names))
    assert [row[1] for row in told(cache)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert len({row[2] for row in told(cache)}) == 2


def test_constant_everything_is_consecutive_steps_if_their_number_is_known() -> None:
    model = TinyTransformer(P1)
    config = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=0, num_inference_steps=4)
    with install(adapter(model), config) as cache:
        run(model, walk(1) * 8, COND, [500.0] * 8)
    assert told(cache) == [(generation, k, "0") for generation in range(2) for k in range(4)]


# ---- generations


def test_a_generation_aborted_between_steps_leaves_nothing_to_the_next() -> None:
    model = TinyTransformer(P1)
    with install(adapter(model), EAGER) as cache:
        run(model, walk(3, seed=4), COND, times(6)[:3])
        outputs = run(model, walk(6), COND)
    assert told(cache) == [(0, k, "0") for k in range(3)] + [(1, k, "0") for k in range(6)]
    with install(adapter(model), EAGER):
        assert all(torch.equal(a, b) for a, b in zip(outputs, run(model, walk(6), COND), strict=True))


class Bar:
    """A progress bar as a pipeline uses it: it ends by being closed."""

    def __init__(self, total: int) -> None:
        self.total = total

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def update(self) -> None: ...

    def close(self) -> None: ...


class Scheduler:
    """Holds a schedule, and makes a new one for each generation, as diffusers does."""

    def __init__(self) -> None:
        self.timesteps = torch.tensor([])

    def set_timesteps(self, steps: int) -> None:
        self.timesteps = torch.tensor(times(steps))


class Pipeline:
    """A pipeline's loop: a schedule, a progress bar, a forward a step, decoding afterwards."""

    def __init__(self, model: TinyTransformer) -> None:
        self.transformer = model
        self.scheduler = Scheduler()
        self.components = {"transformer": model}
        self.bytes_while_decoding: list[int] = []
        self.cache: Installation | None = None

    def progress_bar(self, total: int) -> Bar:
        return Bar(total)

    def __call__(self, samples: Sequence[Tensor], stop: int | None = None, first: int = 0) -> list[Tensor]:
        self.scheduler.set_timesteps(len(samples))
        outputs = []
        with torch.no_grad(), self.progress_bar(total=len(samples) - first) as bar:
            for k, time in list(enumerate(self.scheduler.timesteps))[first:stop]:
                outputs.append(self.transformer(samples[k], time, COND))
                bar.update()
        if self.cache is not None:
            self.bytes_while_decoding.append(self.cache.nbytes)
        return outputs


def piped(model: TinyTransformer) -> tuple[Pipeline, BlockAdapter]:
    pipe = Pipeline(model)
    return pipe, BlockAdapter(pipe=pipe, transformer=model, blocks=model.blocks, forward_pattern=P1)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_pipelines_progress_bar_begins_and_ends_generations(steps: int) -> None:
    """Also of a single step, of which the second is the same call again."""
    pipe, data = piped(TinyTransformer(P1))
    with install(data, EAGER) as cache:
        pipe.cache = cache
        outputs = [pipe(walk(steps)) for _ in range(3)]
    assert told(cache) == [(generation, k, "0") for generation in range(3) for k in range(steps)]
    assert all(torch.equal(a, b) for other in outputs[1:] for a, b in zip(outputs[0], other, strict=True))
    assert pipe.bytes_while_decoding == [0, 0, 0]


def test_a_shorter_schedule_that_starts_later_is_a_generation_of_its_own() -> None:
    """As after an image-to-image call: time goes on falling, and only the pipeline's loop tells."""
    pipe, data = piped(TinyTransformer(P1))
    with install(data, EAGER) as cache:
        pipe(walk(6), stop=2)
        pipe(walk(6), first=3)
    assert told(cache) == [(0, 0, "0"), (0, 1, "0"), (1, 0, "0"), (1, 1, "0"), (1, 2, "0")]


def test_a_policy_is_laid_out_over_the_steps_of_each_generation() -> None:
    pipe, data = piped(TinyTransformer(P1))
    config = DBCacheConfig(
        Fn_compute_blocks=0, max_warmup_steps=0, steps_computation_mask="ultra", steps_computation_policy="static"
    )
    with install(data, config) as cache:
        pipe(walk(28))
        pipe(walk(1))
    bits = "".join("1" if row.decision == "compute" else "0" for row in cache.log.rows)
    assert bits == "1111001000001000000100000001" + "1"


@pytest.mark.parametrize("steps", [3, 5])
def test_a_mask_of_the_wrong_length_is_an_error_before_the_first_step(steps: int) -> None:
    model = TinyTransformer(P1)
    pipe, data = piped(model)
    config = DBCacheConfig(Fn_compute_blocks=1, steps_computation_mask="1101")
    with install(data, config) as cache:
        with pytest.raises(InputError) as caught:
            pipe(walk(steps))
        assert cache.log.rows == []
        pipe(walk(4))
        assert len(cache.log.rows) == 4
    assert str(caught.value) == (
        f"transformer.blocks: steps_computation_mask: has 4 bits, but this generation has {steps} steps"
    )


def test_a_policy_without_a_number_of_steps_is_an_error_that_names_the_setting() -> None:
    model = TinyTransformer(P1)
    config = DBCacheConfig(Fn_compute_blocks=1, steps_computation_mask="fast")
    with install(adapter(model), config), pytest.raises(InputError, match="set num_inference_steps"):
        run(model, walk(1))


# ---- nothing to go by but the count


def test_calls_without_time_and_pipeline_need_the_number_of_steps() -> None:
    model = TinyTransformer(P1)
    with install(adapter(model), EAGER), pytest.raises(InputError) as caught:
        run(model, walk(1), schedule=[None])
    assert str(caught.value) == (
        "TinyTransformer is called without pipeline and timestep, so that nothing tells where a generation ends: "
        "set num_inference_steps in the cache_config, or with refresh_context"
    )


def test_calls_without_time_are_counted() -> None:
    model = TinyTransformer(P1)
    config = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=0, num_inference_steps=3)
    with install(adapter(model), config) as cache:
        run(model, walk(7), COND, [None] * 7)
    assert told(cache) == [(0, 0, "0"), (0, 1, "0"), (0, 2, "0"), (1, 0, "0"), (1, 1, "0"), (1, 2, "0"), (2, 0, "0")]


def test_with_separate_cfg_every_second_counted_call_is_the_other_branch() -> None:
    model = TinyTransformer(P1)
    config = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=0, num_inference_steps=3, enable_separate_cfg=True)
    with install(adapter(model), config) as cache:
        make(model, [Call(None, walk(6)[k], encoder) for k in range(6) for encoder in (UNCOND, COND)])
    assert told(cache) == [(g, k, branch) for g in range(2) for k in range(3) for branch in ("0", "1")]


def test_an_adapter_that_knows_of_separate_cfg_says_so_unless_the_settings_do() -> None:
    model = TinyTransformer(P1)
    for chosen, branches in ((None, 2), (False, 1)):
        config = DBCacheConfig(
            Fn_compute_blocks=1, max_warmup_steps=0, num_inference_steps=4, enable_separate_cfg=chosen
        )
        with install(adapter(model, has_separate_cfg=True), config) as cache:
            run(model, walk(4), COND, [None] * 4)
        assert len({row.branch for row in cache.log.rows}) == branches


@pytest.mark.parametrize("separate", [True, False])
def test_the_second_branch_takes_the_first_ones_difference_if_asked_to(separate: bool) -> None:
    model = Announcing(P1)
    config = DBCacheConfig(
        Fn_compute_blocks=1, max_warmup_steps=0, residual_diff_threshold=0.15, cfg_diff_compute_separate=separate
    )
    with install(adapter(model), config) as cache:
        make(model, guided(times(6), [[COND, UNCOND]] * 6, [["cond", "uncond"]] * 6))
    first, second = cache.log.rows[0::2], cache.log.rows[1::2]
    assert first[0].diff is second[0].diff is None
    shared = [(a.diff, a.decision) == (b.diff, b.decision) for a, b in zip(first, second, strict=True)]
    assert all(shared[1:]) is not separate


# ---- several transformers


def two_experts(
    steps: int, boundary: int, modifiers: Sequence[ParamsModifier] | None = None
) -> tuple[list[TinyTransformer], BlockAdapter]:
    models = [TinyTransformer(P1, 4, seed=1), TinyTransformer(P1, 4, seed=2)]
    data = BlockAdapter(
        transformer=models,
        blocks=[[models[0].blocks], [models[1].blocks]],
        forward_pattern=P1,
        params_modifiers=modifiers,
    )
    return models, data


def drive(models: Sequence[TinyTransformer], steps: int, boundary: int) -> list[Tensor]:
    samples, schedule = walk(steps), times(steps)
    return make_on([models[k >= boundary] for k in range(steps)], samples, schedule)


def make_on(models: Sequence[TinyTransformer], samples: Sequence[Tensor], schedule: Sequence[float]) -> list[Tensor]:
    outputs = []
    for model, sample, time in zip(models, samples, schedule, strict=True):
        outputs += make(model, [Call(time, sample, encoder) for encoder in (COND, UNCOND)])
    return outputs


@pytest.mark.parametrize("boundary", [0, 1, 3, 6])
def test_transformers_that_divide_the_steps_share_generation_and_step(boundary: int) -> None:
    models, data = two_experts(6, boundary)
    with install(data, EAGER) as cache:
        outputs = [drive(models, 6, boundary) for _ in range(2)]
    assert told(cache) == [(g, k, branch) for g in range(2) for k in range(6) for branch in ("0", "1")]
    names = ["transformer.blocks" if row.step < boundary else "transformer_2.blocks" for row in cache.log.rows]
    assert [row.context for row in cache.log.rows] == names
    computed = {row.step for row in cache.log.rows if row.decision == "compute"}
    assert computed == {0, boundary} - {6}
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


def test_each_transformer_may_have_a_mask_over_its_own_steps() -> None:
    modifiers = [
        ParamsModifier(DBCacheConfig.reset(num_inference_steps=2, steps_computation_mask="10")),
        ParamsModifier(DBCacheConfig.reset(num_inference_steps=4, steps_computation_mask="1100")),
    ]
    models, data = two_experts(6, 2, modifiers)
    with install(data, EAGER) as cache:
        drive(models, 6, 2)
        drive(models, 6, 2)
    bits = "".join("1" if row.decision == "compute" else "0" for row in cache.log.rows if row.branch == "0")
    assert bits == "101100" * 2
    assert [row.step for row in cache.log.rows if row.branch == "0"] == [*range(6), *range(6)]


def test_a_model_that_calls_itself_is_one_forward() -> None:
    class Halving(TinyTransformer):
        def forward(
            self, hidden_states: Tensor, timestep: Any = None, encoder_hidden_states: Any = None, controls: Any = None
        ) -> Tensor:
            if hidden_states.shape[0] == 1:
                return super().forward(hidden_states, timestep, encoder_hidden_states, controls)
            return torch.cat([self(part[None], timestep, encoder_hidden_states) for part in hidden_states])

    model, samples = Halving(P1), walk(4, batch=2)
    with install(adapter(model), EAGER) as cache:
        outputs = run(model, samples, COND)
    assert told(cache) == [(0, k, "0") for k in range(4) for _ in range(2)]
    for half in range(2):
        alone = TinyTransformer(P1)
        with install(adapter(alone), EAGER):
            expected = run(alone, [sample[half : half + 1] for sample in samples], COND)
        assert all(torch.allclose(a[half], b[0], atol=1e-6) for a, b in zip(outputs, expected, strict=True))


def test_branches_without_end_begin_another_generation_where_no_pipeline_bounds_it() -> None:
    """Requests of a single step, one after another at the same time, each with a text of its own."""
    model = TinyTransformer(P1)
    with install(adapter(model), EAGER) as cache:
        make(model, [Call(500.0, walk(1, seed=seed)[0], context(seed)) for seed in range(20)])
        rows = cache.log.rows
        assert all(row.reason == "no-history" for row in rows)
        assert [row.generation for row in rows] == [0] * 16 + [1] * 4


# --------------------------------------------------------------------------------------------------------- on a device


def test_on_a_device_the_schedulers_count_stands_for_a_time_that_would_have_to_be_waited_for() -> None:
    """A tensor on ``meta`` cannot be read at all, so that reading it would raise."""

    class Scheduler:
        step_index: int | None = None

    read, scheduler = Signature(TinyTransformer(P1).forward).moment, Scheduler()
    there, here = [torch.empty(1, 6, 8), torch.empty(1, device="meta")], [torch.empty(1, 6, 8), torch.tensor([900.0])]
    assert read(there, {}, wait=False, scheduler=scheduler) is None
    with pytest.raises(RuntimeError):
        read(there, {}, wait=True, scheduler=scheduler)
    first = read(here, {}, wait=True, scheduler=scheduler)
    scheduler.step_index = 1
    second = read(there, {}, wait=True, scheduler=scheduler)
    scheduler.step_index = 2
    third = read(there, {}, wait=True, scheduler=scheduler)
    assert first is not None
    assert second is not None
    assert third is not None
    assert first > second > third  # as a time that goes on falling
    assert read(here, {}, wait=True, scheduler=scheduler) == 900.0
