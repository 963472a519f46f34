"""What a recipe amounts to: pictures, arguments, adapters, contexts, the mask. From configuration files alone.

Loads no weights and no torch and opens no network: what only the loaded model would tell is left out, or said to be
unknown.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import demo, registry
from .calibrators import calibrators_for
from .errors import InputError
from .jobs import jobs
from .models import ModelFiles, locate
from .options import controlnet
from .options.known import refuse_unknown
from .pipeline import check_name
from .recipe import Recipe
from .registry import BlockList, ModelAdapter
from .report import Plan
from .terms.budget import budget_mask, computed_steps
from .terms.config import CacheConfig, CalibratorConfig, DBPruneConfig, fit, merge
from .terms.mask import steps_mask
from .terms.pattern import ForwardPattern, Streams, as_streams
from .terms.stats import ContextInfo

__all__ = ["adapters", "build", "call_arguments", "found_later"]

# Arguments that decide how many steps there are, besides their number.
_SCHEDULE = ("sigmas", "timesteps", "strength", "denoising_start", "denoising_end")
_WORDS = "max_sequence_length"


def call_arguments(recipe: Recipe) -> dict[str, Any]:
    """Return what every call gets besides prompt, seed and inputs: the recipe's, above the model's own defaults."""
    settings = recipe.generate
    named = {
        "negative_prompt": settings.negative_prompt,
        "num_inference_steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
        "true_cfg_scale": settings.true_cfg_scale,
        "height": settings.height,
        "width": settings.width,
        "max_sequence_length": settings.max_sequence_length,
        "strength": settings.strength,
    }
    defaults = demo.DEFAULTS if demo.MODEL_ID in (recipe.model.id, recipe.model.config) else {}
    return {**defaults, **{name: value for name, value in named.items() if value is not None}, **settings.extra}


def adapters(recipe: Recipe, files: ModelFiles) -> dict[str, ModelAdapter]:
    """Return the adapter of each transformer that the recipe caches, by the part's name.

    Empty where nothing is cached, where the recipe spells its blocks out, and where the blocks are found at the first
    forward because none is registered. While the model's parts are not known, the recipe is believed.

    Raises:
        InputError: The adapter that the recipe names does not fit the model, or the model has no transformer.
    """
    if recipe.cache.type == "none" or recipe.blocks:
        return {}
    named = recipe.adapter if recipe.adapter != "auto" else None
    one = registry.by_name(named) if named is not None else None
    if not files.components:
        return {"transformer": one} if one else {}
    known = {part: adapter for part, cls in files.components.items() if (adapter := registry.find(cls)) is not None}
    fitting = {part: adapter for part, adapter in known.items() if named in (None, adapter.name)}
    if fitting:
        return fitting
    has = ", ".join(files.transformers().values()) or "no transformer"
    if known:
        mine = ", ".join(sorted({adapter.name for adapter in known.values()}))
        raise InputError(f"adapter: {named!r} does not fit {files.id}, whose transformer is {has}: that is {mine!r}")
    if named is not None:
        wanted = ", ".join(each.transformer for each in registry.all_adapters() if each.name == named)
        raise InputError(f"adapter: {named!r} is for {wanted}, but {files.id} has {has}")
    if not files.transformers():
        raise InputError(
            f"adapter: {files.id} has no transformer whose blocks could be cached, but "
            f"{', '.join(files.components.values())}; generate with --no-cache"
        )
    return {}


def found_later(recipe: Recipe, files: ModelFiles) -> bool:
    """Return whether the block lists are found at the first forward, no adapter being registered for the model."""
    cached = recipe.cache.type != "none" and not recipe.blocks
    return cached and bool(files.components) and not adapters(recipe, files)


def _about_auto(recipe: Recipe, files: ModelFiles, used: Mapping[str, ModelAdapter]) -> list[str]:
    """Return what there is to say of a recipe that leaves the adapter to the model's class."""
    if found_later(recipe, files):
        classes = list(files.transformers().values())
        every = [adapter.transformer for adapter in registry.all_adapters()]
        near = [name for cls in classes for name in difflib.get_close_matches(cls, every, n=1, cutoff=0.8)]
        hint = f" (the nearest that is: {near[0]})" if near else ""
        none = f"no adapter is registered for {', '.join(classes)}{hint}"
        return [f"{none}: the block lists are found at the first forward, by what their blocks take and return"]
    if recipe.adapter != "auto":
        return []
    return [f"auto: {adapter.transformer} is registered as {adapter.name!r}" for adapter in used.values()]


def _about_own(recipe: Recipe, arguments: Mapping[str, Any], defaults: CacheConfig | None) -> list[str]:
    """Return what pictures have of their own; a mask has to fit each number of steps."""
    todo = jobs(recipe)
    own = [job for job in todo if job.overrides]
    if not own:
        return []
    key = "num_inference_steps"
    for steps in sorted({job.overrides[key] for job in own if key in job.overrides}):
        try:
            config = recipe.cache_config(steps, defaults)
            if config is not None:
                _mask(config, steps, arguments)
        except InputError as error:
            raise InputError(f"{recipe.generate.prompts}: {key} {steps}: {error}") from error
    names = sorted({name for job in own for name in job.overrides})
    return [f"{len(own)} of {len(todo)} pictures have settings of their own: {', '.join(names)}"]


