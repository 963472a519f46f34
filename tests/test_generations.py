"""Pictures one after another, and beside each other, are those of a process that drew nothing before.

The expected picture always comes from a pipeline of its own: copies of all components, cached for the first time.
"""

from __future__ import annotations

import copy
import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler, FluxImg2ImgPipeline, FluxPipeline
from torch import Tensor

from cachedit_cli import (
    DBCacheConfig,
    DBPruneConfig,
    TaylorSeerCalibratorConfig,
    cached,
    demo,
    disable_cache,
    enable_cache,
)
from cachedit_cli.engine.install import Installation, installed
from cachedit_cli.errors import InputError, RunError
from cachedit_cli.terms.config import CacheConfig

Call = dict[str, Any]
Fresh = Callable[..., Tensor]
MEASURED = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.3)
PRUNED = DBPruneConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.5)


def copied(pipe: Any, kind: Any = FluxPipeline) -> Any:
    """Return a pipeline of copies of all components, which never drew anything and is not cached."""
    twin = kind(**{name: copy.deepcopy(part) for name, part in pipe.components.items()})
    twin.set_progress_bar_config(disable=True)
    return twin


def shared(pipe: Any, kind: Any = FluxPipeline) -> Any:
    """Return another pipeline around the same components."""
    twin = kind(**pipe.components)
    twin.set_progress_bar_config(disable=True)
    return twin


def same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other)


def draw(pipe: Any, *, steps: int = 6, seed: int = 0, **call: Any) -> Tensor:
    """Return the picture before decoding, in which no difference is rounded away."""
    arguments = {
        "prompt": "red heart on a white background",
        **demo.DEFAULTS,
        "num_inference_steps": steps,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "latent",
        **call,
    }
    picture: Tensor = pipe(**arguments).images
    return picture


def alone(pipe: Any, call: Call | None = None, config: CacheConfig = MEASURED, calibrator: Any = None) -> Tensor:
    """Return the picture that a pipeline draws first after it was cached; some of it has to be reused."""
    with cached(copied(pipe, type(pipe)), config, calibrator) as cache:
        picture = draw(cache.adapter.pipe, **(call or {}))
        assert any(row.saved for row in cache.log.rows)
    return picture


def there(pipe: Any) -> Installation:
    found = installed(pipe.transformer)
    assert found is not None
    return found


def decisions(pipe: Any) -> str:
    """Return a letter a row of the last generation: c for computed, r for reused."""
    return "".join(row.decision[0] for row in there(pipe).log.generation())


@pytest.fixture
def pipe(flux: Any) -> Iterator[Any]:
    """A cached pipeline of its own, which nothing else sees changed."""
    twin = copied(flux)
    enable_cache(twin, MEASURED)
    yield twin
    disable_cache(twin)


@pytest.fixture(scope="module")
def fresh(flux: Any) -> Fresh:
    """What the bundled pipeline draws first, for each call worked out once."""
    known: dict[str, Tensor] = {}

    def picture(**call: Any) -> Tensor:
        key = repr(call)
        if key not in known:
            known[key] = alone(flux, call)
        return known[key]

    return picture


# ---- one after another

