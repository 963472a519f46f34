"""Pictures and videos that a recipe names by path: checked, opened, and handed to the pipeline's own arguments.

Knows files, and what arguments of diffusers' pipelines are called; knows nothing of weights, and needs no torch. A path
is relative to where the user is, as `output.dir` and a model's folder are.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import ffmpeg
from .errors import InputError
from .files import reason
from .recipe_fields import nearest

if TYPE_CHECKING:
    from PIL.Image import Image

    from .recipe_model import Generate

__all__ = ["check", "check_call", "digests", "given", "opened"]

# What the recipe's fields are called in pipelines; the first that the call takes is it.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "images", "input_images", "cond_image", "reference_images", "reference_image"),
    "mask": ("mask_image", "mask", "mask_video"),
    "control_image": ("control_image", "control_video", "conditioning_frames", "controls"),
    "last_image": ("last_image",),
    "video": ("video", "conditioning_frames"),
}
# Parts of the names of pipelines that draw nothing without an input, although their signatures do not say so.
_NEEDED = {
    "image": ("Img2Img", "Inpaint", "Edit", "Fill", "ImageToVideo", "ImageToImage", "Layered"),
    "mask": ("Inpaint", "Fill"),
    "control_image": ("ControlNet",),
    "video": ("VideoToVideo", "Video2Video"),
}
_FILMS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

Paths = str | Sequence[str]


def given(settings: Generate) -> dict[str, Paths]:
    """Return the paths by their places in the recipe, below ``generate``."""
    own = {name: getattr(settings, name) for name in _NAMES}
    further = {f"inputs.{name}": paths for name, paths in settings.inputs.items()}
    return {name: paths for name, paths in {**own, **further}.items() if paths is not None}


def check(settings: Generate) -> None:
    """Open what the recipe names, of a video the first frame.

    Raises:
        InputError: Everything that cannot be opened, one problem a line.
    """
    problems = []
    for place, paths in given(settings).items():
        alone = isinstance(paths, str)
        for path in [paths] if isinstance(paths, str) else paths:
            try:
                next(_frames(path) if alone and _is_video(place, path) else iter([_picture(path)]))
            except InputError as error:
                problems.append(f"generate.{place}: {error}")
    if problems:
        raise InputError("\n".join(problems))


def digests(settings: Generate) -> dict[str, str]:
    """Return the SHA-256 of each file that the recipe names, by its path; of a folder, that of its frames in order.

    Raises:
        InputError: One cannot be read.
    """
    found = {}
    for paths in given(settings).values():
        for path in [paths] if isinstance(paths, str) else paths:
            file, digest = _there(path), hashlib.sha256()
            for each in _listed(file) if file.is_dir() else [file]:
                try:
                    digest.update(each.read_bytes())
                except OSError as error:
                    raise InputError(f"{path}: cannot be read: {reason(error)}") from error
            found[path] = digest.hexdigest()
    return found


def check_call(settings: Generate, pipeline: type[Any]) -> dict[str, str]:
    """Return the argument of the pipeline's call for each place in the recipe that is given.

    Raises:
        InputError: The call does not take it, or lacks an input without which it draws nothing.
    """
    parameters = inspect.signature(pipeline.__call__).parameters
    names: dict[str, str] = {}
    problems = []
    for place in given(settings):
        field = place.removeprefix("inputs.")
        candidates = _NAMES[field] if field == place else (field,)
        if place == "control_image" and "ControlNet" in pipeline.__name__:
            candidates = (*candidates, "image")  # of those that have no other picture
        name = next((each for each in candidates if each in parameters), None)
        if name is None:
            hint = nearest(field, [each for each in parameters if each != "self"], "it takes")
            others = _relatives(pipeline, candidates)
            if others:
                hint = f"model.pipeline can be one that does: {', '.join(others)}"
            problems.append(f"generate.{place}: {pipeline.__name__} takes no such argument ({hint})")
        elif name in names.values():
            twice = next(other for other, taken in names.items() if taken == name)
            problems.append(f"generate.{place}: is the argument {name!r}, which generate.{twice} gives already")
        else:
            names[place] = name
    problems += _texts(settings, parameters)
    problems = problems or _missing(pipeline, parameters, {*names.values(), *settings.extra})
    if problems:
        raise InputError("\n".join(problems))
    return names


def _texts(settings: Generate, parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    """Return problems with paths that stand where they are handed on as text."""
    found = []
    for name, value in settings.extra.items():
        texts = value if isinstance(value, list) else [value]
        wanted = name in parameters and "Image" in str(parameters[name].annotation)
        if wanted and any(isinstance(text, str) for text in texts):
            found.append(f"generate.extra.{name}: is text, and a picture is wanted (write generate.inputs.{name})")
    return found


def _missing(pipeline: type[Any], parameters: Mapping[str, inspect.Parameter], known: set[str]) -> list[str]:
    """Return problems with inputs without which the pipeline draws nothing."""
    found, fields = [], set()
    for field, candidates in _NAMES.items():
        name = next((each for each in candidates if each in parameters), None)
        fields.add(name)
        if name is None or any(each == name or each.startswith(f"{name}_") for each in known):  # also as latents
            continue
        needed = any(part in pipeline.__name__ for part in _NEEDED.get(field, ()))
        if needed or parameters[name].default is inspect.Parameter.empty:
            works = {"mask": "works under a mask", "video": "works on a video", "control_image": "follows a picture"}
            what = f"{pipeline.__name__} {works.get(field, 'works on a picture')}"
            found.append(f"generate.{field}: missing, and {what} (give the path of a file)")
    found += [
        f"generate.inputs.{name}: missing, and {pipeline.__name__} draws nothing without (give the path of a file)"
        for name, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty
        and any(word in name for word in ("image", "video"))
        and name not in fields | known
    ]
    return found


def opened(settings: Generate, pipeline: type[Any]) -> dict[str, Any]:
    """Return the pictures, and the lists of pictures and frames, by the names of the call's arguments.

    Raises:
        InputError: Something does not fit the call or cannot be opened.
    """
    found: dict[str, Any] = {}
    paths, problems = given(settings), []
    for place, name in check_call(settings, pipeline).items():
        mode = "L" if "mask" in name else "RGBA" if "Layered" in pipeline.__name__ else "RGB"
        try:
            read = _read(place, paths[place])
        except InputError as error:
            problems.append(f"generate.{place}: {error}")
            continue
        pictures = [each.convert(mode) for each in (read if isinstance(read, list) else [read])]
        found[name] = pictures if isinstance(read, list) or name.endswith("images") else pictures[0]
    if problems:
        raise InputError("\n".join(problems))
    return found


def _read(place: str, paths: Paths) -> Image | list[Image]:
    if not isinstance(paths, str):
        return [_picture(path) for path in paths]
    return list(_frames(paths)) if _is_video(place, paths) else _picture(paths)


def _relatives(pipeline: type[Any], wanted: Sequence[str]) -> list[str]:
    """Return pipelines of the same model whose call takes one of the arguments."""
    import diffusers

    family = pipeline.__module__.rpartition(".")[0]
    start = pipeline.__name__.removesuffix("Pipeline")
    found = []
    for name in dir(diffusers):
        if name.startswith(start) and name.endswith("Pipeline") and "Modular" not in name:
            other = getattr(diffusers, name)
            if getattr(other, "__module__", "").startswith(f"{family}.") and any(
                each in inspect.signature(other.__call__).parameters for each in wanted
            ):
                found.append(name)
    return found


# ---------------------------------------------------------------------------------------------------------------- files


def _is_video(place: str, path: str) -> bool:
    """Return whether frames are meant: by the name of the field or argument, and else by the file."""
    field = place.removeprefix("inputs.")
    if "video" in field or field in ("conditioning_frames", "controls"):
        return True
    if field in ("image", "last_image"):
        return False
    file = Path(path).expanduser()
    return file.is_dir() or file.suffix.lower() in (*_FILMS, ".gif")


def _picture(path: str) -> Image:
    """Return a picture, upright.

    Raises:
        InputError: There is none, or it is damaged.
    """
    from PIL import Image, ImageOps

    file = _there(path)
    if file.is_dir():
        raise InputError(f"{path}: is a folder, and one picture is wanted")
    if file.suffix.lower() in _FILMS:
        raise InputError(f"{path}: is a video, and one picture is wanted")
    try:
        with Image.open(file) as picture:
            picture.load()
            return ImageOps.exif_transpose(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        known = isinstance(error, OSError) and error.strerror
        raise InputError(f"{path}: is no picture that can be read{f' ({known})' if known else ''}") from error


def _frames(path: str) -> Iterator[Image]:
    """Yield the frames of a folder of pictures, an animation, or a film.

    Raises:
        InputError: There are none, they are damaged, or what reads them is not installed.
    """
    file = _there(path)
    if file.is_dir():
        frames = _listed(file)
        if not frames:
            raise InputError(f"{path}: no pictures are in this folder, and frames are wanted ({', '.join(_PICTURES)})")
        return (_picture(os.path.join(path, frame.name)) for frame in frames)
    return _film(path, file) if file.suffix.lower() in _FILMS else _animation(path, file)


def _listed(folder: Path) -> list[Path]:
    """Return the pictures in a folder, in the order of their numbers."""
    found = [each for each in folder.iterdir() if each.suffix.lower() in _PICTURES]
    return sorted(found, key=lambda each: _as_counted(each.name))


def _as_counted(name: str) -> list[tuple[int, str]]:
    """Sort 2 before 10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _animation(path: str, file: Path) -> Iterator[Image]:
    from PIL import Image, ImageSequence

    count = 0
    try:
        with Image.open(file) as animation:
            for frame in ImageSequence.Iterator(animation):
                if getattr(animation, "n_frames", 1) > 1:
                    yield frame.convert("RGB")
                    count += 1
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path}: is no video that can be read") from error
    if not count:
        raise InputError(f"{path}: is one picture, and frames are wanted (a folder, GIF, WebP or MP4)")


