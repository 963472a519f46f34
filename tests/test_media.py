"""What pipelines return, as products; and products as files, read back by the libraries that others read them with."""

from __future__ import annotations

import json
import re
import subprocess
import wave
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import Cosmos3OmniPipelineOutput
from diffusers.pipelines.ltx2.pipeline_output import LTX2PipelineOutput
from diffusers.video_processor import VideoProcessor
from PIL import Image, ImageSequence
from safetensors import safe_open

from cachedit_cli import ffmpeg, media
from cachedit_cli.encode import encoded
from cachedit_cli.errors import InputError, RunError
from cachedit_cli.media import Latents, Pictures, Sound, Video
from cachedit_cli.recipe_model import Output

FACTS = {"Software": "cachedit 1", "prompt": "ein Kätzchen 猫", "seed": "7", "settings": '{"a": 1}'}
PIPE = SimpleNamespace(vae=SimpleNamespace(config=SimpleNamespace(sampling_rate=16000)))


def frames(count: int = 6, size: tuple[int, int] = (32, 24)) -> list[Image.Image]:
    """A white square that wanders over a coloured ground."""
    found = []
    for place in range(count):
        values = np.zeros((size[1], size[0], 3), np.uint8)
        values[..., 0], values[..., 2] = 40, np.arange(size[0]) * 4
        values[4:12, 2 * place : 2 * place + 8] = 255
        found.append(Image.fromarray(values))
    return found


def tone(channels: int = 2, rate: int = 16000, seconds: float = 0.25) -> Sound:
    times = np.arange(int(rate * seconds)) / rate
    return Sound(
        np.stack([np.sin(2 * np.pi * 440 * (k + 1) * times) for k in range(channels)]).astype(np.float32), rate
    )


def pixels(picture: Image.Image) -> Any:
    return np.asarray(picture.convert("RGB")).astype(int)


def made(result: Any, count: int = 1, latent: bool = False, pipe: Any = PIPE) -> list[media.Product]:
    return media.products(SimpleNamespace(**result), count, pipe, fps=8.0, latent=latent)


def decoded(data: bytes, folder: Path) -> tuple[str, list[Any]]:
    """What FFmpeg says of an MP4, and its frames."""
    file = folder / "some.mp4"
    file.write_bytes(data)
    reading = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(file), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(reading, capture_output=True, check=True)
    said = done.stderr.decode()
    size = re.search(r"Video: h264.* (\d+)x(\d+)", said)
    assert size is not None
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, int(size[2]), int(size[1]), 3)
    return said, list(frames.astype(int))


# ---- results


def test_pictures_come_as_pillow_has_them_or_as_numbers() -> None:
    ((first,), (second,)) = (each.images for each in made({"images": frames(2)}, 2) if isinstance(each, Pictures))
    assert (pixels(first) == pixels(frames(2)[0])).all()
    values = np.stack([np.asarray(each) for each in frames(2)]).astype(np.float32) / 255
    for images in (values, torch.from_numpy(values).permute(0, 3, 1, 2)):
        found = made({"images": images}, 2)
        assert isinstance(found[1], Pictures)
        assert (pixels(found[1].images[0]) == pixels(second)).all()


def test_layers_belong_to_one_picture() -> None:
    (found,) = made({"images": [frames(3)]})
    assert isinstance(found, Pictures)
    assert len(found.images) == 3


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_frames_come_as_diffusers_own_processor_hands_them_over(output_type: str) -> None:
    expected = [pixels(each) for each in frames()]
    values = torch.from_numpy(np.stack(expected)).permute(3, 0, 1, 2)[None] / 255 * 2 - 1
    processed = VideoProcessor().postprocess_video(values.repeat(2, 1, 1, 1, 1), output_type)
    for found in made({"frames": processed}, 2):
        assert isinstance(found, Video)
        assert found.fps == 8.0
        assert all((pixels(mine) == its).all() for mine, its in zip(found.frames, expected, strict=True))