OTHERS: dict[str, Call] = {
    "steps": {"steps": 9},
    "seed": {"seed": 3},
    "size": {"height": 64, "width": 48},
    "batch": {"num_images_per_prompt": 2},
    "prompts": {"prompt": ["red heart", "blue star"]},
    "prompt length": {"max_sequence_length": 8},
    "guidance": {"true_cfg_scale": 2.0, "negative_prompt": "blue"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_call_with_another(name: str, pipe: Any, fresh: Fresh) -> None:
    """Before, between and after: each picture is the one that a fresh pipeline draws."""
    usual, other = fresh(), fresh(**OTHERS[name])
    for call, expected in (({}, usual), (OTHERS[name], other), ({}, usual), ({}, usual)):
        assert same(draw(pipe, **call), expected)
    assert [row.generation for row in there(pipe).log.rows if row.step == 0 and row.branch == "cond"] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("config", "calibrator"),
    [(MEASURED, TaylorSeerCalibratorConfig(taylorseer_order=2)), (PRUNED, None)],
    ids=["TaylorSeer", "DBPrune"],
)
def test_pruning_and_forecasting_forget_the_generation_before(flux: Any, config: CacheConfig, calibrator: Any) -> None:
    usual, other = (alone(flux, {"seed": seed}, config, calibrator) for seed in (0, 3))
    assert not same(usual, other)
    with cached(copied(flux), config, calibrator) as cache:
        for seed, expected in ((0, usual), (3, other), (0, usual)):
            assert same(draw(cache.adapter.pipe, seed=seed), expected)


FRESH = """
import hashlib, sys, torch
torch.set_num_threads(1)
from diffusers import FluxPipeline
from cachedit_cli import DBCacheConfig, demo, enable_cache
pipe = FluxPipeline.from_pretrained(demo.path(), torch_dtype=torch.float32, local_files_only=True)
enable_cache(pipe, DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.3))
picture = pipe("red heart on a white background", **demo.DEFAULTS, num_inference_steps=6, output_type="latent",
               generator=torch.Generator().manual_seed(0)).images
print(hashlib.sha256(picture.numpy().tobytes()).hexdigest())
"""


def test_a_fresh_pipeline_draws_what_a_fresh_process_draws(pipe: Any) -> None:
    """What entitles the other tests to take a copy of the pipeline for a fresh process."""
    draw(pipe, seed=3)
    picture = draw(pipe)
    process = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True)
    assert process.stdout.split() == [hashlib.sha256(picture.numpy().tobytes()).hexdigest()]


# ---- schedules of another length


def test_a_strength_that_shortens_the_schedule_shortens_the_generation(flux: Any, fresh: Fresh) -> None:
    """10 steps at a strength of 0.6 are 6, and begin later than the text-to-image schedule does."""
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    call: Call = {"image": image, "strength": 0.6, "steps": 10}
    pipe = copied(flux, FluxImg2ImgPipeline)
    expected = alone(pipe, call)
    enable_cache(pipe, MEASURED)
    text = shared(pipe)
    for _ in range(2):
        assert same(draw(text), fresh())
        assert same(draw(pipe, **call), expected)
        assert [row.step for row in there(pipe).log.generation()] == [0, 1, 2, 3, 4, 5]
    # The other way round, where the image-to-image pipeline is the one that nobody listens to:
    enable_cache(text, MEASURED)
    for _ in range(2):
        assert same(draw(pipe, **call), expected)
        assert same(draw(text), fresh())


@pytest.mark.parametrize("bits", ["110010", "1100101001"])
def test_a_mask_has_the_length_of_the_shortened_schedule(flux: Any, bits: str) -> None:
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    pipe = copied(flux, FluxImg2ImgPipeline)
    config = DBCacheConfig(
        Fn_compute_blocks=0, max_warmup_steps=0, steps_computation_mask=bits, steps_computation_policy="static"
    )
    with cached(pipe, config) as cache:
        if len(bits) == 6:
            draw(pipe, image=image, strength=0.6, steps=10)
            assert "".join("1" if row.decision == "compute" else "0" for row in cache.log.rows) == bits
            return
        with pytest.raises(InputError) as caught:
            draw(pipe, image=image, strength=0.6, steps=10)
        assert cache.log.rows == []
        draw(pipe, image=image, strength=1.0, steps=10)
        assert len(cache.log.rows) == 10
    assert str(caught.value) == (
        "transformer.transformer_blocks + transformer.single_transformer_blocks: steps_computation_mask: "
        "has 10 bits, but this generation has 6 steps"
    )


class Heun(FlowMatchHeunDiscreteScheduler):
    """Calls the model twice a step; takes sigmas, as FluxPipeline gives them, for their number."""

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, sigmas: Any = None, mu: Any = None
    ) -> None:
        super().set_timesteps(len(sigmas) if sigmas is not None else num_inference_steps, device)


