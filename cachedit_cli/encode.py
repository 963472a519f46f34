"""Products as bytes: PNG, JPEG, WebP, MP4, WAV and safetensors, with what made them inside.

Knows formats and their metadata; knows nothing of folders, runs and pipelines. Pillow writes pictures and animated
WebP, FFmpeg (by imageio-ffmpeg, the extra ``video``) MP4, the standard library WAV.
"""

from __future__ import annotations

import json
import tempfile
import wave
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import RunError
from .files import storable
from .media import Latents, Pictures, Product, Sound, Video

if TYPE_CHECKING:
    from PIL.Image import Exif, Image

__all__ = ["SUFFIXES", "encoded"]

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "mp4": ".mp4", "wav": ".wav", "safetensors": ".safetensors"}

_QUALITY = 90  # of what is compressed with loss, unless told; 100 is the best
_MOST_EXIF = 65_000  # bytes that JPEG has room for
# Numbers of EXIF tags, as its standard has them.
_DESCRIPTION, _SOFTWARE, _EXIF, _COMMENT = 0x010E, 0x0131, 0x8769, 0x9286


def encoded(product: Product, form: str, quality: int | None, facts: Mapping[str, str]) -> list[tuple[str, bytes]]:
    """Return suffix and bytes of each file of a product, the main one first.

    Args:
        product: What is written.
        form: One of the formats that its kind has; a video of one frame also takes those of pictures.
        quality: 1 to 100 for JPEG, WebP (100 is without loss) and MP4; None is 90.
        facts: What made it, as text, for the file's metadata; ``prompt`` and ``Software`` go to where programs look.

    Raises:
        RunError: The encoder failed.
    """
    facts = {key: storable(value) for key, value in facts.items()}
    suffix = SUFFIXES[form]
    if isinstance(product, Video) and form not in ("mp4", "webp"):
        product = Pictures(product.frames)
    if isinstance(product, Pictures):
        return [(suffix, _picture(image, form, quality, facts)) for image in product.images]
    if isinstance(product, Sound):
        return [(suffix, _wav(product))]
    if isinstance(product, Latents):
        return [(suffix, _safetensors(product, facts))]
    if form == "mp4":
        return [(suffix, _mp4(product, quality, facts))]
    files = [(suffix, _animation(product, quality, facts))]
    return files if product.sound is None else [*files, (SUFFIXES["wav"], _wav(product.sound))]


def _picture(image: Image, form: str, quality: int | None, facts: Mapping[str, str]) -> bytes:
    data = BytesIO()
    if form == "png":
        from PIL.PngImagePlugin import PngInfo

        chunks = PngInfo()
        for key, value in facts.items():
            chunks.add_itxt(key, value)
        image.save(data, format="PNG", pnginfo=chunks)
    elif form == "jpeg":
        image.convert("RGB").save(data, format="JPEG", quality=quality or _QUALITY, exif=_exif(facts))
    else:
        image.save(data, format="WEBP", exif=_exif(facts), **_webp(quality))
    return data.getvalue()


def _animation(video: Video, quality: int | None, facts: Mapping[str, str]) -> bytes:
    first, *others = video.frames
    data = BytesIO()
    # Each frame ends at a whole millisecond, so that their sum does not drift.
    ends = [round(1000 * (place + 1) / video.fps) for place in range(len(video.frames))]
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    options = {"save_all": True, "append_images": others, "duration": lengths, "loop": 0}
    first.save(data, format="WEBP", exif=_exif(facts), **options, **_webp(quality))
    return data.getvalue()


def _webp(quality: int | None) -> dict[str, int | bool]:
    return {"lossless": True, "exact": True, "method": 2} if quality == 100 else {"quality": quality or _QUALITY}


def _exif(facts: Mapping[str, str]) -> Exif:
    """Return the prompt as description, the program, and everything as JSON in the comment."""
    from PIL.Image import Exif

    def made(shown: Mapping[str, str]) -> Exif:
        exif = Exif()
        exif[_SOFTWARE] = facts.get("Software", "")
        exif[_DESCRIPTION] = facts.get("prompt", "").encode()
        exif.get_ifd(_EXIF)[_COMMENT] = b"UNICODE\0" + json.dumps(shown, ensure_ascii=False).encode("utf-16-be")
        return exif

    whole = made(facts)
    if len(whole.tobytes()) <= _MOST_EXIF:
        return whole
    return made({key: value for key, value in facts.items() if len(value) < 4_000})


def _mp4(video: Video, quality: int | None, facts: Mapping[str, str]) -> bytes:
    import imageio_ffmpeg

    width, height = video.frames[0].size
    # Most players want colours at half the resolution, which odd sizes do not have.
    colours = "yuv444p" if width % 2 or height % 2 else "yuv420p"
    rate = str(round(51 * (1 - (quality or 65) / 100)))  # libx264's scale, on which 0 is without loss and 51 the worst
    comment = json.dumps(dict(facts), ensure_ascii=False)
    tags = {"comment": comment, "title": facts.get("prompt", ""), "software": facts.get("Software", "")}
    told = [part for key, value in tags.items() for part in ("-metadata", f"{key}={value}")]
    with tempfile.TemporaryDirectory() as folder:
        file, sound = Path(folder, "video.mp4"), Path(folder, "sound.wav")
        if video.sound is not None:
            sound.write_bytes(_wav(video.sound))
        writer = imageio_ffmpeg.write_frames(
            str(file),
            (width, height),
            fps=video.fps,
            quality=None,
            codec="libx264",
            pix_fmt_out=colours,
            macro_block_size=1,
            ffmpeg_log_level="error",
            output_params=["-crf", rate, "-movflags", "+faststart", *told],
            audio_path=str(sound) if video.sound is not None else None,
            audio_codec="aac" if video.sound is not None else None,
        )
        try:
            writer.send(None)
            for frame in video.frames:
                writer.send(frame.convert("RGB").tobytes())
            writer.close()
            return file.read_bytes()
        except OSError as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise RunError(f"the video could not be encoded: {said}") from error


def _wav(sound: Sound) -> bytes:
    """Return 16 bits a sample."""
    import numpy

    levels = (sound.samples.T.clip(-1, 1) * 32767).round().astype("<i2")
    data = BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(levels.shape[1])
        file.setsampwidth(2)
        file.setframerate(sound.rate)
        file.writeframes(numpy.ascontiguousarray(levels).tobytes())
    return data.getvalue()


def _safetensors(latents: Latents, facts: Mapping[str, str]) -> bytes:
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in latents.tensors.items()}
    return bytes(save(tensors, metadata=dict(facts)))
