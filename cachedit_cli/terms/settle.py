"""Which settings are in force for one unit of blocks: shared ones, its own, and what the model's size asks for."""

from __future__ import annotations

from ..errors import InputError
from .block_adapter import Member
from .config import CacheConfig, CalibratorConfig, complete, fit, merge
from .stats import ContextInfo

__all__ = ["settle"]


def settle(
    member: Member, shared: CacheConfig, calibrator: CalibratorConfig | None, skips: bool
) -> tuple[CacheConfig, CalibratorConfig | None, ContextInfo]:
    """Return a unit's cache settings, its calibrator settings, and both as data for the log.

    Args:
        member: The unit, with settings of its own.
        shared: Complete settings for all units.
        calibrator: For all units; None holds.
        skips: The model hands outputs of its first blocks to its last ones.

    Raises:
        InputError: The settings do not fit the blocks.
    """
    modifier = member.modifier
    own = modifier.cache_config if modifier is not None else None
    config = merge(shared, own)
    forecast = modifier.calibrator_config if modifier is not None else None
    if forecast is not None:
        calibrator = merge(calibrator, forecast) if type(calibrator) is type(forecast) else complete(forecast)
    elif calibrator is not None:
        calibrator = complete(calibrator)
    config, notes = fit(config, len(member.blocks), member.name, own, member.lengths)
    if skips and config.kind == "DBCache":
        _check_skips(config, member)
    settings = {"type": config.kind, **config.as_dict()}
    settings["calibrator"] = {"type": calibrator.kind, **calibrator.as_dict()} if calibrator else {"type": "hold"}
    classes = " + ".join(dict.fromkeys(type(block).__name__ for block in member.blocks))
    model, streams = type(member.transformer).__name__, str(member.streams)
    return config, calibrator, ContextInfo(member.name, model, classes, streams, len(member.blocks), settings, notes)


def _check_skips(config: CacheConfig, member: Member) -> None:
    front, back = config.Fn_compute_blocks, config.Bn_compute_blocks
    if back > front and front + back < len(member.blocks):
        raise InputError(
            f"{member.name}: Bn_compute_blocks is {back} and Fn_compute_blocks is {front}, but this model hands "
            "what its first blocks return to its last ones, so that Bn must not be larger than Fn"
        )
