"""The metrics against closed forms, and what they refuse."""

from __future__ import annotations

import math
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from cachedit_cli import metrics
from cachedit_cli.errors import InputError
from cachedit_cli.metrics import Judge, pooled_psnr


def flat(level: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.new("RGB", size, (level, level, level))


def noisy(seed: int) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(levels)


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Judge:
    """A judge without LPIPS, whose weights would be downloaded."""
    monkeypatch.setattr(metrics, "find_spec", lambda name: None if name == "torchvision" else find_spec(name))
    return Judge()


@pytest.mark.parametrize(("one", "other"), [(100, 110), (250, 4), (0, 255), (4, 250)])
def test_psnr_of_flat_pictures_is_that_of_their_levels(judge: Judge, one: int, other: int) -> None:
    """250 - 4 and 4 - 250 are the same: nothing wraps around."""
    found = judge(flat(one), flat(other)).psnr
    assert found == pytest.approx(20 * math.log10(255 / abs(one - other)), abs=1e-5)


def test_psnr_of_any_pictures_is_that_of_the_mean_square_error(judge: Judge) -> None:
    one, other = noisy(1), noisy(2)
    error = np.mean(((np.asarray(one).astype(float) - np.asarray(other).astype(float)) / 255) ** 2)
    assert judge(one, other).psnr == pytest.approx(-10 * math.log10(error), abs=1e-5)


@pytest.mark.parametrize(("one", "other"), [(100, 110), (0, 255), (10, 200)])
def test_ssim_of_flat_pictures_compares_their_means(judge: Judge, one: int, other: int) -> None:
    a, b, small = one / 255, other / 255, 0.01**2
    expected = (2 * a * b + small) / (a * a + b * b + small)
    assert judge(flat(one), flat(other)).ssim == pytest.approx(expected, abs=1e-6)


def test_a_picture_is_identical_to_itself(judge: Judge) -> None:
    found = judge(noisy(3), noisy(3))
    assert (found.psnr, found.lpips) == (math.inf, None)
    assert found.ssim == pytest.approx(1, abs=1e-9)


def test_a_picture_smaller_than_the_window_has_no_ssim(judge: Judge) -> None:
    assert judge(flat(1, (10, 40)), flat(2, (10, 40))).ssim is None
    assert judge(flat(1, (11, 11)), flat(2, (11, 11))).ssim is not None


def test_pictures_of_two_sizes_are_refused(judge: Judge) -> None:
    with pytest.raises(InputError) as caught:
        judge(flat(1, (16, 32)), flat(1))
    assert str(caught.value) == "the picture is 16 x 32, the baseline's 16 x 16: only one size can be compared"


def test_a_videos_scores_are_means_over_its_frames_and_the_psnrs_over_those_that_differ(judge: Judge) -> None:
    frames, reference = [flat(100), flat(100), flat(100)], [flat(100), flat(110), flat(140)]
    found = judge.frames(frames, reference)
    decibels = [20 * math.log10(255 / apart) for apart in (10, 40)]
    assert found.psnr == pytest.approx(sum(decibels) / 2, abs=1e-5)
    each = [judge(mine, its).ssim or 0.0 for mine, its in zip(frames, reference, strict=True)]
    assert found.ssim == pytest.approx(sum(each) / 3)
    assert judge.frames(frames, frames).psnr == math.inf
    assert judge.frames([flat(0)], [flat(255)]).psnr == pytest.approx(0, abs=1e-5)
    with pytest.raises(InputError, match="the video has 3 frames, the baseline's 1: only as many can be compared"):
        judge.frames(frames, reference[:1])


def test_lpips_is_a_mean_over_frames_where_it_is_installed(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its network is downloaded, so that here a mean difference stands in for it: the floats that it gets are real."""
    monkeypatch.setattr(judge, "_lpips", lambda mine, other: (mine - other).abs().mean())
    found = judge.frames([flat(0), flat(0)], [flat(51), flat(153)])
    assert found.lpips == pytest.approx((0.2 + 0.6) / 2)


def test_lpips_whose_weights_cannot_be_opened_is_left_out_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchmetrics itself raises where torchvision is not there, which is as far as this gets without it."""
    monkeypatch.setattr(metrics, "find_spec", lambda name: object())
    if find_spec("torchvision") is None:
        judge = Judge()
        assert judge.note is not None
        assert judge.note.startswith("LPIPS is left out: its weights could not be opened (ModuleNotFoundError: ")
        assert judge(flat(1), flat(2)).lpips is None


def test_pooling_is_of_errors_not_of_decibels() -> None:
    assert pooled_psnr([30, math.inf]) == pytest.approx(30 + 10 * math.log10(2))
    assert pooled_psnr([20, 40]) == pytest.approx(-10 * math.log10((1e-2 + 1e-4) / 2))
    assert pooled_psnr([math.inf, math.inf]) == math.inf


def test_what_is_not_installed_is_named_with_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    with pytest.raises(InputError) as caught:
        metrics.required()
    assert str(caught.value) == (
        "compare needs torchmetrics and jinja2, which are not installed: pip install 'cachedit[compare]'"
    )
