"""What tuning begins with, and everything that is refused before weights are loaded."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cachedit_cli.errors import InputError
from cachedit_cli.tune import PROMPTS, check_target, prepare
from cachedit_cli.tune_record import Goal, Trial


def test_the_pictures_that_decide_are_none_of_those_that_are_learned_from() -> None:
    tuning = prepare("demo", psnr=30, watch=8, check=9)
    assert (len(tuning.watched), len(tuning.checked)) == (8, 9)
    assert tuning.watched[0].prompt == "red heart on a white background"  # the recipe's own first
    assert not {(job.prompt, job.seed) for job in tuning.watched} & {(job.prompt, job.seed) for job in tuning.checked}
    assert not {job.prompt for job in tuning.watched} & {job.prompt for job in tuning.checked}
    assert len(set(PROMPTS)) == len(PROMPTS)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"psnr": 30}, Goal("psnr", 30)),
        ({"ssim": 0.98}, Goal("ssim", 0.98)),
        ({"speedup": 2.0}, Goal("speedup", 2.0)),
    ],
)
def test_one_goal_is_asked_for(given: dict[str, Any], expected: Goal) -> None:
    assert prepare("demo", **given).goal == expected


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: prepare("demo"), "nothing is asked for: give one of --target-psnr, --target-ssim and --speedup"),
        (lambda: prepare("demo", psnr=30, speedup=2), "--target-psnr and --speedup contradict each other: give one"),
        (lambda: prepare("demo", psnr=-1), "--target-psnr: -1 is no number of decibels above 0, such as 30"),
        (lambda: prepare("demo", ssim=1.5), "--target-ssim: 1.5 is not above 0 and at most 1"),
        (lambda: prepare("demo", speedup=1.0), "--speedup: 1 is no factor above 1, such as 2.0"),
        (lambda: prepare("demo", psnr=30, watch=0), "--watch: 0 is no number of pictures from 1 to 1000"),
        (
            lambda: prepare("demo-prune", psnr=30),
            "demo-prune: cache.type is DBPrune, but a schedule of steps is for DBCache",
        ),
        (lambda: prepare("demo", psnr=30, changes=["cache.type=none"]), "demo: cache.type is none"),
        (lambda: prepare("dmo", psnr=30), "no bundled recipe is called 'dmo' (did you mean 'demo'"),
        (lambda: prepare("demo", psnr=30, while_tuning=["generate.hight=8"]), "did you mean 'height'?"),
    ],
)
def test_what_cannot_be_tuned_is_refused_with_the_way_out(call: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        call()


def test_a_place_for_the_recipe_that_will_not_do_is_refused_at_once(tmp_path: Path) -> None:
    there = tmp_path / "there.yaml"
    there.write_text("version: 1\n")
    for path, words in (
        (str(there), "is there already; give another name, or remove it"),
        (str(tmp_path / "none" / "a.yaml"), "there is no folder"),
        (str(tmp_path / "recipe.txt"), "a recipe's file ends in .yaml"),
    ):
        with pytest.raises(InputError, match=re.escape(f"--write {path}: {words}")):
            check_target(path)
    check_target(str(tmp_path / "new.yaml"))
    check_target(None)


def test_a_trial_pools_its_pictures() -> None:
    trial = Trial("a", "schedule", {}, 4, 8, psnrs=[30.0, None], ssims=[0.9, None], speedups=[2.0, 4.0, 3.0])
    assert trial.psnr == pytest.approx(30 + 10 * 0.30103, abs=1e-3)  # half the mean square error
    assert (trial.ssim, trial.speedup) == (0.9, 3.0)
    assert trial.value(Goal("speedup", 2)) == 3.0
