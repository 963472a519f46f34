"""Run records on disk: names, text chunks, whole writes, and reading back with clear errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pictures

from cachedit_cli import media
from cachedit_cli.errors import InputError, RunError
from cachedit_cli.files import readable_json, slug
from cachedit_cli.run_log import Finished, Image
from cachedit_cli.runs import Facts, Failed, Record, Run, RunFolder, load
from cachedit_cli.terms.stats import ContextInfo, DecisionLog, Reset, Row
from tests.records import written

NOON = datetime(2031, 5, 4, 12, 30, 59)
DOC = Path(__file__).parents[1] / "docs" / "run-json.md"


def picture(width: int = 4, height: int = 3) -> Pictures.Image:
    return Pictures.new("RGB", (width, height), (200, 30, 30))


def record() -> Record:
    log = DecisionLog(
        contexts=[
            ContextInfo("transformer.blocks", "Toy", "Block", "Pattern_1", 4, {"Fn_compute_blocks": 1}, ["a note"])
        ],
        rows=[
            Row(0, 0, "transformer.blocks", "cond", "compute", "no-history", computed=4, ms=1.5),
            Row(
                0, 1, "transformer.blocks", "cond", "reuse", "threshold", diff=0.05, threshold=0.08, computed=1, saved=3
            ),
            Row(1, 0, "transformer.blocks", "cond", "compute", "no-history", computed=4, bytes=64),
        ],
        resets=[Reset(1, 0, "transformer.blocks", "cond", "new generation")],
    )
    return Record(
        cachedit="1.2.3",
        recipe={"name": "demo", "cache": {"type": "DBCache"}},
        command=["cachedit", "run", "demo"],
        environment={"python": "3.12.1", "threads": 2},
        timings={"load": 1.25, "total": None},
        images=[Image("demo-a-cat-s0.png", "a cat", 0, 64, 64, steps=2, seconds=0.5, timings={"denoise": 0.4})],
        log=log,
    )


def make(folder: Path, name: str, **changes: object) -> Path:
    """Write a record, with some keys changed, as a run called ``name``."""
    run = RunFolder(folder / name, "demo")
    run.path.mkdir(parents=True)
    file = written(run, record())
    if changes:
        facts = json.loads(file.read_text(encoding="utf-8")) | changes
        file.write_text(json.dumps(facts), encoding="utf-8")
    return run.path


# ---- folders


def test_a_run_gets_a_folder_named_by_time_and_recipe(tmp_path: Path) -> None:
    folder = RunFolder.create("flux fast", tmp_path / "a" / "outputs", NOON)
    assert folder.path == tmp_path / "a" / "outputs" / "20310504-123059-flux-fast"
    assert folder.path.is_dir()


def test_runs_of_the_same_second_get_numbered_folders(tmp_path: Path) -> None:
    names = [RunFolder.create("demo", tmp_path, NOON).path.name for _ in range(3)]
    assert names == ["20310504-123059-demo", "20310504-123059-demo-2", "20310504-123059-demo-3"]


def test_a_recipe_name_cannot_leave_the_output_folder(tmp_path: Path) -> None:
    assert RunFolder.create("../../etc/x", tmp_path, NOON).path == tmp_path / "20310504-123059-etc-x"
    assert RunFolder.create("..", tmp_path, NOON).path == tmp_path / "20310504-123059-run"


def test_an_output_folder_that_is_a_file_is_wrong_input(tmp_path: Path) -> None:
    blocker = tmp_path / "outputs"
    blocker.write_text("x")
    with pytest.raises(InputError) as caught:
        RunFolder.create("demo", blocker)
    assert str(caught.value) == f"{blocker}: is a file, but the runs need a folder (output.dir)"


def test_an_output_folder_that_cannot_be_made_is_wrong_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError) as caught:
        RunFolder.create("demo", tmp_path / "file" / "outputs")
    assert (
        str(caught.value)
        == f"{tmp_path / 'file' / 'outputs'}: cannot make a folder for the run here (output.dir): Not a directory"
    )


def test_discarding_removes_only_an_empty_folder(tmp_path: Path) -> None:
    empty, used = RunFolder.create("demo", tmp_path, NOON), RunFolder.create("demo", tmp_path, NOON)
    used.write(record())
    empty.discard()
    used.discard()
    assert [path.name for path in tmp_path.iterdir()] == [used.path.name]


# ---- images


def test_a_picture_carries_what_made_it_in_its_text_chunks(tmp_path: Path) -> None:
    folder = RunFolder.create("demo", tmp_path, NOON)
    (name,) = folder.save(
        media.Pictures([picture()]),
        "png",
        prompt="a red heart ❤ 猫",
        seed=7,
        cachedit="1.2.3",
        negative_prompt="blurry",
        settings={"num_inference_steps": 28, "cache": {"type": "DBCache"}},
    )
    with Pictures.open(folder.path / name) as opened:
        assert isinstance(opened.info, dict)
        chunks = {key: str(value) for key, value in opened.info.items()}
        assert opened.size == (4, 3)
        assert opened.getpixel((0, 0)) == (200, 30, 30)
    settings = json.loads(chunks.pop("settings"))
    assert settings == {"num_inference_steps": 28, "cache": {"type": "DBCache"}}
    assert chunks == {
        "Software": "cachedit 1.2.3",
        "recipe": "demo",
        "prompt": "a red heart ❤ 猫",
        "negative_prompt": "blurry",
        "seed": "7",
    }


def test_pictures_are_named_by_recipe_prompt_and_seed_and_never_overwrite_each_other(tmp_path: Path) -> None:
    folder = RunFolder.create("demo", tmp_path, NOON)
    names = [
        name
        for prompt, seed in [
            ("A red heart!", 0),
            ("A red heart!", 1),
            ("a RED heart?", 0),
            ("", 5),
            (None, 5),
            ("...", 5),
        ]
        for name in folder.save(media.Pictures([picture()]), "png", prompt=prompt, seed=seed, cachedit="1")
    ]
    assert names == [
        "demo-a-red-heart-s0.png",
        "demo-a-red-heart-s1.png",
        "demo-a-red-heart-s0-2.png",
        "demo-s5.png",
        "demo-s5-2.png",
        "demo-s5-3.png",
    ]
    assert sorted(path.name for path in folder.path.iterdir()) == sorted(names)


def test_a_prompt_that_is_no_valid_text_is_saved_all_the_same(tmp_path: Path) -> None:
    folder = RunFolder.create("demo", tmp_path, NOON)
    (name,) = folder.save(media.Pictures([picture()]), "png", prompt="caf\udce9 ok", seed=0, cachedit="1")
    assert name == "demo-caf-ok-s0.png"
    with Pictures.open(folder.path / name) as opened:
        assert opened.info["prompt"] == "caf? ok"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A cat holding a sign that says hello world", "a-cat-holding-a-sign-that-says-hello-world"),
        (
            '  slash/back\\colon: star* quote" <pipe|> null\0 new\nline',
            "slash-back-colon-star-quote-pipe-null-new-line",
        ),
        ("../../etc/passwd", "etc-passwd"),
        ("Über den Wölken, née", "über-den-wölken-née"),
        ("Cafe\u0301", "café"),
        ("一只猫坐在沙发上", "一只猫坐在沙发上"),
        ("हिन्दी में", "हिन्दी-में"),
        ("❤️", "heavy-black-heart"),
        ("a 🐱 on white", "a-cat-face-on-white"),
        ("one two three four five six seven eight nine ten eleven", "one-two-three-four-five-six-seven-eight-nine-ten"),
        ("x" * 500, "x" * 48),
        ("猫" * 500, "猫" * 32),
        ("?!", ""),
        ("", ""),
    ],
)
def test_a_slug_is_safe_and_recognisable(text: str, expected: str) -> None:
    assert slug(text) == expected


@given(st.text(st.characters(), max_size=300))
def test_any_prompt_makes_a_short_slug_that_needs_no_quoting(text: str) -> None:
    found = slug(text)
    assert len(found) <= 48
    assert len(found.encode()) <= 96
    assert not set(found) & set("/\\:*?\"<>|. '\0\n\t$&;`~")
    assert not found.startswith("-")


# ---- whole writes


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    made = record()
    made.finish("interrupted", "stopped by Ctrl-C")
    folder = RunFolder.create("demo", tmp_path)
    file = written(folder, made)
    assert file == folder.path / "run.json"
    run = load(folder.path)
    assert run == Run(folder.path, made)
    assert run.record.generations == [0, 1]


def test_times_carry_the_offset_to_utc() -> None:
    made = record()
    made.finish("done")
    for time in (made.started, made.finished or ""):
        assert datetime.fromisoformat(time).tzinfo is not None


def test_statistics_of_a_run_are_those_of_one_generation_or_of_all() -> None:
    made = record()
    assert [stats.block_calls for stats in made.stats(0)] == [8]
    assert [stats.block_calls for stats in made.stats(1)] == [4]
    assert [(stats.block_calls, stats.saved) for stats in made.stats()] == [(12, 3)]
    assert made.stats()[0].info == made.log.contexts[0]


def test_audit_errors_still_on_the_device_are_fetched_for_the_statistics() -> None:
    class Late:
        distance, used = 1.0, "hold"

        def error_of_used(self) -> float | None:
            return 0.25

        def errors(self) -> dict[str, float | None]:
            return {"hold": 0.25}

    made = Record("1", {})
    made.log.add(Row(0, 0, "blocks", "", "compute", "warmup"), audit=Late())
    assert made.stats()[0].rows[0].audit == 0.25


def test_the_log_has_a_line_for_each_call_and_is_plain_json(tmp_path: Path) -> None:
    folder = RunFolder.create("demo", tmp_path)
    made = record()
    made.log.rows[1].diff = float("nan")
    made.images[0].prompt = "a line\u2028separator"
    written(folder, made)
    lines = (folder.path / "log.jsonl").read_bytes().split(b"\n")
    first, second = (json.loads(line, parse_constant=pytest.fail) for line in lines[:2])
    assert lines[2:] == [b""]
    assert (first["generation"], len(first["images"]), [row["diff"] for row in first["rows"]]) == (0, 1, [None, None])
    assert (second["generation"], len(second["rows"]), len(second["resets"])) == (1, 1, 1)
    assert load(folder.path).record.images[0].prompt == "a line\u2028separator"


def test_a_line_that_was_not_finished_is_left_out(tmp_path: Path) -> None:
    folder = make(tmp_path, "run")
    with (folder / "log.jsonl").open("ab") as file:
        file.write(b'{"generation": 2, "images": [')
    assert load(folder).record == load(make(tmp_path, "whole")).record


def test_pictures_that_the_record_of_a_killed_run_lacks_are_in_the_log(tmp_path: Path) -> None:
    killed = load(make(tmp_path, "run", status="running", images=[])).record
    assert [image.file for image in killed.images] == ["demo-a-cat-s0.png"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[", "damaged, no line of a log: JSONDecodeError"),
        ("[]", "damaged, no line of a log: TypeError"),
        ("{}", "damaged, no line of a log: KeyError"),
        ('{"generation": 0, "rows": [{}], "resets": [], "images": []}', "damaged, rows.0.step: Field required"),
    ],
)
def test_a_damaged_line_of_the_log_is_named_by_its_number(tmp_path: Path, line: str, message: str) -> None:
    folder = make(tmp_path, "run")
    with (folder / "log.jsonl").open("a") as file:
        file.write(f"{line}\n")
    assert refusal(folder).startswith(f"{folder / 'log.jsonl'}:3: {message}")


def test_the_record_has_a_line_for_each_picture_and_is_plain_json(tmp_path: Path) -> None:
    folder = RunFolder.create("demo", tmp_path)
    made = record()
    made.recipe["threshold"] = float("inf")
    made.environment["folder"] = Path("models/x")
    made.command.append("caf\udce9")
    text = folder.write(made).read_text(encoding="utf-8")
    assert text.count('"file"') == 1
    facts = json.loads(text, parse_constant=pytest.fail)
    assert list(facts)[:3] == ["schema", "cachedit", "recipe"]
    assert facts["schema"] == 1
    assert facts["recipe"]["threshold"] is None
    assert facts["environment"]["folder"] == "models/x"
    assert facts["command"][-1] == "caf?"


def test_readable_json_breaks_only_what_is_nested_or_long() -> None:
    value = {"a": [1, 2], "b": {"c": {"d": None}, "e": {}}, "f": [], "g": "é", "h": (True, 0.5)}
    assert readable_json(value) == (
        '{\n  "a": [1, 2],\n  "b": {\n    "c": {"d": null},\n    "e": {}\n  },\n'
        '  "f": [],\n  "g": "é",\n  "h": [true, 0.5]\n}\n'
    )
    assert readable_json(list(range(200))).count("\n") == 202


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_readable_json_says_the_same_as_json(value: object) -> None:
    assert json.loads(readable_json(value)) == value


def test_writing_again_replaces_the_record_and_leaves_nothing_else(tmp_path: Path) -> None:
    folder = RunFolder.create("demo", tmp_path)
    made = record()
    folder.write(made)
    made.images.append(Image("two.png", None, 1, 8, 8))
    folder.write(made)
    assert [path.name for path in folder.path.iterdir()] == ["run.json"]
    assert [image.file for image in load(folder.path).record.images] == ["demo-a-cat-s0.png", "two.png"]


def test_a_full_disk_is_named_and_leaves_the_earlier_record_whole(tmp_path: Path) -> None:
    folder = RunFolder.create("demo", tmp_path)
    folder.write(record())
    code = """
