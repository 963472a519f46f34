"""Files that change the bundled model, with random weights: a LoRA, a ControlNet, an IP-Adapter with its encoder."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FluxControlNetModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from cachedit_cli import demo
from cachedit_cli.models import locate

__all__ = ["controlnet", "drawn", "image_encoder", "ip_adapter", "lora"]


def drawn(module: nn.Module, std: float = 0.05) -> nn.Module:
    """Draw all weights, so that nothing begins at zero."""
    for index, weight in enumerate(module.parameters()):
        nn.init.normal_(weight, std=std, generator=torch.Generator().manual_seed(index))
    return module


def lora(file: Path, rank: int = 4, seed: int = 0) -> Path:
    """Write a LoRA of the queries and values of every block."""
    generator = torch.Generator().manual_seed(seed)
    tensors = dict[str, Tensor]()
    for name, shape in locate(demo.MODEL_ID).shapes("transformer").items():
        layer = name.removesuffix(".weight")
        if layer.endswith(("attn.to_q", "attn.to_v")) and len(shape) == 2:
            rows, columns = shape
            tensors[f"transformer.{layer}.lora_A.weight"] = torch.randn(rank, columns, generator=generator) * 0.1
            tensors[f"transformer.{layer}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) * 0.1
    save_file(tensors, file)
    return file


def controlnet(folder: Path, **config: int) -> Path:
    """Write a ControlNet of one block of each kind."""
    own = locate(demo.MODEL_ID).config("transformer")
    known = {key: value for key, value in own.items() if not key.startswith("_") and key != "out_channels"}
    settings = {**known, "num_layers": 1, "num_single_layers": 1, **config}
    network = FluxControlNetModel(**{key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()})
    drawn(network).save_pretrained(folder)  # type: ignore[operator]
    return folder


def image_encoder(folder: Path) -> Path:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "projection_dim": 8}
    config = CLIPVisionConfig(**sizes, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16)
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def ip_adapter(file: Path) -> Path:
    """Write keys and values for a picture of four tokens, for each of the joint blocks."""
    own = locate(demo.MODEL_ID).config("transformer")
    width, text = own["num_attention_heads"] * own["attention_head_dim"], own["joint_attention_dim"]
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "image_proj.proj.weight": torch.randn(4 * text, 8, generator=generator),
        "image_proj.proj.bias": torch.zeros(4 * text),
        "image_proj.norm.weight": torch.ones(text),
        "image_proj.norm.bias": torch.zeros(text),
    }
    for block in range(own["num_layers"]):
        for part in ("k", "v"):
            name = f"double_blocks.{block}.processor.ip_adapter_double_stream_{part}_proj"
            tensors[f"{name}.weight"] = torch.randn(width, text, generator=generator) * 0.2
            tensors[f"{name}.bias"] = torch.zeros(width)
    save_file(tensors, file)
    return file
