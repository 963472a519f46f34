"""The recipe as typed data, and the engine settings it stands for.

Knows each field, what a valid value is and what it means; knows nothing of YAML, files or positions. The fields of
`cache`, `params` and `calibrator` are made from the engine's dataclasses, so that nothing about them is written twice.
Settings stay unset until they are asked for: an adapter's defaults lie between the engine's and the recipe's.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from .recipe_fields import MOST_STEPS, Mask, OneOf, Section, among, derive, matching, settings_of
from .recipe_options import Model
from .terms.config import (
    AutoCalibratorConfig,
    CacheConfig,
    CalibratorConfig,
    DBCacheConfig,
    DBPruneConfig,
    TaylorSeerCalibratorConfig,
    merge,
)

__all__ = [
    "KINDS",
    "PROMPT_FILES",
    "VERSION",
    "Blocks",
    "Cache",
    "Calibrator",
    "Generate",
    "Model",
    "Output",
    "Params",
    "PromptLine",
    "Recipe",
]

VERSION = 1

AnyCacheConfig = DBCacheConfig | DBPruneConfig

_CACHES: dict[str, type[AnyCacheConfig]] = {config.kind: config for config in (DBCacheConfig, DBPruneConfig)}
_CALIBRATORS: dict[str, type[CalibratorConfig]] = {
    config.kind: config for config in (CalibratorConfig, TaylorSeerCalibratorConfig, AutoCalibratorConfig)
}


class Cache(Section):
    """What is reused, and when."""

    type: str


class Calibrator(Section):
    """How that which is reused is forecast from what was computed."""

    type: str


class Params(Section):
    """Cache settings of one entry of `blocks`; only what is set here differs from `cache`."""


def _type(kind: str, kinds: Iterable[str], default: Any, description: str) -> Any:
    # One kind's own check would know of itself only; a person who misspells a kind wants to see all of them.
    return Annotated[str, among(*kinds)], Field(default, description=description, json_schema_extra={"const": kind})


def _kind(kinds: Mapping[str, Any], unset: str, unknown: str) -> Callable[[Any], str]:
    def choose(value: Any) -> str:
        if not isinstance(value, dict):
            return f"<{value.type}>" if isinstance(value, (Cache, Calibrator)) else unset
        kind = f"<{value['type']}>" if "type" in value else unset
        return kind if kind in kinds else unknown

    return choose


_CACHE_KINDS: dict[str, type[Cache]] = {
    f"<{kind}>": derive(
        kind,
        Cache,
        config,
        _type(
            kind,
            (*_CACHES, "none"),
            "DBCache" if kind == "DBCache" else ...,
            "`DBCache` decides for all middle blocks at once, `DBPrune` for each block, `none` caches nothing.",
        ),
    )
    for kind, config in (*_CACHES.items(), ("none", None))
}
_CALIBRATOR_KINDS: dict[str, type[Calibrator]] = {
    f"<{kind}>": derive(
        kind,
        Calibrator,
        config,
        _type(
            kind,
            _CALIBRATORS,
            ...,
            "`hold` repeats the last computed change, `taylorseer` continues the last few as a Taylor series, `auto` "
            "takes whichever was best so far at that distance.",
        ),
    )
    for kind, config in _CALIBRATORS.items()
}
# What a wrong or missing type is checked as: the kind that has all fields.
_A_CACHE = OneOf(_CACHE_KINDS, _kind(_CACHE_KINDS, unset="<DBCache>", unknown="<DBPrune>"))
_A_CALIBRATOR = OneOf(_CALIBRATOR_KINDS, _kind(_CALIBRATOR_KINDS, unset="<taylorseer>", unknown="<taylorseer>"))
_PARAMS = derive("Params", Params, DBPruneConfig)

KINDS: dict[str, type[Section]] = {**_CACHE_KINDS, **_CALIBRATOR_KINDS, "<params>": _PARAMS, "<mask>": Mask}
"""The sections that stand behind the names in pointed brackets."""


def _path_kind(value: Any) -> str:
    return "<list>" if isinstance(value, list) else "<text>"


def _is_version(value: int) -> int:
    if value != VERSION:
        raise ValueError(f"this cachedit reads version {VERSION} of the recipe format, not {value}")
    return value


def _differ(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("a seed is given twice, which draws the same picture twice")
    return seeds


PROMPT_FILES = (".txt", ".csv", ".jsonl")
"""How the names of files of prompts end."""


def _is_prompts(value: str) -> str:
    if not value.lower().endswith(PROMPT_FILES):
        raise ValueError(
            f"{value!r} is neither a list nor a file that ends in {', '.join(PROMPT_FILES)} (one prompt is `prompt`)"
        )
    return value


_A_FILE = AfterValidator(_is_prompts)
_Text = Annotated[str, Field(min_length=1)]
_Count = Annotated[int, Field(ge=1)]
_Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
_Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Name = Annotated[
    str,
    matching(re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"), "a name of at most 64 letters, digits and -_."),
]
_Path = Annotated[
    str,
    matching(
        re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)+"),
        "of the form component.list, such as 'transformer.transformer_blocks'",
    ),
]


_Files = Annotated[
    str | list[str], OneOf({"<text>": _Text, "<list>": Annotated[list[_Text], Field(min_length=1)]}, _path_kind)
]


class Blocks(Section):
    """A list of blocks (or several, decided as one) whose streams match a forward pattern."""

    path: Annotated[
        str | list[str], OneOf({"<text>": _Path, "<list>": Annotated[list[_Path], Field(min_length=1)]}, _path_kind)
    ] = Field(
        description="Where the blocks are, as `component.list`; several paths are joined and decided as one list."
    )
    pattern: Annotated[int, Field(ge=0, le=5)] = Field(
        description="Forward pattern, by what a block takes -> returns (h: hidden states, e: encoder hidden states): "
        "0: h, e -> h, e; 1: h, e -> e, h; 2: h, e -> h; 3: h -> h; 4: h -> h, e; 5: h -> e, h."
    )
    params: Annotated[Params, OneOf({"<params>": _PARAMS}, lambda value: "<params>")] | None = Field(
        default=None,
        description="Cache settings for these blocks, any of the fields of `cache`; the rest is as in `cache`.",
    )
    calibrator: Annotated[Calibrator, _A_CALIBRATOR] | None = Field(
        default=None,
        description="Calibrator for these blocks; of the same type, what is left out is as in `calibrator`.",
    )

    def paths(self) -> tuple[str, ...]:
        """Return the paths, also if it is one."""
        return (self.path,) if isinstance(self.path, str) else tuple(self.path)


class Generate(Section):
    """What is drawn, and with which arguments of the pipeline."""

    prompt: str | None = Field(default=None, description="What to draw.")
    prompts: (
        Annotated[
            str | list[str],
            OneOf(
                {"<text>": Annotated[str, _A_FILE], "<list>": Annotated[list[str], Field(min_length=1)]},
                _path_kind,
            ),
        ]
        | None
    ) = Field(
        default=None,
        description="Several prompts instead of `prompt`, each with images of its own: a list, or a file, relative to "
        "where you are: `.txt` with a prompt a line, `.csv` with a first line that names the columns, or `.jsonl` with "
        "an object a line. Columns and keys are `prompt` and, for settings of its own, `negative_prompt`, `seed`, "
        "`num_inference_steps`, `guidance_scale`, `true_cfg_scale`, `height` and `width`.",
    )
    negative_prompt: str | None = Field(default=None, description="What not to draw, for models with real guidance.")
    num_inference_steps: _Steps | None = Field(
        default=None, description="Denoising steps; unset is the pipeline's default."
    )
    guidance_scale: _Finite | None = Field(default=None, description="Guidance; unset is the pipeline's default.")
    true_cfg_scale: _Finite | None = Field(
        default=None, description="Real guidance (a second forward a step) of guidance-distilled models such as FLUX."
    )
    height: _Count | None = Field(default=None, description="Pixels; unset is the model's default.")
    width: _Count | None = Field(default=None, description="Pixels; unset is the model's default.")
    max_sequence_length: _Count | None = Field(
        default=None, description="Text tokens; unset is the pipeline's default."
    )
    seed: _Seed = Field(
        default=0,
        description="Seed of the first image of each prompt; the next has the next number. Each image's noise is drawn "
        "on the CPU by a generator of its own: a seed is the same noise on every device and in every batch.",
    )
    seeds: Annotated[list[_Seed], Field(min_length=1), AfterValidator(_differ)] | None = Field(
        default=None, description="The seeds of each prompt's images, instead of `seed` and `num_images`."
    )
    num_images: Annotated[int, Field(ge=1, le=10_000)] = Field(default=1, description="Images of each prompt.")
    batch_size: _Count = Field(
        default=1,
        description="Images drawn at once; changes memory and speed, never a seed. One where there are inputs.",
    )
    image: _Files | None = Field(
        default=None,
        description="Picture to start from, to edit, or to begin a video with, as a path relative to where you are; a "
        "list where the pipeline takes several.",
    )
    mask: _Files | None = Field(
        default=None,
        description="Picture that is white where `image` is drawn anew; frames where the pipeline takes them.",
    )
    control_image: _Files | None = Field(default=None, description="Picture that guides a ControlNet, such as edges.")
    last_image: _Text | None = Field(default=None, description="Picture that a video ends with.")
    video: _Text | None = Field(
        default=None,
        description="Video to start from: a folder of frames, an animated GIF or WebP, or a film (extra `video`).",
    )
    inputs: dict[str, _Files] = Field(
        default_factory=dict,
        description="Pictures and videos for further arguments of the pipeline's call, such as `ip_adapter_image` or "
        "`pose_video`, by path.",
    )
    strength: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="How much of `image` or `video` is drawn anew; below 1, that share of the steps is done.",
    )
    extra: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of the pipeline's call, passed on as they are."
    )

    def all_prompts(self) -> tuple[str | None, ...]:
        """Return the prompts that stand here, none if a file has them; a single None for a pipeline that takes none."""
        if isinstance(self.prompts, str):
            return ()
        return tuple(self.prompts) if self.prompts is not None else (self.prompt,)

    @property
    def prompted(self) -> bool:
        """Whether there is a prompt."""
        return self.prompt is not None or self.prompts is not None

    def all_seeds(self, own: int | None = None) -> Sequence[int]:
        """Return the seeds of each prompt's images; those of a prompt with its ``own`` begin there."""
        if self.seeds is not None:
            return self.seeds if own is None else (own,)
        first = self.seed if own is None else own
        return range(first, first + self.num_images)