import resource, sys
from pathlib import Path
from PIL import Image
from cachedit_cli import media
from cachedit_cli.errors import RunError
from cachedit_cli.runs import Record, RunFolder
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
folder = RunFolder(Path(sys.argv[1]), "demo")
noise = media.Pictures([Image.effect_noise((64, 64), 50)])
for attempt in (
    lambda: folder.write(Record("1", {"name": "x" * 500})),
    lambda: folder.save(noise, "png", prompt="noise", seed=0, cachedit="1"),
):
    try:
        attempt()
    except RunError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, folder.path], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"{folder.path / 'run.json'}: could not be written: File too large",
        f"{folder.path / 'demo-noise-s0.png'}: could not be written: File too large",
    ]
    assert [path.name for path in folder.path.iterdir()] == ["run.json"]
    assert load(folder.path).record.recipe["name"] == "demo"


def test_a_folder_that_went_away_is_named(tmp_path: Path) -> None:
    folder = RunFolder.create("demo", tmp_path, NOON)
    folder.path.rmdir()
    with pytest.raises(RunError) as caught:
        folder.write(record())
    assert str(caught.value) == f"{folder.path / 'run.json'}: could not be written: No such file or directory"


def test_ctrl_c_while_writing_leaves_the_earlier_record_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder.create("demo", tmp_path)
    folder.write(record())

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            folder.write(Record("9", {}))
    assert [path.name for path in folder.path.iterdir()] == ["run.json"]
    assert load(folder.path).record.cachedit == "1.2.3"


