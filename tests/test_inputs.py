"""Pictures and videos by path: what is opened, for which argument, and what is said of what cannot be."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from PIL import Image

from cachedit_cli import ffmpeg, inputs, media, pipeline
from cachedit_cli.encode import encoded
from cachedit_cli.errors import InputError
from cachedit_cli.generate import check_call
from cachedit_cli.recipe import load
from cachedit_cli.recipe_model import Generate


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def frames(count: int = 4) -> list[Image.Image]:
    return [Image.new("RGB", (32, 16), (60 * place, 40, 200)) for place in range(count)]


def film(form: str) -> None:
    """Write ``film.<form>``."""
    Path(f"film.{form}").write_bytes(encoded(media.Video(frames(), 8.0), form, 100, {})[0][1])


def settings(**given: Any) -> Generate:
    return Generate(prompt="a cat", **given)


def refusal(given: Generate, cls: type[Any] | None = None) -> list[str]:
    with pytest.raises(InputError) as caught:
        inputs.check(given) if cls is None else inputs.check_call(given, cls)
    return str(caught.value).splitlines()


# ---- files


def test_a_picture_is_opened_upright_and_in_colours() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # a camera held on its side
    Image.new("L", (8, 4)).save("a.jpg", exif=turned)
    (picture,) = inputs.opened(settings(image="a.jpg", strength=0.5), diffusers.FluxImg2ImgPipeline).values()
    assert (picture.size, picture.mode) == ((4, 8), "RGB")


def test_a_mask_is_grey_and_a_layered_picture_keeps_what_is_transparent() -> None:
    Image.new("RGBA", (8, 8)).save("a.png")
    found = inputs.opened(settings(image="a.png", mask="a.png"), diffusers.FluxFillPipeline)
    assert {name: picture.mode for name, picture in found.items()} == {"image": "RGB", "mask_image": "L"}
    layered = inputs.opened(settings(image="a.png"), diffusers.QwenImageLayeredPipeline)
    assert layered["image"].mode == "RGBA"


@pytest.mark.parametrize("source", ["film.mp4", "film.webp", "frames"])
def test_a_video_is_read_from_a_film_an_animation_or_a_folder(source: str) -> None:
    film("mp4")
    film("webp")
    Path("frames").mkdir()
    for place, frame in enumerate(frames()):
        frame.save(f"frames/f{8 + place}.png")  # 10 stands after 9
    Path("frames/notes.txt").write_text("no frame")
    found = inputs.opened(settings(video=source), diffusers.WanVideoToVideoPipeline)
    assert list(found) == ["video"]
    expected = [np.asarray(frame).astype(int) for frame in frames()]
    assert len(found["video"]) == len(expected)
    for mine, its in zip(found["video"], expected, strict=True):
        assert abs(np.asarray(mine).astype(int) - its).max() <= 4  # MP4 has its colours in another space


def test_a_mask_may_be_frames_and_several_pictures_stay_a_list() -> None:
    film("webp")
    Path("masks").mkdir()
    frames()[0].save("masks/0.png")
    frames()[1].save("a.png")
    given = settings(video="film.webp", mask="masks", inputs={"reference_images": "a.png"})
    found = inputs.opened(given, diffusers.WanVACEPipeline)
    assert {name: len(value) for name, value in found.items()} == {"video": 4, "mask": 1, "reference_images": 1}
    two = inputs.opened(settings(image=["a.png", "a.png"]), diffusers.QwenImageEditPlusPipeline)
    assert len(two["image"]) == 2


def test_everything_that_cannot_be_opened_is_said_at_once_with_its_place() -> None:
    Path("text.png").write_text("hello")
    Path("empty").mkdir()
    Path("empty/notes.txt").write_text("x")
    Path("bad.mp4").write_bytes(b"\0" * 100)
    whole = encoded(media.Pictures(frames()[:1]), "png", None, {})[0][1]
    Path("half.png").write_bytes(whole[: len(whole) // 2])
    frames()[0].save("a.png")
    film("mp4")
    given = settings(
        image=["none.png", "half.png"],
        mask="text.png",
        control_image="empty",
        last_image="film.mp4",
        video="a.png",
        inputs={"pose_video": "bad.mp4", "face_video": "text.png"},
    )
    suffixes = ".png, .jpg, .jpeg, .webp, .bmp, .tif, .tiff"
    assert refusal(given) == [
        f"generate.image: none.png: no such file or folder; a path is relative to where you are, {Path.cwd()}",
        "generate.image: half.png: is no picture that can be read",
        "generate.mask: text.png: is no picture that can be read",
        f"generate.control_image: empty: no pictures are in this folder, and frames are wanted ({suffixes})",
        "generate.last_image: film.mp4: is a video, and one picture is wanted",
        "generate.video: a.png: is one picture, and frames are wanted (a folder, GIF, WebP or MP4)",
        "generate.inputs.pose_video: bad.mp4: is no video that can be read",
        "generate.inputs.face_video: text.png: is no video that can be read",
    ]


def test_a_film_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    film("mp4")
    monkeypatch.setattr(ffmpeg, "find_spec", lambda name: None)
    assert refusal(settings(video="film.mp4")) == [
        "generate.video: film.mp4: needs imageio-ffmpeg, which is not installed: pip install 'cachedit[video]' "
        "(or give a folder of frames, or an animated GIF or WebP)"
    ]


# ---- arguments


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("FluxInpaintPipeline", {"image": "a", "mask": "b"}, {"image": "image", "mask": "mask_image"}),
        ("FluxControlNetPipeline", {"control_image": "a"}, {"control_image": "control_image"}),
        ("StableDiffusionXLControlNetPipeline", {"control_image": "a"}, {"control_image": "image"}),
        ("WanImageToVideoPipeline", {"image": "a", "last_image": "b"}, {"image": "image", "last_image": "last_image"}),
        ("WanVACEPipeline", {"video": "a", "mask": "b"}, {"video": "video", "mask": "mask"}),
        ("OmniGenPipeline", {"image": "a"}, {"image": "input_images"}),
        ("FluxPipeline", {"inputs": {"ip_adapter_image": "a"}}, {"inputs.ip_adapter_image": "ip_adapter_image"}),
        (
            "WanAnimatePipeline",
            {"image": "a", "inputs": {"pose_video": "b", "face_video": "c"}},
            {"image": "image", "inputs.pose_video": "pose_video", "inputs.face_video": "face_video"},
        ),
    ],
)
def test_a_field_goes_to_the_pipelines_own_argument(name: str, given: dict[str, Any], expected: dict[str, str]) -> None:
    assert inputs.check_call(settings(**given), getattr(diffusers, name)) == expected


def test_a_pipeline_that_takes_no_such_input_names_those_that_do() -> None:
    (line,) = refusal(settings(mask="a.png"), diffusers.FluxPipeline)
    start = "generate.mask: FluxPipeline takes no such argument (model.pipeline can be one that does: "
    assert line.startswith(start)
    assert "FluxInpaintPipeline" in line
    assert "FluxImg2ImgPipeline" not in line
    assert refusal(settings(inputs={"pose_vidoe": "a"}), diffusers.WanAnimatePipeline) == [
        "generate.inputs.pose_vidoe: WanAnimatePipeline takes no such argument (did you mean 'pose_video'?)"
    ]


def test_an_argument_is_given_once() -> None:
    assert refusal(settings(image="a", inputs={"image": "b"}), diffusers.FluxImg2ImgPipeline) == [
        "generate.inputs.image: is the argument 'image', which generate.image gives already"
    ]


def test_a_pipeline_without_the_input_that_it_works_on_is_refused() -> None:
    assert refusal(settings(), diffusers.FluxInpaintPipeline) == [
        "generate.image: missing, and FluxInpaintPipeline works on a picture (give the path of a file)",
        "generate.mask: missing, and FluxInpaintPipeline works under a mask (give the path of a file)",
    ]
    assert refusal(settings(), diffusers.WanVideoToVideoPipeline) == [
        "generate.video: missing, and WanVideoToVideoPipeline works on a video (give the path of a file)"
    ]
    assert refusal(settings(image="a.png"), diffusers.WanAnimatePipeline) == [
        f"generate.inputs.{name}: missing, and WanAnimatePipeline draws nothing without (give the path of a file)"
        for name in ("pose_video", "face_video")
    ]
    assert refusal(settings(image="a.png"), diffusers.FluxControlNetImg2ImgPipeline) == [
        "generate.control_image: missing, and FluxControlNetImg2ImgPipeline follows a picture (give the path of a file)"
    ]
    assert len(refusal(settings(control_image="a.png"), diffusers.FluxControlNetInpaintPipeline)) == 2
    inputs.check_call(settings(), diffusers.FluxKontextPipeline)  # draws without one, too
    inputs.check_call(settings(extra={"image_latents": [0.0]}), diffusers.QwenImageEditPipeline)


def test_a_path_among_the_further_arguments_is_no_picture() -> None:
    assert refusal(settings(extra={"ip_adapter_image": "a.png"}), diffusers.FluxPipeline) == [
        "generate.extra.ip_adapter_image: is text, and a picture is wanted (write generate.inputs.ip_adapter_image)"
    ]


def test_arguments_inputs_and_output_are_complained_of_together() -> None:
    wrong = ["generate.mask=m.png", "generate.extra.guidance=3", "output.format=wav"]
    with pytest.raises(InputError) as caught:
        check_call(load("demo", wrong), diffusers.FluxPipeline)
    places = [line.partition(": ")[0] for line in str(caught.value).splitlines()]
    assert places == ["generate.extra.guidance", "generate.mask", "output.format"]


def test_a_library_that_a_pipeline_needs_and_nobody_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.check_installed(diffusers.WanImageToVideoPipeline)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match="WanImageToVideoPipeline needs ftfy, which is not installed: pip install ftfy"
    ):
        pipeline.check_installed(diffusers.WanImageToVideoPipeline)
    pipeline.check_installed(diffusers.WanPipeline)  # does without


# ---- strength

SHORTENING = [
    "ChromaImg2ImgPipeline",
    "FluxControlNetInpaintPipeline",
    "FluxImg2ImgPipeline",
    "FluxInpaintPipeline",
    "FluxKontextInpaintPipeline",
    "LTXConditionPipeline",
    "QwenImageEditInpaintPipeline",
    "QwenImageImg2ImgPipeline",
    "StableDiffusion3Img2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "WanVideoToVideoPipeline",
    "ZImageImg2ImgPipeline",
]


@pytest.mark.parametrize("name", SHORTENING)
def test_the_steps_that_strength_leaves_are_known_before_the_weights(name: str) -> None:
    """The pipeline's own arithmetic does not need more than the stand-in has."""
    cls = getattr(diffusers, name)
    strength = "strength" if "strength" in inspect.signature(cls.__call__).parameters else "denoise_strength"
    given = {"num_inference_steps": 28, strength: 0.6}
    assert pipeline.real_steps(cls, given) in (16, 17)
    assert pipeline.real_steps(cls, {**given, strength: 1.0}) == 28
    assert pipeline.real_steps(cls, {**given, strength: 0.001}) in (0, 1)


def test_a_pipelines_own_strength_counts_and_steps_laid_out_are_counted() -> None:
    assert pipeline.real_steps(diffusers.FluxImg2ImgPipeline, {"num_inference_steps": 10}) == 6
    assert pipeline.real_steps(diffusers.FluxPipeline, {"num_inference_steps": 10}) == 10
    assert pipeline.real_steps(diffusers.FluxPipeline, {"sigmas": [1.0, 0.5, 0.1], "num_inference_steps": 10}) == 3
    assert pipeline.real_steps(diffusers.FluxImg2ImgPipeline, {"sigmas": [1.0, 0.5, 0.1], "strength": 0.7}) == 3


def test_strength_that_leaves_no_step_is_refused() -> None:
    Image.new("RGB", (64, 64)).save("a.png")
    changes = ["generate.image=a.png", "generate.strength=0.01", "generate.num_inference_steps=8"]
    with pytest.raises(InputError, match=r"^generate.strength: 0.01 leaves none of the steps \(take more of either\)$"):
        check_call(load("flux1-dev", changes), diffusers.StableDiffusionXLImg2ImgPipeline)
