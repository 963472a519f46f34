"""Real pipelines for a few steps: branches, steps and generations are recognised, and what is computed is exactly
what should be; the pictures are those of a brute-force loop in the place of the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cachedit_cli import registry
from cachedit_cli.api import cached
from cachedit_cli.terms.config import DBCacheConfig
from tests.adapters.brute_force import Hold, counted, distance, identical, units
from tests.adapters.pipelines import BUILDERS, anyflow_far
from tests.tiny_models import tensors

pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning"),  # Chroma
    pytest.mark.filterwarnings("ignore:Initializing zero-element tensors"),
    pytest.mark.filterwarnings("ignore:In CPU autocast, but the target dtype"),  # Mochi
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # DPMSolver with NumPy 2
    pytest.mark.filterwarnings("ignore:.LoraLoaderMixin. is deprecated:FutureWarning"),  # PRX
]

STEPS = 6
ONE = {("transformer", "0"): "C·····"}
TWO = ONE | {("transformer", "1"): "C·····"}
NAMED = {("transformer", "cond"): "C·····", ("transformer", "uncond"): "C·····"}
BOTH = {("transformer", "cond_uncond"): "C·····"}

#: What each branch of a transformer does at each step: computes (C), reuses (·), or is not called.
EXPECTED: dict[str, dict[tuple[str, str], str]] = {
    "anyflow": {("transformer", "0"): "CC····"},  # the first step has no guidance, and half the batch
    "auraflow": ONE,
    "bria": ONE,
    "chroma": TWO,
    "cogvideox": BOTH,
    "cogview3_plus": ONE,
    "cogview4": NAMED,
    "easyanimate": ONE,
    "flux": {("transformer", "cond"): "C·····"},
    "flux2_klein": NAMED,
    "flux_controlnet": ONE,
    "flux_true_cfg": NAMED,
    "glm_image": TWO,
    "hidream": ONE,
    "hunyuan_image": {("transformer", "pred_cond"): "C·····", ("transformer", "pred_uncond"): "C·····"},
    "hunyuan_video": {("transformer", "cond"): "C·····"},
    "hunyuan_video_15_guided_for_a_part": {
        ("transformer", "pred_cond"): "C·····",
        ("transformer", "pred_uncond"): "C··   ",
    },
    "hunyuan_video_true_cfg": NAMED,
    "kandinsky5": TWO,
    "krea2": TWO,
    "latte": ONE,
    "ltx_video": BOTH,
    "lumina2": {("transformer", "0"): "C·····", ("transformer", "1"): "C··   "},
    "mochi": BOTH,
    "nucleus": TWO,
    "pixart": ONE,
    "prx": ONE,
    "qwen_image": NAMED,
    "qwen_image_controlnet": NAMED,
    "qwen_image_without_guidance": {("transformer", "cond"): "C·····"},
    "sana": ONE,
    "sana_controlnet": ONE,
    "sana_video": ONE,
    "sd3": ONE,
    "sd3_controlnet": ONE,
    "sd3_skip_layers": {("transformer", "0"): "C·····", ("transformer", "1"): " C··· "},
    "skyreels_v2": NAMED,
    "wan_22": {
        ("transformer", "cond"): "C··   ",
        ("transformer", "uncond"): "C··   ",
        ("transformer_2", "cond"): "   C··",
        ("transformer_2", "uncond"): "   C··",
    },
    "z_image_truncated": {("transformer", "0"): "C···  ", ("transformer", "1"): "    C·"},
}


class Referee:
    """Stands in for the cache: knows which branch each forward is, and holds what should be held."""

    def __init__(self, name: str, pipe: Any) -> None:
        self._handles: list[Any] = []
        parts = sorted({part for part, _ in EXPECTED[name]})
        for part in parts:
            model: nn.Module = getattr(pipe, part)
            adapter = registry.find(type(model).__name__)
            assert adapter is not None
            held: dict[str, list[Hold]] = {}
            forwards = []
            strips = {branch: strip for (owner, branch), strip in EXPECTED[name].items() if owner == part}
            for step in range(STEPS):
                forwards += [(branch, strip[step]) for branch, strip in strips.items() if strip[step] != " "]
            for branch in strips:
                held[branch] = [Hold(unit, 1, 0, active=False) for unit in units(model, adapter)]
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
    output = pipe(**call, num_inference_steps=STEPS, output_type="latent", generator=generator, return_dict=False)
    return list(tensors(output))


def strips_of(rows: Any, context: str, steps: int = STEPS) -> dict[tuple[str, str], str]:
    marks: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.context == context:
            strip = marks.setdefault((context.partition(".")[0], row.branch), [" "] * steps)
            strip[row.step] = "·" if row.saved else "C"
    return {key: "".join(strip) for key, strip in marks.items()}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_pipeline_is_followed_and_draws_what_brute_force_draws(name: str) -> None:
    expected = EXPECTED[name]
    pipe, call = BUILDERS[name]()
    plain = run(pipe, call)
    with cached(pipe, settings(0.0)):
        assert identical(run(pipe, call), plain)
    parts = {part: getattr(pipe, part) for part, _ in expected}
    every = {part: units(model, _adapter(model)) for part, model in parts.items()}
    with counted(unit for found in every.values() for unit in found) as calls, cached(pipe, settings(1.0)) as cache:
        first = run(pipe, call)
        computed, calls[0] = calls[0], 0
        assert identical(run(pipe, call), first)
        assert calls[0] == computed
    assert {row.generation for row in cache.log.rows} == {0, 1}
    for generation in range(2):
        rows = [row for row in cache.log.rows if row.generation == generation]
        for info in cache.log.contexts:
            part = info.name.partition(".")[0]
            assert strips_of(rows, info.name) == {key: strip for key, strip in expected.items() if key[0] == part}
    should = 0
    for (part, branch), strip in expected.items():
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


def _adapter(model: nn.Module) -> registry.ModelAdapter:
    adapter = registry.find(type(model).__name__)
    assert adapter is not None
    return adapter
