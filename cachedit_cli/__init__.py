"""cachedit: diffusion transformers several times faster, by reusing the residuals of their blocks across steps.

The names of the Unified Cache APIs, imported when they are first used, so that the command line need not load torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import cached, disable_cache, enable_cache, refresh_context, summary
    from .registry import BlockAdapterRegister
    from .terms.block_adapter import BlockAdapter, ParamsModifier
    from .terms.config import (
        AutoCalibratorConfig,
        CalibratorConfig,
        DBCacheConfig,
        DBPruneConfig,
        TaylorSeerCalibratorConfig,
    )
    from .terms.functor import PatchFunctor
    from .terms.mask import steps_mask
    from .terms.pattern import ForwardPattern, Streams

__version__ = "0.1.0"

_HOMES = {
    "AutoCalibratorConfig": ".terms.config",
    "BlockAdapter": ".terms.block_adapter",
    "BlockAdapterRegister": ".registry",
    "CalibratorConfig": ".terms.config",
    "DBCacheConfig": ".terms.config",
    "DBPruneConfig": ".terms.config",
    "ForwardPattern": ".terms.pattern",
    "ParamsModifier": ".terms.block_adapter",
    "PatchFunctor": ".terms.functor",
    "Streams": ".terms.pattern",
    "TaylorSeerCalibratorConfig": ".terms.config",
    "cached": ".api",
    "disable_cache": ".api",
    "enable_cache": ".api",
    "refresh_context": ".api",
    "steps_mask": ".terms.mask",
    "summary": ".api",
}

__all__ = [
    "AutoCalibratorConfig",
    "BlockAdapter",
    "BlockAdapterRegister",
    "CalibratorConfig",
    "DBCacheConfig",
    "DBPruneConfig",
    "ForwardPattern",
    "ParamsModifier",
    "PatchFunctor",
    "Streams",
    "TaylorSeerCalibratorConfig",
    "cached",
    "disable_cache",
    "enable_cache",
    "refresh_context",
    "steps_mask",
    "summary",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
