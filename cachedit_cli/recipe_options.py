"""The `model` section of a recipe: which model, and what is done to it between loading and the first picture.

Knows each option, what a valid value is and what it means; `cachedit_cli/options` knows how each is carried out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .recipe_fields import ForAll, Section, Short, matching

__all__ = [
    "TRANSFORMERS",
    "Compile",
    "ControlNet",
    "IpAdapter",
    "Lora",
    "Model",
    "Offload",
    "Parallel",
    "Quantize",
    "QuantizeType",
    "Scheduler",
    "Vae",
    "clashes",
    "uncacheable",
]

TRANSFORMERS = "transformers"  # stands for all transformers of a pipeline

_Text = Annotated[str, Field(min_length=1)]
_Count = Annotated[int, Field(ge=1)]
_Scale = Annotated[float, Field(allow_inf_nan=False)]
_Format = Literal["float32", "bfloat16", "float16"]
_Word = Annotated[
    str, matching(re.compile(r"[A-Za-z0-9_]{1,64}"), "a name of at most 64 letters, digits and underscores")
]
_Device = Annotated[str, matching(re.compile(r"[a-z]+(:[0-9]+)?"), "a device (auto, cpu, cuda, cuda:1, mps)")]


class Offload(Section):
    """Where weights wait that are not in use. Blocks that are reused are not fetched."""

    type: Literal["none", "model", "sequential", "group"] = Field(
        description="`model` keeps one part of the pipeline on the device at a time, `group` some blocks, "
        "`sequential` one layer; everything else waits in main memory."
    )
    level: Literal["block_level", "leaf_level"] | None = Field(
        default=None, description="What a group is: blocks (the default) or single layers. Only of `group`."
    )
    blocks_per_group: _Count | None = Field(
        default=None, description="Blocks that are moved together, 1 if unset. Only of `group` by `block_level`."
    )
    streams: bool = Field(
        default=False,
        description="Fetch the next group while one computes, on a CUDA stream; takes more main memory. Only of "
        "`group`.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Offload:
        if self.type != "group":
            for key in ("level", "blocks_per_group", "streams"):
                if getattr(self, key):
                    raise ValueError(f"{key} goes with the type group, not {self.type}")
        if self.level == "leaf_level" and self.blocks_per_group is not None:
            raise ValueError("blocks_per_group goes with block_level; of leaf_level, each layer is a group")
        if self.streams and (self.blocks_per_group or 1) > 1:
            raise ValueError("streams move one block at a time: leave blocks_per_group out")
        return self


class Vae(Section):
    """How the VAE makes pictures of latents, where memory is short."""

    tiling: bool = Field(default=False, description="Decode in overlapping tiles; large pictures change a little.")
    slicing: bool = Field(default=False, description="Decode the pictures of a batch one by one.")


class Compile(Section):
    """What torch.compile translates; the first steps take longer."""

    type: Literal["none", "blocks", "full"] = Field(
        description="`blocks` compiles each block, inside of what caches it, so that computing and reusing share the "
        "compiled code; `full` compiles the whole transformer, in which nothing can be cached (`cache.type: none`)."
    )
    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = Field(
        default=None,
        description="torch.compile's mode. Those that record CUDA graphs (`reduce-overhead`, `max-autotune`) cannot be "
        "cached: a replay overwrites what a cache keeps.",
    )
    dynamic: bool | None = Field(
        default=None,
        description="Compile for all sizes at once; unset compiles for the first size, and for all at the second.",
    )
    fullgraph: bool = Field(default=False, description="Fail where a block cannot be compiled as one graph.")
    backend: _Text | None = Field(default=None, description="torch.compile's backend; unset is inductor.")

    @model_validator(mode="after")
    def _fits(self) -> Compile:
        if self.mode is not None and self.backend not in (None, "inductor"):
            raise ValueError(f"mode is inductor's, and goes with no other backend such as {self.backend}")
        return self


QuantizeType = Literal["float8", "float8-weights", "int8", "int8-weights", "int4-weights", "bnb-8bit", "bnb-4bit"]


class Quantize(Section):
    """In which numbers a part's linear layers are held, and computed."""

    type: QuantizeType = Field(
        description="By torchao: `float8` and `int8` multiply in that format, `float8-weights`, `int8-weights` and "
        "`int4-weights` only hold weights in it; by bitsandbytes: `bnb-8bit`, `bnb-4bit`."
    )
    skip: list[_Text] = Field(
        default_factory=list, description="Layers that stay as they are, by names or parts of names."
    )


