"""What only a CUDA device can show, on the bundled model: no needless waits, memory given back, transfers not made.

python -m pytest -m gpu tests/test_gpu.py
"""

from __future__ import annotations

import gc
import json
import math
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cachedit_cli import AutoCalibratorConfig, DBCacheConfig, TaylorSeerCalibratorConfig, cached, demo
from cachedit_cli.cli import main
from cachedit_cli.engine.install import installed
from cachedit_cli.terms.config import CacheConfig
from tests.tiny import snapshot

pytestmark = pytest.mark.gpu

STEPS = 12
CUDA = torch.device("cuda")


def loaded(dtype: torch.dtype) -> Any:
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(demo.path(), torch_dtype=dtype, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe() -> Any:
    return loaded(torch.bfloat16).to(CUDA)


def latents(pipe: Any, **settings: Any) -> torch.Tensor:
    given = {"num_inference_steps": STEPS, "output_type": "latent", **demo.DEFAULTS, **settings}
    made = pipe("red heart on a white background", generator=torch.Generator().manual_seed(3), **given).images
    assert isinstance(made, torch.Tensor)
    assert made.device.type == "cuda"
    return made


def static(policy: str = "ultra", **settings: Any) -> CacheConfig:
    return DBCacheConfig(
        Fn_compute_blocks=1, steps_computation_mask=policy, steps_computation_policy="static", **settings
    )


NEVER = DBCacheConfig(Fn_compute_blocks=1, residual_diff_threshold=0.0)
MEASURED = DBCacheConfig(Fn_compute_blocks=1, residual_diff_threshold=0.3, max_warmup_steps=2)


# ----------------------------------------------------------------------------------------------- the same, and restored


def test_never_reusing_is_bit_identical_in_bfloat16_and_everything_is_restored(pipe: Any) -> None:
    plain, before = latents(pipe), snapshot(pipe.transformer)
    with cached(pipe, NEVER):
        assert torch.equal(latents(pipe), plain)
    assert snapshot(pipe.transformer) == before


@pytest.mark.parametrize("config", [NEVER, static(), MEASURED], ids=["never", "static", "measured"])
def test_inference_mode_gives_what_no_grad_gives(pipe: Any, config: CacheConfig) -> None:
    with cached(pipe, config), torch.inference_mode():
        inside = latents(pipe)
    with cached(pipe, config):
        assert torch.equal(latents(pipe), inside)


@pytest.mark.filterwarnings(
    "ignore:Mismatch dtype between input and weight"
)  # autocast leaves the norms' weights alone
def test_autocast_is_as_right_as_without_caching() -> None:
    pipe = loaded(torch.float32).to(CUDA)
    with torch.autocast("cuda", torch.bfloat16):
        plain = latents(pipe)
        with cached(pipe, NEVER):
            assert torch.equal(latents(pipe), plain)
        with cached(pipe, static("slow")) as cache:
            near = latents(pipe)
    assert sum(row.saved for row in cache.log.rows) > 0
    assert (near - plain).abs().mean() < 0.1 * plain.abs().mean()


# ----------------------------------------------------------------------------------------------------- time and waiting


def test_rows_tell_the_milliseconds_of_the_device(pipe: Any) -> None:
    with cached(pipe, static()) as cache:
        torch.cuda.synchronize()
        began = time.perf_counter()
        latents(pipe)
        torch.cuda.synchronize()
        whole = (time.perf_counter() - began) * 1000
    times = [row.ms for row in cache.log.generation()]
    assert len(times) == STEPS
    assert all(ms is not None and math.isfinite(ms) and ms > 0 for ms in times)
    assert sum(ms for ms in times if ms is not None) < whole


def waits(pipe: Any, **settings: Any) -> int:
    """Return how often the host waits for the device in one generation, as PyTorch counts it."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            latents(pipe, **settings)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing CUDA operation" in str(warning.message) for warning in caught)


def test_the_count_of_waits_sees_one() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            torch.ones((), device=CUDA).item()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert any("called a synchronizing CUDA operation" in str(warning.message) for warning in caught)


@pytest.mark.parametrize(
    ("calibrator", "audit"), [(None, True), (TaylorSeerCalibratorConfig(), False)], ids=["hold", "taylor, unaudited"]
)
def test_steps_of_a_static_mask_never_wait_for_the_device(
    pipe: Any, calibrator: TaylorSeerCalibratorConfig | None, audit: bool
) -> None:
    plain = waits(pipe)
    with cached(pipe, static("fast", audit=audit), calibrator) as cache:
        assert waits(pipe) == plain
    decisions = [row.decision for row in cache.log.generation()]
    assert "compute" in decisions
    assert "reuse" in decisions


def test_the_guard_of_forecasts_waits_once_for_each_score_and_once_for_each_forecast_at_most(pipe: Any) -> None:
    plain = waits(pipe)
    with cached(pipe, static("fast"), TaylorSeerCalibratorConfig()) as cache:
        more = waits(pipe) - plain
    assert more <= len(cache.log.generation())


def test_a_dynamic_mask_without_a_measurement_never_waits_either(pipe: Any) -> None:
    plain = waits(pipe)
    config = DBCacheConfig(Fn_compute_blocks=1, residual_diff_threshold=1.0, steps_computation_mask="fast")
    with cached(pipe, config):
        assert waits(pipe) == plain


def test_a_pipeline_that_names_no_branches_waits_once_in_a_generation_and_not_at_every_step(pipe: Any) -> None:
    """The first timestep is read; from then on the scheduler's count tells the steps apart."""
    from diffusers import FluxImg2ImgPipeline

    other = FluxImg2ImgPipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)
    start = {"image": Image.new("RGB", (64, 64), "red"), "strength": 1.0}
    plain = waits(other, **start)
    with cached(other, static("fast")) as cache:
        more = waits(other, **start) - plain
    decisions = [row.decision for row in cache.log.generation()]
    assert len(decisions) == STEPS
    assert "reuse" in decisions
    assert more <= 1


