"""`model.device`, `device_map` and `offload`: where weights are, through diffusers' and accelerate's own means.

Offloading is meant for an accelerator. With `model.device: cpu` it runs all the same, from main memory to main memory:
that saves nothing, but shows that a recipe works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    import torch

    from ..recipe_options import Model, Offload

__all__ = ["check", "place"]


def check(model: Model, device: torch.device) -> None:
    """Refuse to spread or offload parts where there is nothing to spread them over or offload them from.

    Args:
        model: What the recipe asks for.
        device: What `model.device` is here.
    """
    options, places = model.offload, model.device_map
    if places is not None and places != "cpu" and device.type == "cpu":
        raise InputError(f"model.device_map: there is no accelerator here, which {places} needs (leave it out)")
    if options is None or options.type == "none":
        return
    if device.type == "cpu" and model.device == "auto":
        raise InputError(
            "model.offload: there is no accelerator here to offload from (leave it out; with model.device: cpu it is "
            "tried out in main memory)"
        )
    if options.streams and device.type != "cuda":
        raise InputError(f"model.offload.streams: {device.type} has no streams, CUDA has (leave it out)")


def place(pipe: Any, options: Offload | None, device: torch.device) -> None:
    """Move a pipeline to the device, or arrange that each part comes there when it is called.

    Raises:
        InputError: The pipeline cannot be offloaded this way.
    """
    import torch

    kind = "none" if options is None else options.type
    try:
        match kind:
            case "model":
                pipe.enable_model_cpu_offload(device=device)
            case "sequential" if device.type == "cpu":
                _sequentially_on_cpu(pipe, device)
            case "sequential":
                pipe.enable_sequential_cpu_offload(device=device)
            case "group":
                assert options is not None
                level = options.level or "block_level"
                pipe.enable_group_offload(
                    onload_device=device,
                    offload_device=torch.device("cpu"),
                    offload_type=level,
                    num_blocks_per_group=(options.blocks_per_group or 1) if level == "block_level" else None,
                    use_stream=options.streams,
                )
            case _:
                pipe.to(device)
    except (ValueError, ImportError, NotImplementedError) as error:
        raise InputError(f"model.offload: {type(pipe).__name__}: {error}") from error


def _sequentially_on_cpu(pipe: Any, device: torch.device) -> None:
    """Do what diffusers does on other devices; it would ask for `cpu:0`, of which accelerate makes no parameters."""
    from accelerate import cpu_offload
    from torch import nn

    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            cpu_offload(part, device, offload_buffers=len(part._parameters) > 0)
