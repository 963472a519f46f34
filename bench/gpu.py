"""What caching gains and costs on a GPU: a transformer of FLUX.1-dev's real size, side by side in one run.

    python bench/gpu.py --markdown gpu.md    # one CUDA device with 48 GB of memory; about three minutes on an H100
    python bench/gpu.py --small              # a tiny model on the CPU, to see that it runs; its numbers mean nothing

Random weights made on the device (nothing is downloaded), 4096 image and 512 text tokens, bfloat16, 28 steps of
diffusers' own FluxPipeline without text encoders and decoder. All cases take turns, every second round in the reverse
order, so that a device that grows warm does not decide; the median over the rounds counts.

*Calls* are counted at the blocks, inside of what caches and outside of what compiles, for both packages alike. *Ideal*
is the time of all block calls over that of the calls made, double and single blocks each at its own measured time; what
is outside of the blocks counts against us. *Realised* is the plain generation's time over the case's, by the wall clock
from an idle device to an idle device. Compiled cases are compared with the plain compiled model and its blocks' times.

*Decision to next kernel*: a measured decision copies one number to the host, and nothing is queued behind it. In a
profiler's trace of such steps this is the time from the end of the last kernel before that copy to the start of the
next kernel after it: the copy, the host's wake-up, the rule, and the launch. The device is idle for that long.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import itertools
import math
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

import cachedit_cli
from cachedit_cli import DBCacheConfig, DBPruneConfig, TaylorSeerCalibratorConfig, cached
from cachedit_cli.patches import CallPatch
from cachedit_cli.stopwatch import Stopwatch
from cachedit_cli.terms.config import CacheConfig, CalibratorConfig
from cachedit_cli.terms.mask import POLICIES

# Installing maps `adapters` into the package; where only PYTHONPATH leads to a checkout, this does.
cachedit_cli.__path__.append(str(Path(cachedit_cli.__file__).parents[1]))

KINDS = ("transformer_blocks", "single_transformer_blocks")
SMALL: dict[str, Any] = {
    "num_layers": 2,
    "num_single_layers": 4,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (4, 6, 6),
}


@dataclass(frozen=True)
class Case:
    """One way of running the model; without settings the plain one.

    Attributes:
        model: ``eager``, ``compiled``, or ``peer``, an eager one which the peer's patches may stay in.
    """

    name: str
    config: CacheConfig | None = None
    calibrator: CalibratorConfig | None = None
    model: str = "eager"


@dataclass
class Result:
    """What was measured of a case. Bytes are None where nothing tells."""

    seconds: list[float] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)  # of one generation
    peak: int | None = None  # bytes above what was allocated before the generation
    held: int | None = None  # bytes kept between steps, at most
    graphs: int = 0  # compiled in this case's runs


def cases(front: int, peer: bool) -> list[Case]:
    """Return what is compared, the plain model first."""

    def masked(policy: str, how: Any = "static", threshold: float = 0.12) -> CacheConfig:
        return DBCacheConfig(
            Fn_compute_blocks=1,
            residual_diff_threshold=threshold,
            steps_computation_mask=policy,
            steps_computation_policy=how,
        )

    taylor = TaylorSeerCalibratorConfig(taylorseer_order=1)
    found = [Case("plain")]
    found += [Case(f"{policy}, static", masked(policy)) for policy in POLICIES]
    found += [Case(f"{policy}, dynamic, threshold 1", masked(policy, "dynamic", 1.0)) for policy in POLICIES]
    found.append(Case("fast, static, TaylorSeer", masked("fast"), taylor))
    measured = DBCacheConfig(
        Fn_compute_blocks=front, residual_diff_threshold=0.12, max_warmup_steps=8, max_continuous_cached_steps=3
    )
    found.append(Case(f"F{front}B0, threshold 0.12", measured))
    pruned = DBPruneConfig(Fn_compute_blocks=front, residual_diff_threshold=0.12, max_warmup_steps=8)
    found.append(Case(f"DBPrune F{front}B0, 0.12", pruned))
    found.append(Case("plain, compiled", model="compiled"))
    found += [Case(f"{policy}, static, compiled", masked(policy), model="compiled") for policy in POLICIES]
    if peer:
        found.append(Case("peer: fast, static", masked("fast"), model="peer"))
        found.append(Case("peer: fast, static, TaylorSeer", masked("fast"), taylor, model="peer"))
        found.append(Case(f"peer: F{front}B0, threshold 0.12", measured, model="peer"))
    return found


# ---------------------------------------------------------------------------------------------------- model and inputs


def transformer(small: bool, device: torch.device) -> Any:
    """Return a FLUX transformer with random weights that keep activations at a size of about one."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(guidance_embeds=True, **(SMALL if small else {}))
    model = model.to(torch.float32 if device.type == "cpu" else torch.bfloat16).to_empty(device=device).eval()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, weight.shape[1] ** -0.5, generator=generator)
            else:
                weight.fill_(1.0 if name.endswith("weight") else 0.0)  # norms; biases
        # As in trained models, the time changes the modulation only a little from step to step: the front residual by
        # about 0.07, which the threshold of 0.12 reuses, but not for long.
        model.time_text_embed.timestep_embedder.linear_2.weight.mul_(0.1)
    return model.requires_grad_(False)


