"""FLUX and its relatives: packed latents (batch, tokens, channels), position ids, mostly two block lists."""

from __future__ import annotations

from typing import Any

import torch

from .parts import TINY, Inputs, add, ids, latent, noise, text, timestep


def _packed(
    step: int,
    batch: int,
    branch: str,
    channels: int,
    text_dim: int,
    tokens: tuple[int, int] = (4, 4),
    text_len: int = 6,
) -> Inputs:
    height, width = tokens
    image_ids = torch.cat([torch.zeros(height * width, 1), ids(height, width)], dim=1)
    return {
        "hidden_states": latent(step, (batch, height * width, channels)),
        "encoder_hidden_states": text(batch, text_len, text_dim, branch),
        "timestep": timestep(step, batch, 1.0),
        "img_ids": image_ids,
        "txt_ids": torch.zeros(text_len, 3),
    }


def _flux(step: int, batch: int, branch: str) -> Inputs:
    return _packed(step, batch, branch, 4, 32) | {
        "pooled_projections": noise((batch, 32), "pooled", branch),
        "guidance": torch.full((batch,), 3.5),
    }


_FLUX_CONFIG = {
    "patch_size": 1,
    "in_channels": 4,
    "num_layers": 4,
    "num_single_layers": 4,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 4, 8),
}
add("flux", "FluxTransformer2DModel", _FLUX_CONFIG, _flux)


def _flux_kontext(step: int, batch: int, branch: str) -> Inputs:
    kwargs = _flux(step, batch, branch)
    reference = kwargs["img_ids"].clone()
    reference[:, 0] = 1
    kwargs["hidden_states"] = torch.cat([kwargs["hidden_states"], noise((batch, 16, 4), "reference")], dim=1)
    kwargs["img_ids"] = torch.cat([kwargs["img_ids"], reference])
    return kwargs


add(
    "flux_kontext",
    "FluxTransformer2DModel",
    _FLUX_CONFIG,
    _flux_kontext,
    note="Reference-image tokens follow the noisy ones in hidden_states and do not change over steps.",
)


def _flux_controlnet(step: int, batch: int, branch: str) -> Inputs:
    return _flux(step, batch, branch) | {
        "controlnet_block_samples": [0.5 * noise((batch, 16, 32), "control", i) for i in range(2)],
        "controlnet_single_block_samples": [0.5 * noise((batch, 16, 32), "control-single", i) for i in range(2)],
    }


add(
    "flux_controlnet",
    "FluxTransformer2DModel",
    _FLUX_CONFIG,
    _flux_controlnet,
    note="ControlNet residuals are added to hidden_states between blocks, chosen by block index.",
)


def _flux2(step: int, batch: int, branch: str) -> Inputs:
    text_ids = ids(1, 1, 1, 6)
    return {
        "hidden_states": latent(step, (batch, 16, 4)),
        "encoder_hidden_states": text(batch, 6, 32, branch),
        "timestep": timestep(step, batch, 1.0),
        "img_ids": ids(1, 4, 4, 1).unsqueeze(0).expand(batch, -1, -1),
        "txt_ids": text_ids.unsqueeze(0).expand(batch, -1, -1),
        "guidance": torch.full((batch,), 4.0),
    }


add(
    "flux2",
    "Flux2Transformer2DModel",
    {
        "patch_size": 1,
        "in_channels": 4,
        "num_layers": 4,
        "num_single_layers": 4,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "timestep_guidance_channels": 32,
        "axes_dims_rope": (4, 4, 4, 4),
    },
    _flux2,
    note="Single blocks see text and image as one sequence; encoder_hidden_states=None is passed by keyword.",
)


def _flux3(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 16, 4)),
        "encoder_hidden_states": text(batch, 6, 32, branch),
        "timestep": timestep(step, batch, 1.0),
        "img_ids": ids(1, 4, 4, 1),
        "txt_ids": ids(1, 1, 1, 6),
    }


add(
    "flux3",
    "Flux3Transformer2DModel",
    {
        "in_channels": 4,
        "cond_in_channels": 4,
        "num_layers": 4,
        "num_single_layers": 4,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "timestep_channels": 32,
        "axes_dims_rope": (4, 4, 4, 4),
    },
    _flux3,
    note="The image stream first passes through mode_blocks['image'], a ModuleList inside a ModuleDict.",
)


def _chroma(step: int, batch: int, branch: str) -> Inputs:
    return _packed(step, batch, branch, 4, 32)


