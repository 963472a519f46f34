"""What all tests share: one thread, fixed seeds, and the bundled pipeline."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("COLUMNS", None)  # that pytest-xdist sets for its workers: output is tested at the width of a pipe

import random
import sys
from typing import Any

import pytest

from cachedit_cli import demo


@pytest.fixture(scope="session")
def flux() -> Any:
    """The bundled FluxPipeline, silent; a test that changes it puts it back."""
    import torch
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(demo.path(), torch_dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)
        torch.manual_seed(0)