def pipeline(model: Any) -> Any:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    rest = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipe = FluxPipeline(scheduler=scheduler, transformer=model, **rest)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def inputs(model: Any, small: bool) -> dict[str, Any]:
    """Return the arguments of a generation: everything that text encoders and noise would have given."""
    side, words, config = (128, 8, model.config) if small else (1024, 512, model.config)
    generator = torch.Generator(model.device).manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=model.device, dtype=model.dtype)

    return {
        "prompt_embeds": noise(1, words, config.joint_attention_dim),
        "pooled_prompt_embeds": noise(1, config.pooled_projection_dim),
        "latents": noise(1, (side // 16) ** 2, config.in_channels),
        "height": side,
        "width": side,
        "output_type": "latent",
        "return_dict": False,
    }


class Meter:
    """Counts the block calls that are made, and takes the time of each where asked to."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self.calls: Counter[str] = Counter()
        self.watches: dict[str, list[Stopwatch]] | None = None
        self._device = device
        self._patches = [CallPatch(b, partial(self._metered, kind)) for kind in KINDS for b in getattr(model, kind)]

    def _metered(self, kind: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[kind] += 1
            if self.watches is None:
                return inner(*args, **kwargs)
            watch = Stopwatch(self._device)
            output = inner(*args, **kwargs)
            watch.stop()
            self.watches[kind].append(watch)
            return output

        return call


# ----------------------------------------------------------------------------------------------------------- measuring


class Bench:
    """The model, as it is, with compiled blocks, and for the peer, all on the same weights; and what was measured."""

    def __init__(self, small: bool, device: torch.device, steps: int, peer: bool) -> None:
        self.small, self.device, self.steps = small, device, steps
        self.peer = importlib.import_module("cache_dit") if peer else None
        model = transformer(small, device)
        names = ["eager", "compiled", *(["peer"] if peer else [])]
        twins = {name: copy.deepcopy(model, {id(weight): weight for weight in model.parameters()}) for name in names}
        twins["compiled"].compile_repeated_blocks(fullgraph=True, backend="eager" if small else "inductor")
        self.pipes = {name: pipeline(twin) for name, twin in twins.items()}
        self.meters = {name: Meter(twin, device) for name, twin in twins.items()}
        self.arguments = inputs(model, small)
        self.cases = cases(1 if small else 8, peer)
        self.results = {case.name: Result() for case in self.cases}
        self.costs: dict[str, dict[str, float]] = {}  # milliseconds of one block, by model and kind
        self.notes: list[str] = []

    def generate(self, model: str, steps: int | None = None) -> None:
        (latents,) = self.pipes[model](num_inference_steps=steps or self.steps, **self.arguments)
        if not torch.isfinite(latents).all():
            raise RuntimeError("the random model's output is not finite, so that its decisions mean nothing")

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def warm_up(self) -> None:
        """Run every case shortly, so that kernels are chosen, blocks compiled, memory taken; take the blocks' times."""
        for model, meter in self.meters.items():
            began = time.perf_counter()
            self.generate(model, 3)
            self.wait()
            first = time.perf_counter() - began
            meter.watches = {kind: [] for kind in KINDS}
            self.generate(model, 4)
            times = {kind: statistics.median(w.item() for w in watches) for kind, watches in meter.watches.items()}
            meter.watches, self.costs[model] = None, times
            both = ", ".join(f"{kind} {ms:.3f} ms" for kind, ms in times.items())
            self.notes.append(f"{model}: first three steps {first:.1f} s; then a block of {both}")
        for case in self.cases:
            self.run(case, 4)
            self.results[case.name].seconds.clear()

    def run(self, case: Case, steps: int | None = None) -> None:
        """Run a case once."""
        result, meter, graphs = self.results[case.name], self.meters[case.model], compiled_graphs()
        with self._caching(case) as cache:
            meter.calls.clear()
            self.wait()
            before = self._allocated(reset=True)
            began = time.perf_counter()
            self.generate(case.model, steps)
            self.wait()
            result.seconds.append(time.perf_counter() - began)
            result.calls = Counter(meter.calls)
            result.graphs += compiled_graphs() - graphs
            if before is not None:
                result.peak = torch.cuda.max_memory_allocated(self.device) - before
            if cache is not None:
                held: Counter[tuple[int, str]] = Counter()
                for row in cache.log.generation():
                    held[row.step, row.branch] += row.bytes
                result.held = max(held.values())

    def _allocated(self, reset: bool) -> int | None:
        if self.device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device)

    def _caching(self, case: Case) -> Any:
        if case.config is None:
            return nullcontext()
        pipe = self.pipes[case.model]
        return self._peer(pipe, case) if case.model == "peer" else cached(pipe, case.config, case.calibrator)

    @contextmanager
    def _peer(self, pipe: Any, case: Case) -> Iterator[None]:
        package, mine = self.peer, case.config
        assert package is not None
        assert mine is not None
        names = ("Fn_compute_blocks", "residual_diff_threshold", "max_warmup_steps", "max_continuous_cached_steps")
        settings = {name: getattr(mine, name) for name in names} | {"num_inference_steps": self.steps}
        if mine.steps_computation_mask is not None:
            bits = cachedit_cli.steps_mask(mask_policy=str(mine.steps_computation_mask), total_steps=self.steps)
            settings |= {"steps_computation_mask": bits, "steps_computation_policy": mine.steps_computation_policy}
        order = package.TaylorSeerCalibratorConfig(taylorseer_order=1) if case.calibrator is not None else None
        config = package.DBCacheConfig(**settings)
        package.enable_cache(pipe, cache_config=config, calibrator_config=order)
        try:
            yield
        finally:
            package.disable_cache(pipe)

    def decision_gap(self) -> None:
        """Note how long the device idles after a measured decision."""
        if self.device.type != "cuda":
            self.notes.append("decision to next kernel: needs CUDA")
            return
        config = DBCacheConfig(
            Fn_compute_blocks=1, residual_diff_threshold=0.5, max_warmup_steps=1, max_continuous_cached_steps=2
        )
        activities = [torch.profiler.ProfilerActivity.CUDA]  # without the host's, which would slow the launches
        with cached(self.pipes["eager"], config) as cache:
            with torch.profiler.profile(activities=activities) as profile:
                self.pipes["eager"](num_inference_steps=8, **self.arguments)
                self.wait()
            events = [
                (event.name, event.time_range.start, event.time_range.end)
                for event in profile.events()
                if event.device_type == torch.autograd.DeviceType.CUDA
            ]
            gaps = idle_after_decisions(events)
            rows = [row for row in cache.log.generation() if row.diff is not None]
        reused = sum(row.decision == "reuse" for row in rows)
        typical = f"median {statistics.median(gaps):.0f} us, largest {max(gaps):.0f} us" if gaps else "no copy was seen"
        self.notes.append(
            f"decision to next kernel: {typical}; {len(gaps)} copies to the host in {len(rows)} measured steps, "
            f"{reused} of them reused"
        )

    # ------------------------------------------------------------------------------------------------------- reporting

    def work(self, case: Case) -> float:
        """Return the milliseconds that the blocks of a case's calls take."""
        costs = self.costs["compiled" if case.model == "compiled" else "eager"]
        return sum(costs[kind] * self.results[case.name].calls[kind] for kind in KINDS)

    def row(self, case: Case) -> list[str]:
        result = self.results[case.name]
        plain = next(
            c for c in self.cases if c.config is None and (c.model == "compiled") == (case.model == "compiled")
        )
        base = self.results[plain.name]
        if not result.seconds or not base.seconds:
            return [case.name, *["-"] * (len(HEADER) - 1)]
        pairs = zip(base.seconds, result.seconds, strict=False)
        realised, ideal = statistics.median(a / b for a, b in pairs), self.work(plain) / self.work(case)
        return [
            case.name,
            f"{statistics.median(result.seconds):.3f}",
            "+".join(str(result.calls[kind]) for kind in KINDS),
            f"{ideal:.2f}",
            f"{realised:.2f}",
            f"{realised / ideal:.1%}",
            f"{result.peak / 2**20:.0f}" if result.peak is not None else "-",
            f"{result.held / 2**20:.4g}" if result.held is not None else "-",
            str(result.graphs) if case.model == "compiled" else "-",
        ]

    def table(self) -> list[list[str]]:
        return [list(HEADER), *(self.row(case) for case in self.cases)]

    def conditions(self) -> list[str]:
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.processor()
        return [
            f"{device or platform.machine()}; torch {torch.__version__}, diffusers {diffusers.__version__}, "
            f"cachedit {cachedit_cli.__version__}"
            + (f", cache-dit {getattr(self.peer, '__version__', '?')}" if self.peer is not None else ""),
            f"python {' '.join(sys.argv)}",
            f"{self.steps} steps, rounds: {min(len(result.seconds) for result in self.results.values())}",
            *self.notes,
        ]


HEADER = ("case", "s", "calls", "ideal", "realised", "share", "peak MiB", "held MiB", "new graphs")


def compiled_graphs() -> int:
    """Return how many graphs dynamo has made so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def idle_after_decisions(events: Sequence[tuple[str, float, float]]) -> list[float]:
    """Return, for each copy to the host, the time from the end of the work before it to the start of the work after.

    Args:
        events: What ran on the device, as (name, start, end) in any order and one unit of time.
    """
    ordered, gaps, busy = sorted(events, key=lambda event: event[1]), [], -math.inf
    for (name, _, end), (_, following, _) in itertools.pairwise(ordered):
        if "DtoH" in name and busy > -math.inf:
            gaps.append(following - busy)
        busy = max(busy, end)
    return gaps


def aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)


def markdown(rows: Sequence[Sequence[str]], conditions: Sequence[str]) -> str:
    head, *body = rows
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---", *["---:"] * (len(head) - 1)], *body)]
    return "\n".join([*lines, "", *(f"- {text}" for text in conditions), ""])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2, help="rounds, each of which runs every case once")
    parser.add_argument("--steps", type=int, default=28, help="of a generation")
    parser.add_argument("--small", action="store_true", help="a tiny model; always so without CUDA")
    parser.add_argument("--peer", action="store_true", help="also run cache-dit, which has to be installed")
    parser.add_argument("--markdown", type=Path, help="file that is written anew after every generation")
    options = parser.parse_args(arguments)
    if options.peer and importlib.util.find_spec("cache_dit") is None:
        parser.error("--peer: cache-dit is not installed; pip install cache-dit==1.5.3")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench(options.small or device.type == "cpu", device, options.steps, options.peer)

    def write() -> None:
        if options.markdown is not None:
            options.markdown.write_text(markdown(bench.table(), bench.conditions()), encoding="utf-8")

    bench.warm_up()
    bench.decision_gap()
    print(*bench.notes, sep="\n", flush=True)
    for number in range(options.repeats):
        for case in bench.cases if number % 2 == 0 else reversed(bench.cases):
            bench.run(case)
            print(f"round {number + 1}: {case.name}: {bench.results[case.name].seconds[-1]:.3f} s", flush=True)
            write()
        print(aligned(bench.table()), *bench.conditions(), sep="\n", flush=True)


if __name__ == "__main__":
    main()
