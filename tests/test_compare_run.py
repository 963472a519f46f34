"""Comparing on the bundled model: what takes turns, what is measured, and what stays when it ends early."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cachedit_cli import compare_run, demo, drawing, generate
from cachedit_cli.cli import main
from cachedit_cli.compare import prepare
from cachedit_cli.compare_record import Comparison, Entry, read
from cachedit_cli.engine.install import installed
from cachedit_cli.errors import RunError
from cachedit_cli.generate import Opened, draw
from cachedit_cli.jobs import Job
from cachedit_cli.media import Pictures
from cachedit_cli.runs import RunFolder
from cachedit_cli.terms.stats import Row
from cachedit_cli.timing import timed

CAUGHT = pytest.CaptureFixture[str]
STEPS = 6
SMALL = ("generate.height=32", "generate.width=32", "cache.max_warmup_steps=2", f"generate.num_inference_steps={STEPS}")
PROMPTS = ("red heart", "cat face")

Draw = Callable[[Opened, Sequence[Job], Callable[[Row], None] | None], list[Any]]


@pytest.fixture(autouse=True, scope="module")
def _loaded_once() -> Iterator[None]:
    """Open the bundled model once for all tests of this file."""
    opened: list[Opened] = []
    real = generate.open_model

    def once(recipe: Any, device: Any) -> Opened:
        opened.append(opened[0] if opened else real(recipe, device))
        return opened[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare_run, "open_model", once)
        yield


class Watched:
    """Stands in for the pipeline's call: keeps what was called, and does something before a call."""

    def __init__(self, before: Callable[[int], None] | None = None, after: Callable[[int, Any], Any] | None = None):
        self.calls: list[tuple[str | None, int, int | None, bool]] = []
        self._real: Draw = draw
        self._before = before
        self._after = after

    def __call__(self, opened: Opened, batch: Sequence[Job], on_step: Callable[[Row], None] | None) -> list[Any]:
        if self._before is not None:
            self._before(len(self.calls))
        (job,) = batch
        cached = installed(opened.pipe.transformer) is not None
        self.calls.append((job.prompt, job.seed, opened.steps, cached))
        (product,) = self._real(opened, batch, on_step)
        if self._after is None or not isinstance(product, Pictures):
            return [product]
        return [Pictures([self._after(len(self.calls) - 1, product.images[0])])]


def prepared(folder: Path, *vary: str, seeds: str = "3,4", fewer_steps: bool = True) -> tuple[Comparison, RunFolder]:
    prompts = folder.parent / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    folder.mkdir(exist_ok=True)
    comparison = prepare(
        ["demo"],
        vary=vary,
        changes=[*SMALL, "model.device=cpu"],
        seeds=seeds,
        prompts=str(prompts),
        fewer_steps=fewer_steps,
        command=["cachedit", "compare", "demo"],
        version="1",
    )
    return comparison, RunFolder(folder, comparison.name)


def made(
    folder: Path, *vary: str, watched: Watched | None = None, seeds: str = "3,4", fewer_steps: bool = True
) -> Comparison:
    comparison, where = prepared(folder, *vary, seeds=seeds, fewer_steps=fewer_steps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "draw", watched or draw)
        compare_run.make(comparison, where, folder / "report.html", lambda line: None)
    return comparison


def pixels(folder: Path, file: str) -> Any:
    with Image.open(folder / file) as picture:
        return np.asarray(picture).astype(float)


THRESHOLDS = "cache.residual_diff_threshold=0,0.6"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison, Watched]:
    """A comparison of two thresholds, two prompts and two seeds."""
    folder, watched = tmp_path_factory.mktemp("compare") / "whole", Watched()
    return folder, made(folder, THRESHOLDS, watched=watched), watched


def entry_of(comparison: Comparison, start: str) -> Entry:
    return next(entry for entry in comparison.entries if entry.name.startswith(start))


# ------------------------------------------------------------------------------------------------------------ one run


