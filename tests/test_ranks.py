"""Context parallelism: two real processes over gloo that hold half a sample each, against one that holds it all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cachedit_cli.ranks import group_of, ratio

Told = dict[str, dict[str, Any]]
SETTINGS = ["just below", "just above", "pruned"]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Told]:
    """Return what each of the two processes tells."""
    folder, root = tmp_path_factory.mktemp("ranks"), Path(__file__).parents[1]
    script = [sys.executable, str(root / "tests" / "two_ranks.py")]
    started = [
        subprocess.Popen(
            [*script, str(rank), str(folder)],
            env={**os.environ, "PYTHONPATH": str(root)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in started:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in started:
            process.kill()
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


@pytest.mark.parametrize("name", SETTINGS)
def test_ranks_that_share_a_sample_decide_alike_and_as_one_process_would(ranks: list[Told], name: str) -> None:
    for told in ranks:
        together, alone = told[f"together, {name}"], told[f"alone, {name}"]
        assert together["decisions"] == alone["decisions"]
        assert together["saved"] == alone["saved"]
        assert sum(together["saved"]) > 0
        assert together["diffs"] == [None if diff is None else pytest.approx(diff, rel=1e-4) for diff in alone["diffs"]]
        assert together["output"] == pytest.approx(alone["output"], abs=1e-5)
    assert ranks[0][f"together, {name}"]["diffs"] == ranks[1][f"together, {name}"]["diffs"]


def test_the_threshold_lies_between_what_the_ranks_would_have_measured_alone(ranks: list[Told]) -> None:
    """Otherwise the test above would show nothing: here one of them would have computed and the other reused."""
    threshold = ranks[0]["alone, measured"]["diffs"][4]
    own = [[part / whole for part, whole in told["together, just below"]["reduced"]] for told in ranks]
    split = [min(pair) < threshold < max(pair) for pair in zip(*own, strict=True)]
    assert sum(split) >= 2


def test_a_decision_takes_one_reduction_and_a_step_without_a_difference_none(ranks: list[Told]) -> None:
    for told in ranks:
        for name in ("just below", "just above"):
            measured = [diff for diff in told[f"together, {name}"]["diffs"] if diff is not None]
            assert len(told[f"together, {name}"]["reduced"]) == len(measured) > 0
        assert told["together, never"]["reduced"] == []


def test_never_reusing_is_bit_identical_on_every_rank(ranks: list[Told]) -> None:
    for told in ranks:
        assert told["together, never"]["output"] == told["together, plain"]["output"]


def test_ranks_with_samples_of_their_own_decide_alone(ranks: list[Told]) -> None:
    first, second = (told["own sample"] for told in ranks)
    assert first["decisions"] != second["decisions"]
    assert first["reduced"] == second["reduced"] == []


def test_a_model_that_is_not_split_divides_what_it_has() -> None:
    model = nn.Linear(2, 2)
    assert group_of(model) is None
    assert ratio(model, torch.tensor(3.0), torch.tensor(4.0)).item() == 0.75
