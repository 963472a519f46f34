"""What pipelines return: pictures, video, sound or latents, one product for each prompt and seed of a call.

Knows the results of diffusers' pipelines, their shapes, and which formats a product can be written in; knows nothing of
files and recipes. Imports torch and diffusers by way of the pipeline that it is given.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from . import ffmpeg
from .errors import InputError, RunError

if TYPE_CHECKING:
    import numpy
    import torch
    from numpy.typing import NDArray
    from PIL.Image import Image

    from .recipe_model import Output

__all__ = [
    "FORMATS",
    "Kind",
    "Latents",
    "Pictures",
    "Product",
    "Sound",
    "Video",
    "about",
    "check_output",
    "kind_of",
    "pick_format",
    "products",
]

Kind = Literal["image", "video", "audio", "latents"]

#: What each kind of product can be written as; the first is what it is written as unless the recipe says otherwise.
FORMATS: Mapping[Kind, tuple[str, ...]] = {
    "image": ("png", "jpeg", "webp"),
    "video": ("mp4", "webp"),
    "audio": ("wav",),
    "latents": ("safetensors",),
}
_CALLED: Mapping[Kind, str] = {"image": "pictures", "video": "video", "audio": "sound", "latents": "latents"}
# Where results keep what, in the order in which they are asked.
_FIELDS: tuple[tuple[str, Kind], ...] = (
    ("frames", "video"),
    ("video", "video"),
    ("audios", "audio"),
    ("images", "image"),
    ("image", "image"),
)
_BESIDE = ("audio", "sound")  # of a video
# Parts of a pipeline, and its own attributes (""), that know the sampling rate; the first that does is asked.
_RATES = (
    ("vocoder", "output_sampling_rate"),
    ("vocoder", "sampling_rate"),
    ("sound_tokenizer", "sampling_rate"),
    ("", "audio_sample_rate"),
    ("", "sample_rate"),
    ("vae", "sampling_rate"),
    ("vae", "sample_rate"),
)


@dataclass(frozen=True)
class Pictures:
    """A picture, or the layers of one."""

    kind: ClassVar[Kind] = "image"
    images: Sequence[Image]


@dataclass(frozen=True)
class Sound:
    """A sound: channels x samples from -1 to 1, and samples a second."""

    kind: ClassVar[Kind] = "audio"
    samples: NDArray[numpy.float32]
    rate: int


@dataclass(frozen=True)
class Video:
    """Frames of one size, how many of them are shown a second, and the sound that belongs to them."""

    kind: ClassVar[Kind] = "video"
    frames: Sequence[Image]
    fps: float
    sound: Sound | None = None


@dataclass(frozen=True)
class Latents:
    """Tensors by name, as they were before decoding, without the dimension of the batch."""

    kind: ClassVar[Kind] = "latents"
    tensors: Mapping[str, torch.Tensor]


Product = Pictures | Video | Sound | Latents


def kind_of(pipeline: type[Any]) -> Kind | None:
    """Return what a pipeline's results are, by the result classes of its module; None where those do not tell."""
    fields = {
        field.name
        for found in vars(sys.modules[pipeline.__module__]).values()
        if isinstance(found, type) and dataclasses.is_dataclass(found) and "Pipeline" in found.__name__
        for field in dataclasses.fields(found)
    }
    kinds = {kind for name, kind in _FIELDS if name in fields}
    return kinds.pop() if len(kinds) == 1 else None


def check_output(output: Output, pipeline: type[Any], arguments: Mapping[str, Any]) -> None:
    """Refuse an output that the pipeline's results do not fit, as far as its class tells.

    Raises:
        InputError: They do not fit the format, or what would write it is not installed.
    """
    if output.type == "latent" and "output_type" not in inspect.signature(pipeline.__call__).parameters:
        raise InputError(f"output.type: {pipeline.__name__} cannot return latents (leave it out)")
    kind: Kind | None = "latents" if output.type == "latent" else kind_of(pipeline)
    if kind is not None:
        _pick(kind, output, pipeline.__name__, single=arguments.get("num_frames") == 1)


def pick_format(product: Product, output: Output, name: str) -> str:
    """Return the format in which a product of the pipeline called ``name`` is written.

    Raises:
        InputError: It does not fit the format, or what would write it is not installed.
    """
    return _pick(product.kind, output, name, single=isinstance(product, Video) and len(product.frames) == 1)


def about(product: Product) -> dict[str, Any]:
    """Return what a run's record says of a product: kind, size, frames, rates."""
    if isinstance(product, Latents):
        return {"kind": product.kind, "width": None, "height": None}
    if isinstance(product, Sound):
        return {"kind": product.kind, "width": None, "height": None, "sampling_rate": product.rate}
    if isinstance(product, Pictures):
        width, height = product.images[0].size
        return {"kind": product.kind, "width": width, "height": height}
    width, height = product.frames[0].size
    rate = None if product.sound is None else product.sound.rate
    facts = {"width": width, "height": height, "frames": len(product.frames), "fps": product.fps}
    return {"kind": product.kind, "sampling_rate": rate, **facts}


