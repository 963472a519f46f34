"""Puts the runners into a model and takes them out again, whatever happens in between.

Knows where a model is intercepted (``patches`` knows how) and what the calls that pass there tell the clock.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import Any

from torch import nn

from ..errors import InputError, RunError
from ..pace import Pace
from ..patches import SLOT, Call, CallPatch, FunctorPatch, MethodPatch, Undoable, forbid_compiling, refuse_compiled
from ..ranks import ratio, total
from ..signature import Signature
from ..snapshots import Calibration
from ..terms.block_adapter import BlockAdapter
from ..terms.budget import budget_for, budget_mask, computed_steps
from ..terms.config import CacheConfig, CalibratorConfig, DBCacheConfig, DBPruneConfig, complete
from ..terms.mask import steps_mask
from ..terms.pattern import find_slots
from ..terms.settle import settle
from ..terms.stats import DecisionLog
from .blocks import BlockCache
from .clock import Announced, Clock, Forward, Tick
from .loops import Loops
from .prune import BlockPrune
from .runner import Runner, Unit

__all__ = ["Installation", "install", "installed"]


class Site:
    """What the transformers of one installation share."""

    def __init__(self, pipe: Any, log: DecisionLog, separate_cfg: bool, steps: int | None) -> None:
        self.loops = Loops(pipe, self.restart, self.refuse)
        self.clock = Clock(self.loops)
        self.log = log
        self.separate_cfg = separate_cfg
        self.pace = Pace()
        self.stations: list[Station] = []
        self._set_steps = steps
        self._generation = -1

    @property
    def steps(self) -> int | None:
        """Steps of a generation over all transformers, as the pipeline's loop or the shared settings say."""
        loop = self.loops.now
        return loop.steps if loop is not None and loop.steps is not None else self._set_steps

    def restart(self, reason: str | None = None) -> None:
        """Drop all state, with a line in the log if that is out of the ordinary; a generation begins next."""
        self._drop(reason)
        self.clock.restart()

    def arrive(self, tick: Tick) -> None:
        """Drop the last generation's state when the first forward of another one comes."""
        if tick.generation != self._generation:
            self._generation = tick.generation
            self._drop(None)

    def _drop(self, reason: str | None) -> None:
        for station in self.stations:
            for runner in station.runners:
                runner.drop(self.clock.generation, self.clock.step, reason)

    def refuse(self) -> None:
        """Tell a second thread that it cannot be followed."""
        names = " and ".join(dict.fromkeys(type(station.model).__name__ for station in self.stations))
        raise RunError(
            f"{names}: two threads are in this transformer at once, and its cache can only "
            "follow one; give each thread a pipeline with a transformer of its own"
        )


