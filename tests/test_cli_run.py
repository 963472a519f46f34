"""`cachedit run` on the bundled model: exit codes, which stream says what, interrupts, and what stays behind."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from cachedit_cli import screen
from cachedit_cli.cli import main
from cachedit_cli.screen import Screen
from cachedit_cli.terms.stats import Row

CAUGHT = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "FORCE_COLOR", "PY_COLORS"):
        monkeypatch.delenv(name, raising=False)


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cachedit_cli", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_interruptible,
    )


def _interruptible() -> None:
    """Hear Ctrl-C also where the tests run in the background of a shell, which passes on that it is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def refused(arguments: Sequence[str], folder: Path, caught: CAUGHT) -> tuple[int, str]:
    """Return code and message of a run that leaves nothing behind."""
    outputs = folder / "outputs"
    code = main(["run", *arguments, "--output-dir", str(outputs)])
    assert not outputs.exists() or not list(outputs.iterdir())
    return code, caught.readouterr().err


# ----------------------------------------------------------------------------------------------------------- a good run


def test_a_run_shows_its_plan_the_strip_the_file_and_what_was_saved(tmp_path: Path, capsys: CAUGHT) -> None:
    changes = ("--set", "cache.max_warmup_steps=2", "--set", "cache.residual_diff_threshold=0.4")
    code = main(["run", "demo", "--steps", "8", "--prompt", "cat face", *changes, "--output-dir", str(tmp_path)])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert re.search(r"[^\n\x20-\x7e·█▒≥]", out) is None  # nothing that moves, nothing that colours
    lines = out.splitlines()
    assert lines[0] == "recipe      demo"
    assert "makes       1 picture of 64 x 64, 8 steps" in lines
    (folder,) = tmp_path.iterdir()
    assert f"saved {folder}/demo-cat-face-s0.png" in lines
    rows = json.loads((folder / "log.jsonl").read_text())["rows"]
    marks = "".join("█" if row["decision"] == "compute" else "·" for row in rows)
    assert f"cond |{marks}| 8/8" in lines
    saved, calls = sum(row["saved"] for row in rows), sum(row["saved"] + row["computed"] for row in rows)
    assert saved > 0
    assert calls == 8 * 18
    assert lines[-1].startswith(f"saved {saved} of {calls} block calls (")


def test_on_a_terminal_the_strip_fills_as_the_steps_happen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(screen, "console", lambda stderr: terminal)
    monkeypatch.setattr(screen, "REFRESH", 0)
    assert main(["run", "demo", "--steps", "3", "--output-dir", str(tmp_path)]) == 0
    drawn = re.findall(r"cond \|[^|]*\| \d/3", shown.getvalue())
    assert list(dict.fromkeys(drawn)) == ["cond |█  | 1/3", "cond |██ | 2/3", "cond |███| 3/3"]


def test_json_is_one_document_on_stdout_and_the_rest_is_on_stderr(tmp_path: Path) -> None:
    run = started(tmp_path, "run", "demo", "--steps", "2", "--json")
    out, err = run.communicate()
    assert run.returncode == 0
    facts = json.loads(out)
    folder = tmp_path / facts.pop("folder")
    assert facts == json.loads((folder / "run.json").read_text())
    assert facts["status"] == "done"
    assert facts["command"] == ["cachedit", "run", "demo", "--steps", "2", "--json"]
    assert err.startswith("recipe      demo\n")


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: CAUGHT) -> None:
    code = main(["run", "demo", "--dry-run", "--json", "--output-dir", str(tmp_path / "outputs")])
    facts = json.loads(capsys.readouterr().out)
    assert (code, list(tmp_path.iterdir())) == (0, [])
    assert (facts["adapter"], facts["pipeline"], facts["steps"]) == ("flux", "FluxPipeline", 28)


def test_no_cache_is_the_baseline(tmp_path: Path, capsys: CAUGHT) -> None:
    code = main(["run", "demo", "--steps", "2", "--no-cache", "--output-dir", str(tmp_path)])
    out = capsys.readouterr().out
    assert code == 0
    assert "cache   none: every step computes every block" in out
    assert "baseline |██| 2/2" in out
    assert re.search(r"^computed everything in \d+\.\d\d s: without caching$", out, re.MULTILINE)


def test_each_picture_has_a_file_of_its_own(tmp_path: Path, capsys: CAUGHT) -> None:
    options = ["--steps", "1", "--num-images", "2", "--seed", "5", "--prompt", "cat face", "--prompt", "red heart"]
    assert main(["run", "demo", *options, "--output-dir", str(tmp_path), "--negative-prompt", "dog"]) == 0
    (folder,) = tmp_path.iterdir()
    assert sorted(file.name for file in folder.iterdir()) == [
        "demo-cat-face-s5.png",
        "demo-cat-face-s6.png",
        "demo-red-heart-s5.png",
        "demo-red-heart-s6.png",
        "log.jsonl",
        "run.json",
    ]
    with Image.open(folder / "demo-red-heart-s6.png") as picture:
        facts = dict(picture.info)
    assert [facts[key] for key in ("recipe", "prompt", "negative_prompt", "seed")] == ["demo", "red heart", "dog", "6"]


# ---------------------------------------------------------------------------------------------------------- interrupts


