"""Real pipelines for a few steps: branches, steps and generations are recognised, and what is computed is exactly
what should be; the pictures are those of a brute-force loop in the place of the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cachedit_cli import registry
from cachedit_cli.api import cached
from cachedit_cli.terms.config import DBCacheConfig
from tests.adapters.brute_force import Hold, counted, distance, identical, units
from tests.adapters.modular import MODULAR
from tests.adapters.pipelines import BUILDERS, anyflow_far
from tests.adapters.pipelines_more import MORE
from tests.adapters.pipelines_new import NEW, sana_wm_refiner
from tests.tiny_models import tensors
from tests.tiny_models.parts import installed, numbers

pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning"),  # Chroma
    pytest.mark.filterwarnings("ignore:Initializing zero-element tensors"),
    pytest.mark.filterwarnings("ignore:In CPU autocast, but the target dtype"),  # Mochi
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # DPMSolver with NumPy 2
    pytest.mark.filterwarnings("ignore:.LoraLoaderMixin. is deprecated:FutureWarning"),  # PRX
]

OLDEST = installed() == numbers(registry.OLDEST_DIFFUSERS)
STEPS = 6
ONE = {("transformer", "0"): "C·····"}
TWO = ONE | {("transformer", "1"): "C·····"}
NAMED = {("transformer", "cond"): "C·····", ("transformer", "uncond"): "C·····"}
BOTH = {("transformer", "cond_uncond"): "C·····"}
GUIDER = {("transformer", "pred_cond"): "C·····", ("transformer", "pred_uncond"): "C·····"}

Strips = dict[tuple[str, str], str]

#: What each branch of a transformer does at each step: computes (C), reuses (·), or is not called. In the order of the
#: forwards, and one entry for each loop where a pipeline has several.
EXPECTED: dict[str, Strips | list[Strips]] = {
    "ace_step": ONE,
    "ace_step_guided_for_a_part": {  # the batch is twice as large for two steps
        ("transformer", "0"): "C··  ·",
        ("transformer", "1"): "   C· ",
    },
    "allegro": ONE,
    "anyflow": {("transformer", "0"): "CC····"},  # the first step has no guidance, and half the batch
    "auraflow": ONE,
    "bria": ONE,
    "bria_fibo": ONE,
    "bria_fibo2": TWO,
    "chroma": TWO,
    "chronoedit": {
        ("transformer", "0"): "C·C···",
        ("transformer", "1"): "C·C···",
    },  # fewer frames from the third step on
    "cogvideox": BOTH,
    "cogview3_plus": ONE,
    "cogview4": NAMED,
    "consisid": ONE,
    "cosmos": TWO,
    "cosmos3": NAMED,
    "dit": ONE,
    "easyanimate": ONE,
    "ernie_image": ONE,
    "flux": {("transformer", "cond"): "C·····"},
    "flux2_klein": NAMED,
    "flux_controlnet": ONE,
    "flux_kontext": TWO,
    "flux_true_cfg": NAMED,
    "framepack": [TWO, TWO],
    "glm_image": TWO,
    "glm_image_with_two_equal_images": [{("transformer", "0"): "C", ("transformer", "1"): "C"}, TWO],
    "helios": NAMED,
    "hidream": ONE,
    "hunyuan_dit": ONE,
    "hunyuan_image": {("transformer", "pred_cond"): "C·····", ("transformer", "pred_uncond"): "C·····"},
    "hunyuan_image_three_branches": {**GUIDER, ("transformer", "pred_cond_skip"): "  C·  "},
    "hunyuan_video": {("transformer", "cond"): "C·····"},
    "hunyuan_video_15_guided_for_a_part": {
        ("transformer", "pred_cond"): "C·····",
        ("transformer", "pred_uncond"): "C··   ",
    },
    "hunyuan_video_true_cfg": NAMED,
    "ideogram4": {("transformer", "0"): "C·····", ("unconditional_transformer", "0"): "C·····"},
    "joyimage_edit": TWO,
    "joyimage_edit_plus": ONE,
    "kandinsky5": TWO,
    "kandinsky6": NAMED,
    "kandinsky6_sr": [ONE, ONE],
    "kandinsky_prior": {("prior", "0"): "C·····"},
    "krea2": TWO,
    "latte": ONE,
    "longcat_audio": TWO,
    "longcat_image": NAMED,
    "ltx2": {("transformer", "cond_uncond"): "C·····"}
    | {("transformer", f"uncond_{each}"): "C·····" for each in ("stg", "modality")},
    "ltx_video": BOTH,
    "lumina": ONE,
    "lumina2": {("transformer", "0"): "C·····", ("transformer", "1"): "C··   "},
    "mochi": BOTH,
    "motif_video": GUIDER,
    "nucleus": TWO,
    "omnigen": ONE,
    "ovis_image": NAMED,
    "pixart": ONE,
    "prx": ONE,
    "qwen_image": NAMED,
    "qwen_image_21": NAMED,
    "qwen_image_21_with_its_kv_cache": {  # fewer tokens from the second step on
        ("transformer", "cond"): "CC····",
        ("transformer", "uncond"): "CC····",
    },
    "qwen_image_controlnet": NAMED,
    "qwen_image_without_guidance": {("transformer", "cond"): "C·····"},
    "sana": ONE,
    "sana_controlnet": ONE,
    "sana_video": ONE,
    "sana_wm": ONE,
    "sd3": ONE,
    "sd3_controlnet": ONE,
    "sd3_skip_layers": {("transformer", "0"): "C·····", ("transformer", "1"): " C··· "},
    "shap_e": {("prior", "0"): "C··········"},
    "skyreels_v2": TWO if OLDEST else NAMED,
    "stable_audio": ONE,
    "stable_audio_3": ONE,
    "wan_22": {
        ("transformer", "cond"): "C··   ",
        ("transformer", "uncond"): "C··   ",
        ("transformer_2", "cond"): "   C··",
        ("transformer_2", "uncond"): "   C··",
    },
    "wan_animate": [NAMED, NAMED],
    "wan_vace": NAMED,
    "wan_video_to_video": TWO,
    "z_image_truncated": {  # the batch becomes smaller
        ("transformer", "0"): "C··   " if OLDEST else "C···  ",
        ("transformer", "1"): "   C··" if OLDEST else "    C·",
    },
}


def loops(name: str) -> list[Strips]:
    """Return what is expected of each loop of one call."""
    expected = EXPECTED[name]
    return expected if isinstance(expected, list) else [expected]


class Referee:
    """Stands in for the cache: knows which branch each forward is, and holds what should be held."""

    def __init__(self, name: str, pipe: Any) -> None:
        self._handles: list[Any] = []
        for part in dict.fromkeys(part for loop in loops(name) for part, _ in loop):
            model: nn.Module = getattr(pipe, part)
            held: dict[str, list[Hold]] = {}
            forwards = []
            for loop in loops(name):
                strips = {branch: strip for (owner, branch), strip in loop.items() if owner == part}
                for marks in zip(*strips.values(), strict=True):
                    forwards += [(branch, mark) for branch, mark in zip(strips, marks, strict=True) if mark != " "]
                held |= {branch: [] for branch in strips}
            for branch in held:
                held[branch] = [Hold(unit, 1, 0, active=False) for unit in units(model, _adapter(model))]
                for each in held[branch]:
                    self._handles += each.hooks()
            self._handles.append(model.register_forward_pre_hook(self._turn(iter(forwards), held)))

    @staticmethod
    def _turn(forwards: Iterator[tuple[str, str]], held: dict[str, list[Hold]]) -> Any:
        def turn(*_: object) -> None:
            branch, mark = next(forwards)
            for name, every in held.items():
                for each in every:
                    each.active, each.reuse = name == branch, mark == "·"

        return turn

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def settings(threshold: float) -> DBCacheConfig:
    return DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, residual_diff_threshold=threshold, max_warmup_steps=1
    )


def run(pipe: Any, call: dict[str, Any]) -> list[Tensor]:
    torch.manual_seed(0)  # ControlNet pipelines of SD3 draw from the VAE without the generator
    generator = torch.Generator().manual_seed(0)
    call = {"output_type": "latent", **call}
    output = pipe(**call, num_inference_steps=STEPS, generator=generator, return_dict=False)
    if isinstance(output, tuple):  # DiT knows no latent output
        output = tuple(torch.from_numpy(each) if isinstance(each, np.ndarray) else each for each in output)
    found = list(tensors(output))
    assert found
    return found


def strips_of(rows: Any, context: str, steps: int = STEPS) -> Strips:
    marks: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.context == context:
            strip = marks.setdefault((context.partition(".")[0], row.branch), [" "] * steps)
            strip[row.step] = "·" if row.saved else "C"
    return {key: "".join(strip) for key, strip in marks.items()}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_pipeline_is_followed_and_draws_what_brute_force_draws(name: str) -> None:
    expected = loops(name)
    pipe, call = (BUILDERS | MORE | NEW)[name]()
    plain = run(pipe, call)
    with cached(pipe, settings(0.0)):
        assert identical(run(pipe, call), plain)
    parts = {part: getattr(pipe, part) for loop in expected for part, _ in loop}
    every = {part: units(model, _adapter(model)) for part, model in parts.items()}
    with counted(unit for found in every.values() for unit in found) as calls, cached(pipe, settings(1.0)) as cache:
        first = run(pipe, call)
        computed, calls[0] = calls[0], 0
        assert identical(run(pipe, call), first)
        assert calls[0] == computed
    assert {row.generation for row in cache.log.rows} == set(range(2 * len(expected)))
    for generation, loop in enumerate(expected * 2):
        rows = [row for row in cache.log.rows if row.generation == generation]
        for info in cache.log.contexts:
            part = info.name.partition(".")[0]
            mine = {key: strip for key, strip in loop.items() if key[0] == part}
            assert strips_of(rows, info.name, len(next(iter(mine.values())))) == mine
    should = 0
    for (part, branch), strip in (item for loop in expected for item in loop.items()):
        left_out = 1 if name == "sd3_skip_layers" and branch == "1" else 0
        should += strip.count("C") * (sum(len(unit.blocks) for unit in every[part]) - left_out)
        should += strip.count("·") * len(every[part])
    assert computed == should
    referee = Referee(name, pipe)
    try:
        right = run(pipe, call)
    finally:
        referee.remove()
    assert distance(first, right) < 1e-4
    assert distance(first, plain) > 1e-3


def test_forwards_that_fill_a_kv_cache_are_no_steps_and_are_computed() -> None:
    """Else the blocks that are left out would hand nothing on to the next chunk."""
    pipe, call = anyflow_far()
    with cached(pipe, settings(1.0)) as cache:
        first = run(pipe, call)
        assert identical(run(pipe, call), first)
    strips = []
    for generation in range(6):  # three chunks in each of two videos
        rows = [row for row in cache.log.rows if row.generation == generation]
        strips.append({branch: strip for (_, branch), strip in strips_of(rows, "transformer.blocks", 7).items()})
    chunk = {"0": "C····· ", "1": "      C"}
    assert strips == [chunk, chunk, {"0": "C····· "}] * 2


def test_a_refiner_fills_its_kv_cache_in_forwards_of_its_own_and_each_window_begins_anew() -> None:
    pipe, call = sana_wm_refiner()

    def refined() -> Tensor:
        video = pipe(**call, generator=torch.Generator().manual_seed(0), output_type="latent")
        assert isinstance(video, Tensor)
        return video

    plain = refined()
    with cached(pipe, settings(0.0)):
        assert torch.equal(refined(), plain)
    with cached(pipe, settings(1.0)) as cache:
        first = refined()
        assert torch.equal(refined(), first)
    assert not torch.equal(first, plain)
    (context,) = cache.log.contexts
    strips = []
    for generation in range(6):  # the first frame and two windows, twice
        rows = [row for row in cache.log.rows if row.generation == generation]
        strips.append({branch: strip for (_, branch), strip in strips_of(rows, context.name, 5).items()})
    assert strips == [{"0": "C    "}, *[{"0": "C··· ", "1": "    C"}] * 2] * 2


@pytest.mark.skipif(OLDEST, reason="the oldest diffusers lacks the families that came later")
def test_every_registered_class_runs_in_a_pipeline_of_these_tests() -> None:
    """There is none whose pipeline cannot be assembled from tiny parts."""
    more = {"anyflow_far": anyflow_far, "sana_wm_refiner": sana_wm_refiner}
    pipes = [build()[0] for build in (BUILDERS | MORE | NEW | MODULAR | more).values()]
    parts = ("transformer", "transformer_2", "unconditional_transformer", "prior")
    run = {type(getattr(pipe, part, None)).__name__ for pipe in pipes for part in parts}
    assert [each.transformer for each in registry.all_adapters() if each.transformer not in run] == []


def _adapter(model: nn.Module) -> registry.ModelAdapter:
    adapter = registry.find(type(model).__name__)
    assert adapter is not None
    return adapter