def test_a_scheduler_with_two_calls_a_step_has_a_step_for_each(flux: Any) -> None:
    pipe = copied(flux)
    pipe.scheduler = Heun()
    expected = alone(pipe, {"steps": 5})
    enable_cache(pipe, MEASURED)
    for _ in range(2):
        assert same(draw(pipe, steps=5), expected)
        assert [row.step for row in there(pipe).log.generation()] == list(range(9))
    config = DBCacheConfig(
        Fn_compute_blocks=0,
        max_warmup_steps=0,
        steps_computation_mask="110010101",
        steps_computation_policy="static",
    )
    enable_cache(pipe, config)
    draw(pipe, steps=5)
    assert decisions(pipe) == "ccrrcrcrc"
    with pytest.raises(InputError, match="has 9 bits, but this generation has 7 steps"):
        draw(pipe, steps=4)


def test_two_calls_a_step_with_guidance_keep_their_branches(flux: Any) -> None:
    pipe = copied(flux)
    pipe.scheduler = Heun()
    guided: Call = {"steps": 4, "true_cfg_scale": 2.0, "negative_prompt": "blue"}
    expected = alone(pipe, guided)
    enable_cache(pipe, MEASURED)
    for _ in range(2):
        assert same(draw(pipe, **guided), expected)
        rows = there(pipe).log.generation()
        assert [(row.step, row.branch) for row in rows] == [(k, name) for k in range(7) for name in ("cond", "uncond")]


# ---- that end early


def interrupting(pipe: Any, step: int, time: Any, tensors: Any) -> Any:
    pipe._interrupt = step >= 3
    return tensors


def failing(pipe: Any, step: int, time: Any, tensors: Any) -> Any:
    if step == 3:
        raise ValueError("no more")
    return tensors


def pressing_control_c(pipe: Any, step: int, time: Any, tensors: Any) -> Any:
    if step == 3:
        raise KeyboardInterrupt
    return tensors


def test_a_callback_that_interrupts_leaves_nothing_to_the_next(pipe: Any, fresh: Fresh) -> None:
    draw(pipe, callback_on_step_end=interrupting, seed=5)
    assert [row.step for row in there(pipe).log.rows] == [0, 1, 2, 3]
    assert there(pipe).nbytes == 0
    assert same(draw(pipe), fresh())


@pytest.mark.parametrize(("callback", "error"), [(failing, ValueError), (pressing_control_c, KeyboardInterrupt)])
@pytest.mark.parametrize("sharing", [False, True], ids=["own pipeline", "second pipeline"])
def test_a_callback_that_raises_leaves_nothing_to_the_next(
    pipe: Any, fresh: Fresh, callback: Any, error: type[BaseException], sharing: bool
) -> None:
    """Also to a shorter schedule, which begins where the other ended, with the same prompt."""
    caller = shared(pipe) if sharing else pipe
    later: Call = {"sigmas": [0.4, 0.3, 0.2, 0.15, 0.1, 0.05]}
    for call in ({}, later):
        with pytest.raises(error):
            draw(caller, callback_on_step_end=callback, seed=5)
        assert [row.step for row in there(pipe).log.generation()] == [0, 1, 2, 3]
        if not sharing:
            assert there(pipe).nbytes == 0
        assert same(draw(caller, **call), fresh(**call))


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()], ids=["ValueError", "KeyboardInterrupt"])
@pytest.mark.parametrize("place", ["transformer_blocks.0", "transformer_blocks.3", "single_transformer_blocks.11"])
def test_an_exception_inside_a_block_leaves_nothing_to_the_next(
    pipe: Any, fresh: Fresh, error: BaseException, place: str
) -> None:
    calls = 0

    def breaking(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise error

    handle = pipe.transformer.get_submodule(place).register_forward_pre_hook(breaking)
    with pytest.raises(type(error)):
        draw(pipe, steps=9, seed=5)
    handle.remove()
    assert [reset.reason for reset in there(pipe).log.resets] == ["error"]
    assert there(pipe).nbytes == 0
    assert same(draw(pipe), fresh())


# ---- with a model that changes in between


def test_weights_in_another_precision_are_followed(pipe: Any, flux: Any, fresh: Fresh) -> None:
    half = copied(flux)
    half.to(torch.bfloat16)
    usual, coarse = fresh(), alone(half)
    assert same(draw(pipe), usual)
    pipe.to(torch.bfloat16)
    assert same(draw(pipe), coarse)
    assert {row.bytes for row in there(pipe).log.generation(0)} != {row.bytes for row in there(pipe).log.generation(1)}


def add_lora(pipe: Any, name: str = "style", seed: int = 1) -> None:
    """Add LoRA layers with weights that change the picture."""
    from peft import LoraConfig

    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"]), adapter_name=name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, weight in pipe.transformer.named_parameters():
            if f".{name}." in key:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)