def _film(path: str, file: Path) -> Iterator[Image]:
    """Yield the frames that FFmpeg reads: it writes each as a PPM picture, whose header tells its size."""
    try:
        program = ffmpeg.program()
    except InputError as error:
        raise InputError(f"{path}: needs {error} (or give a folder of frames, or an animated GIF or WebP)") from error
    from PIL import Image

    reading = [program, "-v", "error", "-i", str(file), "-f", "image2pipe", "-c:v", "ppm", "-"]
    count = 0
    with subprocess.Popen(reading, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as film:
        pipe = film.stdout
        try:
            while pipe is not None and (header := list(islice(pipe, 3))):
                wide, high = map(int, header[1].split())
                yield Image.frombytes("RGB", (wide, high), pipe.read(3 * wide * high))
                count += 1
        finally:
            film.kill()
    if not count:
        raise InputError(f"{path}: is no video that can be read")


def _there(path: str) -> Path:
    file = Path(path).expanduser()
    try:
        file.stat()
    except FileNotFoundError:
        here = "" if file.is_absolute() else f"; a path is relative to where you are, {Path.cwd()}"
        raise InputError(f"{path}: no such file or folder{here}") from None
    except (OSError, ValueError) as error:
        said = reason(error) if isinstance(error, OSError) else str(error)
        raise InputError(f"{path}: cannot be read: {said}") from error
    return file
