"""What the wrappers cost: CPU microseconds a step on near-free blocks, and bytes kept between steps.

    python bench/overhead.py            # with a second column and ratios where cache-dit is installed

40 blocks of one addition, hidden states [1, 64, 64], pattern 1, F1B0, one thread; packages and kinds of steps take
turns, and the median over the rounds counts. Added is the step's time less that of the plain model: of all blocks for
a computed step, of the front block for a cached one. Bytes are counted on hidden states [1, 4096, 3072] and encoder
states [1, 512, 3072] in bfloat16, as multiples of the hidden states.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

STEPS = 60


class Add(nn.Module):
    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, temb: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return encoder_hidden_states, hidden_states + temb


class Model(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList(Add() for _ in range(blocks))

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        temb = (timestep / 1000).to(hidden_states.dtype)
        for block in self.transformer_blocks:
            encoder_hidden_states, hidden_states = block(
                hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, temb=temb
            )
        return hidden_states


#: Kind of step -> (kind of config, threshold, with TaylorSeer, blocks that the plain model runs meanwhile)
KINDS: dict[str, tuple[str, float, bool, int]] = {
    "computed": ("DBCacheConfig", 1e-9, False, 40),
    "cached": ("DBCacheConfig", 0.99, False, 1),
    "cached, TaylorSeer": ("DBCacheConfig", 0.99, True, 1),
    "DBPrune": ("DBPruneConfig", 0.99, False, 1),
}


def enable(package: Any, model: Model, config: str, threshold: float, order: int, steps: int, **further: Any) -> Any:
    adapter = package.BlockAdapter(
        transformer=model, blocks=model.transformer_blocks, forward_pattern=package.ForwardPattern.Pattern_1
    )
    settings = getattr(package, config)(
        Fn_compute_blocks=1,
        max_warmup_steps=3,
        residual_diff_threshold=threshold,
        num_inference_steps=steps,
        **further,
    )
    calibrator = package.TaylorSeerCalibratorConfig(taylorseer_order=order) if order else None
    package.enable_cache(adapter, cache_config=settings, calibrator_config=calibrator)
    return adapter


def added(packages: list[Any], kind: str) -> dict[str, float]:
    """Return the microseconds that each package adds to a step: plain and wrapped models take turns at every step."""
    config, threshold, taylor, blocks = KINDS[kind]
    models = {package.__name__: Model(40) for package in packages} | {"plain": Model(blocks)}
    adapters = [
        (package, enable(package, models[package.__name__], config, threshold, int(taylor), STEPS))
        for package in packages
    ]
    h, e = torch.randn(1, 64, 64), torch.randn(1, 64, 64)
    spent: dict[str, list[float]] = {name: [] for name in models}
    with torch.no_grad():
        for step in range(STEPS):
            now = torch.tensor([1000.0 - step])
            for name, model in models.items():
                began = time.perf_counter()
                model(h, e, now)
                spent[name].append(time.perf_counter() - began)
    for package, adapter in adapters:
        package.disable_cache(adapter)
    medians = {name: statistics.median(values[8:]) * 1e6 for name, values in spent.items()}
    return {package.__name__: medians[package.__name__] - medians["plain"] for package in packages}


def kept(package: Any, order: int, **settings: Any) -> float:
    """Return the bytes kept between steps, as a multiple of the hidden states."""
    h, e = torch.randn(1, 4096, 3072, dtype=torch.bfloat16), torch.randn(1, 512, 3072, dtype=torch.bfloat16)
    model = Model(4)
    adapter = enable(package, model, "DBCacheConfig", 1e-9, order, 100, **settings)
    try:
        with torch.no_grad():
            for step in range(6):
                model(h + 0.01 * step, e, torch.tensor([1000.0 - step]))
        return held(package, model) / h.nbytes
    finally:
        package.disable_cache(adapter)


def held(package: Any, model: Model) -> int:
    if package.__name__ == "cachedit_cli":
        from cachedit_cli.engine.install import installed

        there = installed(model)
        assert there is not None
        return there.nbytes
    context = model._context_manager.get_context()
    tensors = {id(t): t for t in context.buffers.values() if isinstance(t, torch.Tensor)}
    for calibrator in (context.calibrator, context.encoder_calibrator):
        for state in calibrator.states.values() if calibrator is not None else ():
            tensors |= {id(t): t for ladder in state.state.values() for t in ladder if t is not None}
    return sum(tensor.nbytes for tensor in tensors.values())


def measure(rounds: int) -> dict[str, dict[str, float]]:
    packages = [importlib.import_module("cachedit_cli")]
    try:
        packages.append(importlib.import_module("cache_dit"))
    except ImportError:
        print("cache-dit is not installed: no second column", file=sys.stderr)
    results: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        rows = [added(packages, kind) for _ in range(rounds)]
        results[f"{kind} step, added us"] = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    sizes: dict[str, Callable[[Any], float]] = {
        "DBCache, bytes": lambda package: kept(package, 0),
        "TaylorSeer order 1, bytes": lambda package: kept(package, 1),
        "TaylorSeer order 2, bytes": lambda package: kept(package, 2),
    }
    for name, size in sizes.items():
        results[name] = {package.__name__: size(package) for package in packages}
    # A setting of ours alone: the front residual on every 8th token.
    ours, plain = packages[0], ("DBCache, bytes", "TaylorSeer order 1, bytes")
    for order, name in enumerate(plain):
        results[f"{name}, stride 8"] = results[name] | {ours.__name__: kept(ours, order, diff_token_stride=8)}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="times that packages and kinds take turns")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    results = measure(options.rounds)
    if options.json:
        print(json.dumps(results, indent=1))
        return
    for name, row in results.items():
        ours, theirs = row["cachedit_cli"], row.get("cache_dit")
        ratio = f"   cache_dit {theirs:8.3f}   ratio {ours / theirs:.2f}" if theirs else ""
        print(f"{name:32s} cachedit {ours:8.3f}{ratio}")


if __name__ == "__main__":
    main()