class PromptLine(Section):
    """What a line of a file of prompts says; what it leaves out is as in the recipe."""

    prompt: _Text
    negative_prompt: str | None = None
    seed: _Seed | None = None
    num_inference_steps: _Steps | None = None
    guidance_scale: _Finite | None = None
    true_cfg_scale: _Finite | None = None
    height: _Count | None = None
    width: _Count | None = None

    @property
    def overrides(self) -> dict[str, Any]:
        """Return the arguments of the pipeline's call that it sets, besides prompt and seed."""
        given = self.model_dump(exclude_none=True)
        return {name: value for name, value in given.items() if name not in ("prompt", "seed")}


class Output(Section):
    """Where the pictures, videos and sounds go, and how they are written."""

    dir: _Text = Field(
        default="outputs", description="Folder in which each run makes its own; relative to where you are."
    )
    type: Literal["media", "latent"] = Field(
        default="media",
        description="`media` is what the pipeline makes, `latent` the latents that would be decoded into it.",
    )
    format: Literal["png", "jpeg", "webp", "mp4", "wav", "safetensors"] | None = Field(
        default=None,
        description="Pictures: `png` (if unset), `jpeg`, `webp`. Video: `mp4` (if unset; extra `video`), or animated "
        "`webp`, which is what is written without the extra. Sound: `wav`. Latents: `safetensors`.",
    )
    quality: Annotated[int, Field(ge=1, le=100)] | None = Field(
        default=None,
        description="Of `jpeg`, `webp` (100 is without loss) and `mp4`, from 1 to 100; unset is 90, for `mp4` 65 "
        "(CRF 18).",
    )
    fps: Annotated[float, Field(gt=0, le=240)] | None = Field(
        default=None,
        description="Frames of a video that are shown a second; unset is the `frame_rate` or `fps` of the pipeline's "
        "call, and else 16.",
    )


