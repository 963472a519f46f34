"""Files of prompts: the three formats, settings of their own, and every broken line named by its number."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachedit_cli.cli import main
from cachedit_cli.compare import parse_prompts, prepare
from cachedit_cli.errors import InputError
from cachedit_cli.jobs import Job, alone, calls, jobs, stems
from cachedit_cli.prompts_file import COLUMNS, read_prompts
from cachedit_cli.recipe import Override, Recipe, load
from cachedit_cli.recipe_model import Generate

CAUGHT = pytest.CaptureFixture[str]


def recipe(folder: Path, name: str, content: str, *changes: str) -> Recipe:
    file = folder / name
    file.write_text(content, encoding="utf-8")
    return load("demo", [Override("--prompts", "generate.prompts", str(file)), *changes])


def refusal(folder: Path, name: str, content: str | bytes) -> list[str]:
    """Return the lines of the message, without the folder."""
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        read_prompts(str(file))
    return str(caught.value).replace(f"{folder}/", "").split("\n")


# -------------------------------------------------------------------------------------------------------------- reading


def test_text_has_a_prompt_a_line(tmp_path: Path) -> None:
    found = jobs(recipe(tmp_path, "p.txt", '\ufeffcat face\r\n\r\n  red heart  \na, b; "c"', "generate.num_images=2"))
    assert found == [Job(prompt, seed) for prompt in ("cat face", "red heart", 'a, b; "c"') for seed in (0, 1)]


def test_csv_lines_have_settings_of_their_own_where_a_cell_is_filled(tmp_path: Path) -> None:
    content = (
        "prompt, seed,width,height,num_inference_steps,negative_prompt,guidance_scale\n"
        '"a cat, and a ""dog""",7,32,,4,blurry,3.5\n'
        "\n"
        '"two\nlines",,,,,,\n'
    )
    assert jobs(recipe(tmp_path, "p.csv", content, "generate.seed=5")) == [
        Job(
            'a cat, and a "dog"',
            7,
            {"negative_prompt": "blurry", "num_inference_steps": 4, "guidance_scale": 3.5, "width": 32},
        ),
        Job("two\nlines", 5),
    ]


def test_json_lines_have_settings_of_their_own_and_null_sets_nothing(tmp_path: Path) -> None:
    content = '{"prompt": "a", "seed": 3, "height": 32}\n\n{"prompt": "b", "seed": null, "true_cfg_scale": 2}\n'
    changes = ("generate.num_images=2",)
    assert jobs(recipe(tmp_path, "p.JSONL", content, *changes)) == [
        Job("a", 3, {"height": 32}),
        Job("a", 4, {"height": 32}),
        Job("b", 0, {"true_cfg_scale": 2.0}),
        Job("b", 1, {"true_cfg_scale": 2.0}),
    ]


def test_a_seed_of_a_line_stands_instead_of_the_recipes_list(tmp_path: Path) -> None:
    found = jobs(recipe(tmp_path, "p.csv", "prompt,seed\na,9\nb,\n", "generate.seeds=[1, 2]"))
    assert [(job.prompt, job.seed) for job in found] == [("a", 9), ("b", 1), ("b", 2)]


def test_every_column_is_a_field_of_generate() -> None:
    assert set(COLUMNS) <= set(Generate.model_fields)