def test_sound_stands_alone_or_belongs_to_a_video() -> None:
    values = torch.from_numpy(tone().samples)
    (alone,) = made({"audios": values[None]})
    assert isinstance(alone, Sound)
    assert (alone.samples.shape, alone.rate) == ((2, 4000), 16000)
    (mono,) = made({"audios": values[None, 0]})
    assert isinstance(mono, Sound)
    assert mono.samples.shape == (1, 4000)
    together = (
        LTX2PipelineOutput(frames=[frames()], audio=values[None]),
        Cosmos3OmniPipelineOutput(video=frames(), sound=values),
    )
    for result in together:
        (video,) = media.products(result, 1, PIPE, fps=8.0)
        assert isinstance(video, Video)
        assert len(video.frames) == len(frames())
        assert video.sound is not None
        assert video.sound.samples.shape == (2, 4000)


def test_a_vocoders_rate_goes_before_that_of_the_vae_and_an_unknown_one_is_said() -> None:
    vocoder = SimpleNamespace(config=SimpleNamespace(output_sampling_rate=24000))
    (sound,) = made({"audios": torch.zeros(1, 2, 8)}, pipe=SimpleNamespace(vocoder=vocoder, vae=PIPE.vae))
    assert isinstance(sound, Sound)
    assert sound.rate == 24000
    with pytest.raises(RunError, match="SimpleNamespace does not say how many samples a second its sound has"):
        made({"audios": torch.zeros(1, 2, 8)}, pipe=SimpleNamespace())


def test_what_is_neither_picture_nor_video_nor_sound_is_said() -> None:
    with pytest.raises(RunError, match="neither pictures, video nor sound, so nothing can be saved"):
        made({"texts": ["hello"]})
    with pytest.raises(RunError, match="returned 1 results for 2 prompts and seeds"):
        made({"images": frames(1)}, 2)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("FluxPipeline", "image"),
        ("FluxKontextPipeline", "image"),
        ("Kandinsky5T2IPipeline", "image"),
        ("WanImageToVideoPipeline", "video"),
        ("LTX2Pipeline", "video"),
        ("Cosmos3OmniPipeline", "video"),
        ("StableAudioPipeline", "audio"),
        ("AceStepPipeline", "audio"),
        ("DiffusionGemmaPipeline", None),
    ],
)
def test_a_pipelines_class_tells_what_it_makes(name: str, kind: str | None) -> None:
    assert media.kind_of(getattr(diffusers, name)) == kind


# ---- formats


def test_a_format_is_refused_for_what_it_is_not_made_for() -> None:
    refusals: list[tuple[Any, Any, str]] = [
        ("wav", diffusers.FluxPipeline, "pictures, which FluxPipeline makes (png or jpeg or webp)"),
        ("png", diffusers.WanPipeline, "video, which WanPipeline makes (mp4 or webp)"),
        ("mp4", diffusers.StableAudioPipeline, "sound, which StableAudioPipeline makes (wav)"),
    ]
    for form, pipeline, said in refusals:
        with pytest.raises(InputError) as caught:
            media.check_output(Output(format=form), pipeline, {"num_frames": 5})
        assert str(caught.value) == f"output.format: '{form}' is not for {said}"
    with pytest.raises(InputError, match="'png' is not for latents, which FluxPipeline makes"):
        media.check_output(Output(type="latent", format="png"), diffusers.FluxPipeline, {})
    media.check_output(Output(format="png"), diffusers.WanPipeline, {"num_frames": 1})


def test_video_is_mp4_where_that_can_be_written_and_webp_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    video = Video(frames(), 8.0)
    assert media.pick_format(video, Output(), "P") == "mp4"
    monkeypatch.setattr(ffmpeg, "find_spec", lambda name: None)
    assert media.pick_format(video, Output(), "P") == "webp"
    with pytest.raises(InputError, match=r"output.format: 'mp4' needs imageio-ffmpeg.*pip install 'cachedit\[video\]'"):
        media.check_output(Output(format="mp4"), diffusers.WanPipeline, {})


def test_a_machine_for_which_there_is_no_ffmpeg_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imageio_ffmpeg.get_ffmpeg_exe", _not_found)
    with pytest.raises(InputError, match=r"output.format: 'mp4' needs FFmpeg, which imageio-ffmpeg does not find here"):
        media.check_output(Output(format="mp4"), diffusers.WanPipeline, {})
    assert media.pick_format(Video(frames(), 8.0), Output(), "P") == "webp"


def _not_found() -> str:
    raise RuntimeError("No ffmpeg exe could be found.")