def test_after_a_warm_up_the_variants_take_turns_with_the_baseline(whole: tuple[Path, Comparison, Watched]) -> None:
    _, comparison, watched = whole
    (fewer,) = {entry.steps for entry in comparison.entries if entry.kind == "fewer-steps"}
    jobs = [(prompt, seed) for prompt in PROMPTS for seed in (3, 4)]
    turns = [(*job, STEPS, cached) for job in jobs for cached in (False, True, True)]
    cheaper = [(*job, steps, False) for job in jobs for steps in (STEPS, fewer)]
    assert watched.calls == [("red heart", 3, STEPS, False), *turns, *cheaper]


def test_the_baseline_is_the_pipelines_own_picture(whole: tuple[Path, Comparison, Watched], flux: Any) -> None:
    folder, comparison, _ = whole
    arguments = {**demo.DEFAULTS, "height": 32, "width": 32}
    for entry in comparison.entries:
        if entry.kind == "variant":
            continue
        trial, seed = entry.trials[3], torch.Generator().manual_seed(4)
        own = flux("cat face", num_inference_steps=entry.steps, generator=seed, **arguments).images[0]
        assert (pixels(folder, trial.file) == np.asarray(own)).all()


def test_psnr_is_that_of_the_saved_pictures(whole: tuple[Path, Comparison, Watched]) -> None:
    folder, comparison, _ = whole
    entry, errors = entry_of(comparison, "residual_diff_threshold=0.6"), []
    for trial, reference in zip(entry.trials, comparison.baseline.trials, strict=True):
        difference = (pixels(folder, trial.file) - pixels(folder, reference.file)) / 255
        errors.append(float(np.mean(difference**2)))
        assert trial.psnr == pytest.approx(-10 * math.log10(errors[-1]), abs=1e-4)
    assert comparison.summary(entry).psnr == pytest.approx(-10 * math.log10(np.mean(errors)), abs=1e-4)


def test_never_reusing_is_identical_and_saves_nothing(whole: tuple[Path, Comparison, Watched]) -> None:
    _, comparison, _ = whole
    found = comparison.summary(entry_of(comparison, "residual_diff_threshold=0"))
    assert (found.identical, found.psnr) == (True, None)
    assert found.ssim == pytest.approx(1)
    assert found.calls_saved == 0
    assert comparison.deterministic is not None
    assert comparison.deterministic.identical
    assert comparison.notes == []


def test_fewer_steps_cost_what_the_variant_costs(whole: tuple[Path, Comparison, Watched]) -> None:
    _, comparison, _ = whole
    entry, fewer = entry_of(comparison, "residual_diff_threshold=0.6"), comparison.entries[-1]
    strips = [trial.strips[0].marks for trial in entry.trials]
    computed = sum(mark == "█" for marks in strips for mark in marks)
    reused = sum(map(len, strips)) - computed
    share = (18 * computed + reused) / (18 * (computed + reused))  # a reused step computes the one front block
    assert reused > 0
    assert entry.computed_share == pytest.approx(share)
    assert fewer.steps == round(STEPS * share)
    assert fewer.same_cost_as == [entry.name]
    assert comparison.summary(entry).calls_saved == pytest.approx(1 - share)
    assert comparison.summary(fewer).calls_saved == pytest.approx(1 - fewer.steps / STEPS)
    assert comparison.summary(fewer).cache_bytes is None


