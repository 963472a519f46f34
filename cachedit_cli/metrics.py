"""How far one picture or video is from another: PSNR, SSIM and LPIPS, by torchmetrics.

Knows two pictures of one size, or as many frames of two videos; knows nothing of runs. All is done on floats from 0 to
1: differences of 8-bit integers wrap around. Imports torch and torchmetrics when something is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from .errors import InputError
from .pipeline import first_line

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

__all__ = ["Judge", "Scores", "pooled_psnr", "required"]

_WINDOW = 11  # pixels along a side of what SSIM compares


@dataclass(frozen=True)
class Scores:
    """What one picture is worth against another.

    Attributes:
        psnr: Decibels; infinite for identical pictures.
        ssim: From -1 to 1; None where a side is shorter than the window of 11 pixels.
        lpips: From 0, which is the same; None where it is not installed.
    """

    psnr: float
    ssim: float | None
    lpips: float | None


def required() -> None:
    """Refuse to go on without what the extra ``compare`` installs."""
    missing = [name for name in ("torchmetrics", "jinja2") if find_spec(name) is None]
    if missing:
        raise InputError(
            f"compare needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            "pip install 'cachedit[compare]'"
        )


class Judge:
    """Measures pictures against each other; ``note`` says what it cannot measure and why."""

    def __init__(self) -> None:
        self.note: str | None = None
        self._lpips = self._perceptual()

    def __call__(self, picture: Image, reference: Image) -> Scores:
        """Return how far a picture is from the reference.

        Raises:
            InputError: They are of different sizes.
        """
        if picture.size != reference.size:
            sizes = [f"{width} x {height}" for width, height in (picture.size, reference.size)]
            raise InputError(f"the picture is {sizes[0]}, the baseline's {sizes[1]}: only one size can be compared")
        import torch
        from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

        mine, other = _floats(picture), _floats(reference)
        ssim = None
        if min(picture.size) >= _WINDOW:
            found = structural_similarity_index_measure(mine, other, data_range=1.0)
            ssim = float(found if isinstance(found, torch.Tensor) else found[0])
        return Scores(
            psnr=float(peak_signal_noise_ratio(mine, other, data_range=1.0)),
            ssim=ssim,
            lpips=None if self._lpips is None else float(self._lpips(mine.float(), other.float())),
        )

    def frames(self, video: Sequence[Image], reference: Sequence[Image]) -> Scores:
        """Return the means over the frames; the PSNR's is over those that differ, and infinite only if none does.

        Raises:
            InputError: They are not as many, or of different sizes.
        """
        if len(video) != len(reference):
            raise InputError(
                f"the video has {len(video)} frames, the baseline's {len(reference)}: only as many can be compared"
            )
        each = [self(mine, other) for mine, other in zip(video, reference, strict=True)]
        psnr = _mean([scores.psnr for scores in each if math.isfinite(scores.psnr)])
        return Scores(
            psnr=math.inf if psnr is None else psnr,
            ssim=_mean([scores.ssim for scores in each if scores.ssim is not None]),
            lpips=_mean([scores.lpips for scores in each if scores.lpips is not None]),
        )

    def _perceptual(self) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
        if find_spec("torchvision") is None:
            return None
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        try:
            return LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
        except Exception as error:  # its weights are downloaded at the first use, by torchvision's own client
            self.note = f"LPIPS is left out: its weights could not be opened ({first_line(error)})"
            return None


def pooled_psnr(values: Sequence[float]) -> float:
    """Return the PSNR of the mean square error over several pictures; infinite if all are identical."""
    errors = [10 ** (-value / 10) for value in values]
    mean = sum(errors) / len(errors)
    return -10 * math.log10(mean) if mean else math.inf


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _floats(picture: Image) -> torch.Tensor:
    """Return a batch of one, channels first, from 0 to 1."""
    import numpy
    import torch

    values = numpy.asarray(picture.convert("RGB"), dtype=numpy.float64) / 255
    return torch.from_numpy(values).permute(2, 0, 1).unsqueeze(0)
