"""Whether the audit's estimate ranks runs as their true errors do: rank correlation over mixed settings.

    python bench/estimate.py

The bundled model, 28 steps, float32: 52 settings (thresholds, masks, budgets, front and back blocks, DBPrune; held,
with TaylorSeer, with auto), each plain and with a true guidance scale of 4, on two pictures. The true error is the mean
square error against the same picture without caching. docs/experiments.md has what came of it.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from statistics import mean, median
from typing import Any, NamedTuple

import torch
from diffusers import FluxPipeline
from torchmetrics.functional import spearman_corrcoef

from cachedit_cli import (
    AutoCalibratorConfig,
    CalibratorConfig,
    DBCacheConfig,
    DBPruneConfig,
    TaylorSeerCalibratorConfig,
    cached,
    demo,
)
from cachedit_cli.terms.config import CacheConfig
from cachedit_cli.terms.estimate import estimate
from cachedit_cli.terms.mask import POLICIES

STEPS = 28
PICTURES = (("red heart on a white background", 0), ("cat face on a sky blue background", 1))
GUIDANCE: dict[str, dict[str, Any]] = {"plain": {}, "cfg 4": {"true_cfg_scale": 4.0, "negative_prompt": ""}}
SERIES = [TaylorSeerCalibratorConfig(taylorseer_order=order) for order in (1, 2)]
CALIBRATORS: tuple[CalibratorConfig | None, ...] = (None, *SERIES, AutoCalibratorConfig())


class Case(NamedTuple):
    kind: str
    cache: CacheConfig
    calibrator: CalibratorConfig | None


class Run(NamedTuple):
    """One picture: how it was made, what its audits say, and how far it is from the one without caching."""

    kind: str
    guidance: str
    case: int
    estimate: float
    verdict: str
    error: float


def cases() -> Iterator[Case]:
    pick = random.Random(5)
    for threshold, calibrator in itertools.product((0.06, 0.12, 0.16, 0.2, 0.3), CALIBRATORS):
        warmup = pick.choice((2, 4, 6))
        config = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=warmup, residual_diff_threshold=threshold)
        yield Case("threshold", config, calibrator)
    for policy, calibrator in itertools.product(POLICIES, (None, SERIES[0], CALIBRATORS[-1])):
        how: Any = pick.choice(("static", "static", "dynamic"))
        config = DBCacheConfig(
            Fn_compute_blocks=1,
            residual_diff_threshold=0.2,
            steps_computation_mask=policy,
            steps_computation_policy=how,
        )
        yield Case("mask", config, calibrator)
    for budget, calibrator in itertools.product((8, 11, 14), (SERIES[0], CALIBRATORS[-1])):
        yield Case("budget", DBCacheConfig(Fn_compute_blocks=1, budget=budget), calibrator)
    for front, back in ((4, 0), (1, 4), (8, 0), (8, 4)):
        config = DBCacheConfig(
            Fn_compute_blocks=front, Bn_compute_blocks=back, max_warmup_steps=4, residual_diff_threshold=0.15
        )
        yield Case("blocks", config, None)
    for threshold, calibrator in itertools.product((0.06, 0.1, 0.15, 0.2, 0.3), (None, CALIBRATORS[-1])):
        prune = DBPruneConfig(
            Fn_compute_blocks=pick.choice((1, 4)),
            max_warmup_steps=pick.choice((2, 4, 8)),
            residual_diff_threshold=threshold,
            enable_dynamic_prune_threshold=pick.random() < 0.3,
        )
        yield Case("prune", prune, calibrator)


def picture(pipe: Any, prompt: str, seed: int, guidance: dict[str, Any]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    made = pipe(
        prompt,
        num_inference_steps=STEPS,
        generator=generator,
        output_type="pt",
        **demo.DEFAULTS,
        **guidance,
    ).images[0]
    assert isinstance(made, torch.Tensor)
    return made


def rank_correlation(estimates: list[float], errors: list[float]) -> float:
    return float(spearman_corrcoef(torch.tensor(estimates), torch.tensor(errors)))


def psnr(error: float) -> float:
    return -10 * math.log10(max(error, 1e-12))


def report(runs: list[Run]) -> None:
    groups = {"all": runs}
    groups |= {name: [run for run in runs if run.guidance == name] for name in GUIDANCE}
    groups |= {kind: [run for run in runs if run.kind == kind] for kind in dict.fromkeys(run.kind for run in runs)}
    print("\nSpearman     runs  single  mean of the pictures")
    for name, mine in groups.items():
        averaged: dict[tuple[int, str], list[Run]] = {}
        for run in mine:
            averaged.setdefault((run.case, run.guidance), []).append(run)
        single = rank_correlation([run.estimate for run in mine], [run.error for run in mine])
        over = rank_correlation(
            [mean(run.estimate for run in each) for each in averaged.values()],
            [mean(run.error for run in each) for each in averaged.values()],
        )
        print(f"{name:10s}  {len(mine):5d}  {single:6.3f}  {over:6.3f}")
    print("\nverdict                                     runs  PSNR least  median   most")
    for verdict in dict.fromkeys(run.verdict for run in sorted(runs, key=lambda run: run.estimate)):
        found = [psnr(run.error) for run in runs if run.verdict == verdict]
        print(f"{verdict:42s}  {len(found):4d}  {min(found):10.1f}  {median(found):6.1f}  {max(found):5.1f}")


def main() -> None:
    pipe = FluxPipeline.from_pretrained(demo.path(), torch_dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    every = [(name, *given) for name in GUIDANCE for given in PICTURES]
    plain = {(name, prompt): picture(pipe, prompt, seed, GUIDANCE[name]) for name, prompt, seed in every}
    runs: list[Run] = []
    for number, case in enumerate(cases()):
        for name, prompt, seed in every:
            with cached(pipe, case.cache, case.calibrator) as cache:
                made = picture(pipe, prompt, seed, GUIDANCE[name])
            found = estimate(cache.log.generation())
            error = float((made - plain[name, prompt]).square().mean())
            runs.append(Run(case.kind, name, number, found.error or 0.0, found.verdict, error))
            print(
                f"{number:3d}  {case.kind:9s}  {name:5s}  estimate {runs[-1].estimate:.3f}  {psnr(error):5.1f} dB",
                flush=True,
            )
    report(runs)


if __name__ == "__main__":
    main()
