"""Going on with a run: what is there and whole stays, everything else is drawn, and another recipe is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from cachedit_cli.cli import main
from cachedit_cli.runs import load

CAUGHT = pytest.CaptureFixture[str]


def run(folder: Path, *options: str) -> int:
    return main(["run", "demo", "--steps", "2", "--device", "cpu", "--output-dir", str(folder), *options])


def only(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.png"))}


def facts(folder: Path) -> Sequence[tuple[object, ...]]:
    record = load(folder).record
    rows = [(row.generation, row.step, row.decision, row.diff) for row in record.log.rows]
    return [*((image.file, image.seed, image.generation, image.sha256) for image in record.images), *rows]


def test_what_is_gone_damaged_or_new_is_drawn_and_the_rest_stays_as_it_is(tmp_path: Path, capsys: CAUGHT) -> None:
    prompts = tmp_path / "p.csv"
    prompts.write_text("prompt,width\ncat face,\nred heart,\ncat face,32\n")
    assert run(tmp_path / "whole", "--prompts", str(prompts), "--num-images", "2") == 0
    assert run(tmp_path / "cut", "--prompts", str(prompts)) == 0
    whole, cut = only(tmp_path / "whole"), only(tmp_path / "cut")
    (cut / "demo-cat-face-s0.png").unlink()
    damaged = cut / "demo-red-heart-s0.png"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    kept = cut / "demo-cat-face-s0-2.png"
    before = kept.stat().st_mtime_ns
    capsys.readouterr()
    assert run(tmp_path, "--prompts", str(prompts), "--num-images", "2", "--resume", str(cut)) == 0
    out = capsys.readouterr().out
    assert f"{cut}: 1 of 6 pictures are there; gone or damaged: demo-cat-face-s0.png, demo-red-heart-s0.png\n" in out
    assert kept.stat().st_mtime_ns == before
    assert len(load(cut).record.resumed) == 1
    drawn = {(image.prompt, image.seed, str(image.overrides)): image for image in load(cut).record.images}
    for image in load(whole).record.images:  # under other names where they came later
        again = drawn.pop((image.prompt, image.seed, str(image.overrides)))
        assert (again.sha256, again.generation) == (image.sha256, image.generation)
    assert drawn == {}
    assert sorted(facts(cut)[6:], key=str) == sorted(facts(whole)[6:], key=str)


def test_a_killed_run_goes_on_from_its_log(tmp_path: Path) -> None:
    options = ("--num-images", "3")
    for name in ("whole", "killed"):
        assert run(tmp_path / name, *options) == 0
    whole, killed = only(tmp_path / "whole"), only(tmp_path / "killed")
    log = (killed / "log.jsonl").read_bytes().splitlines(keepends=True)
    (killed / "log.jsonl").write_bytes(log[0] + log[1][:-20])
    record = json.loads((killed / "run.json").read_text()) | {"images": [], "status": "running"}
    (killed / "run.json").write_text(json.dumps(record))
    assert run(tmp_path, *options, "--resume", str(killed)) == 0
    assert contents(killed) == contents(whole)
    assert facts(killed) == facts(whole)
    assert load(killed).record.status == "done"


def test_a_batch_that_is_not_whole_is_drawn_as_a_whole(tmp_path: Path) -> None:
    options = ("--num-images", "3", "--set", "generate.batch_size=2")
    for name in ("whole", "cut"):
        assert run(tmp_path / name, *options) == 0
    whole, cut = only(tmp_path / "whole"), only(tmp_path / "cut")
    next(cut.glob("*-s1.png")).unlink()
    assert run(tmp_path, *options, "--resume", str(cut)) == 0
    assert contents(cut) == contents(whole)
    assert facts(cut) == facts(whole)


def test_a_run_that_lacks_nothing_loads_no_model(
    tmp_path: Path, capsys: CAUGHT, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path / "a") == 0
    folder = only(tmp_path / "a")
    written = contents(folder)
    monkeypatch.setattr("cachedit_cli.worker.open_model", None)
    assert run(tmp_path, "--resume", str(folder)) == 0
    assert "1 of 1 pictures are there" in capsys.readouterr().out
    assert contents(folder) == written
    assert load(folder).record.status == "done"


def test_another_recipe_is_refused_with_what_differs_and_changes_nothing(tmp_path: Path, capsys: CAUGHT) -> None:
    assert run(tmp_path / "a", "--seed", "3") == 0
    folder = only(tmp_path / "a")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    capsys.readouterr()
    change = ("--set", "cache.residual_diff_threshold=0.5", "--set", "calibrator.type=taylorseer")
    assert run(tmp_path, "--seed", "3", *change, "--resume", str(folder)) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"--resume {folder}: the run was made with another recipe:\n")
    assert "  cache.residual_diff_threshold: 0.12 there, 0.5 here\n" in err
    assert "  calibrator.type: not set there, taylorseer here\n" in err
    assert run(tmp_path, "--seed", "4", "--resume", str(folder)) == 2
    assert capsys.readouterr().err == (
        f"--resume {folder}: has 1 pictures that the recipe does not ask for, such as seed 3: "
        f"{load(folder).record.images[0].prompt}; give the prompts and seeds of the run, and more if you like\n"
    )
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: CAUGHT) -> None:
    assert run(tmp_path, "--resume", str(tmp_path / "gone")) == 2
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'gone'}: no such run")
