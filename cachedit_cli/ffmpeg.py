"""FFmpeg, which writes and reads films: where imageio-ffmpeg, the extra ``video``, has it, and what to do where not.

Knows one program; knows nothing of pictures and recipes.
"""

from __future__ import annotations

from importlib.util import find_spec

from .errors import InputError

__all__ = ["program"]


def program() -> str:
    """Return the path of FFmpeg.

    Raises:
        InputError: What is missing, and how it is installed.
    """
    if find_spec("imageio_ffmpeg") is None:
        raise InputError("imageio-ffmpeg, which is not installed: pip install 'cachedit[video]'")
    import imageio_ffmpeg

    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:  # its package has none for this machine, and there is none on the path
        raise InputError(
            "FFmpeg, which imageio-ffmpeg does not find here: install it, or set IMAGEIO_FFMPEG_EXE"
        ) from error