def test_compare_reads_the_same_files_but_draws_all_prompts_alike(tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    file.write_text("prompt\na\nb\na\n")
    assert parse_prompts(str(file)) == ["a", "b"]
    file.write_text("prompt,seed,width\na,1,\nb,,8\n")
    with pytest.raises(InputError) as caught:
        parse_prompts(str(file))
    assert str(caught.value) == (
        f"{file}: sets seed, width of single prompts, but a comparison draws all of them alike; leave that out"
    )


def test_compare_refuses_a_recipe_whose_file_sets_more_than_prompts(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,width\na,8\n")
    with pytest.raises(InputError, match=r"p\.csv: sets width of single prompts, but a comparison draws all of them"):
        prepare(["demo"], changes=[f"generate.prompts={tmp_path / 'p.csv'}"])


# ----------------------------------------------------------------------------------------------------------- bad input


def test_all_broken_lines_of_a_csv_are_named_at_once(tmp_path: Path) -> None:
    content = "prompt,seed,width\na,x,8\nb,1\nc,1.5,0\n,3,\nd,1,8,9\n"
    assert refusal(tmp_path, "p.csv", content) == [
        "p.csv:2: seed: 'x' is not a whole number",
        "p.csv:3: has 2 cells, but there are 3 columns",
        "p.csv:4: seed: 1.5 is not a whole number",
        "p.csv:4: width: 0 is too small (at least 1)",
        "p.csv:5: prompt: missing",
        "p.csv:6: has 4 cells, but there are 3 columns (put a cell with a comma in double quotes)",
    ]


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        (
            "promt,seed\na,1\n",
            ["p.csv:1: promt: unknown column (did you mean 'prompt'?)", "p.csv:1: prompt: missing; "],
        ),
        ("prompt,seed,seed\na,1,2\n", ["p.csv:1: seed: is a column twice"]),
        ("prompt;seed\na;1\n", ["p.csv:1: prompt;seed: unknown column (", "p.csv:1: prompt: missing; the first line"]),
        ('prompt\n"a\nb\n', ["p.csv:2: is no CSV: unexpected end of data"]),
        ("prompt,seed\n", ["p.csv: is empty; write a line with the names of the columns, prompt among them, and more"]),
    ],
)
def test_a_csv_that_is_broken_as_a_whole_says_where(content: str, messages: list[str], tmp_path: Path) -> None:
    found = refusal(tmp_path, "p.csv", content)
    assert len(found) == len(messages)
    assert all(line.startswith(message) for line, message in zip(found, messages, strict=True))


def test_all_broken_json_lines_are_named_at_once(tmp_path: Path) -> None:
    content = (
        '{"prompt": "a", "sed": 1}\n{"prompt": 3}\n"a"\n{"prompt": "a"\n{"seed": true, "prompt": "a"}\n'
        '{"prompt": "a", "prompt": "b"}\n{"prompt": "a", "guidance_scale": NaN}\n{"prompt": ""}\n{}\n'
    )
    assert refusal(tmp_path, "p.jsonl", content) == [
        "p.jsonl:1: sed: unknown key (did you mean 'seed'?)",
        "p.jsonl:2: prompt: 3 is not text (put it in quotes)",
        'p.jsonl:3: \'a\' is no object such as {"prompt": "a cat"}',
        "p.jsonl:4: is no JSON: Expecting ',' delimiter (column 15)",
        "p.jsonl:5: seed: true is not a whole number",
        "p.jsonl:6: prompt: is given twice",
        "p.jsonl:7: NaN is no number",
        "p.jsonl:8: prompt: is empty (give at least one, or leave the key out)",
        "p.jsonl:9: prompt: missing",
    ]


def test_a_file_of_something_else_has_no_thousand_problems(tmp_path: Path) -> None:
    found = refusal(tmp_path, "p.jsonl", "no\n" * 1000)
    assert (len(found), found[-1]) == (21, "p.jsonl: and 980 more")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"\xef\xbb\xbf\n \n", "p.txt: is empty; write a prompt a line"),
        ("p.jsonl", b"", 'p.jsonl: is empty; write {"prompt": "a cat"} a line'),
        ("p.txt", b"ok\ncaf\xe9\n", "p.txt:2: is not text in UTF-8"),
        ("p.txt", b"ok\nx\0y\n", "p.txt:2: is not text"),
        ("p.yaml", b"a\n", "p.yaml: a file of prompts ends in .txt, .csv, .jsonl"),
    ],
)
def test_a_file_that_is_empty_or_no_text_is_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, name, content) == [message]