add(
    "chroma",
    "ChromaTransformer2DModel",
    {
        "patch_size": 1,
        "in_channels": 4,
        "num_layers": 4,
        "num_single_layers": 4,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "axes_dims_rope": (4, 4, 8),
        "approximator_num_channels": 8,
        "approximator_hidden_dim": 16,
        "approximator_layers": 1,
    },
    _chroma,
    note="temb is cut out of one modulation table by block index.",
)
add(
    "ovis_image",
    "OvisImageTransformer2DModel",
    {
        "patch_size": 1,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 4,
        "num_single_layers": 4,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "axes_dims_rope": (4, 4, 8),
    },
    lambda step, batch, branch: _packed(step, batch, branch, 4, 32),
)
add(
    "longcat_image",
    "LongCatImageTransformer2DModel",
    {
        "patch_size": 1,
        "in_channels": 4,
        "num_layers": 4,
        "num_single_layers": 4,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 4, 8),
    },
    lambda step, batch, branch: _packed(step, batch, branch, 4, 32),
)
add(
    "bria",
    "BriaTransformer2DModel",
    {
        "patch_size": 1,
        "in_channels": 4,
        "num_layers": 4,
        "num_single_layers": 4,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": None,
        "axes_dims_rope": [0, 4, 4],
    },
    lambda step, batch, branch: _packed(step, batch, branch, 4, 32) | {"timestep": timestep(step, batch)},
)


def _bria_fibo(step: int, batch: int, branch: str) -> Inputs:
    kwargs = _packed(step, batch, branch, 4, 32)
    kwargs["timestep"] = timestep(step, batch)
    kwargs["text_encoder_layers"] = [text(batch, 6, 16, branch, f"layer{i}") for i in range(8)]
    return kwargs


add(
    "bria_fibo",
    "BriaFiboTransformer2DModel",
    {
        "patch_size": 1,
        "in_channels": 4,
        "num_layers": 4,
        "num_single_layers": 4,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "text_encoder_dim": 16,
        "pooled_projection_dim": None,
        "axes_dims_rope": [0, 4, 4],
    },
    _bria_fibo,
    note="Half of the text channels is replaced by another text-encoder layer before every block.",
)


def _bria_fibo2(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 4, 8, 8)),
        "timestep": timestep(step, batch, 1.0),
        "encoder_hidden_states": noise((batch, 3, 6, 16), "bundles", branch),
    }


add(
    "bria_fibo2",
    "BriaFibo2Transformer2DModel",
    {
        "in_channels": 4,
        "patch_size": 2,
        "dim": 32,
        "n_layers": 6,
        "n_refiner_layers": 2,
        "n_heads": 2,
        "cap_feat_dim": 16,
        "injection_layer_ids": (1, 4),
        "perceiver_num_layers": 1,
        "min_num_gist_tokens": 4,
        "max_num_gist_tokens": 8,
        "gist_step": 4,
        "gist_min_text_len": 4,
        "gist_max_text_len": 32,
        "axes_dims": (4, 6, 6),
        "axes_lens": (64, 32, 32),
    },
    _bria_fibo2,
    note="The text given to a layer depends on its index (None for most layers).",
)


def _flux2_kv(step: int, batch: int, branch: str) -> Inputs:
    from diffusers.models.transformers.transformer_flux2 import Flux2KVCache

    cache = Flux2KVCache(4, 4)
    for index, layer in enumerate(cache.double_block_caches + cache.single_block_caches):
        layer.store(noise((batch, 5, 2, 16), "key", index), noise((batch, 5, 2, 16), "value", index))
    cache.num_ref_tokens = 5
    return _flux2(step, batch, branch) | {"kv_cache": cache, "kv_cache_mode": "cached"}


def _set_flux2_kv_processors(model: Any) -> None:
    from diffusers.models.transformers.transformer_flux2 import Flux2KVAttnProcessor, Flux2KVParallelSelfAttnProcessor

    for block in model.transformer_blocks:
        block.attn.set_processor(Flux2KVAttnProcessor())
    for block in model.single_transformer_blocks:
        block.attn.set_processor(Flux2KVParallelSelfAttnProcessor())


add(
    "flux2_kv",
    "Flux2Transformer2DModel",
    TINY["flux2"].config,
    _flux2_kv,
    prepare=_set_flux2_kv_processors,
    note="The loop puts another key-value cache into the attention kwargs before every block.",
    needs="0.38",
)