def test_ctrl_c_keeps_what_was_finished_and_says_so(tmp_path: Path) -> None:
    run = started(tmp_path, "run", "demo", "--steps", "6", "--num-images", "500")
    assert run.stdout is not None
    for line in run.stdout:
        if line.startswith("2/500 seed 1: "):  # two are finished, the third is on its way
            break
    run.send_signal(signal.SIGINT)
    _, err = run.communicate()
    (folder,) = (tmp_path / "outputs").iterdir()
    record = json.loads((folder / "run.json").read_text())
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    done = len(record["images"])
    assert run.returncode == 130
    assert err == f"{done} of 500 pictures were finished, kept in {folder.relative_to(tmp_path)}\ninterrupted\n"
    assert record["status"] == "interrupted"
    assert 2 <= done < 500
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        [*(image["file"] for image in record["images"]), "log.jsonl", "run.json"]
    )
    assert [len(call["rows"]) for call in log] == [6] * done


def test_ctrl_c_before_the_first_picture_leaves_nothing(
    tmp_path: Path, capsys: CAUGHT, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object, __: Row) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Screen, "row", interrupted)
    code, err = refused(["demo", "--num-images", "2"], tmp_path, capsys)
    assert (code, err) == (130, "0 of 2 pictures were finished\ninterrupted\n")


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "generate.extra.guidence_scale=3",
            "generate.extra.guidence_scale: FluxPipeline takes no such argument (did you mean 'guidance_scale'?)",
        ),
        ("generate.extra.output_type=latent", "generate.extra.output_type: cachedit sets it itself"),
        ("model.pipeline=Fluxpipeline", "has no pipeline 'Fluxpipeline' (did you mean 'FluxPipeline'?)"),
        ("model.pipeline=FluxTransformer2DModel", "has no pipeline 'FluxTransformer2DModel'"),
        ("model.id=./nowhere", "model.id: ./nowhere: no such folder (and not of the form of a hub id, 'owner/name')"),
        ("model.device=tpu", "model.device: 'tpu' is no device; give auto, cpu, cuda, cuda:N or mps"),
        (
            "cache.steps_computation_mask='110'",
            "cache.steps_computation_mask: has 3 bits, but there are 28 steps",
        ),
        (
            "cache.Fn_compute_blocks=19",
            "transformer.transformer_blocks + transformer.single_transformer_blocks: "
            "Fn_compute_blocks is 19, but the list has 18 blocks",
        ),
        (
            "generate.max_sequence_length=600",
            "generate: FluxPipeline refuses its arguments: "
            "ValueError: `max_sequence_length` cannot be greater than 512 but is 600",
        ),
    ],
)
def test_what_does_not_fit_gets_code_2_and_leaves_nothing(
    change: str, message: str, tmp_path: Path, capsys: CAUGHT
) -> None:
    code, err = refused(["demo", "--set", change], tmp_path, capsys)
    assert code == 2
    assert err.endswith(f"{message}\n")
    assert len(err.splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none_is_refused(tmp_path: Path, capsys: CAUGHT) -> None:
    code, err = refused(["demo", "--device", "cuda"], tmp_path, capsys)
    assert code == 2
    assert re.fullmatch(
        r"model\.device: 'cuda' is not available here \(available: [a-z, ]+; auto takes the best\)\n", err
    )


def test_a_missing_prompt_is_said_before_the_weights_are_loaded(tmp_path: Path, capsys: CAUGHT) -> None:
    file = tmp_path / "bare.yaml"
    file.write_text("version: 1\nmodel: {id: demo}\ngenerate: {extra: {sigmas: [1.0]}}\n")
    code, err = refused([str(file)], tmp_path, capsys)
    assert (code, err) == (2, "generate.prompt: missing, and FluxPipeline draws what a prompt says\n")


def test_an_output_folder_that_cannot_be_made_is_found_first(tmp_path: Path, capsys: CAUGHT) -> None:
    (tmp_path / "taken").write_text("")
    code = main(["run", "demo", "--output-dir", str(tmp_path / "taken")])
    assert code == 2
    assert capsys.readouterr().err == f"{tmp_path / 'taken'}: is a file, but the runs need a folder (output.dir)\n"


def test_a_call_that_fails_gets_code_1(tmp_path: Path, capsys: CAUGHT) -> None:
    code, err = refused(["demo", "--set", "generate.extra.sigmas=[a]"], tmp_path, capsys)
    assert code == 1
    assert re.fullmatch(r"FluxPipeline failed: ValueError: .*'a'.*\n", err)


def test_debug_shows_the_traceback_before_the_message(tmp_path: Path, capsys: CAUGHT) -> None:
    code, err = refused(["demo", "--set", "model.id=./nowhere", "--debug"], tmp_path, capsys)
    assert code == 2
    assert err.startswith("Traceback (most recent call last):\n")
    assert err.endswith("\nmodel.id: ./nowhere: no such folder (and not of the form of a hub id, 'owner/name')\n")


def test_a_model_that_is_nowhere_while_offline_gets_code_1(
    tmp_path: Path, capsys: CAUGHT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, err = refused(["demo", "--set", "model.id=nobody/nothing"], tmp_path, capsys)
    assert (code, err) == (
        1,
        "nobody/nothing is neither a local folder nor complete in the hub's cache, and the hub cannot be reached\n",
    )
