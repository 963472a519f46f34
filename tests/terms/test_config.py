"""Settings: what is valid, how overrides combine, and how they are fitted to a model."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedit_cli.errors import InputError
from cachedit_cli.terms.config import (
    CacheConfig,
    CalibratorConfig,
    DBCacheConfig,
    DBPruneConfig,
    Settings,
    TaylorSeerCalibratorConfig,
    complete,
    fit,
    merge,
)

WHOLE = [-1, 1.0, 1.5, "1", True, math.nan, [1]]
INVALID: list[tuple[type[Settings], str, Any, str]] = [
    *[
        (DBCacheConfig, name, value, f"{value!r} is not a whole number >= 0")
        for name in ("Fn_compute_blocks", "Bn_compute_blocks", "max_warmup_steps")
        for value in WHOLE
    ],
    *[
        (DBCacheConfig, name, value, f"{value!r} is not a whole number >= 1")
        for name in ("warmup_interval", "num_inference_steps")
        for value in (0, *WHOLE)
    ],
    *[
        (DBCacheConfig, name, value, f"{value!r} is not a whole number >= -1 (-1 is no limit)")
        for name in ("max_cached_steps", "max_continuous_cached_steps")
        for value in (-2, *WHOLE[1:])
    ],
    *[
        (kind, name, value, f"{value!r} is not a number")
        for kind, name in (
            (DBCacheConfig, "residual_diff_threshold"),
            (DBPruneConfig, "residual_diff_threshold"),
            (DBPruneConfig, "max_dynamic_prune_threshold"),
            (DBPruneConfig, "dynamic_prune_threshold_relax_ratio"),
        )
        for value in ("high", True, math.nan, [0.1])
    ],
    *[
        (kind, name, value, f"{value!r} is neither True nor False")
        for kind, name in (
            (DBCacheConfig, "enable_separate_cfg"),
            (DBCacheConfig, "cfg_compute_first"),
            (DBCacheConfig, "cfg_diff_compute_separate"),
            (DBPruneConfig, "audit"),
            (DBPruneConfig, "enable_dynamic_prune_threshold"),
            (CalibratorConfig, "enable_calibrator"),
            (TaylorSeerCalibratorConfig, "enable_encoder_calibrator"),
        )
        for value in (1, "no")
    ],
    (DBCacheConfig, "steps_computation_policy", "sometimes", "'sometimes' is neither 'dynamic' nor 'static'"),
    (DBPruneConfig, "non_prune_block_ids", [0, -1], "-1 is not a whole number >= 0"),
    (DBPruneConfig, "non_prune_block_ids", ["a"], "'a' is not a whole number >= 0"),
    (
        CalibratorConfig,
        "calibrator_cache_type",
        "noise",
        "'noise' is neither 'residual' nor 'hidden_states'",
    ),
    *[
        (TaylorSeerCalibratorConfig, "taylorseer_order", value, f"{value!r} is not a whole number from 1 to 4")
        for value in (0, 5, 1.0, "2", True)
    ],
    *[
        (
            DBCacheConfig,
            "steps_computation_mask",
            mask,
            f"{tuple(mask)!r} is neither bits (0 and 1) nor one of slow, medium, fast, ultra",
        )
        for mask in ("", [], "1102", [1, 2], "quick")
    ],
    *[
        (
            DBCacheConfig,
            "steps_computation_mask",
            mask,
            "begins with 0, but the first step has nothing to reuse; begin with 1",
        )
        for mask in ("0111", [0, 1], "0")
    ],
]


@pytest.mark.parametrize(("kind", "name", "value", "reason"), INVALID)
def test_an_invalid_value_is_named_with_the_reason(kind: type[Settings], name: str, value: Any, reason: str) -> None:
    with pytest.raises(InputError) as caught:
        kind(**{name: value})
    assert str(caught.value).startswith(f"{kind.__name__}.{name}: ")
    if name == "steps_computation_mask":
        assert str(caught.value).endswith(reason.split(") is ")[-1])
    else:
        assert str(caught.value) == f"{kind.__name__}.{name}: {reason}"


@pytest.mark.parametrize("mask", [5, 1.0, True])
def test_a_mask_that_is_no_sequence_is_an_error_of_the_user(mask: Any) -> None:
    with pytest.raises(InputError, match="steps_computation_mask"):
        DBCacheConfig(steps_computation_mask=mask)


@pytest.mark.parametrize("blocks", [5, "12", 1.5])
def test_block_numbers_that_are_no_list_are_an_error_of_the_user(blocks: Any) -> None:
    with pytest.raises(InputError, match="non_prune_block_ids"):
        DBPruneConfig(non_prune_block_ids=blocks)


def test_all_invalid_values_are_named_at_once() -> None:
    with pytest.raises(InputError) as caught:
        DBCacheConfig(Fn_compute_blocks=-1, warmup_interval=0)
    assert str(caught.value) == (
        "DBCacheConfig.Fn_compute_blocks: -1 is not a whole number >= 0\n"
        "DBCacheConfig.warmup_interval: 0 is not a whole number >= 1"
    )


def test_the_defaults_are_those_of_the_specification() -> None:
    config = DBCacheConfig()
    assert (config.Fn_compute_blocks, config.Bn_compute_blocks) == (8, 0)
    assert (config.max_warmup_steps, config.warmup_interval) == (8, 1)
    assert (config.max_cached_steps, config.max_continuous_cached_steps) == (-1, -1)
    assert config.residual_diff_threshold == 0.08


@pytest.mark.parametrize("mask", ["1101", [1, 1, 0, 1], (1, 1, 0, 1), ["1", "1", "0", "1"]])
def test_a_mask_is_kept_as_bits_however_it_is_written(mask: Any) -> None:
    assert DBCacheConfig(steps_computation_mask=mask).steps_computation_mask == (1, 1, 0, 1)


def test_a_policy_is_kept_by_name() -> None:
    assert DBCacheConfig(steps_computation_mask="fast").steps_computation_mask == "fast"


@pytest.mark.parametrize("kind", [DBCacheConfig, DBPruneConfig, CalibratorConfig, TaylorSeerCalibratorConfig])
def test_settings_cannot_be_changed_and_are_plain_data(kind: type[Settings]) -> None:
    config = kind()
    name = fields(config)[0].name
    with pytest.raises(FrozenInstanceError):
        setattr(config, name, 1)
    assert set(config.as_dict()) == {field.name for field in fields(config)}
    assert not any(isinstance(value, tuple) for value in config.as_dict().values())
    assert kind(**config.as_dict()) == config


# ---- overrides

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "Fn_compute_blocks": st.integers(0, 20),
    "Bn_compute_blocks": st.integers(0, 20),
    "residual_diff_threshold": st.floats(-1, 2),
    "max_warmup_steps": st.integers(0, 20),
    "max_cached_steps": st.integers(-1, 20),
    "enable_separate_cfg": st.booleans(),
    "num_inference_steps": st.integers(1, 50),
    "steps_computation_mask": st.sampled_from(["fast", (1, 0, 1)]),
    "steps_computation_policy": st.sampled_from(["dynamic", "static"]),
    "audit": st.booleans(),
}
OVERRIDES = st.fixed_dictionaries({}, optional=VALUES)


def test_reset_sets_nothing_but_what_it_is_given() -> None:
    assert {key: value for key, value in DBCacheConfig.reset(audit=False).as_dict().items() if value is not None} == {
        "audit": False
    }


@pytest.mark.parametrize("kind", [DBCacheConfig, DBPruneConfig, TaylorSeerCalibratorConfig])
def test_reset_names_settings_that_do_not_exist(kind: type[Settings]) -> None:
    with pytest.raises(InputError) as caught:
        kind.reset(threshold=1, warmup=2)
    assert str(caught.value) == f"{kind.__name__} has no setting 'threshold', 'warmup'"


def test_reset_checks_what_it_is_given() -> None:
    with pytest.raises(InputError, match="Fn_compute_blocks: -3 is not"):
        DBCacheConfig.reset(Fn_compute_blocks=-3)


@given(first=OVERRIDES, second=OVERRIDES)
def test_merging_changes_what_is_set_and_nothing_else(first: dict[str, Any], second: dict[str, Any]) -> None:
    shared, own = DBCacheConfig(**first), DBCacheConfig.reset(**second)
    before = shared.as_dict(), own.as_dict()
    merged = merge(shared, own)
    assert merged.as_dict() == shared.as_dict() | {k: v for k, v in own.as_dict().items() if v is not None}
    assert (shared.as_dict(), own.as_dict()) == before
    assert merge(merged, own) == merged
    assert merge(merge(DBCacheConfig(), DBCacheConfig.reset(**first)), own) == merge(
        DBCacheConfig(), merge(DBCacheConfig.reset(**first), own)
    )


def test_merging_nothing_is_the_same_object() -> None:
    config = DBCacheConfig()
    assert merge(config, None) is config


@given(given_=OVERRIDES)
def test_completing_fills_in_the_defaults(given_: dict[str, Any]) -> None:
    assert complete(DBCacheConfig.reset(**given_)) == DBCacheConfig(**given_)
    assert complete(DBCacheConfig(**given_)) == DBCacheConfig(**given_)


def test_settings_of_the_other_kind_are_taken_as_far_as_they_exist() -> None:
    assert merge(DBPruneConfig(), DBCacheConfig.reset(audit=False)) == DBPruneConfig(audit=False)
    with pytest.raises(InputError) as caught:
        merge(DBCacheConfig(), DBPruneConfig.reset(non_prune_block_ids=[1], enable_dynamic_prune_threshold=True))
    assert str(caught.value) == (
        "a DBPruneConfig sets enable_dynamic_prune_threshold, non_prune_block_ids, which DBCacheConfig does not have"
    )


# ---- fitted to a model


@pytest.mark.parametrize("blocks", range(1, 20))
@pytest.mark.parametrize("back", [0, 1])
def test_a_default_front_gives_way_to_short_lists_and_says_so(blocks: int, back: int) -> None:
    config, notes = fit(DBCacheConfig(Bn_compute_blocks=back), blocks, "blocks")
    if blocks > 8 + back:
        assert (config.Fn_compute_blocks, notes) == (8, [])
    else:
        assert config.Fn_compute_blocks == max(1, blocks // 2)
        assert notes == [f"Fn_compute_blocks is {max(1, blocks // 2)} instead of the default 8: {blocks} blocks"]


@pytest.mark.parametrize("kind", [DBCacheConfig, DBPruneConfig])
def test_the_default_gives_way_also_after_merging_and_completing(kind: type[CacheConfig]) -> None:
    config = complete(merge(kind(), kind.reset(audit=False)))
    assert fit(config, 4, "blocks")[0].Fn_compute_blocks == 2


@pytest.mark.parametrize("name", ["Fn_compute_blocks", "Bn_compute_blocks"])
def test_what_only_one_of_several_lists_cannot_take_is_cut_for_it_and_says_so(name: str) -> None:
    config = merge(DBCacheConfig(Fn_compute_blocks=1), DBCacheConfig.reset(**{name: 8}))
    short, notes = fit(config, 4, "short", None, (4, 32))
    assert getattr(short, name) == 4
    assert notes == [f"{name} is 4 instead of 8: 4 blocks, all of them computed"]
    assert fit(config, 32, "long", None, (4, 32)) == (config, [])


def test_what_no_list_can_take_is_an_error_that_names_their_lengths() -> None:
    for blocks in (4, 32):
        with pytest.raises(InputError) as caught:
            fit(DBCacheConfig(Fn_compute_blocks=33), blocks, "blocks", None, (4, 32, 8))
        assert str(caught.value) == "Fn_compute_blocks is 33, but the block lists have 4, 32 and 8 blocks"


def test_what_was_set_for_one_list_alone_is_never_cut() -> None:
    own = DBCacheConfig.reset(Fn_compute_blocks=8)
    with pytest.raises(InputError) as caught:
        fit(merge(DBCacheConfig(), own), 4, "short", own, (4, 32))
    assert str(caught.value) == "short: Fn_compute_blocks is 8, but the list has 4 blocks"


def test_a_front_that_was_set_is_never_changed() -> None:
    assert fit(DBCacheConfig(Fn_compute_blocks=8), 8, "blocks")[0].Fn_compute_blocks == 8
    with pytest.raises(InputError) as caught:
        fit(merge(DBCacheConfig(), DBCacheConfig.reset(Fn_compute_blocks=8)), 7, "transformer.blocks")
    assert str(caught.value) == "transformer.blocks: Fn_compute_blocks is 8, but the list has 7 blocks"


def test_a_back_longer_than_the_list_names_both_numbers() -> None:
    with pytest.raises(InputError) as caught:
        fit(DBCacheConfig(Bn_compute_blocks=9), 4, "transformer.blocks")
    assert str(caught.value) == "transformer.blocks: Bn_compute_blocks is 9, but the list has 4 blocks"


@pytest.mark.parametrize(
    ("config", "valid"),
    [
        (DBCacheConfig(Fn_compute_blocks=0), False),
        (DBCacheConfig(Fn_compute_blocks=0, steps_computation_mask="fast"), False),
        (DBCacheConfig(Fn_compute_blocks=0, steps_computation_policy="static"), False),
        (DBCacheConfig(Fn_compute_blocks=0, steps_computation_mask="fast", steps_computation_policy="static"), True),
        (DBCacheConfig(Fn_compute_blocks=0, residual_diff_threshold=1.0), True),
        (DBCacheConfig(Fn_compute_blocks=0, residual_diff_threshold=0.0), True),
        (DBPruneConfig(Fn_compute_blocks=0), True),
    ],
)
def test_no_front_needs_something_else_to_decide_by(config: CacheConfig, valid: bool) -> None:
    if valid:
        assert fit(config, 4, "blocks") == (config, [])
    else:
        with pytest.raises(InputError, match="Fn_compute_blocks is 0, so that there is no difference to decide by"):
            fit(config, 4, "blocks")