def test_each_variant_is_timed_against_the_baseline_of_its_own_round(tmp_path: Path) -> None:
    """A baseline that takes three times as long in the second round does not make the variant look faster."""
    ticks = iter([*[9.0] * 1, 1.0, 0.5, 3.0, 1.5])
    real = timed

    class Clocked:
        def __init__(self, *given: Any) -> None:
            self._real = real(*given)

        def __enter__(self) -> dict[str, float]:
            self._seconds = self._real.__enter__()
            return self._seconds

        def __exit__(self, *error: Any) -> None:
            self._real.__exit__(*error)
            self._seconds.clear()
            self._seconds["denoise"] = next(ticks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "timed", Clocked)
        comparison = made(tmp_path / "a", "cache.residual_diff_threshold=0.6", fewer_steps=False, seeds="3")
    trials = comparison.entries[1].trials
    assert [(trial.seconds, trial.baseline_seconds) for trial in trials] == [(0.5, 1.0), (1.5, 3.0)]
    found = comparison.summary(comparison.entries[1])
    assert (found.seconds, found.speedup) == (1.0, 2.0)


def test_the_record_is_read_back_as_it_was(whole: tuple[Path, Comparison, Watched]) -> None:
    folder, comparison, _ = whole
    assert read(folder) == comparison
    stored = json.loads((folder / "compare.json").read_text())
    assert (stored["schema"], stored["status"]) == (1, "done")
    assert [entry["summary"]["pictures"] for entry in stored["entries"]] == [4, 4, 4, 4]


# ---------------------------------------------------------------------------------------------------- ends before time


def test_an_interrupt_keeps_what_is_finished_and_resume_goes_on_with_the_rest(
    whole: tuple[Path, Comparison, Watched], tmp_path: Path
) -> None:
    folder = tmp_path / "a"

    def stop(call: int) -> None:
        if call == 6:  # the last variant of the second round
            raise KeyboardInterrupt

    first = made(folder, THRESHOLDS, watched=Watched(stop))
    assert first.status == "interrupted"
    assert [len(entry.trials) for entry in first.entries] == [2, 2, 1]
    assert (folder / "report.html").is_file()
    assert (folder / "contact-sheet.png").is_file()
    kept = {file.name: file.read_bytes() for file in folder.glob("*.png") if file.name != "contact-sheet.png"}

    again, watched = read(folder), Watched()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "draw", watched)
        compare_run.make(again, RunFolder(folder, again.name), folder / "report.html", lambda line: None)
    assert again.status == "done"
    assert [call[:2] for call in watched.calls[:4]] == [("red heart", 3), *[("red heart", 4)] * 2, ("cat face", 3)]
    assert all((folder / name).read_bytes() == data for name, data in kept.items())
    other, comparison, _ = whole
    for mine, its in zip(again.entries, comparison.entries, strict=True):
        for one, two in zip(mine.trials, its.trials, strict=True):
            assert (pixels(folder, one.file) == pixels(other, two.file)).all()
            assert (one.job, one.psnr) == (two.job, two.psnr)


def test_resuming_what_is_complete_draws_nothing_and_a_lost_picture_again(
    whole: tuple[Path, Comparison, Watched], tmp_path: Path
) -> None:
    source, _, _ = whole
    folder = tmp_path / "a"
    shutil.copytree(source, folder)
    for lost, calls in ((None, 0), ("residual-diff-threshold-0-6-cat-face-s3.png", 3)):
        if lost is not None:
            (folder / lost).unlink()
        again, watched = read(folder), Watched()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(drawing, "draw", watched)
            compare_run.make(again, RunFolder(folder, again.name), folder / "report.html", lambda line: None)
        assert len(watched.calls) == calls  # warm-up, baseline, the variant
        assert again.status == "done"
    assert (pixels(folder, str(lost)) == pixels(source, str(lost))).all()


def test_a_variant_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    luck = iter([True, True, False])

    def fail(call: int) -> None:
        if not next(luck, True):
            raise RunError("out of luck")

    comparison = made(tmp_path / "a", THRESHOLDS, watched=Watched(fail), seeds="3", fewer_steps=False)
    assert comparison.status == "failed"
    assert comparison.error == "failed: residual_diff_threshold=0"
    assert [(entry.error, len(entry.trials)) for entry in comparison.entries] == [
        (None, 2),
        ("out of luck", 0),
        (None, 2),
    ]