class Station:
    """One transformer: follows its forwards and tells its runners where they stand."""

    def __init__(self, model: nn.Module, site: Site) -> None:
        self.model = model
        self.runners: list[Runner[Any]] = []
        self.blocks: list[nn.Module] = []
        self.patches: list[CallPatch] = []  # of the blocks
        self._site = site
        self._signature = Signature(model.forward)
        self._announced: Announced | None = None
        self._generation = -1
        self._tick: Tick | None = None  # of the last forward that began
        self._thread: int | None = None

    def announce(self, original: Call) -> Call:
        """Hear from ``cache_context`` which branch comes."""

        @contextlib.contextmanager
        def cache_context(name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
            before = self._announced
            self._announced = Announced(name, kwargs.get("step_index"))
            try:
                with original(name, *args, **kwargs):
                    yield
            finally:
                self._announced = before

        return cache_context

    def forward(self, inner: Call, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run one forward of the transformer."""
        caller = threading.get_ident()
        if self._thread == caller:
            return inner(*args, **kwargs)  # a model that calls itself
        if self._thread is not None:
            self._site.refuse()
        self._site.loops.join(caller)
        self._thread = caller
        try:
            self._begin(args, kwargs)
            output = inner(*args, **kwargs)
            for runner in self.runners:
                runner.end()
        except BaseException:
            self._site.restart("error")
            raise
        finally:
            self._thread = None
        return output

    def _begin(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        call, site = self._read(args, kwargs), self._site
        # A number of one of several transformers says nothing of the generation, except where calls are only counted.
        shared = len(site.stations) > 1 and (call.moment is not None or call.announced is not None)
        tick = site.clock.tick(id(self.model), call, site.steps if shared else self._steps(), site.separate_cfg)
        site.arrive(tick)
        if tick.generation != self._generation:
            self._follow(tick)
            self._generation = tick.generation
            for patch in self.patches:
                patch.refresh()
            self.plan()
        self._tick = tick
        if any(runner.config.speedup is not None for runner in self.runners) and self._paced(tick):
            for station in site.stations:
                station.plan()
        for runner in self.runners:
            runner.begin(tick)

    def _follow(self, tick: Tick) -> None:
        """Go on with what another transformer left of a budget that took the generation's steps so far, if one did."""
        others = [station for station in self._site.stations if station._generation == tick.generation]
        ended = [
            (at.step, other.runners) for other in others if (at := other._tick) is not None and at.step < tick.step
        ]
        _, runners = max(ended, key=lambda found: found[0], default=(0, list[Runner[Any]]()))
        for runner, before in zip_longest(self.runners, runners[: len(self.runners)]):
            runner.before = before

    def _paced(self, tick: Tick) -> bool:
        """Return whether the time that reuse saves has just become known."""
        site = self._site
        if site.pace.share is not None or tick.index > 0 or tick.step not in (1, 2):
            return False
        site.log.settle()
        saves = {runner.unit.name: runner.saves for station in site.stations for runner in station.runners}
        return site.pace.reach(tick.generation, tick.step, site.log.rows, saves)

    def plan(self) -> None:
        """Lay out what is computed in this generation."""
        for runner in self.runners:
            runner.plan(*self._lay_out(runner))

    def catch_up(self) -> None:
        """Count the forward in progress for runners that came too late for it."""
        self.plan()
        for runner in self.runners:
            if self._tick is not None:
                runner.missed(self._tick)

    def _read(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Forward:
        announced, loop = self._announced, self._site.loops.now
        if announced is not None and announced.step_index is not None:
            moment: float | None = announced.step_index
        else:
            pipe = self._site.loops.pipe if announced is None and loop is not None else None
            wait, scheduler = announced is None or loop is None, getattr(pipe, "scheduler", None)
            moment = self._signature.moment(args, kwargs, wait, scheduler)
        if moment is None and loop is None and self._steps() is None:
            raise InputError(
                f"{type(self.model).__name__} is called without pipeline and timestep, so that nothing tells where a "
                "generation ends: set num_inference_steps in the cache_config, or with refresh_context"
            )
        sample = self._signature.sample(args, kwargs)
        if announced is not None:
            return Forward(moment, announced.name, (), {}, sample)
        marks, flags = self._signature.marks(args, kwargs)
        return Forward(moment, None, flags, marks, sample)

    def _steps(self) -> int | None:
        own = (runner.config.num_inference_steps for runner in self.runners)
        return self._site.steps if self._site.steps is not None else next(own, None)

    def _afford(self, runner: Runner[Any], steps: int | None) -> list[int]:
        """Return the mask that a budget or a speed-up comes to; every step computes until that is known."""
        config, share = runner.config, self._site.pace.share
        if steps is None:
            what = "budget" if config.budget is not None else "speedup"
            raise InputError(f"{runner.unit.name}: {what} needs the number of steps; set num_inference_steps")
        if config.budget is not None:
            count = computed_steps(config.budget, steps)
        elif config.speedup is not None and share is not None:
            count = budget_for(config.speedup, steps, share)
        else:
            return [1] * steps
        return budget_mask(count, steps, config.error_profile, config.steps_computation_mask)

    def _lay_out(self, runner: Runner[Any]) -> tuple[Sequence[int] | None, bool]:
        """Return a runner's mask for this generation, and whether it counts this transformer's own steps."""
        config, mask, own = runner.config, runner.config.steps_computation_mask, runner.config.num_inference_steps
        if mask is None and not config.dial:
            return None, False
        total = self._steps()
        alone = len(self._site.stations) > 1 and own is not None and own != self._site.steps
        steps = own if alone else total
        if config.dial or mask is None:
            return self._afford(runner, steps), alone
        where = f"{runner.unit.name}: steps_computation_mask"
        if isinstance(mask, str):
            if steps is None:
                raise InputError(f"{where}: the policy {mask!r} needs the number of steps; set num_inference_steps")
            return steps_mask(mask_policy=mask, total_steps=steps), alone
        if steps is not None and len(mask) != steps:
            raise InputError(f"{where}: has {len(mask)} bits, but this generation has {steps} steps")
        return mask, alone


class ModelCall:
    """Stands in for a transformer's call, and is where its installation is found again."""

    def __init__(self, station: Station, installation: Installation, inner: Call) -> None:
        self.installation = installation
        self._station = station
        self._inner = inner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._station.forward(self._inner, args, kwargs)


def installed(model: nn.Module) -> Installation | None:
    """Return the cache that is in place in a transformer, if any."""
    call = vars(model).get(SLOT)
    return call.installation if isinstance(call, ModelCall) else None


@dataclass
class Installation:
    """A cache in place. ``remove`` takes it out; as a context manager it does so on leaving."""

    adapter: BlockAdapter
    log: DecisionLog
    cache_config: CacheConfig
    calibrator_config: CalibratorConfig | None
    _site: Site
    _patches: list[Undoable]

    def __enter__(self) -> Installation:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    @property
    def transformers(self) -> list[nn.Module]:
        return [station.model for station in self._site.stations]

    @property
    def nbytes(self) -> int:
        """Bytes kept between steps now."""
        return sum(runner.nbytes for station in self._site.stations for runner in station.runners)

    def restart(self) -> None:
        """Drop all state; the next forward begins a generation."""
        self._site.restart()

    def undo_with(self, change: Undoable) -> None:
        """Take back a further change when the cache is taken out."""
        self._patches.append(change)

    def admit(self, model: nn.Module, adapter: BlockAdapter) -> None:
        """Wrap the blocks of an adapter as well, at the end of a forward of the model, which counts as computed."""
        self._wrap(adapter)
        for station in self._site.stations:
            if station.model is model:
                station.catch_up()

    def _wrap(self, adapter: BlockAdapter) -> None:
        """Put a runner around each unit of an adapter."""
        used = {id(block) for station in self._site.stations for block in station.blocks}
        runners = list[Runner[Any]]()
        for member in adapter.members():
            if used & {id(block) for block in member.blocks}:
                raise InputError(f"{member.name}: a block of it is in another list too")
            used |= {id(block) for block in member.blocks}
            station = next(each for each in self._site.stations if each.model is member.transformer)
            config, calibrator, info = settle(member, self.cache_config, self.calibrator_config, adapter.skips)
            slots = [find_slots(block.forward, member.streams) for block in member.blocks]
            sums = partial(ratio, station.model), partial(total, station.model)
            unit = Unit(member.name, member.streams, slots, *sums)
            calibration = Calibration.of(calibrator)
            runner: Runner[Any]
            if isinstance(config, DBPruneConfig):
                runner = BlockPrune(unit, config, calibration, self.log)
            else:
                runner = BlockCache(unit, config, calibration, self.log)
            if member.leader is not None and runner.config.kind == "DBCache":
                runner.leader = runners[member.leader]
            runners.append(runner)
            self.log.contexts.append(info)
            station.runners.append(runner)
            station.blocks.extend(member.blocks)
            for index, block in enumerate(member.blocks):
                station.patches.append(CallPatch(block, partial(runner.wrap, index)))
                self._patches.append(station.patches[-1])

    def remove(self) -> None:
        """Put everything back as it was before."""
        self._site.restart()
        while self._patches:
            self._patches.pop().undo()


def install(
    adapter: BlockAdapter,
    cache_config: CacheConfig | None = None,
    calibrator_config: CalibratorConfig | None = None,
    log: DecisionLog | None = None,
) -> Installation:
    """Wrap the blocks of an adapter. Nothing stays changed if this fails.

    Args:
        adapter: What to wrap.
        cache_config: Settings shared by all lists; None is ``DBCacheConfig()``.
        calibrator_config: Calibrator shared by all lists; None holds the last residual.
        log: Continues an earlier log.

    Raises:
        InputError: Adapter, settings and model do not fit together.
    """
    shared = complete(cache_config) if cache_config is not None else DBCacheConfig()
    if adapter.has_separate_cfg and shared.enable_separate_cfg is None:
        shared = replace(shared, enable_separate_cfg=True)
    log = log if log is not None else DecisionLog()
    site = Site(adapter.pipe, log, bool(shared.enable_separate_cfg), shared.num_inference_steps)
    patches: list[Undoable] = []
    installation = Installation(adapter, log, shared, calibrator_config, site, patches)
    try:
        if adapter.patch_functor is not None:
            patches.extend(FunctorPatch(adapter.patch_functor, model) for model in adapter.transformers())
        log.contexts.clear()
        units = [] if adapter.auto else adapter.members()  # with ``auto`` they are admitted when they are found
        models = adapter.transformers() if adapter.auto else [unit.transformer for unit in units]
        site.stations.extend(Station(model, site) for model in {id(model): model for model in models}.values())
        if not adapter.auto:
            installation._wrap(adapter)
        for station in site.stations:
            patches.append(forbid_compiling(station.model))
            patches.append(CallPatch(station.model, partial(ModelCall, station, installation)))
            if callable(getattr(station.model, "cache_context", None)):
                patches.append(MethodPatch(station.model, "cache_context", station.announce))
        if callable(getattr(adapter.pipe, "progress_bar", None)):
            patches.append(MethodPatch(adapter.pipe, "progress_bar", refuse_compiled(adapter.pipe, site.loops.listen)))
    except BaseException:
        installation.remove()
        raise
    return installation
