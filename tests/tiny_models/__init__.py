"""Tiny instances, with random weights, of every diffusion transformer that has an adapter, and inputs for them."""

from __future__ import annotations

from . import audio, flux, joint, sequence, single, video, video_more, wan
from .parts import TINY, Inputs, TinyModel, tensors

__all__ = [
    "TINY",
    "Inputs",
    "TinyModel",
    "audio",
    "flux",
    "joint",
    "sequence",
    "single",
    "tensors",
    "video",
    "video_more",
    "wan",
]
