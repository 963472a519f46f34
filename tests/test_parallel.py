"""`model.parallel`: two processes that torchrun starts draw one picture between them, over gloo on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cachedit_cli.cli import main
from cachedit_cli.errors import InputError
from cachedit_cli.options import parallel
from cachedit_cli.recipe import load
from cachedit_cli.recipe_options import Parallel

ROOT = Path(__file__).parents[1]
CAUGHT = pytest.CaptureFixture[str]
ARGUMENTS = ["--device", "cpu", "--steps", "6", "--set", "cache.max_warmup_steps=2"]
ARGUMENTS += ["--set", "cache.residual_diff_threshold=0.4", "--num-images", "2"]


def processes(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*torchrun, str(ROOT / "tests" / "with_accelerators.py"), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def drawn(folder: Path) -> tuple[dict[str, Any], list[Any]]:
    """Return the record of the only run in a folder, and its pictures."""
    (only,) = (folder / "outputs").iterdir()
    record = json.loads((only / "run.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (only / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    pictures = [np.asarray(Image.open(only / image["file"]).convert("RGB"), dtype=int) for image in record["images"]]
    return {**record, "rows": rows}, pictures


def test_two_processes_share_each_picture_and_one_of_them_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: CAUGHT
) -> None:
    done = processes(tmp_path, "run", "demo", *ARGUMENTS, "--set", "model.parallel.ulysses=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("loaded in") == 1
    assert "parallel: ulysses 2" in done.stdout
    record, pictures = drawn(tmp_path)
    alone = tmp_path / "alone"
    alone.mkdir()
    monkeypatch.chdir(alone)
    assert main(["run", "demo", *ARGUMENTS]) == 0
    capsys.readouterr()
    reference, expected = drawn(alone)
    assert record["status"] == "done"
    assert len(pictures) == len(expected) == 2
    for mine, other in zip(pictures, expected, strict=True):
        assert np.abs(mine - other).max() <= 1
    decided = [[decisions(row) for row in run["rows"]] for run in (record, reference)]
    assert decided[0] == decided[1]
    assert "reuse" in str(decided[0])


def decisions(row: Any) -> Any:
    """Return a line of the log without what is measured."""
    if isinstance(row, dict):
        return {key: decisions(value) for key, value in row.items() if key in ("rows", "step", "decision", "saved")}
    return [decisions(each) for each in row] if isinstance(row, list) else row


def test_a_failure_in_the_pictures_ends_every_process(tmp_path: Path) -> None:
    """15 words cannot be divided by two."""
    settings = ["model.parallel.ulysses=2", "generate.max_sequence_length=15"]
    done = processes(tmp_path, "run", "demo", *ARGUMENTS, *(part for each in settings for part in ("--set", each)))
    assert done.returncode == 1
    assert "must be divisible by mesh size" in done.stderr
    assert not list(tmp_path.glob("outputs/*"))


def test_one_process_alone_is_told_how_to_start_the_others(capsys: CAUGHT, tmp_path: Path) -> None:
    code = main(["run", "demo", "--set", "model.parallel.ulysses=2", "--output-dir", str(tmp_path)])
    assert code == 2
    assert capsys.readouterr().err == (
        "model.parallel: 2 processes share a picture, and this is one alone; start `torchrun --nproc-per-node 2 -m "
        "cachedit_cli run ...`\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_processes_without_a_share_would_all_draw_the_same(capsys: CAUGHT, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "4"), ("TORCHELASTIC_RUN_ID", "x")):
        monkeypatch.setenv(name, value)
    assert main(["run", "demo"]) == 2
    assert capsys.readouterr().err == (
        "torchrun started 4 processes, and each of them would draw every picture: set model.parallel to have them "
        "share each, or start one process with --workers 4\n"
    )


def test_the_number_of_processes_is_the_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(InputError, match="2 processes share a picture, and there are 4; start"):
        parallel.check_started(Parallel(ulysses=2))
    parallel.check_started(Parallel(ulysses=2, ring=2))


def test_what_diffusers_cannot_share_is_refused_before_weights_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"model\.parallel\.ring: needs an attention kernel"):
        parallel.check(Parallel(ring=2), None)
    with pytest.raises(InputError, match="between accelerators, and there is none here"):
        parallel.check(Parallel(ulysses=2), None)
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 2)
    with pytest.raises(InputError, match="only `cachedit run` shares pictures"):
        parallel.check(Parallel(ulysses=2), None)


def test_one_process_is_no_share() -> None:
    with pytest.raises(InputError, match=r"model\.parallel: one process shares nothing"):
        load("demo", ["model.parallel.ulysses=1"])
