"""`cachedit run` from pictures and to video, sound and latents, on whole pipelines with random weights."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import wave
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from safetensors.torch import load_file

from cachedit_cli import demo, ffmpeg
from cachedit_cli.cli import main
from tests import tiny_pipelines
from tests.tiny_pipelines import saved

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated:FutureWarning"),  # Stable Audio's VAE
    pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning"),  # the ControlNet of FLUX
]

CACHED = ("cache.max_warmup_steps=2", "cache.residual_diff_threshold=0.9")
SMALL = ("generate.height=32", "generate.width=32", "generate.extra={num_frames: 9}", "generate.guidance_scale=1")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[], Any]], Path]:
    """Return a function from a builder to the folder of its pipeline, built once."""
    folder = tmp_path_factory.mktemp("models")

    def built(build: Callable[[], Any]) -> Path:
        path = folder / build.__name__
        return path if path.exists() else saved(build, path)

    return built


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.radial_gradient("L").resize((64, 64)).convert("RGB").save("picture.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    mask.save("mask.png")


def run(*changes: str, source: str = "demo", steps: int = 4) -> tuple[dict[str, Any], Path]:
    """Return the record and the folder of a run."""
    settings = ("model.device=cpu", f"generate.num_inference_steps={steps}", "output.dir=out", *changes)
    words = [word for change in settings for word in ("--set", change)]
    before = set(Path("out").iterdir()) if Path("out").exists() else set()
    assert main(["run", source, *words]) == 0
    (folder,) = set(Path("out").iterdir()) - before
    return json.loads((folder / "run.json").read_text()), folder


def refused(caught: pytest.CaptureFixture[str], *changes: str) -> str:
    assert main(["run", "demo", *(word for change in changes for word in ("--set", change))]) == 2
    assert not Path("outputs").exists() or not list(Path("outputs").iterdir())
    return caught.readouterr().err


def recipe(model: Path) -> str:
    Path("tiny.yaml").write_text(f"version: 1\nmodel: {{id: {model}}}\ngenerate: {{prompt: a cat}}\n")
    return "tiny.yaml"


def pixels(file: Path) -> Any:
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def reused(folder: Path) -> int:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return sum(row["saved"] for line in lines for row in line.get("rows", ()))


# ---- pictures from pictures


def flux(name: str) -> Any:
    pipe = getattr(diffusers, name).from_pretrained(demo.path(), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(name: str, **call: Any) -> Any:
    """The picture by the pipeline itself."""
    given = {**demo.DEFAULTS, "generator": torch.Generator().manual_seed(0), **call}
    return np.asarray(flux(name)(prompt="red heart on a white background", **given).images[0]).astype(int)


def test_a_picture_is_drawn_anew_as_the_pipeline_does_it_and_the_steps_are_those_that_are_done() -> None:
    changes = ["model.pipeline=FluxImg2ImgPipeline", "generate.image=picture.png", "generate.strength=0.6"]
    record, folder = run(*changes, "cache.type=none", steps=10)
    (image,) = record["images"]
    assert image["steps"] == 6
    with Image.open("picture.png") as picture:
        expected = drawn("FluxImg2ImgPipeline", image=picture, strength=0.6, num_inference_steps=10)
    assert (pixels(folder / image["file"]) == expected).all()
    changes += ["cache.steps_computation_mask=ultra", "cache.steps_computation_policy=static"]
    _, folder = run(*changes, steps=10)
    assert reused(folder) > 0
    assert (pixels(folder / image["file"]) != expected).any()


def test_bins_of_a_mask_are_laid_out_over_the_steps_that_strength_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["model.pipeline=FluxImg2ImgPipeline", "generate.image=picture.png", "generate.strength=0.6"]
    bins = "cache.steps_computation_mask={compute_bins: [2, 1], cache_bins: [1, 2]}"
    record, folder = run(*changes, bins, "cache.steps_computation_policy=static", steps=10)
    rows = [row for line in (folder / "log.jsonl").read_text().splitlines() for row in json.loads(line).get("rows", ())]
    assert [row["decision"] for row in rows] == ["compute", "compute", "reuse", "compute", "reuse", "reuse"]
    assert record["images"][0]["steps"] == 6
    assert "|██·█··| 6/6" in capsys.readouterr().out


def test_only_what_is_under_the_mask_is_drawn_anew() -> None:
    changes = ("model.pipeline=FluxInpaintPipeline", "generate.image=picture.png", "generate.mask=mask.png")
    record, folder = run(*changes, "generate.strength=1.0", "output.format=jpeg", "output.quality=95", *CACHED, steps=6)
    file = folder / record["images"][0]["file"]
    assert file.suffix == ".jpg"
    assert reused(folder) > 0
    apart = abs(pixels(file) - pixels(Path("picture.png")))
    assert apart[:12, :12].mean() < 12  # but for what the VAE and JPEG do to it
    assert apart[20:44, 20:44].mean() > 60


def test_a_picture_is_edited_by_kontext() -> None:
    changes = ["model.pipeline=FluxKontextPipeline", "generate.extra={max_area: 4096, _auto_resize: false}"]
    _, folder = run(*changes, "generate.image=picture.png", *CACHED)
    assert reused(folder) > 0
    with Image.open("picture.png") as picture:
        call = {"image": picture, "num_inference_steps": 4, "max_area": 4096, "_auto_resize": False}
        expected = drawn("FluxKontextPipeline", **call)
    _, without = run(*changes, "generate.image=picture.png", "cache.residual_diff_threshold=0")
    assert (pixels(next(without.glob("*.png"))) == expected).all()


def test_several_pictures_are_edited_into_one(models: Callable[[Callable[[], Any]], Path]) -> None:
    source = recipe(models(tiny_pipelines.flux2_klein))
    changes = ["generate.height=64", "generate.width=64", "generate.max_sequence_length=16"]
    changes += ["generate.extra={text_encoder_out_layers: [1, 2]}", "cache.steps_computation_mask='1010'"]
    changes.append("cache.steps_computation_policy=static")
    drawn = []
    for image in ("picture.png", "[picture.png, mask.png]", "[picture.png, picture.png]"):
        record, folder = run(*changes, f"generate.image={image}", source=source)
        assert reused(folder) > 0
        drawn.append(pixels(folder / record["images"][0]["file"]))
    assert all((drawn[one] != drawn[other]).any() for one, other in ((0, 1), (0, 2), (1, 2)))


def test_a_controlnet_gets_its_picture(models: Callable[[Callable[[], Any]], Path]) -> None:
    model = models(tiny_pipelines.control_flux)
    size = ("generate.height=64", "generate.width=64", "generate.max_sequence_length=16", "cache.type=none")
    source = recipe(model)
    one, first = run("generate.control_image=picture.png", *size, source=source, steps=2)
    _, second = run("generate.control_image=mask.png", *size, source=source, steps=2)
    name = one["images"][0]["file"]
    assert (pixels(first / name) != pixels(second / name)).any()


def test_pictures_with_inputs_come_one_by_one_and_batches_change_nothing() -> None:
    changes = ["model.pipeline=FluxImg2ImgPipeline", "generate.image=picture.png", "generate.num_images=2"]
    one, alone = run(*changes, steps=3)
    two, together = run(*changes, "generate.batch_size=2", steps=3)
    assert [image["generation"] for image in two["images"]] == [0, 1]
    for mine, its in zip(one["images"], two["images"], strict=True):
        assert (pixels(alone / mine["file"]) == pixels(together / its["file"])).all()


def test_a_run_does_not_go_on_with_another_picture(capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["model.pipeline=FluxImg2ImgPipeline", "generate.image=picture.png"]
    record, folder = run(*changes, steps=2)
    assert record["inputs"] == {"picture.png": hashlib.sha256(Path("picture.png").read_bytes()).hexdigest()}
    words = [word for change in (*changes, "model.device=cpu") for word in ("--set", change)]
    again = ["run", "demo", "--steps", "2", *words, "--output-dir", "out", "--resume", str(folder)]
    assert main(again) == 0
    capsys.readouterr()
    Path("mask.png").replace("picture.png")
    assert main(again) == 2
    said = f"--resume {folder}: the run began with another picture.png than is there now\n"
    assert capsys.readouterr().err == said


# ---- video, sound, latents


def test_a_video_is_an_mp4_or_an_animated_webp(models: Callable[[Callable[[], Any]], Path]) -> None:
    source = recipe(models(tiny_pipelines.wan))
    record, folder = run(*SMALL, *CACHED, "output.fps=8", source=source)
    (film,) = record["images"]
    facts = {name: film[name] for name in ("kind", "frames", "fps", "width", "height")}
    assert facts == {"kind": "video", "frames": 9, "fps": 8.0, "width": 32, "height": 32}
    assert reused(folder) > 0
    reading = [ffmpeg.program(), "-i", str(folder / film["file"])]
    reading += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(reading, capture_output=True, check=True)
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, 32, 32, 3).astype(int)
    assert re.search(r"Video: h264.*, 8 fps,", done.stderr.decode())
    _, other = run(*SMALL, *CACHED, "output.format=webp", "output.quality=100", source=source)
    with Image.open(next(other.glob("*.webp"))) as animation:
        exact = [np.asarray(each.convert("RGB")).astype(int) for each in ImageSequence.Iterator(animation)]
    assert len(exact) == len(frames) == 9
    assert abs(frames - np.stack(exact)).mean() < 8


def test_a_single_frame_may_be_a_picture(models: Callable[[Callable[[], Any]], Path]) -> None:
    one = [change.replace("num_frames: 9", "num_frames: 1") for change in SMALL]
    record, folder = run(*one, "output.format=png", source=recipe(models(tiny_pipelines.wan)), steps=2)
    assert pixels(folder / record["images"][0]["file"]).shape == (32, 32, 3)
    assert record["images"][0]["file"].endswith(".png")


def test_a_video_begins_with_a_picture(models: Callable[[Callable[[], Any]], Path]) -> None:
    source = recipe(models(tiny_pipelines.wan_from_picture))
    record, folder = run(*SMALL, *CACHED, "generate.image=picture.png", "output.format=webp", source=source)
    assert record["images"][0]["frames"] == 9
    assert reused(folder) > 0
    _, other = run(*SMALL, *CACHED, "generate.image=mask.png", "output.format=webp", source=source)
    assert next(folder.glob("*.webp")).read_bytes() != next(other.glob("*.webp")).read_bytes()


def test_latents_are_what_the_pipeline_returns(models: Callable[[Callable[[], Any]], Path]) -> None:
    record, folder = run("output.type=latent", "cache.residual_diff_threshold=0", steps=2)
    (image,) = record["images"]
    assert (image["kind"], image["width"]) == ("latents", None)
    given = {**demo.DEFAULTS, "generator": torch.Generator().manual_seed(0), "output_type": "latent"}
    expected = flux("FluxPipeline")("red heart on a white background", num_inference_steps=2, **given).images[0]
    assert torch.equal(load_file(folder / image["file"])["latents"], expected)
    record, folder = run(*SMALL, "output.type=latent", source=recipe(models(tiny_pipelines.wan)), steps=2)
    assert load_file(folder / record["images"][0]["file"])["latents"].shape == (4, 3, 4, 4)


def test_sound_is_a_wav_at_the_pipelines_rate(models: Callable[[Callable[[], Any]], Path]) -> None:
    changes = ("generate.extra={audio_end_in_s: 0.2}", "generate.guidance_scale=1", *CACHED)
    record, folder = run(*changes, source=recipe(models(tiny_pipelines.stable_audio)))
    (sound,) = record["images"]
    assert (sound["kind"], sound["sampling_rate"], sound["width"]) == ("audio", 16000, None)
    assert reused(folder) > 0
    with wave.open(str(folder / sound["file"])) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (2, 16000, 3200)
        assert len(set(file.readframes(3200))) > 1


def test_a_videos_sound_is_in_its_mp4_and_beside_its_webp(models: Callable[[Callable[[], Any]], Path]) -> None:
    source = recipe(models(tiny_pipelines.ltx_2))
    changes = [
        "generate.height=32",
        "generate.width=32",
        "generate.guidance_scale=1",
        "generate.max_sequence_length=16",
    ]
    changes += ["generate.extra={num_frames: 5, frame_rate: 8.0}", *CACHED]
    record, folder = run(*changes, source=source)
    (film,) = record["images"]
    assert (film["frames"], film["fps"], film["sampling_rate"], film["others"]) == (5, 8.0, 16000, [])
    assert reused(folder) > 0
    probe = subprocess.run([ffmpeg.program(), "-i", str(folder / film["file"])], capture_output=True, check=False)
    assert re.search(r"Video: h264.* 8 fps,[\s\S]*Audio: aac.* 16000 Hz, stereo", probe.stderr.decode())
    record, folder = run(*changes, "output.format=webp", source=source)
    (film,) = record["images"]
    assert film["file"].endswith(".webp")
    with wave.open(str(folder / film["others"][0])) as sound:
        assert (sound.getnchannels(), sound.getframerate()) == (2, 16000)


# ---- compare


def test_videos_are_compared_frame_by_frame(models: Callable[[Callable[[], Any]], Path]) -> None:
    changes = [*SMALL, "generate.num_inference_steps=4", "cache.max_warmup_steps=2", "output.fps=8", "output.dir=out"]
    words = [word for change in changes for word in ("--set", change)]
    source = recipe(models(tiny_pipelines.wan))
    vary = ["--vary", "cache.residual_diff_threshold=0,0.9"]
    assert main(["compare", source, *vary, *words, "--device", "cpu", "--no-fewer-steps"]) == 0
    (folder,) = Path("out").iterdir()
    facts = json.loads((folder / "compare.json").read_text())
    (baseline,), (never,), (hasty,) = (entry["trials"] for entry in facts["entries"])
    assert facts["deterministic"]["identical"]
    assert (baseline["frames"], baseline["fps"]) == (9, 8.0)
    assert never["identical"]
    assert hasty["saved"] > 0
    films = []
    for trial in (baseline, hasty):
        with Image.open(folder / trial["file"]) as film:
            films.append([np.asarray(each.convert("RGB")) / 255 for each in ImageSequence.Iterator(film)])
    errors = [np.mean((mine - its) ** 2) for mine, its in zip(*films, strict=True)]
    assert len(errors) == 9
    assert hasty["psnr"] == pytest.approx(np.mean([-10 * np.log10(error) for error in errors if error]), abs=1e-3)
    assert (folder / "contact-sheet.png").exists()
    assert "9 frames of 32 x 32" in (folder / "report.html").read_text()


def test_what_has_no_pictures_is_not_compared(
    models: Callable[[Callable[[], Any]], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    sound = recipe(models(tiny_pipelines.stable_audio))
    latents = ["demo", "--set", "output.type=latent"]
    for source, what in ((latents, "output.type: latents are asked for"), ([sound], "StableAudioPipeline makes sound")):
        assert main(["compare", *source, "--vary", "cache.residual_diff_threshold=0.1,0.2", "--output-dir", "out"]) == 2
        why = "and only pictures and video can be compared: PSNR and SSIM measure nothing else"
        assert capsys.readouterr().err == f"{what}, {why}\n"
    assert not list(Path("out").glob("*"))


def test_variants_begin_with_the_same_picture(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "demo", "--vary", "generate.image=a.png,b.png"]) == 2
    assert "generate.image cannot vary: every variant draws from the same pictures" in capsys.readouterr().err


def test_fewer_steps_are_as_many_as_strength_leaves() -> None:
    changes = ["model.pipeline=FluxImg2ImgPipeline", "generate.image=picture.png", "generate.strength=0.5"]
    changes += ["generate.num_inference_steps=12", "output.dir=out", "cache.steps_computation_policy=static"]
    words = [word for change in [*changes, "cache.max_warmup_steps=1"] for word in ("--set", change)]
    assert main(["compare", "demo", "--vary", "cache.steps_computation_mask=ultra", *words, "--device", "cpu"]) == 0
    (folder,) = Path("out").iterdir()
    entries = json.loads((folder / "compare.json").read_text())["entries"]
    assert [entry["kind"] for entry in entries] == ["baseline", "variant", "fewer-steps"]
    assert (entries[0]["steps"], entries[1]["steps"]) == (6, 6)
    fewer = entries[2]
    assert fewer["name"] == f"{fewer['steps']} steps, no cache"
    assert fewer["recipe"]["generate"]["num_inference_steps"] > fewer["steps"]


# ---- what is refused before weights are loaded


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("generate.image=none.png",), "generate.image: none.png: no such file or folder; a path is relative to"),
        (("generate.video=picture.png",), "generate.video: picture.png: is one picture, and frames are wanted"),
        (("generate.image=picture.png",), "generate.image: FluxPipeline takes no such argument (model.pipeline can be"),
        (
            ("model.pipeline=FluxImg2ImgPipeline",),
            "generate.image: missing, and FluxImg2ImgPipeline works on a picture",
        ),
        (
            ("output.format=wav",),
            "output.format: 'wav' is not for pictures, which FluxPipeline makes (png or jpeg or webp)",
        ),
        (("output.format=gif",), "--set output.format=gif: output.format: 'gif' is unknown"),
        (("output.quality=0",), "--set output.quality=0: output.quality: 0 is too small (at least 1)"),
        (("generate.strength=0",), "--set generate.strength=0: generate.strength: 0 is too small (above 0)"),
        (("generate.extra={image: a.png}",), "generate.extra.image: cachedit gives this argument itself"),
        (("generate.extra.guidance=3",), "generate.extra.guidance: FluxPipeline takes no such argument (did you mean"),
    ],
)
def test_what_does_not_fit_is_refused_before_weights_are_loaded(
    changes: Sequence[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreached(*_: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("cachedit_cli.opening.load", unreached)
    assert said in refused(capsys, *changes)
