"""Comparing every n-th token only: the same rule on fewer tokens, and so much less kept."""

from __future__ import annotations

import pytest

from cachedit_cli.engine.install import install
from cachedit_cli.errors import InputError
from cachedit_cli.terms.config import DBCacheConfig
from cachedit_cli.terms.pattern import ForwardPattern
from tests.tiny import TinyTransformer, adapter, run, walk


def differences(stride: int, tokens: int = 12) -> tuple[list[float | None], int]:
    model = TinyTransformer(ForwardPattern.Pattern_3)
    config = DBCacheConfig(
        Fn_compute_blocks=1, max_warmup_steps=0, residual_diff_threshold=1e-9, diff_token_stride=stride
    )
    with install(adapter(model), config) as cache:
        run(model, walk(4, tokens=tokens))
        return [row.diff for row in cache.log.rows], cache.log.rows[-1].bytes


def test_the_difference_is_that_of_the_tokens_that_are_kept() -> None:
    """Blocks of pattern 3 here treat tokens alike, so that a model with only those tokens is the reference."""
    model = TinyTransformer(ForwardPattern.Pattern_3)
    samples = walk(4, tokens=12)
    config = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=0, residual_diff_threshold=1e-9)
    with install(adapter(model), config) as cache:
        run(model, [sample[:, ::3] for sample in samples])
    reference = [row.diff for row in cache.log.rows]
    measured, _ = differences(3)
    assert measured[1:] == pytest.approx(reference[1:], rel=1e-5)


def test_only_every_nth_token_of_the_front_residual_is_kept() -> None:
    (_, whole), (_, sparse) = differences(1), differences(4)
    front = (whole // 2, sparse - whole // 2)  # the middle's residual is kept whole
    assert front[1] == front[0] // 4


def test_a_stride_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="diff_token_stride: 0 is not a whole number >= 1"):
        DBCacheConfig(diff_token_stride=0)