def test_a_measured_decision_waits_once(pipe: Any) -> None:
    plain = waits(pipe)
    with cached(pipe, MEASURED) as cache:
        more = waits(pipe) - plain
    measured = [row for row in cache.log.generation() if row.diff is not None]
    assert len(measured) > STEPS // 2
    assert more == len(measured)


# ------------------------------------------------------------------------------------------------------------- compiled


def test_compiled_blocks_are_compiled_once_for_computed_and_cached_steps() -> None:
    pipe = loaded(torch.bfloat16).to(CUDA)
    torch._dynamo.reset()
    pipe.transformer.compile_repeated_blocks(fullgraph=True)
    plain = latents(pipe)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for config in (static("fast"), MEASURED, static(Bn_compute_blocks=1)):
            with cached(pipe, config) as cache:
                latents(pipe)
            assert {row.decision for row in cache.log.rows} == {"compute", "reuse"}
        with cached(pipe, NEVER):
            assert torch.equal(latents(pipe), plain)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


# --------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    "calibrator",
    [None, TaylorSeerCalibratorConfig(taylorseer_order=2), AutoCalibratorConfig()],
    ids=["hold", "taylor", "auto"],
)
def test_what_is_kept_is_given_back_before_the_picture_is_decoded(pipe: Any, calibrator: Any) -> None:
    """Scores that nobody has read yet among it."""
    kept: list[int] = []

    def decodes(*_: Any) -> None:
        there = installed(pipe.transformer)
        assert there is not None
        kept.append(there.nbytes)

    handle = pipe.vae.decoder.register_forward_pre_hook(decodes)
    try:
        with cached(pipe, static(), calibrator) as cache:
            for _ in range(2):  # the first call makes workspaces that stay
                gc.collect()
                before = torch.cuda.memory_allocated()
                pipe("cat face", num_inference_steps=STEPS, output_type="np", **demo.DEFAULTS)
            gc.collect()
            assert torch.cuda.memory_allocated() <= before
            assert max(row.bytes for row in cache.log.rows) > 0
            assert all(
                row.audit is not None for row in cache.log.generation() if row.reason == "mask" and row.saved == 0
            )
    finally:
        handle.remove()
    assert kept == [0, 0]