class Scheduler(Section):
    """The sampler, made from the configuration of the model's own."""

    type: _Text | None = Field(default=None, description="Class of diffusers; unset is that of the model.")
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="Arguments of the class that differ from the model's configuration."
    )


class Lora(Section):
    """A low-rank change of the weights."""

    id: _Text = Field(description="Hub id, local folder, or a .safetensors file.")
    weight_name: _Text | None = Field(default=None, description="The file in the folder or repository.")
    scale: _Scale = Field(default=1.0, description="How much of it is added.")
    name: _Word | None = Field(default=None, description="What to call it; unset is `lora_0`, `lora_1`, ...")
    fuse: bool = Field(
        default=False, description="Add it to the weights once, which saves time at each step; not on quantised ones."
    )


class ControlNet(Section):
    """A network that follows a control image, which `generate` gives."""

    id: _Text = Field(description="Hub id or local folder.")
    subfolder: _Text | None = Field(default=None, description="Folder in it.")
    revision: _Text | None = Field(default=None, description="Branch, tag or commit of a hub model.")
    variant: _Text | None = Field(default=None, description="Variant of the weight files, such as `fp16`.")


class IpAdapter(Section):
    """Layers that take a picture as a prompt, which `generate` gives."""

    id: _Text = Field(description="Hub id, local folder, or a .safetensors file.")
    weight_name: _Text | None = Field(default=None, description="The file in the folder or repository.")
    image_encoder: _Text | None = Field(
        default=None,
        description="Hub id or folder of the CLIP vision model that reads the picture, for pipelines that do not bring "
        "one.",
    )
    scale: _Scale = Field(default=1.0, description="How much the picture counts.")


class Parallel(Section):
    """How the processes that torchrun starts share each picture; their number is the product."""

    ulysses: _Count = Field(default=1, description="Processes that exchange tokens for attention heads.")
    ring: _Count = Field(
        default=1, description="Processes that hand keys and values round; needs an `attention` such as `flash`."
    )

    @property
    def processes(self) -> int:
        """How many share a picture."""
        return self.ulysses * self.ring

    @model_validator(mode="after")
    def _several(self) -> Parallel:
        if self.processes == 1:
            raise ValueError("one process shares nothing; set ulysses or ring to the number of devices")
        return self


