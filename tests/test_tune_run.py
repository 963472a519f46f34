"""Tuning for real, on the bundled model with few steps."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cachedit_cli.cli import main
from cachedit_cli.errors import RunError
from cachedit_cli.recipe import Recipe, load
from cachedit_cli.tune import prepare
from cachedit_cli.tune_record import FILE, Tuning
from cachedit_cli.tune_run import tune

STEPS = 9
SMALL = [f"generate.num_inference_steps={STEPS}", "model.device=cpu"]
CAUGHT = pytest.CaptureFixture[str]
Tuned = tuple[Path, dict[str, Any]]


def tuned(folder: Path, *, psnr: float | None = None, speedup: float | None = None, stop: str | None = None) -> Tuning:
    """Tune the demo; a line that contains ``stop`` interrupts."""
    tuning = prepare("demo", psnr=psnr, speedup=speedup, changes=SMALL, watch=1, check=2)

    def tell(line: str) -> None:
        if stop is not None and stop in line:
            raise KeyboardInterrupt

    tune(tuning, folder, tell)
    return tuning


@pytest.fixture(scope="module")
def by_quality(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """A tuning through the command line, with the recipe that it wrote."""
    folder = tmp_path_factory.mktemp("tune")
    written = folder / "mine.yaml"
    options = [word for change in SMALL for word in ("--set", change)]
    command = ["tune", "demo", "--target-psnr", "34", "--watch", "1", "--check", "2", "--write", str(written)]
    assert main([*command, *options, "--output-dir", str(folder / "out"), "--json"]) == 0
    (found,) = (folder / "out").iterdir()
    return written, json.loads((found / FILE).read_text())


def test_the_recipe_that_is_written_reaches_the_goal_with_the_fewest_steps_that_did(
    by_quality: Tuned,
) -> None:
    written, facts = by_quality
    trials = {trial["name"]: trial for trial in facts["trials"]}
    choice = trials[facts["chosen"]]
    assert facts["status"] == "done"
    assert choice["psnr"] >= 34
    good = [each["computed"] for each in trials.values() if each["kind"] == "schedule" and each["psnr"] >= 34]
    assert choice["computed"] == min(good)
    recipe = load(str(written))
    config = recipe.cache_config(STEPS)
    assert config is not None
    assert (
        "".join(map(str, config.steps_computation_mask or ())) == choice["settings"]["cache"]["steps_computation_mask"]
    )
    assert recipe.generate.num_inference_steps == STEPS


def test_the_written_recipe_says_what_it_is_made_of(by_quality: Tuned) -> None:
    written, facts = by_quality
    text = written.read_text()
    comment = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    rival = f"just {round_computed(facts)} steps"
    for words in ("demo, tuned: ", "Made by `cachedit", rival, "torch", "error_profile"):
        assert words in comment
    assert "extends: demo" in text
    assert max(map(len, text.splitlines())) <= 120


def round_computed(facts: dict[str, Any]) -> int:
    rivals = [trial for trial in facts["trials"] if trial["name"].startswith("just")]
    return int(rivals[0]["computed"])


def test_the_written_recipe_computes_what_it_says_and_takes_a_budget(
    by_quality: Tuned, tmp_path: Path, capsys: CAUGHT
) -> None:
    written, facts = by_quality
    for changes, wanted in (([], round_computed(facts)), (["--set", "cache.budget=4"], 4)):
        assert main(["run", str(written), "--set", "model.device=cpu", *changes, "--output-dir", str(tmp_path)]) == 0
        strip = re.search(r"\|([█·#.]+)\| 9/9", capsys.readouterr().out)
        assert strip is not None
        assert sum(mark in "█#" for mark in strip[1]) == wanted


def test_a_goal_that_no_schedule_reaches_is_an_error_that_names_the_best(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"200 dB PSNR cannot be reached with caching; the best was \d+\.\d dB with \d of 9"
    ):
        tuned(tmp_path, psnr=200)
    assert json.loads((tmp_path / FILE).read_text())["status"] == "failed"


def test_a_speed_that_cannot_be_reached_is_an_error_that_names_the_best(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"1000 times as fast cannot be reached, .*; the best was [\d.]+ times"):
        tuned(tmp_path, speedup=1000)


def test_a_speed_up_takes_the_best_picture_among_those_with_the_chosen_number_of_steps(tmp_path: Path) -> None:
    tuning = tuned(tmp_path, speedup=1.3)
    choice = tuning.choice
    assert choice is not None
    count = choice.settings["cache"]["steps_computation_mask"].count("1")
    same = [t for t in tuning.schedules if t.settings["cache"]["steps_computation_mask"].count("1") == count]
    assert choice.psnr == max(trial.psnr for trial in same)
    assert len(tuning.profile) == STEPS


def test_an_interrupt_keeps_what_was_measured_and_takes_the_best_that_reached_the_goal(tmp_path: Path) -> None:
    tuning = tuned(tmp_path, psnr=20, stop="taylorseer 2 x 0.5:")
    assert tuning.status == "interrupted"
    assert tuning.choice is not None
    assert tuning.choice.psnr >= 20
    kept = json.loads((tmp_path / FILE).read_text())
    assert [trial["name"] for trial in kept["trials"]] == [trial.name for trial in tuning.trials]
    assert kept["chosen"] == tuning.chosen


def test_an_interrupt_before_anything_was_tried_chooses_nothing(tmp_path: Path) -> None:
    tuning = tuned(tmp_path, psnr=20, stop="feeling")
    assert (tuning.status, tuning.chosen, tuning.trials) == ("interrupted", None, [])


def test_a_tuned_recipe_can_be_read_back(by_quality: Tuned) -> None:
    recipe: Recipe = load(str(by_quality[0]))
    assert recipe.name == "mine"
    assert recipe.cache_config(STEPS) is not None