# ---- reading


def test_a_run_is_found_by_folder_by_file_and_as_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = make(tmp_path / "outputs", "20310504-123059-demo")
    older = make(tmp_path / "outputs", "20310504-123058-zebra")  # written later, but begun earlier
    (tmp_path / "outputs" / "20991231-000000-killed").mkdir()
    (tmp_path / "outputs" / "note.txt").write_text("no run")
    monkeypatch.chdir(tmp_path)
    assert load().folder == Path("outputs") / newest.name
    assert load("outputs").folder == Path("outputs") / newest.name
    assert load(older).folder == older
    assert load(str(older / "run.json")).folder == older
    assert load(outputs=tmp_path / "outputs").folder == newest


def test_a_renamed_run_is_as_old_as_its_record(tmp_path: Path) -> None:
    make(tmp_path, "20110504-123059-demo")
    renamed = make(tmp_path, "the-good-one")
    assert load(tmp_path).folder == renamed


def test_of_runs_begun_in_one_second_the_last_written_is_the_newest(tmp_path: Path) -> None:
    first, second = make(tmp_path, "20310504-123059-demo"), make(tmp_path, "20310504-123059-demo-2")
    os.utime(first / "run.json", (2_000_000_000, 2_000_000_000))
    assert load(tmp_path).folder == first
    os.utime(second / "run.json", (2_000_000_001, 2_000_000_001))
    assert load(tmp_path).folder == second


