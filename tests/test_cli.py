"""The command line without a model: output and errors as whole texts, exit codes, and no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cachedit_cli import __version__, recipe
from cachedit_cli.cli import main
from cachedit_cli.runs import Image, Record, RunFolder
from cachedit_cli.terms.stats import ContextInfo, DecisionLog, Row
from tests.records import written

CAUGHT = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "FORCE_COLOR", "PY_COLORS"):
        monkeypatch.delenv(name, raising=False)


def ran(*arguments: str, caught: CAUGHT) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = caught.readouterr()
    return code, out, err


def a_run(folder: Path, decisions: str, status: str = "done") -> Path:
    """Write a run of one picture whose context computed (1) or reused (0) its two middle blocks a step."""
    run = RunFolder.create("demo", folder)
    log = DecisionLog([ContextInfo("transformer.blocks", "Model", "Block", "Pattern_1", 3)])
    for step, bit in enumerate(decisions):
        reused = bit == "0"
        row = Row(0, step, "transformer.blocks", "cond", "reuse" if reused else "compute", "threshold", diff=0.05)
        row.computed, row.saved, row.ms = (1, 2, 1.0) if reused else (3, 0, 2.0)
        log.add(row)
    record = Record(cachedit=__version__, recipe={"name": "demo"}, log=log)
    record.images.append(Image("a.png", "a", 0, 64, 64, seconds=0.5))
    record.finish("interrupted" if status == "interrupted" else "done")
    written(run, record)
    return run.path


# ------------------------------------------------------------------------------------------------------------- general


def test_version_is_the_packages(capsys: CAUGHT) -> None:
    assert ran("--version", caught=capsys) == (0, f"cachedit {__version__}\n", "")


def test_help_names_every_command_with_a_whole_line(capsys: CAUGHT) -> None:
    code, out, err = ran("--help", caught=capsys)
    assert (code, err) == (0, "")
    commands = "run compare tune stats mask recipes validate models inspect schema doctor"
    for name in commands.split():
        assert f"\n  {name} " in out
    assert "..." not in out.partition("Commands:")[2]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["bogus"], "'bogus'"),
        (["run"], "recipe"),
        (["mask", "--polcy", "fast"], "--polcy"),
        (["mask", "--format", "html"], "'html'"),
        (["run", "demo", "--seed", "one"], "'--seed'"),
    ],
)
def test_wrong_usage_gets_code_2_and_one_sentence_that_names_it(
    arguments: list[str], named: str, capsys: CAUGHT
) -> None:
    code, out, err = ran(*arguments, caught=capsys)
    assert (code, out) == (2, "")
    (sentence,) = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert named in sentence.lower()
    assert err.startswith("Usage: cachedit ")


def test_a_bug_leaves_its_traceback_in_a_file_that_the_message_names(
    capsys: CAUGHT, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken() -> list[recipe.BundledRecipe]:
        raise LookupError("no such thing")

    monkeypatch.setattr(recipe, "bundled", broken)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code, out, err = ran("recipes", caught=capsys)
    (story,) = tmp_path.iterdir()
    assert (code, out) == (3, "")
    assert err == (
        "this is a bug in cachedit: LookupError: no such thing\n"
        f"Please report it and attach {story}, which holds the traceback.\n"
    )
    text = story.read_text()
    assert "in broken" in text
    assert "arguments: ['recipes']" in text


def test_a_bug_is_told_in_full_where_no_file_can_be_written(
    capsys: CAUGHT, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken() -> list[recipe.BundledRecipe]:
        raise LookupError("no such thing")

    monkeypatch.setattr(recipe, "bundled", broken)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    code, _, err = ran("recipes", caught=capsys)
    assert code == 3
    assert "in broken" in err


def test_an_interrupt_ends_with_code_130(capsys: CAUGHT, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> list[recipe.BundledRecipe]:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "bundled", interrupted)
    assert ran("recipes", caught=capsys) == (130, "", "interrupted\n")


LIGHT = [
    ["--help"],
    ["mask", "--policy", "fast"],
    ["mask", "--policy", "fats"],
    ["recipes"],
    ["recipes", "show", "demo"],
    ["schema"],
    ["validate", "demo"],
    ["stats"],
    ["run", "demo", "--dry-run"],
    ["run", "demo", "--set", "cache.treshold=1"],
    ["run", "nosuch"],
    ["run", "demo", "--steps", "0"],
]


def test_commands_that_need_no_model_never_import_torch(tmp_path: Path) -> None:
    a_run(tmp_path / "outputs", "110")
    script = (
        "import json, sys\n"
        "from cachedit_cli.cli import main\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    main(arguments)\n"
        "    heavy = {'torch', 'diffusers', 'transformers', 'accelerate', 'numpy', 'PIL'} & set(sys.modules)\n"
        "    if heavy:\n"
        "        sys.exit(f'{arguments} imports {heavy}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(LIGHT)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "saved 2 of 9 block calls" in done.stdout  # the run's statistics were shown


def test_the_module_runs_as_the_command_does(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cachedit_cli", "mask", "--policy", "fats"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "--policy: unknown policy 'fats' (did you mean 'fast'?)\n"


def test_a_pipe_without_the_marks_in_its_encoding_gets_others(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cachedit_cli", "mask", "--policy", "fast"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("strip         ######.#...#....#.....#....#\n")


# ---------------------------------------------------------------------------------------------------------------- mask


def test_mask_shows_strip_bits_bins_and_counts(capsys: CAUGHT) -> None:
    assert ran("mask", "--policy", "fast", "--steps", "28", caught=capsys) == (
        0,
        "strip         ██████·█···█····█·····█····█\n"
        "bits          1111110100010000100000100001\n"
        "compute bins  6,1,1,1,1,1\n"
        "cache bins    1,3,4,5,4\n"
        "counts        28 steps: 11 computed, 17 cached (60.7 %)\n",
        "",
    )


def test_mask_takes_medium_and_28_steps_by_default(capsys: CAUGHT) -> None:
    assert ran("mask", caught=capsys) == ran("mask", "--policy", "medium", "--steps", "28", caught=capsys)


def test_mask_from_bins_is_yaml_that_a_recipe_takes(capsys: CAUGHT, tmp_path: Path) -> None:
    bins = ("--compute-bins", "6,1,1,1,1", "--cache-bins", "1,2,5,5,5")
    code, out, err = ran("mask", *bins, "--steps", "28", "--format", "yaml", caught=capsys)
    assert (code, err) == (0, "")
    file = tmp_path / "own.yaml"
    file.write_text("version: 1\nextends: demo\ncache:\n" + "".join(f"  {line}\n" for line in out.splitlines()))
    config = recipe.load(file).cache_config(28)
    assert config is not None
    assert "".join(map(str, config.steps_computation_mask or ())) == "1111110100100000100000100000"


def test_mask_as_json_is_one_document(capsys: CAUGHT) -> None:
    code, out, err = ran("mask", "--policy", "ultra", "--format", "json", caught=capsys)
    facts = json.loads(out)
    assert (code, err, facts["text"], facts["computed"]) == (0, "", "1111001000001000000100000001", 8)


def test_bins_without_steps_are_laid_out_in_full(capsys: CAUGHT) -> None:
    _, out, _ = ran("mask", "--compute-bins", "2,1", "--cache-bins", "3", "--format", "json", caught=capsys)
    assert json.loads(out)["text"] == "110001"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "fats"], "--policy: unknown policy 'fats' (did you mean 'fast'?)"),
        (["--steps", "0"], "--steps: 0 is not a whole number >= 1"),
        (["--compute-bins", "2"], "--cache-bins: missing; --compute-bins needs it"),
        (["--compute-bins", "", "--cache-bins", "1"], "--compute-bins: empty; give the length of at least one run"),
        (
            ["--compute-bins", "2,x", "--cache-bins", "1"],
            "--compute-bins: '2,x' is not a list of whole numbers such as 6,1,1",
        ),
        (["--compute-bins", "2,-1", "--cache-bins", "1"], "--compute-bins[1]: -1 is not a whole number >= 0"),
        (
            ["--compute-bins", "2,3", "--cache-bins", "1", "--steps", "9"],
            "--compute-bins and --cache-bins sum to 6, but there are 9 steps",
        ),
        (
            ["--policy", "fast", "--compute-bins", "2", "--cache-bins", "1"],
            "--policy and bins exclude each other: give one of them",
        ),
    ],
)
def test_a_wrong_mask_is_named_by_its_option(arguments: list[str], message: str, capsys: CAUGHT) -> None:
    assert ran("mask", *arguments, caught=capsys) == (2, "", f"{message}\n")


# ------------------------------------------------------------------------------------------------------------- recipes


def test_recipes_lists_each_bundled_recipe_with_its_title(capsys: CAUGHT) -> None:
    code, out, err = ran("recipes", caught=capsys)
    assert (code, err) == (0, "")
    assert [line.split(maxsplit=1) for line in out.splitlines()] == [
        [each.name, each.title] for each in recipe.bundled()
    ]


def test_recipes_show_prints_the_file_as_it_is(capsys: CAUGHT) -> None:
    path = next(each.path for each in recipe.bundled() if each.name == "demo")
    assert ran("recipes", "show", "demo", caught=capsys) == (0, path.read_text(), "")


def test_an_unknown_recipe_gets_code_2_and_a_way_on(capsys: CAUGHT) -> None:
    code, out, err = ran("recipes", "show", "demmo", caught=capsys)
    assert (code, out) == (2, "")
    assert err.startswith("no bundled recipe is called 'demmo' (did you mean 'demo'?")


def test_validate_shows_what_is_right_and_everything_that_is_wrong(
    capsys: CAUGHT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.yaml").write_text("version: 1\nextends: demo\n")
    Path("bad.yaml").write_text("version: 1\nextends: demo\ncache:\n  max_warmup_step: 4\n  Fn_compute_blocks: -1\n")
    code, out, err = ran("validate", "bad.yaml", "good.yaml", "missing.yaml", caught=capsys)
    assert (code, out) == (2, "good.yaml: ok\n")
    lines = err.splitlines()
    assert lines[0] == "bad.yaml:4:3: cache.max_warmup_step: unknown key (did you mean 'max_warmup_steps'?)"
    assert lines[1].startswith("bad.yaml:5:22: cache.Fn_compute_blocks: -1")
    assert lines[2].startswith("missing.yaml: ")
    assert len(lines) == 3


def test_every_bundled_recipe_is_valid(capsys: CAUGHT) -> None:
    names = [each.name for each in recipe.bundled()]
    assert ran("validate", *names, caught=capsys) == (0, "".join(f"{name}: ok\n" for name in names), "")


def test_schema_prints_the_recipes_schema(capsys: CAUGHT) -> None:
    code, out, err = ran("schema", caught=capsys)
    assert (code, err, json.loads(out)) == (0, "", recipe.json_schema())


# --------------------------------------------------------------------------------------------------------------- stats


def test_stats_shows_the_newest_run(capsys: CAUGHT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = a_run(Path("outputs"), "1100")
    assert ran("stats", caught=capsys) == (
        0,
        f"{run}: done, 1 picture\n"
        "\n"
        "  branch  steps  computed  cached  calls saved  seconds\n"
        "blocks\n"
        "  cond        4         2       2       33.3 %    0.006\n"
        "\n"
        "Differences to the last computed step\n"
        "  branch  cached steps    min    P25    P50    P75    P95    max\n"
        "blocks\n"
        "  cond               2  0.050  0.050  0.050  0.050  0.050  0.050\n"
        "\n"
        "estimated error unknown: no forecast was checked\n"
        "saved 4 of 12 block calls (33.3 %) in 0.50 s\n",
        "",
    )


def test_stats_takes_a_folder_and_says_that_its_run_was_interrupted(capsys: CAUGHT, tmp_path: Path) -> None:
    run = a_run(tmp_path, "110", status="interrupted")
    for source in (run, run / "run.json"):
        code, out, _ = ran("stats", str(source), caught=capsys)
        assert (code, out.splitlines()[0]) == (0, f"{run}: interrupted, 1 picture")


def test_stats_details_have_every_step(capsys: CAUGHT, tmp_path: Path) -> None:
    run = a_run(tmp_path, "1100")
    _, out, _ = ran("stats", str(run), "--details", caught=capsys)
    assert "██··" in out
    _, out, _ = ran("stats", str(run), "--details", "--format", "json", caught=capsys)
    facts = json.loads(out)
    (context,) = facts["contexts"]
    (branch,) = context["branches"]
    assert (facts["run"], facts["status"]) == (str(run), "done")
    assert [row["decision"] for row in branch["rows"]] == ["compute", "compute", "reuse", "reuse"]


def test_stats_as_markdown_is_headed_by_the_run(capsys: CAUGHT, tmp_path: Path) -> None:
    run = a_run(tmp_path, "1100")
    _, out, _ = ran("stats", str(run), "--format", "markdown", caught=capsys)
    assert out.startswith(
        f"# {run}: done, 1 picture\n\nsaved 4 of 12 block calls (33.3 %) in 0.50 s\n\n## Steps\n\n| context |"
    )


def test_stats_of_a_run_without_caching_gives_its_seconds(capsys: CAUGHT, tmp_path: Path) -> None:
    run = RunFolder.create("demo", tmp_path)
    record = Record(cachedit=__version__, recipe={"name": "demo"})
    record.images.append(Image("a.png", "a", 0, 64, 64, seconds=0.5))
    record.finish("done")
    run.write(record)
    assert ran("stats", str(run.path), caught=capsys) == (
        0,
        f"{run.path}: done, 1 picture\ncomputed everything in 0.50 s: without caching\n",
        "",
    )


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"schema": 1}', '{"schema": 99}'])
def test_a_damaged_record_gets_code_2_and_its_name(damage: str, capsys: CAUGHT, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(damage)
    code, out, err = ran("stats", str(tmp_path), caught=capsys)
    assert (code, out) == (2, "")
    assert err.startswith(f"{tmp_path / 'run.json'}: ")
    assert len(err.splitlines()) == 1


def test_no_runs_yet_gets_code_2(capsys: CAUGHT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ran("stats", caught=capsys) == (2, "", "outputs: no runs yet (`cachedit run demo` makes one)\n")


def test_what_libraries_write_to_stdout_does_not_mix_with_a_result() -> None:
    script = """
import os
from cachedit_cli.guard import results_alone
with results_alone(True):
    print("from Python")
    os.write(1, b"from C\\n")
    os.system("echo from a worker")
print("the result")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "the result\n"
    assert sorted(done.stderr.splitlines()) == ["from C", "from Python", "from a worker"]