def build(recipe: Recipe) -> Plan:
    """Return the plan of a run.

    Raises:
        InputError: Recipe, model, pipeline and adapter do not fit together, as far as that is known without weights.
    """
    files = locate(recipe.model.id, recipe.model.revision, recipe.model.config)
    check_name(files, recipe.model.pipeline)
    refuse_unknown(recipe.model, files)
    arguments = call_arguments(recipe)
    asked = arguments.get("num_inference_steps")
    steps = _shortened(asked, arguments.get("strength"))
    used = adapters(recipe, files)
    first = next(iter(used.values()), None)
    config = recipe.cache_config(steps, first.defaults if first else None)
    calibrator = recipe.calibrator_config()
    units = _units(recipe, files, used, config, steps) if config else []
    known = [unit for unit in units if unit.info.blocks]
    size = (arguments.get("width"), arguments.get("height"))
    notes = [] if files.folder else ["the model is not in the hub's cache: its download will tell what it consists of"]
    if steps != asked:
        notes.append(f"strength {arguments['strength']} leaves {steps} of {asked} steps; some pipelines round down")
    if steps is None:
        notes.append("the number of steps is the pipeline's default, and shows when it is loaded")
    notes += [f"{unit.info.name}: how many blocks it has is not known yet" for unit in units if unit not in known]
    notes += _about_own(recipe, arguments, first.defaults if first else None)
    if config is not None and config.speedup is not None:
        notes.append(
            "speedup: the number of computed steps is found in the second step, from the time that blocks take"
        )
    notes += _about_auto(recipe, files, used) if config else []
    notes += sorted({adapter.note for adapter in used.values() if adapter.note})
    return Plan(
        recipe=recipe.name,
        model=recipe.model.id,
        device=recipe.model.device,
        dtype=recipe.model.dtype,
        options=recipe.model.options(),
        adapter=None
        if config is None
        else "blocks of the recipe"
        if recipe.blocks
        else first.name
        if first
        else "auto",
        pipeline=_pipeline(recipe, files),
        transformer=", ".join(files.transformers().values()) or None,
        guidance=first.guidance if first else None,
        contexts=[unit.info for unit in known],
        cache=config.kind if config else None,
        settings=config.as_dict() if config else {},
        calibrator=(calibrator or CalibratorConfig()).kind if config else None,
        calibrator_settings=calibrator.as_dict() if config and calibrator else {},
        mask=_mask(config, steps, arguments) if config else None,
        steps=steps,
        images=len(jobs(recipe)),
        size=(size[0], size[1]) if isinstance(size[0], int) and isinstance(size[1], int) else None,
        frames=arguments["num_frames"] if isinstance(arguments.get("num_frames"), int) else None,
        cache_bytes=_cache_bytes(recipe, files, units, arguments),
        notes=notes,
    )


def _pipeline(recipe: Recipe, files: ModelFiles) -> str | None:
    name = recipe.model.pipeline or files.pipeline
    return (controlnet.pipeline_name(name) or name) if name and recipe.model.controlnet else name


@dataclass(frozen=True)
class _Unit:
    """Blocks that are decided together, with the settings in force for them."""

    info: ContextInfo
    streams: Streams
    config: CacheConfig
    calibrator: CalibratorConfig | None


def _units(
    recipe: Recipe, files: ModelFiles, used: dict[str, ModelAdapter], config: CacheConfig, steps: int | None
) -> list[_Unit]:
    shared = recipe.calibrator_config()
    if recipe.blocks:
        named = [
            (_counted(files, entry.paths(), list(ForwardPattern)[entry.pattern], {}), own, calibrator or shared)
            for entry, (own, calibrator) in zip(recipe.blocks, recipe.modifiers(steps), strict=True)
        ]
        lengths = _lengths([counted for counted, _, _ in named])
        return [_unit(counted, config, own, calibrator, lengths) for counted, own, calibrator in named]
    found = []
    for part, adapter in used.items():
        facts = files.config(part)
        counts = {f"{part}.{each.path}": facts.get(each.length) for each in adapter.lists if each.length}
        for lists in [adapter.lists] if adapter.chain else [(each,) for each in adapter.lists]:
            paths = [f"{part}.{each.path}" for each in lists]
            if all(each.length and facts.get(each.length) == 0 for each in lists):
                raise InputError(f"{' + '.join(paths)}: this block list is empty, as the model's configuration says")
            pieces = _pieces(lists[0], paths[0], counts, facts) or [paths]
            found += [_counted(files, piece, lists[0].pattern, counts) for piece in pieces]
    return [_unit(counted, config, None, shared, _lengths(found)) for counted in found]


