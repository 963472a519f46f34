"""How much of the ideal speed-up is realised: the time saved against the block calls saved, for every mask policy.

    python bench/realised.py

A model of 24 transformer blocks (attention and MLP, width 512, 256 tokens), 28 steps, static masks. At every step the
plain and the cached model take turns, so that a machine whose speed drifts does not decide. Ideal is the ratio of block
calls; realised the ratio of summed times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch
from torch import nn

from cachedit_cli import BlockAdapter, DBCacheConfig, ForwardPattern, cached
from cachedit_cli.terms.mask import POLICIES

STEPS, BLOCKS, WIDTH, TOKENS = 28, 24, 512, 256


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 8, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x = self.norm1(hidden_states)
        hidden_states = hidden_states + self.attention(x, x, x, need_weights=False)[0]
        result: torch.Tensor = hidden_states + self.mlp(self.norm2(hidden_states))
        return result


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return hidden_states


def realised(policy: str, front: int) -> dict[str, float]:
    """Return the ideal and the realised speed-up of one generation."""
    torch.manual_seed(0)
    plain, wrapped = Model().eval(), Model().eval()
    adapter = BlockAdapter(transformer=wrapped, blocks=wrapped.blocks, forward_pattern=ForwardPattern.Pattern_3)
    config = DBCacheConfig(
        Fn_compute_blocks=front,
        steps_computation_mask=policy,
        steps_computation_policy="static",
        num_inference_steps=STEPS,
    )
    noise, spent = torch.randn(1, TOKENS, WIDTH), {"plain": 0.0, "cached": 0.0}
    with cached(adapter, config) as cache, torch.no_grad():
        plain(noise, torch.tensor([1000.0]))
        for step in range(STEPS):
            models: dict[str, Any] = {"plain": plain, "cached": wrapped}
            for name, model in models.items():
                began = time.perf_counter()
                model(noise, torch.tensor([1000.0 - step]))
                spent[name] += time.perf_counter() - began
    made = sum(row.computed for row in cache.log.rows)
    ideal, ratio = STEPS * BLOCKS / made, spent["plain"] / spent["cached"]
    return {"ideal": ideal, "realised": ratio, "share": ratio / ideal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="generations per policy; the median share counts")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    for front in (0, 1):
        for policy in POLICIES:
            rounds = [realised(policy, front) for _ in range(options.rounds)]
            results[f"F{front}B0 {policy}"] = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
    if options.json:
        print(json.dumps(results, indent=1))
        return
    for name, row in results.items():
        print(f"{name:12s} ideal {row['ideal']:.2f}   realised {row['realised']:.2f}   {row['share']:.1%} of the ideal")


if __name__ == "__main__":
    main()
