"""bench/gpu.py on a tiny model on the CPU: what it counts and writes. Its times mean nothing here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from cachedit_cli import steps_mask

BENCH = Path(__file__).parents[1] / "bench" / "gpu.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_gpu", BENCH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses ask for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def table(bench: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Return the cells of the markdown that a run writes, by the first of their row."""
    written = tmp_path_factory.mktemp("bench") / "gpu.md"
    bench.main(["--small", "--steps", "6", "--repeats", "1", "--markdown", str(written)])
    lines = [line for line in written.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_every_case_is_measured(table: dict[str, list[str]]) -> None:
    assert len(table) == 2 + 17  # the head and its rule
    assert [name for name, cells in table.items() if name not in ("case", "---") and "-" in cells[:5]] == []


@pytest.mark.parametrize("policy", ["slow", "medium", "fast", "ultra"])
@pytest.mark.parametrize("how", ["static", "dynamic, threshold 1", "static, compiled"])
def test_a_mask_makes_the_block_calls_that_it_says(table: dict[str, list[str]], policy: str, how: str) -> None:
    """2 double and 4 single blocks; the first double one is the front and always computed."""
    computed = sum(steps_mask(mask_policy=policy, total_steps=6))
    assert table[f"{policy}, {how}"][1] == f"{6 + computed}+{4 * computed}"


def test_the_plain_model_makes_all_calls_and_is_its_own_measure(table: dict[str, list[str]]) -> None:
    for name in ("plain", "plain, compiled"):
        assert table[name][1:5] == ["12+24", "1.00", "1.00", "100.0%"]


def test_cached_and_computed_steps_run_the_same_compiled_blocks(table: dict[str, list[str]]) -> None:
    assert {name: cells[-1] for name, cells in table.items() if "compiled" in name and cells[-1] != "0"} == {}


def test_what_is_kept_between_steps_is_counted(table: dict[str, list[str]]) -> None:
    held, taylor = float(table["fast, static"][-2]), float(table["fast, static, TaylorSeer"][-2])
    assert 0 < held < taylor


def test_the_gap_spans_the_copy_to_the_host_and_nothing_else(bench: ModuleType) -> None:
    events = [
        ("second kernel", 70.0, 90.0),
        ("first kernel", 0.0, 10.0),
        ("Memcpy DtoH (Device -> Pageable)", 12.0, 14.0),
        ("Memcpy HtoD (Pageable -> Device)", 95.0, 96.0),
        ("third kernel", 97.0, 99.0),
        ("Memcpy DtoH (Device -> Pageable)", 99.5, 100.0),
    ]
    assert bench.idle_after_decisions(events) == [60.0]


def test_the_peer_has_to_be_there_when_it_is_asked_for(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as error:
        bench.main(["--small", "--peer"])
    assert error.value.code == 2
    assert "pip install cache-dit" in capsys.readouterr().err