LORA: dict[str, Callable[[Any], Any]] = {
    "loaded": lambda pipe: None,
    "scaled": lambda pipe: pipe.transformer.set_adapters("style", 0.3),
    "off": lambda pipe: pipe.transformer.disable_adapters(),
    "fused": lambda pipe: pipe.transformer.fuse_lora(),
    "unloaded": lambda pipe: pipe.unload_lora_weights(),
}


@pytest.mark.parametrize("name", LORA)
def test_lora_weights_that_are(name: str, pipe: Any, flux: Any, fresh: Fresh) -> None:
    """In between two pictures: the same as on a model that had them before it was cached."""
    ready = copied(flux)
    add_lora(ready)
    LORA[name](ready)
    usual, expected = fresh(), alone(ready)
    assert same(expected, usual) == (name in ("off", "unloaded"))
    assert same(draw(pipe), usual)
    add_lora(pipe)
    assert not same(draw(pipe), usual)
    LORA[name](pipe)
    assert same(draw(pipe), expected)
    assert "r" in decisions(pipe)


def test_lora_weights_scaled_for_one_call_are_scaled_for_that_call(pipe: Any, flux: Any) -> None:
    ready = copied(flux)
    add_lora(ready)
    add_lora(pipe)
    scaled: Call = {"joint_attention_kwargs": {"scale": 0.3}}
    full, third = alone(ready), alone(ready, scaled)
    assert not same(full, third)
    for call, expected in (({}, full), (scaled, third), ({}, full)):
        assert same(draw(pipe, **call), expected)


# ---- with other pipelines and threads


def test_a_shallow_copy_of_the_pipeline_draws_as_the_pipeline_does(pipe: Any, fresh: Fresh) -> None:
    twin = copy.copy(pipe)
    for drawing, steps in ((pipe, 6), (twin, 8), (twin, 7), (pipe, 6)):
        assert same(draw(drawing, steps=steps), fresh(steps=steps))
        assert [row.step for row in there(pipe).log.generation()] == list(range(steps))


def test_a_shallow_copy_lays_out_masks_over_its_own_steps(flux: Any) -> None:
    pipe = copied(flux)
    config = DBCacheConfig(Fn_compute_blocks=1, steps_computation_mask="11010", steps_computation_policy="static")
    enable_cache(pipe, config)
    draw(pipe, steps=5)
    twin = copy.copy(pipe)
    with pytest.raises(InputError, match="has 5 bits, but this generation has 6 steps"):
        draw(twin, steps=6)
    draw(twin, steps=5)
    assert decisions(pipe) == "ccrcr"


def test_pipelines_that_share_the_transformer_take_turns(pipe: Any, fresh: Fresh) -> None:
    """Whichever of them is the one that was cached."""
    twin = shared(pipe)
    usual, other = fresh(), fresh(seed=3, steps=8)
    for _ in range(2):
        assert same(draw(pipe), usual)
        assert same(draw(twin, seed=3, steps=8), other)
        assert same(draw(twin), usual)
    enable_cache(twin, MEASURED)
    assert same(draw(pipe), usual)
    assert same(draw(twin, seed=3, steps=8), other)