class Recipe(Section):
    """What to run: a model, what to cache of it, and what to draw."""

    version: Annotated[int, AfterValidator(_is_version), Field(json_schema_extra={"const": VERSION})] = Field(
        description="Version of the recipe format: 1."
    )
    name: _Name = Field(description="Name of the recipe and of its runs' folders; unset is the name of the file.")
    description: str | None = Field(default=None, description="What the recipe is for, in a line.")
    model: Model = Field(description="Which model, and how it is loaded.")
    adapter: _Text | None = Field(
        None,
        description="A registered model adapter (`cachedit models` lists them), which knows the blocks, or `auto`; "
        "unset without `blocks` is `auto`.",
    )
    blocks: Annotated[list[Blocks], Field(min_length=1)] = Field(
        default_factory=list, description="The lists of blocks, spelled out instead of `adapter`."
    )
    patch_functor: _Text | None = Field(
        None,
        description="A registered PatchFunctor that makes the model fit before `blocks` are wrapped, by name; a plugin "
        "registers it.",
    )
    cache: Annotated[Cache, _A_CACHE] = Field(
        default_factory=_CACHE_KINDS["<DBCache>"], description="What is reused, and when."
    )
    calibrator: Annotated[Calibrator, _A_CALIBRATOR] | None = Field(
        default=None, description="How that which is reused is forecast; unset is `hold`."
    )
    generate: Generate = Field(description="What is drawn, and with which arguments of the pipeline.")
    output: Output = Field(default_factory=Output, description="Where what is made goes, and how it is written.")

    def cache_config(self, steps: int | None, defaults: CacheConfig | None = None) -> AnyCacheConfig | None:
        """Return the engine's settings, or None for type `none`; bins of a mask are laid out over ``steps``.

        Unset fields are those of ``defaults``, an adapter's overrides, and then the engine's own.
        """
        config = _CACHES.get(self.cache.type)
        if config is None:
            return None
        return dataclasses.replace(merge(config(), defaults), **settings_of(self.cache, steps))

    def calibrator_config(self) -> CalibratorConfig | None:
        """Return the engine's calibrator settings, or None if the recipe says nothing of them."""
        if self.calibrator is None:
            return None
        return _CALIBRATORS[self.calibrator.type](**settings_of(self.calibrator, None))

    def modifiers(self, steps: int | None = None) -> list[tuple[AnyCacheConfig | None, CalibratorConfig | None]]:
        """Return for each entry of `blocks` what it overrides: settings that it does not set are None.

        A calibrator of another type than the shared one has nothing to override, so it is complete.
        """
        return [(self._override(blocks.params, steps), self._calibrator(blocks.calibrator)) for blocks in self.blocks]

    def resolved(self) -> dict[str, Any]:
        """Return all that is set as plain data: the one-file recipe which means the same."""
        return self.model_dump(exclude_unset=True)

    def _override(self, params: Params | None, steps: int | None) -> AnyCacheConfig | None:
        config = _CACHES.get(self.cache.type)
        return config.reset(**settings_of(params, steps)) if config and params else None

    def _calibrator(self, own: Calibrator | None) -> CalibratorConfig | None:
        if own is None:
            return None
        config, given = _CALIBRATORS[own.type], settings_of(own, None)
        shared = self.calibrator.type if self.calibrator else CalibratorConfig.kind
        return config.reset(**given) if own.type == shared else config(**given)