def test_jpeg_and_webp_carry_what_made_them_where_programs_look() -> None:
    for form, kind in (("jpeg", "JPEG"), ("webp", "WEBP")):
        ((suffix, data),) = encoded(Pictures(frames(1)), form, None, FACTS)
        with Image.open(BytesIO(data)) as opened:
            assert (opened.format, suffix) == (kind, {"jpeg": ".jpg", "webp": ".webp"}[form])
            exif = opened.getexif()
            assert abs(pixels(opened) - pixels(frames(1)[0])).mean() < 12
        description, comment = exif[0x010E], exif.get_ifd(0x8769)[0x9286]
        assert description.encode("latin-1").decode() == FACTS["prompt"]  # UTF-8, which Pillow does not know
        assert exif[0x0131] == "cachedit 1"
        assert comment.startswith(b"UNICODE\0")
        assert json.loads(comment[8:].decode("utf-16-be")) == FACTS


def test_settings_that_jpeg_has_no_room_for_are_left_out_of_it() -> None:
    ((_, data),) = encoded(Pictures(frames(1)), "jpeg", None, {**FACTS, "settings": "x" * 80_000})
    with Image.open(BytesIO(data)) as opened:
        comment = json.loads(opened.getexif().get_ifd(0x8769)[0x9286][8:].decode("utf-16-be"))
    assert comment == {key: value for key, value in FACTS.items() if key != "settings"}


def test_webp_at_quality_100_is_without_loss() -> None:
    (picture,) = encoded(Pictures(frames(1)), "webp", 100, FACTS)
    with Image.open(BytesIO(picture[1])) as opened:
        assert (pixels(opened) == pixels(frames(1)[0])).all()
    (video,) = encoded(Video(frames(), 8.0), "webp", 100, FACTS)
    with Image.open(BytesIO(video[1])) as opened:
        found = [pixels(each) for each in ImageSequence.Iterator(opened)]
    assert all((mine == pixels(its)).all() for mine, its in zip(found, frames(), strict=True))


def test_an_animated_webp_lasts_as_long_as_the_video() -> None:
    ((_, data),) = encoded(Video(frames(7), 24.0), "webp", None, FACTS)
    lengths = []
    with Image.open(BytesIO(data)) as opened:
        for frame in ImageSequence.Iterator(opened):
            frame.load()
            lengths.append(frame.info["duration"])
    assert sum(lengths) == round(1000 * 7 / 24)
    assert len(lengths) == 7


@pytest.mark.parametrize("size", [(32, 24), (33, 23)])
def test_mp4_shows_the_frames_at_their_rate(size: tuple[int, int], tmp_path: Path) -> None:
    ((suffix, data),) = encoded(Video(frames(size=size), 8.0), "mp4", 90, FACTS)
    said, found = decoded(data, tmp_path)
    assert suffix == ".mp4"
    assert f" {size[0]}x{size[1]}" in said
    assert " 8 fps," in said
    assert len(found) == 6
    for mine, its in zip(found, frames(size=size), strict=True):
        assert abs(mine - pixels(its)).mean() < 12
    told = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-i", tmp_path / "some.mp4", "-f", "ffmetadata", "-v", "error", "-"],
        capture_output=True,
        check=True,
    ).stdout.decode()
    assert f"title={FACTS['prompt']}\n" in told
    assert '"seed": "7"' in told


def test_a_videos_sound_is_in_the_mp4_and_beside_the_webp(tmp_path: Path) -> None:
    video = Video(frames(), 24.0, tone())
    ((_, data),) = encoded(video, "mp4", None, FACTS)
    assert "Audio: aac" in decoded(data, tmp_path)[0]
    (_, (suffix, sound)) = encoded(video, "webp", None, FACTS)
    assert suffix == ".wav"
    with wave.open(BytesIO(sound)) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (2, 16000, 4000)
        levels = np.frombuffer(file.readframes(4000), "<i2").reshape(-1, 2).T / 32767
    assert abs(levels - tone().samples).max() < 1e-4


def test_latents_come_back_as_they_were(tmp_path: Path) -> None:
    latents = torch.randn(2, 4, 8, dtype=torch.bfloat16)
    first, second = made({"images": latents}, 2, latent=True)
    assert isinstance(first, Latents)
    ((suffix, data),) = encoded(second, "safetensors", None, FACTS)
    (tmp_path / "some").write_bytes(data)
    with safe_open(tmp_path / "some", "pt") as file:
        assert suffix == ".safetensors"
        assert torch.equal(file.get_tensor("latents"), latents[1])
        assert file.metadata() == FACTS