def refusal(path: Path | str | None) -> str:
    with pytest.raises(InputError) as caught:
        load(path)
    return str(caught.value)


def test_no_runs_yet_points_to_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(None) == "outputs: no runs yet (`cachedit run demo` makes one)"
    Path("outputs").mkdir()
    assert refusal(None) == "outputs: no runs yet (`cachedit run demo` makes one)"


def test_what_is_no_run_is_refused_by_name(tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone") == (
        f"{tmp_path / 'gone'}: no such run (`cachedit stats` without a name takes the newest)"
    )
    assert refusal(tmp_path) == (
        f"{tmp_path}: no run.json here or in a folder below, so this is no run (`cachedit run demo` makes one)"
    )
    (tmp_path / "run.json").mkdir()
    assert refusal(tmp_path) == f"{tmp_path / 'run.json'}: cannot be read: Is a directory"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "damaged, not valid JSON: Expecting value: line 1 column 1 (char 0)"),
        ('{"schema": 1, ', "damaged, not valid JSON: Expecting property name enclosed in double quotes: "),
        ("[" * 100_000, "damaged, not valid JSON: "),
        ("\xff\xfe", "damaged, not valid JSON: "),
        ("[1, 2]", "not the record of a run: 'schema' is missing"),
        ("null", "not the record of a run: 'schema' is missing"),
        ('{"name": "x"}', "not the record of a run: 'schema' is missing"),
        ('{"schema": 1, "cachedit": "1"}', "not the record of a run: 'recipe' is missing"),
        ('{"schema": 2}', "written with schema 2; this version of cachedit reads 1"),
        ('{"schema": "1"}', "written with schema '1'; this version of cachedit reads 1"),
    ],
)
def test_a_damaged_record_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "run.json"
    file.write_bytes(text.encode("latin-1"))
    assert refusal(tmp_path).startswith(f"{file}: {message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "finished"}, "status: Input should be 'running', 'done', 'interrupted' or 'failed'"),
        ({"recipe": None}, "recipe: Input should be a valid dictionary"),
        ({"log": {}}, "log.contexts: Field required"),
        ({"images": [{"file": "a.png"}]}, "images[0].prompt: Field required (and 3 more)"),
    ],
)
def test_a_record_with_a_wrong_value_names_its_place(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    folder = make(tmp_path, "run", **changes)
    assert refusal(folder) == f"{folder / 'run.json'}: damaged, {message}"


def test_keys_that_a_later_version_added_are_ignored(tmp_path: Path) -> None:
    folder = make(tmp_path, "run", mood="good")
    assert load(folder).record.recipe == record().recipe


def test_reading_a_run_needs_no_torch_and_no_pillow(tmp_path: Path) -> None:
    folder = make(tmp_path, "run")
    code = (
        "import sys; from cachedit_cli.runs import load; load(sys.argv[1]); print({'torch', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# ---- documentation


def test_the_documented_example_is_a_run(tmp_path: Path) -> None:
    blocks = re.findall(r"```json\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    for name, text in zip(("run.json", "log.jsonl"), blocks, strict=True):
        (tmp_path / name).write_text(text, encoding="utf-8")
    run = load(tmp_path)
    assert run.record.status == "done"
    assert run.record.stats()[0].saved == 3
    folder = RunFolder.create("again", tmp_path)
    assert written(folder, run.record).read_text(encoding="utf-8") == blocks[0]
    assert (folder.path / "log.jsonl").read_text(encoding="utf-8") == blocks[1]


@pytest.mark.parametrize("part", [Facts, Failed, Finished, Image, ContextInfo, Row, Reset])
def test_every_key_of_the_record_is_documented(part: type) -> None:
    text = DOC.read_text(encoding="utf-8")
    assert [field.name for field in fields(part) if f"`{field.name}`" not in text] == []