@contextmanager
def transfers() -> Iterator[list[str]]:
    """Collect the names of the copies from host to device inside of the ``with``."""
    found: list[str] = []
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        yield found
        torch.cuda.synchronize()
    found += [event.name for event in profile.events() if "HtoD" in event.name]


@pytest.mark.parametrize("kind", ["sequential", "group"])
def test_blocks_that_are_reused_are_not_moved_to_the_device(kind: str) -> None:
    pipe = loaded(torch.float32)
    if kind == "sequential":
        pipe.enable_sequential_cpu_offload(device=CUDA)
    else:
        for name, part in pipe.components.items():
            if isinstance(part, torch.nn.Module) and name != "transformer":
                part.to(CUDA)
        pipe.transformer.enable_group_offload(
            onload_device=CUDA, offload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
        )
    plain = latents(pipe)
    with transfers() as all_of_them:
        latents(pipe)
    with cached(pipe, NEVER):
        assert torch.equal(latents(pipe), plain)
    with cached(pipe, static()) as cache, transfers() as fewer:
        latents(pipe)
    share = sum(row.saved for row in cache.log.rows) / sum(row.saved + row.computed for row in cache.log.rows)
    assert share > 0.3
    assert len(fewer) < (1 - 0.5 * share) * len(all_of_them)  # embedders and text encoders are moved in any case


@pytest.mark.parametrize(("level", "settings"), [("block_level", {"num_blocks_per_group": 1}), ("leaf_level", {})])
def test_group_offloading_with_streams_is_right_where_what_was_to_prefetch_is_skipped(
    level: str, settings: dict[str, int]
) -> None:
    pipe = loaded(torch.float32)
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module) and name != "transformer":
            part.to(CUDA)
    pipe.transformer.enable_group_offload(
        onload_device=CUDA, offload_device=torch.device("cpu"), offload_type=level, use_stream=True, **settings
    )
    plain = latents(pipe)
    with cached(pipe, NEVER):
        assert torch.equal(latents(pipe), plain)
    reusing = static(Bn_compute_blocks=1)
    with cached(pipe, reusing):
        streamed = latents(pipe)
    assert torch.equal(latents(pipe), plain)
    pipe = loaded(torch.float32).to(CUDA)
    with cached(pipe, reusing):
        assert torch.equal(streamed, latents(pipe))


# ----------------------------------------------------------------------------------------------------- the command line


def told(caught: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> Any:
    """Run a command; return its JSON document."""
    assert main([*arguments, "--json", "--output-dir", str(folder)]) == 0
    return json.loads(caught.readouterr().out)


def test_run_draws_on_cuda_what_it_draws_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The noise of a seed is made on the CPU, so that only rounding differs."""
    pictures = []
    for device in ("cuda", "cpu"):
        facts = told(capsys, tmp_path, "run", "demo", "--device", device, "--set", "model.dtype=float32", "--no-cache")
        assert facts["environment"]["device"] == device
        with Image.open(Path(facts["folder"], facts["images"][0]["file"])) as picture:
            pictures.append(np.asarray(picture.convert("RGB"), dtype=np.float64))
    assert np.abs(pictures[0] - pictures[1]).mean() < 2  # of 255


def test_run_caches_on_cuda_and_tells_its_milliseconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = told(capsys, tmp_path, "run", "demo", "--device", "cuda")
    lines = Path(facts["folder"], "log.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for line in lines for row in json.loads(line)["rows"]]
    assert sum(row["saved"] for row in rows) > 0
    assert all(row["ms"] > 0 for row in rows)


def test_compare_tells_the_peak_memory_of_the_device_alone_on_stdout(tmp_path: Path) -> None:
    """In a process of its own: whatever the libraries of this environment print, stdout is the document."""
    command = ["compare", "demo", "--device", "cuda", "--steps", "8", "--no-fewer-steps", "--json"]
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "cachedit_cli", *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("{"), (done.stdout[:500], done.stderr[-1000:])
    peaks = [trial["peak_bytes"] for entry in json.loads(done.stdout)["entries"] for trial in entry["trials"]]
    assert peaks
    assert all(isinstance(peak, int) and peak > 2**20 for peak in peaks)
