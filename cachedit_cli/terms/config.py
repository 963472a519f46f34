"""Settings of the engine, as data: DBCache, DBPrune and the calibrators, with the field names of the spec.

Knows what a valid value is; knows nothing of models, so limits that depend on one are checked at install.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, TypeVar

from ..errors import InputError
from .mask import POLICIES

__all__ = [
    "AutoCalibratorConfig",
    "CacheConfig",
    "CalibratorConfig",
    "DBCacheConfig",
    "DBPruneConfig",
    "DefaultInt",
    "TaylorSeerCalibratorConfig",
    "complete",
    "fit",
    "merge",
]

Config = TypeVar("Config", bound="Settings")


class DefaultInt(int):
    """A default that gives way to the model: lists shorter than it get a smaller one, while a set value is an error."""


@dataclass(frozen=True)
class Settings:
    """Base of all settings. A field that is None in an override is not set by it."""

    def __post_init__(self) -> None:
        problems = [text for field in fields(self) if (text := self._problem(field.name, getattr(self, field.name)))]
        if problems:
            raise InputError("\n".join(f"{type(self).__name__}.{text}" for text in problems))

    def _problem(self, name: str, value: Any) -> str | None:
        return None

    @classmethod
    def reset(cls: type[Config], **overrides: Any) -> Config:
        """Return settings in which nothing is set but ``overrides``, for a ParamsModifier."""
        unknown = sorted(set(overrides) - {field.name for field in fields(cls)})
        if unknown:
            raise InputError(f"{cls.__name__} has no setting {', '.join(map(repr, unknown))}")
        return cls(**{field.name: None for field in fields(cls)} | overrides)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return {
            field.name: list(value) if isinstance(value := getattr(self, field.name), tuple) else value
            for field in fields(self)
        }


def merge(shared: Config, own: Settings | None) -> Config:
    """Return ``shared`` with every setting of ``own`` that is not None; both stay as they are."""
    if own is None:
        return shared
    known = {field.name for field in fields(shared)}
    changes = {field.name: value for field in fields(own) if (value := getattr(own, field.name)) is not None}
    foreign = sorted(set(changes) - known)
    if foreign:
        raise InputError(
            f"a {type(own).__name__} sets {', '.join(foreign)}, which {type(shared).__name__} does not have"
        )
    return replace(shared, **changes)


def complete(config: Config) -> Config:
    """Return the settings with the defaults for what is None."""
    return merge(type(config)(), config)


def _whole(name: str, value: Any, low: int, meaning: str = "") -> str | None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        return f"{name}: {value!r} is not a whole number >= {low}{meaning}"
    return None


def _flag(name: str, value: Any) -> str | None:
    return None if isinstance(value, bool) else f"{name}: {value!r} is neither True nor False"


def _number(name: str, value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        return f"{name}: {value!r} is not a number"
    return None


def _is_budget(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return value >= 1 if isinstance(value, int) else 0 < value <= 1


@dataclass(frozen=True)
class CacheConfig(Settings):
    """What DBCache and DBPrune have in common.

    Attributes:
        Fn_compute_blocks: Front blocks, always computed; the change over them is what is compared.
        Bn_compute_blocks: Back blocks, always computed, after the forecast.
        residual_diff_threshold: Reuse below this relative L1 difference; <= 0 never reuses, >= 1 always does.
        max_warmup_steps: Steps at the start of a generation that are computed.
        warmup_interval: Of the warm-up steps only every n-th is computed for certain.
        max_cached_steps: Steps that may be reused in one generation; -1 is no limit.
        max_continuous_cached_steps: Steps that may be reused in a row; -1 is no limit.
        enable_separate_cfg: Guidance runs as a second forward. Only used where neither a cache context nor the
            timestep tells the branches apart; None leaves it to them.
        cfg_compute_first: The first forward of a step is the guidance (unconditional) one: statistics call it so,
            and it is measured, as the other's difference is not known yet.
        cfg_diff_compute_separate: Measure each branch; False lets guidance take the difference of the forward before
            it in the same step.
        num_inference_steps: Steps of a generation, where neither pipeline nor timestep tells.
        steps_computation_mask: One bit a step, 1 computes and 0 may reuse: a sequence of 0 and 1, a string of
            them, or the name of a policy (slow, medium, fast, ultra) that is laid out when the steps are known.
        steps_computation_policy: ``dynamic`` lets steps with bit 0 be decided by the rules, ``static`` reuses.
        budget: Compute exactly so many steps: a whole number, or a share of the steps such as 0.5. They are placed by
            ``error_profile``, else in the shape of ``steps_computation_mask``, else of the nearest policy. With the
            policy ``dynamic`` a step whose difference asks for it is computed, and the next planned one is not.
        speedup: Compute as many steps as make the denoising loop so many times as fast, for the time that the blocks
            are measured to take in the second step of the first generation.
        error_profile: How much each step suffers from being reused, as ``cachedit tune`` measures it; any number of
            steps is interpolated.
        diff_token_stride: Compare every n-th token of the front residual only, which keeps so much less of it.
        audit: Score, on computed steps, the forecasts that could have been used, and compute instead of reusing where
            a forecast's norm leaves 0.5 to 2 times the last computed change's (reason ``guard``). False does neither,
            so that nothing says how good a run is.
    """

    Fn_compute_blocks: int = DefaultInt(8)
    Bn_compute_blocks: int = 0
    residual_diff_threshold: float = 0.08
    max_warmup_steps: int = 8
    warmup_interval: int = 1
    max_cached_steps: int = -1
    max_continuous_cached_steps: int = -1
    enable_separate_cfg: bool | None = None
    cfg_compute_first: bool = False
    cfg_diff_compute_separate: bool = True
    num_inference_steps: int | None = None
    steps_computation_mask: Sequence[int] | str | None = None
    steps_computation_policy: Literal["dynamic", "static"] = "dynamic"
    budget: int | float | None = None
    speedup: float | None = None
    error_profile: Sequence[float] | None = None
    diff_token_stride: int = 1
    audit: bool = True

    kind: ClassVar[str] = "DBCache"

    def __post_init__(self) -> None:
        mask = self.steps_computation_mask
        if isinstance(mask, Iterable) and mask not in POLICIES:
            bits = tuple(int(bit) if bit in ("0", "1", 0, 1) else bit for bit in mask)
            object.__setattr__(self, "steps_computation_mask", bits)
        if isinstance(self.error_profile, Iterable):
            object.__setattr__(self, "error_profile", tuple(self.error_profile))
        super().__post_init__()
        if self.budget is not None and self.speedup is not None:
            raise InputError(f"{type(self).__name__}: budget and speedup say the same in two ways; set one of them")

    @property
    def dial(self) -> bool:
        """Whether a fixed number of steps is computed."""
        return self.budget is not None or self.speedup is not None

    @property
    def planned(self) -> bool:
        """Whether a mask says which steps are computed, its own or one that is made from a budget."""
        return self.steps_computation_mask is not None or self.dial

    def _problem(self, name: str, value: Any) -> str | None:
        if value is None:
            return None
        match name:
            case "Fn_compute_blocks" | "Bn_compute_blocks" | "max_warmup_steps":
                return _whole(name, value, 0)
            case "warmup_interval" | "num_inference_steps" | "diff_token_stride":
                return _whole(name, value, 1)
            case "max_cached_steps" | "max_continuous_cached_steps":
                return _whole(name, value, -1, " (-1 is no limit)")
            case "residual_diff_threshold" | "max_dynamic_prune_threshold" | "dynamic_prune_threshold_relax_ratio":
                return _number(name, value)
            case "enable_separate_cfg" | "cfg_compute_first" | "cfg_diff_compute_separate" | "audit":
                return _flag(name, value)
            case "budget" if not _is_budget(value):
                return f"{name}: {value!r} is neither a number of steps (1, 2, ...) nor a share of them such as 0.5"
            case "speedup":
                bad = _number(name, value)
                return bad or (None if 1 <= value < math.inf else f"{name}: {value!r} is no factor >= 1, such as 2.0")
            case "error_profile":
                finite = all(_number(name, each) is None and 0 <= each < math.inf for each in value)
                return None if value and finite else f"{name}: {value!r} is not a list of numbers >= 0"
            case "steps_computation_policy" if value not in ("dynamic", "static"):
                return f"{name}: {value!r} is neither 'dynamic' nor 'static'"
            case "steps_computation_mask" if value not in POLICIES:
                if not isinstance(value, tuple) or not value or any(bit not in (0, 1) for bit in value):
                    return f"{name}: {value!r} is neither bits (0 and 1) nor one of {', '.join(POLICIES)}"
                if value[0] == 0:
                    return f"{name}: begins with 0, but the first step has nothing to reuse; begin with 1"
        return None


@dataclass(frozen=True)
class DBCacheConfig(CacheConfig):
    """Dual Block Cache: front blocks decide, the middle is reused as a whole. Defaults: F8B0, warm-up 8, 0.08."""


@dataclass(frozen=True)
class DBPruneConfig(CacheConfig):
    """Dynamic Block Prune: decides block by block.

    Attributes:
        enable_dynamic_prune_threshold: Relax the threshold by what the step's first blocks show.
        max_dynamic_prune_threshold: A relaxed threshold is used only below this; None is twice the threshold.
        dynamic_prune_threshold_relax_ratio: Factor on the mean of the step's first differences.
        non_prune_block_ids: Blocks (from 0) that are always computed, besides front and back.
    """

    enable_dynamic_prune_threshold: bool = False
    max_dynamic_prune_threshold: float | None = None
    dynamic_prune_threshold_relax_ratio: float = 1.25
    non_prune_block_ids: Sequence[int] = ()

    kind: ClassVar[str] = "DBPrune"

    def __post_init__(self) -> None:
        if isinstance(self.non_prune_block_ids, Iterable):
            object.__setattr__(self, "non_prune_block_ids", tuple(self.non_prune_block_ids))
        super().__post_init__()

    def _problem(self, name: str, value: Any) -> str | None:
        if name in ("budget", "speedup") and value is not None:
            return f"{name}: DBPrune decides block by block, so that no number of steps can be asked for; use DBCache"
        if name == "non_prune_block_ids" and value is not None:
            if not isinstance(value, tuple):
                return f"{name}: {value!r} is not a list of block numbers"
            return next((text for block in value if (text := _whole(name, block, 0))), None)
        if name == "enable_dynamic_prune_threshold" and value is not None:
            return _flag(name, value)
        return super()._problem(name, value)


@dataclass(frozen=True)
class CalibratorConfig(Settings):
    """Base of calibrator settings; on its own it is ``hold``: the last computed residual again.

    Attributes:
        enable_calibrator: Forecast hidden states with this calibrator; False holds them.
        enable_encoder_calibrator: Forecast the further streams with it as well; False holds them.
        calibrator_cache_type: What is forecast: the middle's ``residual``, or the ``hidden_states`` after it.
    """

    enable_calibrator: bool = True
    enable_encoder_calibrator: bool = True
    calibrator_cache_type: Literal["residual", "hidden_states"] = "residual"

    kind: ClassVar[str] = "hold"

    def _problem(self, name: str, value: Any) -> str | None:
        if name == "calibrator_cache_type" and value not in (None, "residual", "hidden_states"):
            return f"{name}: {value!r} is neither 'residual' nor 'hidden_states'"
        if name in ("enable_calibrator", "enable_encoder_calibrator") and value is not None:
            return _flag(name, value)
        return None


@dataclass(frozen=True)
class TaylorSeerCalibratorConfig(CalibratorConfig):
    """TaylorSeer (arXiv 2503.06923): a Taylor series in the step over finite differences.

    Attributes:
        taylorseer_order: Highest derivative, 1 to 4; n keeps n + 1 tensors a stream.
        taylorseer_damping: Factor on what is added to the last computed change, above 0 and at most 1: less than 1
            goes only a part of the way, which is steadier where the model's path is not.
    """

    taylorseer_order: int = 1
    taylorseer_damping: float = 1.0

    kind: ClassVar[str] = "taylorseer"

    def _problem(self, name: str, value: Any) -> str | None:
        if name == "taylorseer_damping" and value is not None:
            bad = _number(name, value)
            return bad or (None if 0 < value <= 1 else f"{name}: {value!r} is not above 0 and at most 1")
        if name == "taylorseer_order" and value is not None:
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 4:
                return f"{name}: {value!r} is not a whole number from 1 to 4"
        return super()._problem(name, value)


@dataclass(frozen=True)
class AutoCalibratorConfig(CalibratorConfig):
    """Forecasts each step of each branch with the calibrator whose audited error at that distance is the smallest.

    It chooses between hold and TaylorSeer of orders 1 and 2, each also damped by half; three tensors a stream are kept.
    """

    kind: ClassVar[str] = "auto"


def fit(
    config: CacheConfig, blocks: int, where: str, own: CacheConfig | None = None, lengths: Sequence[int] = ()
) -> tuple[CacheConfig, list[str]]:
    """Adapt complete settings to a list of ``blocks`` blocks; returns them with a note on each change.

    Args:
        config: The settings in force for the list.
        blocks: Its length.
        where: Its name.
        own: Those of them that were given for this list alone, which are never changed.
        lengths: Of all lists that share the others; a front or back that one of them can take is cut for this one.

    Raises:
        InputError: More front or back blocks are asked for than there are, or nothing is left to measure.
    """
    front, notes = config.Fn_compute_blocks, []
    if isinstance(front, DefaultInt) and front + config.Bn_compute_blocks >= blocks:
        front = max(1, blocks // 2)
        notes.append(f"Fn_compute_blocks is {front} instead of the default {config.Fn_compute_blocks}: {blocks} blocks")
        config = replace(config, Fn_compute_blocks=front)
    for name, value in (("Fn_compute_blocks", front), ("Bn_compute_blocks", config.Bn_compute_blocks)):
        if value <= blocks:
            continue
        if own is not None and getattr(own, name) is not None:
            raise InputError(f"{where}: {name} is {value}, but the list has {blocks} blocks")
        if value > max(lengths, default=0):
            if len(set(lengths)) > 1:
                known = f"{', '.join(map(str, lengths[:-1]))} and {lengths[-1]}"
                raise InputError(f"{name} is {value}, but the block lists have {known} blocks")
            raise InputError(f"{where}: {name} is {value}, but the list has {blocks} blocks")
        notes.append(f"{name} is {blocks} instead of {value}: {blocks} blocks, all of them computed")
        cut: dict[str, Any] = {name: blocks}
        config = replace(config, **cut)
    static = config.planned and config.steps_computation_policy == "static"
    if config.kind == "DBCache" and front == 0 and not static and 0 < config.residual_diff_threshold < 1:
        raise InputError(
            f"{where}: Fn_compute_blocks is 0, so that there is no difference to decide by; set it to 1 or more, or "
            "steps_computation_policy to 'static' with a steps_computation_mask"
        )
    return config, notes