def test_a_missing_file_is_said_with_code_2_before_anything_is_loaded(tmp_path: Path, capsys: CAUGHT) -> None:
    code = main(["run", "demo", "--prompts", "none.csv", "--output-dir", str(tmp_path)])
    assert (code, capsys.readouterr().err) == (2, "none.csv: cannot be read: No such file or directory\n")
    (tmp_path / "dir.txt").mkdir()
    assert main(["run", "demo", "--prompts", str(tmp_path / "dir.txt"), "--output-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"{tmp_path}/dir.txt: is no file\n"
    assert main(["run", "demo", "--prompts", "p.csv", "--prompt", "a"]) == 2
    assert capsys.readouterr().err == "--prompt and --prompts exclude each other: give one of them\n"


def test_a_mask_has_to_fit_the_steps_of_every_line(tmp_path: Path, capsys: CAUGHT) -> None:
    file = tmp_path / "p.csv"
    file.write_text("prompt,num_inference_steps\na,\nb,5\n")
    mask = ("--set", "cache.steps_computation_mask='1100'", "--steps", "4")
    assert main(["run", "demo", "--prompts", str(file), *mask, "--dry-run"]) == 2
    assert capsys.readouterr().err == (
        f"{file}: num_inference_steps 5: cache.steps_computation_mask: has 4 bits, but there are 5 steps\n"
    )


def test_the_plan_counts_the_pictures_and_says_what_they_have_of_their_own(tmp_path: Path, capsys: CAUGHT) -> None:
    file = tmp_path / "p.csv"
    file.write_text("prompt,width\na,\nb,32\nc,\n")
    assert main(["run", "demo", "--prompts", str(file), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "makes       3 pictures of" in out
    assert "1 of 3 pictures have settings of their own: width" in out


# ---------------------------------------------------------------------------------------------------------------- calls


def test_only_pictures_with_the_same_arguments_share_a_call() -> None:
    wide, tall = {"width": 64}, {"height": 64}
    todo = [Job("a", 0, wide), Job("b", 0, tall), Job("c", 0, wide), Job("d", 0), Job("e", 0, wide), Job("f", 0)]
    assert ["".join(job.prompt or "" for job in call) for call in calls(todo, 2)] == ["ac", "df", "b", "e"]
    assert [len(call) for call in calls(todo, 1)] == [1] * 6


def test_each_picture_of_a_call_has_its_own_negative_prompt_but_all_or_none_have_one() -> None:
    todo = [Job("a", 0, {"negative_prompt": "x"}), Job("b", 0, {"negative_prompt": "y"}), Job("c", 0)]
    assert [len(call) for call in calls(todo, 3)] == [2, 1]


def test_files_of_the_same_prompt_and_seed_get_names_of_their_own_whoever_draws_them() -> None:
    todo = [Job("a cat", 3), Job("a cat", 3, {"width": 8}), Job("b", 3), Job(None, 3)]
    assert stems(todo, "demo") == ["demo-a-cat-s3", "demo-a-cat-s3-2", "demo-b-s3", "demo-s3"]
    assert stems(todo[:1], "demo", {"demo-a-cat-s3", "demo-a-cat-s3-2"}) == ["demo-a-cat-s3-3"]


def test_the_settings_of_a_picture_are_a_recipe_that_draws_it_alone(tmp_path: Path) -> None:
    whole = recipe(tmp_path, "p.csv", "prompt,width,seed\na,32,4\nb,,\n", "generate.num_images=2")
    todo = jobs(whole)
    for job in todo:
        (found,) = jobs(Recipe.model_validate(alone(whole, job)))
        assert (found.prompt, found.seed) == (job.prompt, job.seed)
    assert alone(whole, todo[0])["generate"]["width"] == 32
    assert "prompts" not in alone(whole, todo[0])["generate"]
