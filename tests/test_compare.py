"""What a comparison is made of, and what is refused before any weights are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachedit_cli.cli import main
from cachedit_cli.compare import check_html, parse_vary, prepare
from cachedit_cli.errors import InputError
from cachedit_cli.jobs import Job
from cachedit_cli.recipe import Override, Recipe

CAUGHT = pytest.CaptureFixture[str]
THRESHOLD = "cache.residual_diff_threshold"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a.b=1", ["1"]),
        ("a.b=0.1, 0.2,0.3", ["0.1", "0.2", "0.3"]),
        ("a.b=[1,2],[3]", ["[1,2]", "[3]"]),
        ("a.b={policy: fast, x: 1},null", ["{policy: fast, x: 1}", "null"]),
        ("a.b='x,y',\"z,[\",w", ["'x,y'", '"z,["', "w"]),
    ],
)
def test_values_are_split_at_commas_outside_of_brackets_and_quotes(text: str, values: list[str]) -> None:
    assert parse_vary(text) == ("a.b", values)


def test_the_baseline_is_the_first_recipe_without_caching_and_all_combinations_follow() -> None:
    found = prepare(["demo-taylorseer"], vary=[f"{THRESHOLD}=0.1,0.2", "cache.max_warmup_steps=2,3"], seeds="4,0")
    assert [(entry.name, entry.kind) for entry in found.entries] == [
        ("baseline", "baseline"),
        ("residual_diff_threshold=0.1 max_warmup_steps=2", "variant"),
        ("residual_diff_threshold=0.1 max_warmup_steps=3", "variant"),
        ("residual_diff_threshold=0.2 max_warmup_steps=2", "variant"),
        ("residual_diff_threshold=0.2 max_warmup_steps=3", "variant"),
    ]
    assert found.baseline.recipe["cache"] == {"type": "none"}
    assert {"calibrator", "adapter"}.isdisjoint(found.baseline.recipe)
    recipes = [Recipe.model_validate(entry.recipe) for entry in found.entries[1:]]
    settings = [recipe.cache_config(28) for recipe in recipes]
    assert [(each.residual_diff_threshold, each.max_warmup_steps) for each in settings if each is not None] == [
        (0.1, 2),
        (0.1, 3),
        (0.2, 2),
        (0.2, 3),
    ]
    assert found.jobs == [Job("red heart on a white background", seed) for seed in (4, 0)]


def test_several_recipes_are_named_and_take_the_prompts_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffcat face\r\n\n  Größe ✓ \ncat face\n".encode())
    found = prepare(["demo", "demo-prune", "demo"], prompts=str(file))
    assert [entry.name for entry in found.entries] == ["baseline", "demo", "demo-prune", "demo (2)"]
    assert found.jobs == [Job("cat face", 0), Job("Größe ✓", 0)]


def test_settings_are_those_of_every_variant_and_of_the_baseline() -> None:
    found = prepare(["demo", "demo-prune"], changes=["generate.guidance_scale=2", Override("--steps", STEPS, 9)])
    for entry in found.entries:
        generate = entry.recipe["generate"]
        assert (generate["guidance_scale"], generate["num_inference_steps"]) == (2, 9)


STEPS = "generate.num_inference_steps"
KNOWN = "cache.residual_dif_threshold: unknown key (did you mean 'residual_diff_threshold'?)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which recipes? as in `cachedit compare demo --vary KEY=A,B,C`, or --resume FOLDER"),
        (
            ["demo", "--vary", "cache.residual_dif_threshold=0.1,0.2"],
            f"--vary cache.residual_dif_threshold=0.1: {KNOWN}",
        ),
        (["demo", "--set", "cache.residual_dif_threshold=1"], f"--set cache.residual_dif_threshold=1: {KNOWN}"),
        (
            ["demo", "--vary", f"{THRESHOLD}=0.1,high,low"],
            f"--vary {THRESHOLD}=high: {THRESHOLD}: 'high' is not a number\n"
            f"--vary {THRESHOLD}=low: {THRESHOLD}: 'low' is not a number",
        ),
        (
            ["demo", "--vary", f"{THRESHOLD}="],
            f"--vary {THRESHOLD}=: gives no values; write KEY=A,B,C, as in {THRESHOLD}=0.08,0.12",
        ),
        (
            ["demo", "--vary", f"{THRESHOLD}=1,,2"],
            f"--vary {THRESHOLD}=1,,2: one of its values is empty; write KEY=A,B,C, as in {THRESHOLD}=0.08,0.12",
        ),
        (["demo", "--vary", f"{THRESHOLD}=1,1"], f"--vary {THRESHOLD}=1,1: 1 is given twice"),
        (
            ["demo", "--vary", f"{THRESHOLD}=1", "--vary", f"{THRESHOLD}=2"],
            f"--vary {THRESHOLD}: is given twice; write all values in one, as in --vary {THRESHOLD}=A,B,C",
        ),
        (
            ["demo", "--vary", f"{STEPS}=" + ",".join(map(str, range(1, 34))), "--vary", f"{THRESHOLD}=1,2"],
            "these are 66 variants, and at most 64 are compared: vary less",
        ),
        (
            ["demo", "--vary", "model.dtype=float32,float16"],
            "--vary model.dtype: model cannot vary: the model is loaded once for all variants; compare models by a "
            "run of each",
        ),
        (
            ["demo", "--vary", "generate.seed=1,2"],
            "--vary generate.seed: generate.seed cannot vary: every variant draws the same seeds; --seeds 0,1,2 gives "
            "them",
        ),
        (
            ["demo", "--vary", "generate.height=64,128"],
            "height=128: draws 64 x 128, the baseline 64 x 64: only the same size can be compared",
        ),
        (
            ["wan2.1-t2v-1.3b", "--vary", "generate.extra.num_frames=81,33"],
            "num_frames=33: draws 832 x 480, 33 frames, the baseline 832 x 480, 81 frames: only the same size can be "
            "compared",
        ),
        (
            ["demo", "--vary", "cache.Fn_compute_blocks=1,30"],
            "Fn_compute_blocks=30: transformer.transformer_blocks + transformer.single_transformer_blocks: "
            "Fn_compute_blocks is 30, but the list has 18 blocks",
        ),
        (["demo", "--seeds", "1,x"], "--seeds: '1,x' is not a list of whole numbers such as 0,1,2"),
        (
            ["demo", "--seeds", "1,1"],
            "--seeds: generate.seeds: a seed is given twice, which draws the same picture twice",
        ),
        (["demo", "--prompts", "none.txt"], "none.txt: cannot be read: No such file or directory"),
        (["demo", "--html", "none/x.html"], "--html none/x.html: there is no folder none"),
        (
            ["--resume", "none"],
            "none/compare.json: cannot be read, so there is no comparison here: No such file or directory",
        ),
        (
            ["demo", "--resume", "none"],
            "--resume goes on with what the folder says: give no recipes and no settings with it",
        ),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2_and_leaves_nothing(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: CAUGHT
) -> None:
    monkeypatch.chdir(tmp_path)
    code = main(["compare", *arguments])
    out, err = capsys.readouterr()
    assert (code, out, err) == (2, "", f"{message}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_of_another_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "half.yaml"
    file.write_text("version: 1\nextends: demo\nmodel: {dtype: float16}\n")
    with pytest.raises(InputError) as caught:
        prepare(["demo", str(file)])
    assert str(caught.value) == (
        "half: model.dtype is float16, not auto: the model is loaded once, so all variants need the same"
    )


def test_a_report_cannot_take_the_place_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder; give a file, such as"):
        check_html(str(tmp_path))
    check_html(str(tmp_path / "report.html"))
    check_html(None)


def test_arguments_that_the_pipeline_does_not_take_are_refused_before_the_weights_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: CAUGHT
) -> None:
    from cachedit_cli import compare_run

    monkeypatch.setattr(compare_run, "open_model", lambda *_: pytest.fail("the weights were loaded"))
    code = main(["compare", "demo", "--vary", "generate.extra.heigt=1,2", "--output-dir", str(tmp_path / "out")])
    err = capsys.readouterr().err
    assert code == 2
    assert err.startswith("generate.extra.heigt: FluxPipeline takes no such argument (did you mean 'height'?)")
    assert list((tmp_path / "out").iterdir()) == []