class Model(Section):
    """Which model, and how it is loaded."""

    id: _Text = Field(
        description="Hub id (`owner/name`), local folder of a pipeline, a file of a transformer's weights with "
        "`config`, or `demo`: the bundled model."
    )
    config: _Text | None = Field(
        default=None,
        description="Pipeline (hub id, folder or `demo`) whose transformer a file replaces.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Number format of the weights; `auto` is bfloat16 on CUDA and float32 elsewhere."
    )
    device: _Device = Field(
        default="auto", description="`cpu`, `cuda`, `cuda:1` or `mps`; `auto` takes the first of CUDA, MPS, CPU."
    )
    pipeline: _Text | None = Field(
        default=None, description="Class of the diffusers pipeline, if not the one the model names."
    )
    revision: _Text | None = Field(default=None, description="Branch, tag or commit of a hub model.")
    variant: _Text | None = Field(default=None, description="Variant of the weight files, such as `fp16`.")
    component_dtypes: dict[str, _Format] = Field(
        default_factory=dict, description="Other formats for single parts, such as `{vae: float32}`."
    )
    device_map: Literal["balanced", "cuda", "cpu"] | None = Field(
        default=None,
        description="Instead of `device`, spread the parts over all accelerators (`balanced`), or load them there.",
    )
    quantize: Annotated[dict[str, Annotated[Quantize, Short("type")]], ForAll(TRANSFORMERS)] = Field(
        default_factory=dict,
        description="Formats of the linear layers: one for the transformers, or one for each part that is named; "
        "`transformers` is all of them.",
    )
    offload: Annotated[Offload, Short("type")] | None = Field(
        default=None, description="Where weights wait that are not in use; unset keeps all on the device."
    )
    vae: Vae | None = Field(default=None, description="How the VAE decodes, where memory is short.")
    scheduler: Annotated[Scheduler, Short("type")] | None = Field(
        default=None, description="Another sampler than the model's, or other arguments of it."
    )
    attention: _Text | None = Field(
        default=None,
        description="Kernel of the attention layers, by diffusers' name, such as `native`, `flash`, `sage`, "
        "`sage_hub`, `xformers`; `cachedit doctor` lists which work here.",
    )
    compile: Annotated[Compile, Short("type")] | None = Field(
        default=None, description="What torch.compile translates; unset is nothing."
    )
    lora: list[Lora] = Field(default_factory=list, description="Low-rank changes of the weights, added up.")
    controlnet: Annotated[ControlNet, Short("id")] | None = Field(
        default=None,
        description="A network that follows a control image. The pipeline is the model's with ControlNet, such as "
        "FluxControlNetPipeline of FluxPipeline.",
    )
    ip_adapter: IpAdapter | None = Field(default=None, description="Layers that take a picture as a prompt.")
    parallel: Parallel | None = Field(
        default=None, description="How several processes share each picture; unset draws it in one."
    )

    def options(self) -> dict[str, Any]:
        """Return what is set besides the model itself, its device and its number format, as plain data."""
        plain = self.model_dump(exclude_unset=True)
        own = ("id", "config", "dtype", "device", "pipeline", "revision", "variant")
        return {name: value for name, value in plain.items() if name not in own and value not in (None, {}, [])}


def clashes(model: Model) -> Iterator[tuple[str, str]]:
    """Yield which options do not go with others, by key, and why."""
    if model.device_map is not None:
        if model.offload is not None and model.offload.type != "none":
            yield "device_map", "places the parts for good, and offload moves them (keep one of them)"
        if model.device != "auto":
            yield "device_map", f"cannot be combined with device {model.device} (keep one of them)"
    for index, lora in enumerate(model.lora):
        if lora.fuse and model.quantize:
            yield f"lora.{index}.fuse", "changes weights, which quantize has rounded by then (leave fuse out)"


def uncacheable(model: Model, kind: str, back_blocks: bool) -> Iterator[tuple[str, str]]:
    """Yield which options cannot be used while blocks are cached, by key, and why.

    Args:
        model: The options.
        kind: The type of the cache; not `none`.
        back_blocks: Blocks behind reused ones are computed.
    """
    compiling, offload = model.compile, model.offload
    if compiling is not None and compiling.type == "full":
        yield "compile", "full makes one graph of the transformer, in which nothing can be reused (write blocks)"
    if compiling is not None and compiling.mode in ("reduce-overhead", "max-autotune"):
        yield (
            "compile.mode",
            (
                f"{compiling.mode} records CUDA graphs, whose replays overwrite what the cache keeps "
                "(write max-autotune-no-cudagraphs, or cache.type: none)"
            ),
        )
    if offload is not None and (offload.blocks_per_group or 1) > 1 and (kind == "DBPrune" or back_blocks):
        reason = "DBPrune reuses single blocks" if kind == "DBPrune" else "Bn_compute_blocks computes some behind them"
        yield (
            "offload.blocks_per_group",
            (f"the first block of a group fetches it, which a reused one does not do, and {reason} (write 1)"),
        )
