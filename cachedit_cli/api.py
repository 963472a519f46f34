"""The Python API of the Unified Cache APIs: enable, disable, refresh, summarise.

Turns pipelines and transformers into BlockAdapters with what the registry knows; the engine does the rest.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from . import registry
from .detect import find_and_admit, refuse_contradictions
from .engine.install import Installation, install, installed
from .errors import InputError
from .terms.block_adapter import BlockAdapter, ParamsModifier
from .terms.config import CacheConfig, CalibratorConfig, DBCacheConfig, complete, merge
from .terms.stats import ContextStats, collect

__all__ = ["adapter_for", "cached", "disable_cache", "enable_cache", "refresh_context", "summary"]

Target = TypeVar("Target")
Modifiers = ParamsModifier | Sequence[ParamsModifier | Sequence[ParamsModifier | None] | None] | None


def enable_cache(
    target: Target,
    cache_config: CacheConfig | None = None,
    calibrator_config: CalibratorConfig | None = None,
    params_modifiers: Modifiers = None,
) -> Target:
    """Cache the blocks of a model from now on, and return the target.

    A target that is cached already gets the new settings in place of the old ones.

    Args:
        target: A diffusers pipeline or a transformer of a registered class, or a BlockAdapter for any other.
        cache_config: ``DBCacheConfig`` or ``DBPruneConfig``; None takes the defaults (F8B0, 8 warm-up steps, 0.08)
            with what the model's adapter knows better.
        calibrator_config: How reused steps are forecast; None repeats the last computed residual.
        params_modifiers: Settings per block list, in the form of the adapter's blocks.

    Raises:
        InputError: The model is not known, or the settings do not fit it.
    """
    _install(target, cache_config, calibrator_config, params_modifiers)
    return target


@contextlib.contextmanager
def cached(
    target: Any,
    cache_config: CacheConfig | None = None,
    calibrator_config: CalibratorConfig | None = None,
    params_modifiers: Modifiers = None,
) -> Iterator[Installation]:
    """Cache the blocks of a model inside a ``with`` block; arguments and errors are those of ``enable_cache``.

    Yields:
        The installation, whose ``log`` grows as the model runs. The model is as before on leaving, whatever happens: a
        cache that was in place is in place again.
    """
    before = _installations(target)
    installation = _install(target, cache_config, calibrator_config, params_modifiers)
    try:
        yield installation
    finally:
        installation.remove()
        disable_cache(installation.adapter)  # what refresh_context put in its place
        for old in before:
            _again(old)


def disable_cache(target: Any) -> None:
    """Take the cache out of a pipeline, transformer or BlockAdapter; nothing happens where there is none."""
    for installation in _installations(target):
        installation.remove()


def refresh_context(
    target: Any,
    cache_config: CacheConfig | None = None,
    calibrator_config: CalibratorConfig | None = None,
    num_inference_steps: int | None = None,
    verbose: bool = False,
) -> None:
    """Begin a new generation with the next forward, with other settings where some are given.

    Args:
        target: What is cached.
        cache_config: Replaces the shared cache settings.
        calibrator_config: Replaces the shared calibrator settings.
        num_inference_steps: Steps of the generations to come, in the settings in force.
        verbose: Print the settings that are in force afterwards.

    Raises:
        InputError: The target is not cached, or the settings do not fit it.
    """
    for old in _required(target):
        config = complete(cache_config) if cache_config is not None else old.cache_config
        if num_inference_steps is not None:
            config = merge(config, type(config).reset(num_inference_steps=num_inference_steps))
        calibrator = calibrator_config if calibrator_config is not None else old.calibrator_config
        old.remove()
        try:
            new = _watched(install(old.adapter, config, calibrator, old.log), by_hand=False)
        except InputError:
            _again(old)
            raise
        if verbose:
            from .report import print_settings

            print_settings(new.log.contexts)


def summary(target: Any, details: bool = False) -> list[ContextStats]:
    """Print what the last generation cached and return it, one entry per context.

    Args:
        target: What is cached.
        details: Print every step with its decision, reason and difference as well.

    Raises:
        InputError: The target is not cached.
    """
    from .report import print_summary

    stats = [
        entry
        for installation in _required(target)
        for entry in collect(installation.log.generation(), installation.log.contexts)
    ]
    print_summary(stats, title=type(target).__name__, details=details)
    return stats


def adapter_for(target: Any) -> BlockAdapter:
    """Return the BlockAdapter that the registry has for a pipeline or transformer.

    Raises:
        InputError: Nothing is registered for it; names the nearest class and the way out.
    """
    if isinstance(target, BlockAdapter):
        return target
    pipe = None if isinstance(target, nn.Module) else target
    function = registry.BlockAdapterRegister.find(type(target).__name__) if pipe is not None else None
    if function is not None:
        made = function(pipe)
        if not isinstance(made, BlockAdapter):
            raise InputError(f"the adapter registered for {type(target).__name__} returned no BlockAdapter")
        return made
    models = [target] if pipe is None else _modules(pipe)
    known = [(model, adapter) for model in models if (adapter := registry.find(_class_name(model))) is not None]
    if not known:
        raise InputError(_unknown(target, models))
    found = [[part for entry in adapter.lists for part in _parts(model, entry)] for model, adapter in known]
    functors = {adapter.functor for _, adapter in known if adapter.functor is not None}
    return BlockAdapter(
        pipe=pipe,
        transformer=[model for model, _ in known],
        blocks=[[blocks for blocks, _ in lists] for lists in found],
        forward_pattern=[[entry.pattern for _, entry in lists] for lists in found],
        patch_functor=functors.pop()() if functors else None,
        chain=all(adapter.chain for _, adapter in known),
        alternate=any(adapter.alternate for _, adapter in known),
        skips=any(adapter.skips for _, adapter in known),
    )


def _install(
    target: Any, cache: CacheConfig | None, calibrator: CalibratorConfig | None, modifiers: Modifiers
) -> Installation:
    adapter = adapter_for(target)
    if modifiers is not None:
        adapter = replace(adapter, params_modifiers=modifiers)
    if cache is None:
        known = registry.find(_class_name(adapter.transformers()[0]))
        cache = merge(DBCacheConfig(), known.defaults if known is not None else None)
    before = _installations(adapter)
    for old in before:
        old.remove()
    try:
        return _watched(install(adapter, cache, calibrator), by_hand=isinstance(target, BlockAdapter))
    except InputError:
        for old in before:
            _again(old)
        raise


def _again(old: Installation) -> Installation:
    """Put a cache that was taken out in place again, with its log."""
    return _watched(install(old.adapter, old.cache_config, old.calibrator_config, old.log), by_hand=False)


def _watched(installation: Installation, by_hand: bool) -> Installation:
    """Let the first forward find the lists where ``auto`` asks for it, and check those that were named by hand."""
    try:
        if installation.adapter.auto:
            find_and_admit(installation)
        elif by_hand:
            refuse_contradictions(installation)
    except BaseException:
        installation.remove()
        raise
    return installation


def _class_name(model: nn.Module) -> str:
    return type(getattr(model, "_orig_mod", model)).__name__


def _modules(pipe: Any) -> list[nn.Module]:
    parts = getattr(pipe, "components", None)
    values = parts.values() if isinstance(parts, dict) else vars(pipe).values()
    return [part for part in values if isinstance(part, nn.Module)]


def _list(model: nn.Module, path: str) -> nn.ModuleList:
    found = model.get_submodule(path)
    if not isinstance(found, nn.ModuleList):
        raise InputError(f"{type(model).__name__}.{path} is no nn.ModuleList")
    return found


def _parts(model: nn.Module, entry: registry.BlockList) -> list[tuple[nn.ModuleList, registry.BlockList]]:
    blocks = _list(model, entry.path)
    if entry.tail is None:
        return [(blocks, entry)]
    return [(blocks[part], entry) for part in entry.parts(len(blocks), getattr(model, "config", {}))]


def _unknown(target: Any, models: list[nn.Module]) -> str:
    classes = [_class_name(model) for model in models]
    known = [adapter.transformer for adapter in registry.all_adapters()]
    near = [match for name in classes for match in difflib.get_close_matches(name, known, n=1, cutoff=0.8)]
    hint = f" The nearest class with an adapter is {near[0]}." if near else ""
    what = f"{type(target).__name__}: no adapter is registered for it or its parts ({', '.join(classes) or 'none'})."
    way_out = " Pass a BlockAdapter that names its block lists and their forward pattern."
    return "\n".join([what + hint + way_out, *registry.problems()])


def _installations(target: Any) -> list[Installation]:
    if isinstance(target, BlockAdapter):
        models = target.transformers()
    else:
        models = [target] if isinstance(target, nn.Module) else _modules(target)
    found: list[Installation] = []
    for model in models:
        there = installed(model)
        if there is not None and all(there is not other for other in found):
            found.append(there)
    return found


def _required(target: Any) -> list[Installation]:
    found = _installations(target)
    if not found:
        raise InputError(f"{type(target).__name__} is not cached; call enable_cache first")
    return found
