"""One of two processes that test_ranks.py starts: real context parallelism over gloo, on a tiny FLUX transformer.

    python tests/two_ranks.py RANK FOLDER    # writes FOLDER/RANK.json

Half of the picture's tokens move fast and the other half slowly, and each process holds one half, so that their own
differences are far apart while that of the whole sample is in between.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import ContextParallelConfig, FluxTransformer2DModel
from torch import Tensor

from cachedit_cli import DBCacheConfig, DBPruneConfig, cached
from cachedit_cli.terms.config import CacheConfig

STEPS, TOKENS, WORDS = 8, 16, 4


def transformer() -> Any:
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=8,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    return model.eval().requires_grad_(False)


def samples(fast: float, slow: float) -> list[Tensor]:
    """Return a sample a step; its first tokens move by ``fast`` a step, its last ones by ``slow``."""
    generator = torch.Generator().manual_seed(1)
    start, way = (torch.randn(1, TOKENS, 8, generator=generator) for _ in range(2))
    pace = torch.tensor([fast, slow]).repeat_interleave(TOKENS // 2)[None, :, None]
    return [start + pace * (k + 0.3 * k * k) * way for k in range(STEPS)]


def generation(model: Any, config: CacheConfig | None, given: list[Tensor]) -> dict[str, Any]:
    """Run one generation; returns what was decided, and the last output."""
    generator = torch.Generator().manual_seed(2)
    text, pooled = torch.randn(1, WORDS, 16, generator=generator), torch.randn(1, 16, generator=generator)

    def run() -> Tensor:
        with torch.no_grad():
            for step, sample in enumerate(given):
                output: Tensor = model(
                    hidden_states=sample,
                    encoder_hidden_states=text,
                    pooled_projections=pooled,
                    timestep=torch.tensor([1.0 - step / STEPS]),
                    img_ids=torch.zeros(TOKENS, 3),
                    txt_ids=torch.zeros(WORDS, 3),
                    return_dict=False,
                )[0]
        return output

    if config is None:
        return {"output": run().flatten().tolist()}
    with cached(model, config) as cache:
        output = run()
        rows = cache.log.generation()
    return {
        "decisions": [row.decision for row in rows],
        "saved": [row.saved for row in rows],
        "diffs": [row.diff for row in rows],
        "output": output.flatten().tolist(),
    }


def threshold(value: float) -> CacheConfig:
    return DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=value)


def pruned(value: float) -> CacheConfig:
    return DBPruneConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=value)


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    # diffusers 0.42 asks for the number of accelerators, and divides by it.
    torch.accelerator.device_count = lambda: 2
    reduced: list[list[float]] = []
    all_reduce = torch.distributed.all_reduce

    def listening(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        reduced.append(tensor.tolist())
        return all_reduce(tensor, *args, **kwargs)

    torch.distributed.all_reduce = listening
    model, moving = transformer(), samples(0.5, 0.02)
    told: dict[str, Any] = {}

    def tell(name: str, config: CacheConfig | None, given: list[Tensor]) -> dict[str, Any]:
        reduced.clear()
        found = told[name] = generation(model, config, given) | {"reduced": list(reduced)}
        return found

    # Each process on its own: the whole sample, then a sample of its own.
    near = tell("alone, measured", threshold(1e-9), moving)["diffs"][4]
    settings = {"just below": threshold(near * 0.999), "just above": threshold(near * 1.001), "pruned": pruned(near)}
    settings["never"] = threshold(0.0)
    for name, config in settings.items():
        tell(f"alone, {name}", config, moving)
    tell("own sample", threshold(near), samples(0.5, 0.5) if rank == 0 else samples(0.02, 0.02))
    # Now one sample between them.
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    tell("together, plain", None, moving)
    for name, config in settings.items():
        tell(f"together, {name}", config, moving)
    (folder / f"{rank}.json").write_text(json.dumps(told), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