def test_a_baseline_that_is_not_deterministic_is_told_with_how_much(tmp_path: Path) -> None:
    def changed(call: int, picture: Any) -> Any:
        levels = np.asarray(picture).copy()
        if call == 0:
            levels[:, 0] ^= 4
        return Image.fromarray(levels)

    comparison = made(
        tmp_path / "a", "cache.residual_diff_threshold=0", watched=Watched(after=changed), seeds="3", fewer_steps=False
    )
    found = comparison.deterministic
    assert found is not None
    assert (found.identical, found.levels, found.share) == (False, 4, 1 / 32)
    assert found.psnr == pytest.approx(20 * math.log10(255 / 4) + 10 * math.log10(32), abs=1e-4)
    assert comparison.notes == [
        "the baseline is not deterministic: the same prompt and seed drew another picture, 3.1% of the colour values "
        "differ, by up to 4 of 255 (PSNR 51.1 dB); no variant can be told apart better than that"
    ]
    assert comparison.status == "done"


def test_a_variant_that_draws_another_size_fails_with_both_sizes(tmp_path: Path) -> None:
    def smaller(call: int, picture: Any) -> Any:
        return picture.crop((0, 0, 16, 32)) if call == 2 else picture

    comparison = made(
        tmp_path / "a", "cache.residual_diff_threshold=0", watched=Watched(after=smaller), seeds="3", fewer_steps=False
    )
    assert comparison.entries[1].error == (
        "the picture is 16 x 32, the baseline's 32 x 32: only one size can be compared"
    )


# ------------------------------------------------------------------------------------------------------------- command


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    given = ["demo", *(part for change in SMALL for part in ("--set", change)), *arguments]
    shown = io.StringIO()
    with redirect_stdout(shown):
        code = main(["compare", *given, "--output-dir", str(folder)])
    return code, shown.getvalue()


def test_the_command_prints_the_table_and_where_everything_is(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    code, out = run(tmp_path / "out", "--vary", THRESHOLDS, "--html", str(page), "--no-fewer-steps")
    (folder,) = (tmp_path / "out").iterdir()
    lines = [line.rstrip() for line in out.splitlines()]
    assert code == 0
    assert [name for line in lines[-8:] for name in line.split()[:1]] == [
        "variant",
        "baseline",
        "residual_diff_threshold=0",
        "residual_diff_threshold=0.6",
        "*",
        "report",
        "pictures",
    ]
    assert lines[-2:] == [f"report {page}", f"pictures {folder / 'contact-sheet.png'}"]
    assert folder.name.endswith("-compare-demo")
    assert page.is_file()
    assert not (folder / "report.html").exists()


def test_json_is_one_document_on_stdout(tmp_path: Path, capsys: CAUGHT) -> None:
    code, out = run(tmp_path, "--no-fewer-steps", "--json")
    facts = json.loads(out)
    (folder,) = tmp_path.iterdir()
    assert code == 0
    assert facts.pop("folder") == str(folder)
    assert facts.pop("html") == str(folder / "report.html")
    assert facts == json.loads((folder / "compare.json").read_text())
    assert "warm-up" in capsys.readouterr().err


def test_an_interrupt_is_130_a_failed_variant_1_and_both_say_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: CAUGHT
) -> None:
    errors = iter([KeyboardInterrupt, RunError])

    def fail(call: int) -> None:
        if call == 2:
            raise next(errors)("out of luck")

    for number, (code, end) in enumerate(((130, "interrupted\n"), (1, "goes on\n"))):
        monkeypatch.setattr(drawing, "draw", Watched(fail))
        assert run(tmp_path / str(number), "--no-fewer-steps")[0] == code
        (folder,) = (tmp_path / str(number)).iterdir()
        err = capsys.readouterr().err
        assert f"1 picture kept in {folder}; `cachedit compare --resume {folder}` goes on\n" in err
        assert err.endswith(end)
        monkeypatch.undo()
        assert main(["compare", "--resume", str(folder)]) == 0
        assert read(folder).pictures == 2