@pytest.mark.parametrize("own", [True, False], ids=["shallow copy", "second pipeline"])
def test_after_a_picture_in_its_middle_a_picture_goes_on_as_if_it_began(
    pipe: Any, flux: Any, fresh: Fresh, own: bool
) -> None:
    """Drawn by a callback, with a scheduler of its own, as two pictures cannot share one without a cache either."""
    inner = copy.copy(pipe) if own else shared(pipe)
    inner.scheduler = copy.deepcopy(pipe.scheduler)
    drawn: list[Tensor] = []

    def drawing(_: Any, step: int, time: Any, tensors: Any) -> Any:
        if step == 3:
            drawn.append(draw(inner, seed=3, steps=8))
        return tensors

    picture = draw(pipe, steps=9, callback_on_step_end=drawing)
    assert same(drawn[0], fresh(seed=3, steps=8))
    assert [row.step for row in there(pipe).log.rows] == [0, 1, 2, 3, *range(8), *range(5)]
    assert there(pipe).nbytes == 0

    twin = copied(flux)
    with cached(twin, MEASURED) as cache:

        def restarting(_: Any, step: int, time: Any, tensors: Any) -> Any:
            if step == 3:
                cache.restart()
            return tensors

        assert same(picture, draw(twin, steps=9, callback_on_step_end=restarting))
    assert same(draw(pipe), fresh())


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Start work in a thread, whose result or error becomes the only item of the list."""
    result: list[Any] = []

    def run() -> None:
        torch.set_num_threads(1)
        try:
            result.append(work())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, result


def test_two_threads_with_a_pipeline_each_draw_what_each_draws_alone(flux: Any, fresh: Fresh) -> None:
    pipes = [copied(flux), copied(flux)]
    for pipe in pipes:
        enable_cache(pipe, MEASURED)
    barrier = threading.Barrier(2)

    def work(pipe: Any, seed: int) -> list[Tensor]:
        barrier.wait(30)
        return [draw(pipe, seed=seed, steps=steps) for steps in (6, 8)]

    threads = [in_thread(partial(work, pipe, seed)) for seed, pipe in enumerate(pipes)]
    for thread, _ in threads:
        thread.join(60)
    for seed, (_, result) in enumerate(threads):
        for picture, steps in zip(result[0], (6, 8), strict=True):
            assert same(picture, fresh(seed=seed, steps=steps))


@pytest.mark.parametrize("between", [True, False], ids=["between forwards", "in a forward"])
@pytest.mark.parametrize("own", [False, True], ids=["second pipeline", "shallow copy"])
def test_a_second_thread_in_one_transformer_is_refused_and_the_first_goes_on(
    pipe: Any, fresh: Fresh, between: bool, own: bool
) -> None:
    """Each has a scheduler of its own, which two threads could not share without a cache either."""
    other = copy.copy(pipe) if own else shared(pipe)
    other.scheduler = copy.deepcopy(pipe.scheduler)
    refused: list[Any] = []

    def intrude(*_: Any) -> None:
        if threading.current_thread() is threading.main_thread() and not refused:
            thread, result = in_thread(lambda: draw(other, seed=3))
            thread.join(30)
            refused.extend(result)

    def callback(_: Any, step: int, time: Any, tensors: Any) -> Any:
        if step == 2:
            intrude()
        return tensors

    if between:
        picture = draw(pipe, callback_on_step_end=callback)
    else:
        handle = pipe.transformer.transformer_blocks[0].register_forward_hook(intrude)
        picture = draw(pipe)
        handle.remove()
    assert [(type(error), str(error)) for error in refused] == [
        (
            RunError,
            "FluxTransformer2DModel: two threads are in this transformer at once, and its cache can only follow one; "
            "give each thread a pipeline with a transformer of its own",
        )
    ]
    assert same(picture, fresh())
    for _ in range(2):
        thread, result = in_thread(lambda: draw(other, seed=3))
        thread.join(30)
        assert same(result[0], fresh(seed=3))
        assert same(draw(pipe), fresh())