def _pieces(entry: BlockList, path: str, lengths: dict[str, Any], facts: Mapping[str, Any]) -> list[list[str]]:
    """Return the parts that a list is cached in by name, and note their lengths; none where it is cached whole."""
    count = lengths.get(path)
    parts = entry.parts(count, facts) if isinstance(count, int) else ()
    names = [f"{path}[{part.start}:{part.stop}]" for part in parts if len(parts) > 1]
    lengths.update({name: part.stop - part.start for name, part in zip(names, parts, strict=False)})
    return [[name] for name in names]


@dataclass(frozen=True)
class _Counted:
    """Blocks that are decided together, and how many there are; 0 where that is not known."""

    name: str
    model: str
    streams: Streams
    blocks: int


def _counted(
    files: ModelFiles, paths: Sequence[str], pattern: ForwardPattern | Streams, lengths: Mapping[str, Any]
) -> _Counted:
    counts = [lengths.get(path) or files.count(*path.split(".", 1)) for path in paths]
    known = [count for count in counts if isinstance(count, int)]
    model = files.components.get(paths[0].partition(".")[0], "")
    return _Counted(" + ".join(paths), model, as_streams(pattern), sum(known) if len(known) == len(counts) else 0)


def _lengths(units: Sequence[_Counted]) -> tuple[int, ...]:
    """Return how many blocks each unit has; more than any setting asks for where that is not known."""
    return tuple(unit.blocks or sys.maxsize for unit in units)


def _unit(
    counted: _Counted,
    shared: CacheConfig,
    own: CacheConfig | None,
    calibrator: CalibratorConfig | None,
    lengths: tuple[int, ...],
) -> _Unit:
    config, notes = merge(shared, own), list[str]()
    if counted.blocks:
        config, notes = fit(config, counted.blocks, counted.name, own, lengths)
    before = shared.as_dict()
    changed = {key: value for key, value in config.as_dict().items() if value != before[key]}
    info = ContextInfo(counted.name, counted.model, "", str(counted.streams), counted.blocks, changed, notes)
    return _Unit(info, counted.streams, config, calibrator)


def _shortened(steps: int | None, strength: float | None) -> int | None:
    """Return how many steps remain where a picture is drawn anew only in part."""
    return steps if steps is None or strength is None else steps - int(steps - steps * strength)


def _mask(config: CacheConfig, steps: int | None, arguments: Mapping[str, Any]) -> list[int] | None:
    mask = config.steps_computation_mask
    if config.dial:
        if config.budget is None or steps is None:
            return None
        try:
            count = computed_steps(config.budget, steps)
        except InputError as error:
            raise InputError(f"cache.{error}") from None
        return budget_mask(count, steps, config.error_profile, mask)
    if mask is None or (isinstance(mask, str) and steps is None):
        return None
    if isinstance(mask, str):
        return steps_mask(mask_policy=mask, total_steps=steps)
    if steps is not None and len(mask) != steps and not arguments.keys() & _SCHEDULE:
        raise InputError(f"cache.steps_computation_mask: has {len(mask)} bits, but there are {steps} steps")
    return list(mask)


def _cache_bytes(recipe: Recipe, files: ModelFiles, units: Sequence[_Unit], arguments: Mapping[str, Any]) -> int | None:
    """Estimate what is held between steps; None where the configuration files do not tell the shapes.

    They do for models like FLUX: latents packed into tokens, text tokens beside them, guidance as a second forward.
    """
    facts, vae = files.config("transformer"), files.config("vae")
    levels, latents = vae.get("block_out_channels"), vae.get("latent_channels")
    keys = ("in_channels", "num_attention_heads", "attention_head_dim")
    values = [facts.get(key) for key in keys] + [arguments.get(key) for key in ("height", "width", _WORDS)]
    numbers = [value for value in values if isinstance(value, int)]
    if not levels or not latents or len(numbers) < len(values) or not all(unit.info.blocks for unit in units):
        return None
    channels, heads, head, height, width, words = numbers
    pixels = 2 ** (len(levels) - 1) * math.isqrt(channels // latents)  # along a side of a token
    image = (height // pixels) * (width // pixels)
    tokens = 0
    for unit in units:
        config, count = unit.config, unit.info.blocks
        depth = max(calibrator.depth for calibrator in calibrators_for(unit.calibrator))
        snapshots = depth * (image + words * (len(unit.streams.carried) > 1))
        if isinstance(config, DBPruneConfig):
            computed = {*range(config.Fn_compute_blocks), *range(count - config.Bn_compute_blocks, count)}
            tokens += (count - len(computed.union(config.non_prune_block_ids))) * (snapshots + image)
        else:
            static = config.planned and config.steps_computation_policy == "static"
            compared = config.Fn_compute_blocks > 0 and not static and 0 < config.residual_diff_threshold < 1
            tokens += snapshots + image * compared
    guided = (arguments.get("true_cfg_scale") or 0) > 1 and arguments.get("negative_prompt") is not None
    half = recipe.model.dtype in ("bfloat16", "float16")
    pictures = min(recipe.generate.batch_size, len(jobs(recipe)))
    return tokens * heads * head * pictures * (1 + guided) * (2 if half else 4) or None
