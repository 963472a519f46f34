"""Compare decisions and outputs with the published package, case by case, on the same small models and inputs.

Needs ``cache-dit`` beside cachedit in one environment (never a dependency): pip install cache-dit==1.5.3

    python bench/agreement.py            # prints the cases that disagree, and a count
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
from collections import Counter
from typing import Any

import torch
from torch import nn

import cachedit_cli as ours


class Block(nn.Module):
    """A residual block whose answer depends on the time, in the output form of one pattern."""

    def __init__(self, pattern: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.pattern = pattern
        self.h = nn.Parameter(torch.randn(width, width, generator=generator) / width**0.5 * 0.3, requires_grad=False)
        self.e = nn.Parameter(torch.randn(width, width, generator=generator) / width**0.5 * 0.3, requires_grad=False)

    def run(self, h: torch.Tensor, e: torch.Tensor | None, temb: torch.Tensor) -> Any:
        mixed = h + torch.tanh(h @ self.h + temb + (e.mean(1, keepdim=True) if e is not None else 0))
        text = (e if e is not None else h[:, :3]) + torch.tanh((e if e is not None else h[:, :3]) @ self.e + temb)
        return {0: (mixed, text), 1: (text, mixed), 2: mixed, 3: mixed, 4: (mixed, text), 5: (text, mixed)}[
            self.pattern
        ]


class TwoStreams(Block):
    def forward(self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, temb: torch.Tensor) -> Any:
        return self.run(hidden_states, encoder_hidden_states, temb)


class OneStream(Block):
    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> Any:
        return self.run(hidden_states, None, temb)


class Model(nn.Module):
    """A transformer that loops over blocks of one pattern."""

    def __init__(self, pattern: int, blocks: int = 8, width: int = 16, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        kind = TwoStreams if pattern < 3 else OneStream
        self.pattern = pattern
        self.transformer_blocks = nn.ModuleList(kind(pattern, width, generator) for _ in range(blocks))

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        h, e, temb = hidden_states, encoder_hidden_states, (timestep / 500).sin()[:, None, None] * 0.1
        for block in self.transformer_blocks:
            if self.pattern == 0:
                h, e = block(h, e, temb)
            elif self.pattern == 1:
                e, h = block(h, e, temb)
            elif self.pattern == 2:
                h = block(h, e, temb)
            elif self.pattern == 3:
                h = block(h, temb)
            elif self.pattern == 4:
                h, e = block(h, temb)
            else:
                e, h = block(h, temb)
        return torch.cat([h, e], 1) if self.pattern in (0, 1, 4, 5) else h


def inputs(step: int, branch: int, generation: int = 0) -> dict[str, torch.Tensor]:
    """Return a path that turns unevenly, so that differences rise and fall."""
    g = torch.Generator().manual_seed(1000 * generation)
    a, b = torch.randn(1, 12, 16, generator=g), torch.randn(1, 12, 16, generator=g)
    texts = torch.randn(2, 1, 5, 16, generator=g)
    angle = torch.tensor(0.15 * step + 0.4 * torch.sin(torch.tensor(0.9 * step)).item())
    return {
        "hidden_states": a * angle.cos() + b * angle.sin(),
        "encoder_hidden_states": texts[branch],
        "timestep": torch.tensor([1000.0 - 30 * step]),
    }


def run(model: Model, steps: int, branches: int, generations: int) -> list[torch.Tensor]:
    with torch.no_grad():
        return [
            model(**inputs(step, branch, generation))
            for generation in range(generations)
            for step in range(steps)
            for branch in range(branches)
        ]


def cases() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for pattern in range(6):
        for front, back in ((1, 0), (2, 1), (4, 0), (1, 3), (4, 4)):
            found.append({"pattern": pattern, "cache": {"Fn_compute_blocks": front, "Bn_compute_blocks": back}})
    for warmup, interval in itertools.product((0, 2, 5), (1, 2, 3)):
        found.append({"cache": {"max_warmup_steps": warmup, "warmup_interval": interval}})
    for cap, row in itertools.product((-1, 0, 3), (-1, 0, 1, 2)):
        found.append({"cache": {"max_cached_steps": cap, "max_continuous_cached_steps": row}})
    for threshold in (0.0, 0.02, 0.08, 0.15, 0.3, 1.0):
        found.append({"cache": {"residual_diff_threshold": threshold}})
    for branches, separate, target in itertools.product((1, 2), (True, False), ("residual", "hidden_states")):
        for order in (1, 2, 3):
            cache = {"enable_separate_cfg": branches == 2, "cfg_diff_compute_separate": separate}
            cache["max_warmup_steps"] = 4 if order == 1 else 8
            calibrator = {"taylorseer_order": order, "calibrator_cache_type": target}
            found.append({"branches": branches, "cache": cache, "calibrator": calibrator})
    for policy, how in itertools.product(("slow", "medium", "fast", "ultra"), ("static", "dynamic")):
        for calibrator in (None, {"taylorseer_order": 1}):
            cache = {"steps_computation_mask": policy, "steps_computation_policy": how}
            found.append({"steps": 28, "cache": cache, "calibrator": calibrator})
    for pattern, relax in itertools.product(range(6), (False, True)):
        for extra in ({}, {"Fn_compute_blocks": 2, "Bn_compute_blocks": 2}, {"non_prune_block_ids": [3, 5]}):
            cache = {"enable_dynamic_prune_threshold": relax, "Bn_compute_blocks": 0, **extra}
            found.append({"pattern": pattern, "prune": True, "cache": cache})
    found += [{**case, "generations": 3} for case in found[::7]]
    return found


def fill(case: dict[str, Any]) -> dict[str, Any]:
    cache = {"Fn_compute_blocks": 1, "max_warmup_steps": 4, "residual_diff_threshold": 0.12, **case["cache"]}
    full = {"pattern": 1, "branches": 1, "steps": 16, "generations": 1, "prune": False, "calibrator": None}
    full |= case | {"cache": cache}
    cache["num_inference_steps"] = full["steps"]
    if isinstance(cache.get("steps_computation_mask"), str):
        cache["steps_computation_mask"] = ours.steps_mask(
            mask_policy=cache["steps_computation_mask"], total_steps=full["steps"]
        )
    return full


def run_with(package: Any, case: dict[str, Any]) -> tuple[list[torch.Tensor], list[list[int]]]:
    model = Model(case["pattern"])
    kind = package.DBPruneConfig if case["prune"] else package.DBCacheConfig
    calibrator = package.TaylorSeerCalibratorConfig(**case["calibrator"]) if case["calibrator"] else None
    patterns = package.ForwardPattern
    adapter = package.BlockAdapter(
        transformer=model,
        blocks=model.transformer_blocks,
        forward_pattern=getattr(patterns, f"Pattern_{case['pattern']}"),
        has_separate_cfg=case["branches"] == 2,
    )
    package.enable_cache(adapter, cache_config=kind(**case["cache"]), calibrator_config=calibrator)
    try:
        outputs = run(model, case["steps"], case["branches"], case["generations"])
        decisions = decided(package, model, case)
    finally:
        package.disable_cache(adapter)
    return outputs, decisions


def decided(package: Any, model: Model, case: dict[str, Any]) -> list[list[int]]:
    """Return the cached (or number of pruned blocks per) steps of the last generation, per branch."""
    if package is ours:
        from cachedit_cli.engine.install import installed
        from cachedit_cli.terms.stats import collect

        there = installed(model)
        assert there is not None
        stats = collect(there.log.generation(), there.log.contexts)[0]
        rows = [branch.rows for branch in stats.branches]
        if case["prune"]:
            return [[row.saved for row in branch] for branch in rows]
        return [[row.step for row in branch if row.decision == "reuse"] for branch in rows]
    manager = model._context_manager
    context = manager.get_context()
    if case["prune"]:
        found = [context.get_pruned_blocks(), context.get_cfg_pruned_blocks()]
    else:
        found = [list(context.get_cached_steps()), list(context.get_cfg_cached_steps())]
    return found[: case["branches"]]


def known(case: dict[str, Any]) -> str | None:
    """Return why the published package is expected to differ, where it does not do what its document says."""
    if case["prune"] and case["pattern"] >= 3:
        return "its DBPrune raises a TypeError for patterns 3 to 5"
    if case["generations"] > 1:
        return "its second generation begins one step late, with the state of the first"
    if case["cache"]["Fn_compute_blocks"] + case["cache"].get("Bn_compute_blocks", 0) >= 8 and not case["prune"]:
        return "it reports steps as cached in which every block was computed"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    try:
        import cache_dit as theirs
    except ImportError:
        print("cache-dit is not installed here: pip install cache-dit==1.5.3", file=sys.stderr)
        return 1
    logging.disable(logging.WARNING)
    differ, expected = 0, Counter[str]()
    every = [fill(case) for case in cases()]
    for case in every:
        try:
            (a, da), (b, db) = run_with(ours, case), run_with(theirs, case)
            apart = max(float((x - y).abs().max() / y.abs().max()) for x, y in zip(a, b, strict=True))
            problem = f"by {apart:.1e}, ours {da}, theirs {db}" if da != db or apart > 1e-5 else None
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        if problem is None:
            continue
        reason = known(case)
        if reason is not None:
            expected[reason] += 1
        else:
            differ += 1
            print(case, "differs", problem)
    print(f"{len(every) - differ - expected.total()} of {len(every)} cases agree in decisions and outputs")
    for reason, count in expected.items():
        print(f"{count} differ as expected: {reason}")
    print(f"{differ} differ otherwise")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
