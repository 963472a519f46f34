"""The estimate against the truth on the bundled model; bench/estimate.py does it over many more runs."""

from __future__ import annotations

from typing import Any

import torch
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

SERIES, AUTO = TaylorSeerCalibratorConfig(), AutoCalibratorConfig()


def picture(pipe: Any, steps: int, **settings: Any) -> torch.Tensor:
    made = pipe(
        "red heart on a white background",
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
        **demo.DEFAULTS,
        **settings,
    ).images
    assert isinstance(made, torch.Tensor)
    return made


def below(threshold: float, warmup: int = 2) -> DBCacheConfig:
    return DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=warmup, residual_diff_threshold=threshold)


def static(policy: str) -> DBCacheConfig:
    return DBCacheConfig(Fn_compute_blocks=1, steps_computation_mask=policy, steps_computation_policy="static")


def pruned(threshold: float) -> DBPruneConfig:
    return DBPruneConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=threshold)


def test_the_estimate_ranks_runs_as_their_true_errors_do(flux: Any) -> None:
    cases: list[tuple[CacheConfig, CalibratorConfig | None]] = [
        (below(0.1), None),
        (below(0.14), SERIES),
        (below(0.2), None),
        (below(0.3), AUTO),
        (below(0.45), None),
        (below(0.2, warmup=4), TaylorSeerCalibratorConfig(taylorseer_order=2)),
        (static("slow"), None),
        (static("medium"), SERIES),
        (static("fast"), None),
        (static("fast"), AUTO),
        (static("ultra"), SERIES),
        (static("ultra"), None),
        (DBCacheConfig(Fn_compute_blocks=1, budget=5), AUTO),
        (DBCacheConfig(Fn_compute_blocks=1, budget=10), None),
        (pruned(0.2), None),
        (pruned(0.08), None),
    ]
    plain = picture(flux, 14)
    estimates, errors = [], []
    for config, calibrator in cases:
        with cached(flux, config, calibrator) as cache:
            errors.append((picture(flux, 14) - plain).square().mean())
        found = estimate(cache.log.generation()).error
        assert found is not None
        estimates.append(found)
    assert float(spearman_corrcoef(torch.tensor(estimates), torch.stack(errors))) >= 0.9


def test_the_picture_that_collapsed_without_a_word_is_caught(flux: Any) -> None:
    """True guidance, the mask ultra and TaylorSeer: 17 dB with the published package."""
    with cached(flux, static("ultra"), SERIES) as cache:
        picture(flux, 28, true_cfg_scale=4.0, negative_prompt="")
    found = estimate(cache.log.generation(), cache.log.contexts)
    assert found.damaged
    assert found.worst is not None
    assert found.worst[1] == "uncond"
    assert found.advice is not None
    assert found.advice.startswith("set calibrator to {type: auto}")
