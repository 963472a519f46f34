"""`model.parallel`: one picture is shared by several processes, through diffusers' `enable_parallelism`.

Each of them holds the whole model and a part of the tokens. What decides for all of them is ``ranks``' matter.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from typing import Any

    from ..recipe_options import Parallel

__all__ = ["check", "check_started", "split"]


def check_started(options: Parallel | None) -> None:
    """Refuse a number of processes other than the recipe's, as the environment tells it; needs no torch."""
    started = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    if options is None:
        if started > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
            raise InputError(
                f"torchrun started {started} processes, and each of them would draw every picture: set model.parallel "
                f"to have them share each, or start one process with --workers {started}"
            )
        return
    wanted = options.processes
    if started != wanted:
        there = f"there are {started}" if started > 1 else "this is one alone"
        raise InputError(
            f"model.parallel: {wanted} processes share a picture, and {there}; start "
            f"`torchrun --nproc-per-node {wanted} -m cachedit_cli run ...`"
        )


def check(options: Parallel, attention: str | None) -> None:
    """Refuse what diffusers cannot share; it takes the processes to have met.

    Args:
        options: What the recipe asks for.
        attention: `model.attention`.
    """
    import torch

    check_started(options)
    if options.ring > 1 and attention in (None, "native"):
        raise InputError(
            "model.parallel.ring: needs an attention kernel whose parts can be joined; set model.attention to "
            "_native_cudnn, flash or sage, or write ulysses instead of ring"
        )
    if torch.accelerator.device_count() == 0:
        raise InputError("model.parallel: diffusers shares a picture between accelerators, and there is none here")
    if not torch.distributed.is_initialized():
        raise InputError("model.parallel: only `cachedit run` shares pictures between processes")


def split(options: Parallel, transformers: Iterable[Any]) -> None:
    """Let each process compute a part of the tokens.

    Raises:
        InputError: The model or its attention does not support it.
    """
    from diffusers import ContextParallelConfig

    for transformer in transformers:
        config = ContextParallelConfig(ulysses_degree=options.ulysses, ring_degree=options.ring)
        try:
            transformer.enable_parallelism(config=config)
        except (AttributeError, NotImplementedError, ValueError) as error:
            raise InputError(f"model.parallel: {type(transformer).__name__}: {error}") from error
