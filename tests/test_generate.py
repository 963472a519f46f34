"""Generating on the bundled model: what is drawn, what is recorded, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import errors as hub
from PIL import Image

from cachedit_cli import demo, pipeline
from cachedit_cli.errors import InputError, RunError
from cachedit_cli.files import write_whole
from cachedit_cli.jobs import Job
from cachedit_cli.recipe import Override, load
from cachedit_cli.run import Outcome, generate
from cachedit_cli.runs import Failed
from cachedit_cli.runs import load as load_run
from cachedit_cli.terms.stats import ContextInfo, Row

STEPS = 8


class Told:
    """A watcher that keeps what it is told, and does something at a row."""

    def __init__(self, at_row: Callable[[Told], None] | None = None) -> None:
        self.batches: list[Sequence[Job]] = []
        self.rows: list[Row] = []
        self.files: list[Path] = []
        self.errors: list[str] = []
        self._at_row = at_row

    def planned(self, pictures: int, there: int) -> None:
        self.planned_pictures = (pictures, there)

    def opened(self, device: str, dtype: str, seconds: float) -> None:
        assert (device, dtype) == ("cpu", "float32")

    def begins(self, batch: Sequence[Job], steps: int | None) -> None:
        self.batches.append(batch)

    def found(self, lists: Sequence[ContextInfo]) -> None:
        self.lists = list(lists)

    def row(self, row: Row) -> None:
        self.rows.append(row)
        if self._at_row is not None:
            self._at_row(self)

    def saved(self, batch: Sequence[Job], files: Sequence[Sequence[Path]], seconds: float) -> None:
        self.files += [file for each in files for file in each]

    def failed(self, batch: Sequence[Job], error: str) -> None:
        self.errors.append(error)


@pytest.fixture
def draw(tmp_path: Path) -> Callable[..., Outcome]:
    """Return a function that runs the demo recipe with changes, in a folder that goes away."""

    def run(*changes: str, watcher: Told | None = None, source: str = "demo") -> Outcome:
        fixed = ("model.device=cpu", f"output.dir={tmp_path}", f"generate.num_inference_steps={STEPS}")
        overrides: list[str | Override] = [*fixed, *changes]
        return generate(load(source, overrides), command=["test"], version="0", watcher=watcher or Told())

    return run


def pixels(outcome: Outcome) -> list[Any]:
    found = []
    for image in outcome.record.images:
        with Image.open(outcome.folder / image.file) as picture:
            found.append(np.asarray(picture).astype(int))
    return found


def drawn(flux: Any, prompt: str, seed: int) -> Any:
    """The same picture by the pipeline itself."""
    picture = flux(
        prompt, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(seed), **demo.DEFAULTS
    ).images[0]
    return np.asarray(picture).astype(int)


# ------------------------------------------------------------------------------------------------------------- pictures


def test_without_caching_the_pictures_are_the_pipelines_own(draw: Callable[..., Outcome], flux: Any) -> None:
    outcome = draw("cache.type=none", "generate.prompt=cat face", "generate.num_images=2", "generate.seed=3")
    expected = [drawn(flux, "cat face", 3), drawn(flux, "cat face", 4)]
    assert all((mine == its).all() for mine, its in zip(pixels(outcome), expected, strict=True))
    assert (expected[0] != expected[1]).any()


def test_never_reusing_draws_the_same_pixels_as_not_caching(draw: Callable[..., Outcome]) -> None:
    (never,) = pixels(draw("cache.residual_diff_threshold=0"))
    (bare,) = pixels(draw("cache.type=none"))
    assert (never == bare).all()


def test_a_seed_draws_the_same_pixels_again_also_with_caching(draw: Callable[..., Outcome]) -> None:
    changes = ("cache.max_warmup_steps=2", "cache.residual_diff_threshold=0.4", "generate.seed=11")
    first, again, other = draw(*changes), draw(*changes), draw(*changes, "generate.seed=12")
    assert any(row.saved for row in first.record.log.rows)
    assert (pixels(first)[0] == pixels(again)[0]).all()
    assert (pixels(first)[0] != pixels(other)[0]).any()


def test_a_batch_changes_neither_seeds_nor_pictures(draw: Callable[..., Outcome]) -> None:
    changes = ("generate.prompts=[cat face, red heart]", "generate.seeds=[5, 9]", "cache.type=none")
    watcher = Told()
    singles, batched = draw(*changes), draw(*changes, "generate.batch_size=3", watcher=watcher)
    assert [len(batch) for batch in watcher.batches] == [3, 1]
    for run in (singles, batched):
        facts = [(image.prompt, image.seed) for image in run.record.images]
        assert facts == [("cat face", 5), ("cat face", 9), ("red heart", 5), ("red heart", 9)]
    for alone, together in zip(pixels(singles), pixels(batched), strict=True):
        assert abs(alone - together).max() <= 1  # a level of rounding


def test_guidance_reaches_the_pipeline_with_a_negative_prompt_a_picture(draw: Callable[..., Outcome]) -> None:
    guided = ("generate.true_cfg_scale=4", "generate.negative_prompt=dog face", "generate.num_images=2")
    outcome = draw(*guided, "generate.batch_size=2")
    (plain, _) = pixels(draw("generate.num_images=2", "generate.batch_size=2"))
    assert {row.branch for row in outcome.record.log.rows} == {"cond", "uncond"}
    assert (pixels(outcome)[0] != plain).any()
    assert [image.negative_prompt for image in outcome.record.images] == ["dog face"] * 2


def test_blocks_spelled_out_decide_each_list_with_its_own_settings(draw: Callable[..., Outcome]) -> None:
    outcome = draw("cache.max_warmup_steps=2", source="demo-hybrid")
    contexts = outcome.record.log.contexts
    assert [(info.name, info.blocks, info.settings["residual_diff_threshold"]) for info in contexts] == [
        ("transformer.transformer_blocks", 6, 0.08),
        ("transformer.single_transformer_blocks", 12, 0.16),
    ]


def test_joined_paths_are_decided_as_the_adapters_chain_is(draw: Callable[..., Outcome], tmp_path: Path) -> None:
    file = tmp_path / "joined.yaml"
    file.write_text(
        "version: 1\nextends: demo\nblocks:\n"
        "  - path: [transformer.transformer_blocks, transformer.single_transformer_blocks]\n    pattern: 1\n"
    )
    joined, chained = draw(source=str(file)), draw()
    assert (pixels(joined)[0] == pixels(chained)[0]).all()
    assert [(row.step, row.decision, row.diff) for row in joined.record.log.rows] == [
        (row.step, row.decision, row.diff) for row in chained.record.log.rows
    ]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("transformr.blocks", "blocks[0].path: FluxPipeline has no part 'transformr' (did you mean 'transformer'?)"),
        (
            "transformer.transformer_block",
            "blocks[0].path: FluxTransformer2DModel has no block list 'transformer_block' "
            "(did you mean 'transformer_blocks'?)",
        ),
    ],
)
def test_a_path_that_is_no_block_list_is_refused(path: str, message: str, draw: Callable[..., Outcome]) -> None:
    with pytest.raises(InputError) as caught:
        draw(f"blocks=[{{path: {path}, pattern: 1}}]")
    assert str(caught.value) == message


# --------------------------------------------------------------------------------------------------------------- record


def test_the_record_says_what_was_done(draw: Callable[..., Outcome]) -> None:
    watcher = Told()
    outcome = draw("generate.num_images=2", "generate.prompt=red heart", "cache.max_warmup_steps=2", watcher=watcher)
    record = load_run(outcome.folder).record
    assert record.as_dict() == outcome.record.as_dict()
    assert (record.status, record.error, record.cachedit, record.command) == ("done", None, "0", ["test"])
    assert record.recipe["generate"]["prompt"] == "red heart"
    assert (record.environment["device"], record.environment["dtype"]) == ("cpu", "float32")
    assert record.environment["torch"] == torch.__version__
    assert watcher.files == [outcome.folder / image.file for image in record.images]
    assert watcher.rows == outcome.record.log.rows
    assert [image.generation for image in record.images] == record.generations
    for image in record.images:
        assert (image.width, image.height, image.steps) == (64, 64, STEPS)
        assert image.seconds == pytest.approx(sum(image.timings.values()))
        assert all(image.timings[part] > 0 for part in ("text", "denoise", "decode"))
        assert image.timings["denoise"] == max(image.timings.values())
    for part in ("text", "denoise", "decode"):
        assert record.timings[part] == pytest.approx(sum(image.timings[part] for image in record.images))
    assert sum(value or 0 for key, value in record.timings.items() if key != "total") < (record.timings["total"] or 0)


def test_an_interrupt_is_an_outcome_with_what_was_finished(draw: Callable[..., Outcome]) -> None:
    def interrupt(told: Told) -> None:
        if len(told.rows) == STEPS + 3:
            raise KeyboardInterrupt

    outcome = draw("generate.num_images=3", watcher=Told(interrupt))
    record = load_run(outcome.folder).record
    assert (record.status, len(record.images), len(record.log.rows)) == ("interrupted", 1, STEPS)
    assert record.finished is not None


def test_a_picture_that_fails_is_recorded_and_the_others_are_drawn(draw: Callable[..., Outcome]) -> None:
    def fail(told: Told) -> None:
        if len(told.batches) == 2:
            raise torch.OutOfMemoryError("no room for 3 GiB\nat all")

    watcher = Told(fail)
    outcome = draw("generate.num_images=3", "generate.prompt=cat face", watcher=watcher)
    said = (
        "FluxPipeline ran out of memory: OutOfMemoryError: no room for 3 GiB; "
        "try a smaller generate.batch_size, height and width, or another model.dtype"
    )
    record = load_run(outcome.folder).record
    assert (record.status, record.error) == ("failed", "1 of 3 pictures failed")
    assert record.failures == [Failed("cat face", 1, said, generation=1)]
    assert [(image.seed, image.generation) for image in record.images] == [(0, 0), (2, 2)]
    assert len(record.log.rows) == 2 * STEPS
    assert (watcher.errors, len(watcher.files)) == ([said], 2)
    assert (pixels(outcome)[1] == pixels(draw("generate.seed=2", "generate.prompt=cat face"))[0]).all()


def test_a_picture_that_memory_has_no_room_for_leaves_room_for_the_others(
    draw: Callable[..., Outcome], tmp_path: Path
) -> None:
    file = tmp_path / "p.csv"
    file.write_text("prompt,width,height\ncat face,33554432,33554432\nred heart,,\n")
    record = draw(f"generate.prompts={file}").record
    assert [image.prompt for image in record.images] == ["red heart"]
    assert record.failures[0].error.startswith("FluxPipeline ran out of memory: RuntimeError: ")


def test_what_every_picture_failed_of_is_an_error_and_leaves_nothing(
    draw: Callable[..., Outcome], tmp_path: Path
) -> None:
    def fail(told: Told) -> None:
        raise ValueError("no good")

    with pytest.raises(RunError, match=r"^FluxPipeline failed: ValueError: no good$"):
        draw("generate.num_images=3", watcher=Told(fail))
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_our_own_is_not_blamed_on_the_pipeline(
    draw: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("cachedit_cli.engine.runner.by_rule", lambda *_: "no verdict")
    with pytest.raises(AttributeError):
        draw()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_and_leaves_the_finished_pictures(
    draw: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(path: Path, data: bytes) -> None:
        if path.name.endswith("s1.png") or (path.name == "run.json" and path.exists()):
            raise RunError(f"{path}: could not be written: No space left on device")
        write_whole(path, data)

    monkeypatch.setattr("cachedit_cli.runs.write_whole", full)
    with pytest.raises(RunError, match=r"s1\.png: could not be written: No space left on device$"):
        draw("generate.num_images=3")
    (folder,) = tmp_path.iterdir()
    (first,) = load_run(folder).record.images
    assert sorted(file.name for file in folder.iterdir()) == [first.file, "log.jsonl", "run.json"]
    assert json.loads((folder / "run.json").read_text())["status"] == "running"


def test_two_runs_in_one_process_do_not_touch_each_other(draw: Callable[..., Outcome]) -> None:
    first = draw("cache.max_warmup_steps=2")
    draw("calibrator.type=taylorseer", "generate.seed=4", "cache.max_warmup_steps=3")
    again = draw("cache.max_warmup_steps=2")
    assert (pixels(first)[0] == pixels(again)[0]).all()


# --------------------------------------------------------------------------------------------------------- other models


def test_a_local_folder_is_a_model_like_any_other(draw: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "own").symlink_to(demo.path(), target_is_directory=True)
    sizes = [f"generate.{name}={value}" for name, value in demo.DEFAULTS.items()]
    local = draw(f"model.id={tmp_path / 'own'}", *sizes)
    assert (pixels(local)[0] == pixels(draw())[0]).all()


def test_a_model_with_missing_weights_is_one_sentence(draw: Callable[..., Outcome], tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for part in demo.path().iterdir():
        if part.name != "vae":
            (own / part.name).symlink_to(part)
    with pytest.raises(RunError) as caught:
        draw(f"model.id={own}")
    assert str(caught.value).startswith(f"{own} could not be loaded: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kinds", "raised", "message"),
    [
        (
            [hub.GatedRepoError],
            InputError,
            "model.id: {}: access must be granted first: accept the terms on its hub page, then `hf auth login`",
        ),
        ([hub.RepositoryNotFoundError], InputError, "model.id: {}: neither a local folder nor a model on the hub"),
        (
            [OSError, hub.RevisionNotFoundError],
            InputError,
            "model.id: {}: neither a local folder nor a model on the hub",
        ),
        (
            [OSError, hub.LocalEntryNotFoundError],
            RunError,
            "{} is neither a local folder nor complete in the hub's cache, and the hub cannot be reached",
        ),
        (
            [OSError, type("ConnectError", (Exception,), {})],
            RunError,
            "{} is neither a local folder nor complete in the hub's cache, and the hub cannot be reached",
        ),
        ([ValueError], RunError, "{} could not be loaded: ValueError"),
    ],
)
def test_what_the_hub_says_becomes_one_sentence(
    kinds: list[type[Exception]],
    raised: type[Exception],
    message: str,
    draw: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from diffusers import DiffusionPipeline

    errors = [kind.__new__(kind) for kind in kinds]
    for outer, inner in pairwise(errors):
        outer.__cause__ = inner

    def fail(*_: object, **__: object) -> None:
        raise errors[0]

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", fail)
    (tmp_path / "own").symlink_to(demo.path(), target_is_directory=True)
    with pytest.raises(raised) as caught:
        draw(f"model.id={tmp_path / 'own'}")
    assert str(caught.value) == message.format(tmp_path / "own")


def test_a_pipeline_of_another_make_needs_the_arguments_it_takes() -> None:
    class Drawing:
        def __call__(self, label: int, num_inference_steps: int = 7, height: int = 8) -> None: ...

    assert pipeline.default_steps(Drawing) == 7
    pipeline.check_arguments(Drawing, {"height": 8, "label": 3}, {"label"}, prompted=False)
    with pytest.raises(InputError) as caught:
        pipeline.check_arguments(Drawing, {"hight": 8, "width": 9}, {"hight"}, prompted=True)
    assert str(caught.value) == (
        "generate.extra.hight: Drawing takes no such argument (did you mean 'height'?)\n"
        "generate.width: Drawing takes no such argument (it takes label, num_inference_steps, height)\n"
        "generate.prompt: Drawing takes no such argument (it takes label, num_inference_steps, height)"
    )


@pytest.mark.parametrize(
    ("asked", "device", "expected"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "cuda", torch.bfloat16),
        ("auto", "mps", torch.float32),
        ("float16", "cpu", torch.float16),
    ],
)
def test_dtype_auto_is_bfloat16_on_cuda_only(asked: str, device: str, expected: torch.dtype) -> None:
    assert pipeline.pick_dtype(asked, torch.device(device)) == expected


@pytest.mark.parametrize(("cuda", "mps", "taken"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_device_auto_takes_cuda_then_mps_then_the_cpu(
    cuda: bool, mps: bool, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pipeline.pick_device("auto") == torch.device(taken)


def test_a_cuda_device_beyond_those_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=r"^model.device: 'cuda:1': there are 1 CUDA devices, from cuda:0$"):
        pipeline.pick_device("cuda:1")