def _pick(kind: Kind, output: Output, name: str, single: bool) -> str:
    """``single``: a video of one frame, which may be written as a picture."""
    fitting = FORMATS[kind] + (FORMATS["image"] if kind == "video" and single else ())
    if output.format is not None and output.format not in fitting:
        allowed = " or ".join(dict.fromkeys(fitting))
        raise InputError(f"output.format: {output.format!r} is not for {_CALLED[kind]}, which {name} makes ({allowed})")
    if kind != "video" or (output.format or "mp4") != "mp4":
        return output.format or FORMATS[kind][0]
    try:
        ffmpeg.program()
    except InputError as error:
        if output.format is None:
            return "webp"
        raise InputError(f"output.format: 'mp4' needs {error} (or take webp, which needs nothing)") from error
    return "mp4"


def products(result: Any, count: int, pipe: Any, *, fps: float, latent: bool = False) -> list[Product]:
    """Return what a call made, one product for each of its ``count`` prompts and seeds.

    Args:
        result: What the pipeline returned.
        count: Prompts and seeds of the call.
        pipe: The pipeline, which knows the sampling rate of its sound.
        fps: Frames a second of video.
        latent: The call was asked for latents.

    Raises:
        RunError: It is nothing that can be saved, or not one for each.
    """
    name = type(pipe).__name__
    found = ((getattr(result, field, None), kind) for field, kind in _FIELDS)
    main, kind = next(((value, kind) for value, kind in found if value is not None), (None, None))
    beside = next((value for field in _BESIDE if (value := getattr(result, field, None)) is not None), None)
    if main is None or kind is None:
        fields = ", ".join(result) if isinstance(result, Mapping) else type(result).__name__
        raise RunError(f"{name} returned {fields}: neither pictures, video nor sound, so nothing can be saved")
    if latent:
        made: Sequence[Product] = [
            Latents({"latents": each} | ({} if beside is None else {"audio_latents": beside[place]}))
            for place, each in enumerate(main)
        ]
    elif kind == "audio":
        made = [Sound(_channels(each), _rate(pipe)) for each in main]
    elif kind == "image":
        made = [Pictures(_pictures(each)) for each in _each(main, count)]
    else:
        videos = [main] if count == 1 and _depth(main) == 1 else list(_each(main, count))
        sounds = [None] * len(videos) if beside is None else _sounds(beside, len(videos), _rate(pipe))
        made = [Video(_pictures(each), fps, sound) for each, sound in zip(videos, sounds, strict=True)]
    if len(made) != count:
        raise RunError(f"{name} returned {len(made)} results for {count} prompts and seeds")
    return list(made)


def _depth(value: Any) -> int:
    """Return how many lists stand around a picture; an array of colours counts its further dimensions."""
    if hasattr(value, "ndim"):
        return int(value.ndim) - 3
    return 1 + _depth(value[0]) if isinstance(value, (list, tuple)) and len(value) else 0


def _each(value: Any, count: int) -> Any:
    return [value] if count == 1 and _depth(value) == 0 else value


def _pictures(value: Any) -> list[Image]:
    """Return Pillow's pictures of one picture, a list of pictures, or numbers from 0 to 1, channels first or last."""
    if isinstance(value, (list, tuple)):
        return [picture for each in value for picture in _pictures(each)]
    if not hasattr(value, "ndim"):
        return [value]
    import numpy
    from PIL import Image

    values = numpy.asarray(value.float().cpu() if hasattr(value, "cpu") else value)
    if values.ndim == 4:
        return [picture for each in values for picture in _pictures(each)]
    if hasattr(value, "cpu") or (values.shape[0] in (1, 3, 4) and values.shape[-1] not in (1, 3, 4)):
        values = values.transpose(1, 2, 0)  # tensors have their channels first
    if values.dtype != numpy.uint8:
        values = (values * 255).round().clip(0, 255).astype(numpy.uint8)
    return [Image.fromarray(values.squeeze(-1) if values.shape[-1] == 1 else values)]


def _sounds(value: Any, count: int, rate: int) -> list[Sound | None]:
    whole = count == 1 and getattr(value, "ndim", 3) < 3  # channels x samples of the only video
    return [Sound(_channels(each), rate) for each in ([value] if whole else value)]


def _channels(value: Any) -> NDArray[numpy.float32]:
    import numpy

    samples = numpy.asarray(value.float().cpu() if hasattr(value, "cpu") else value, dtype=numpy.float32)
    return numpy.atleast_2d(samples.squeeze())


def _rate(pipe: Any) -> int:
    for part, name in _RATES:
        owner = getattr(getattr(pipe, part, None), "config", None) if part else pipe
        rate = getattr(owner, name, None)
        if isinstance(rate, int):
            return rate
    raise RunError(f"{type(pipe).__name__} does not say how many samples a second its sound has")
