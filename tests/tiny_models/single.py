"""Image models whose text goes into cross-attention, and priors."""

from __future__ import annotations

import torch

from .parts import Inputs, add, latent, noise, text, timestep


def _pixart(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 4, 8, 8)),
        "encoder_hidden_states": text(batch, 6, 12, branch),
        "timestep": timestep(step, batch),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


add(
    "pixart",
    "PixArtTransformer2DModel",
    {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 4,
        "cross_attention_dim": 16,
        "sample_size": 8,
        "patch_size": 2,
        "caption_channels": 12,
        "use_additional_conditions": False,
    },
    _pixart,
)


def _dit(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 4, 8, 8)),
        "timestep": timestep(step, batch),
        "class_labels": torch.full((batch,), 3 if branch == "cond" else 8),
    }


add(
    "dit",
    "DiTTransformer2DModel",
    {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 4,
        "sample_size": 8,
        "patch_size": 2,
        "num_embeds_ada_norm": 8,
    },
    _dit,
    note="After the loop forward reads transformer_blocks[0].norm1.emb, so the list must keep its first block.",
)


def _sana(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 4, 8, 8)),
        "encoder_hidden_states": text(batch, 6, 12, branch),
        "timestep": timestep(step, batch),
    }


_SANA_CONFIG = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 4,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 8,
    "cross_attention_dim": 16,
    "caption_channels": 12,
    "sample_size": 8,
    "patch_size": 1,
}
add("sana", "SanaTransformer2DModel", _SANA_CONFIG, _sana)
add(
    "sana_sprint",
    "SanaTransformer2DModel",
    _SANA_CONFIG | {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"},
    lambda step, batch, branch: _sana(step, batch, branch) | {"guidance": torch.full((batch,), 0.45)},
)
add(
    "sana_controlnet",
    "SanaTransformer2DModel",
    _SANA_CONFIG,
    lambda step, batch, branch: (
        _sana(step, batch, branch)
        | {"controlnet_block_samples": tuple(0.5 * noise((batch, 64, 16), "control", i) for i in range(2))}
    ),
    note="Residuals are added after blocks 1..n, chosen by block index.",
)


def _hunyuan_dit(step: int, batch: int, branch: str) -> Inputs:
    angles = torch.outer(torch.arange(16.0), torch.linspace(1.0, 0.1, 4)).repeat_interleave(2, dim=1)
    return {
        "hidden_states": latent(step, (batch, 4, 8, 8)),
        "timestep": timestep(step, batch),
        "encoder_hidden_states": text(batch, 4, 8, branch),
        "text_embedding_mask": torch.ones(batch, 4),
        "encoder_hidden_states_t5": text(batch, 4, 8, branch, "t5"),
        "text_embedding_mask_t5": torch.ones(batch, 4),
        "image_meta_size": torch.tensor([[64.0, 64.0, 64.0, 64.0, 0.0, 0.0]] * batch),
        "style": torch.zeros(batch, dtype=torch.long),
        "image_rotary_emb": [angles.cos(), angles.sin()],
    }


add(
    "hunyuan_dit",
    "HunyuanDiT2DModel",
    {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "num_layers": 8,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "cross_attention_dim": 8,
        "cross_attention_dim_t5": 8,
        "pooled_projection_dim": 4,
        "hidden_size": 16,
        "text_len": 4,
        "text_len_t5": 4,
    },
    _hunyuan_dit,
    note="Long skip connections: outputs of the first half are handed to blocks of the second half.",
)


def _lumina(step: int, batch: int, branch: str) -> Inputs:
    angles = torch.outer(torch.arange(4.0), torch.linspace(1.0, 0.1, 2))
    grid = torch.cat([angles[:, None, :].expand(4, 4, 2), angles[None, :, :].expand(4, 4, 2)], dim=-1)
    return {
        "hidden_states": latent(step, (batch, 4, 8, 8)),
        "timestep": timestep(step, batch, 1.0),
        "encoder_hidden_states": text(batch, 6, 16, branch),
        "encoder_mask": torch.ones(batch, 6),
        "image_rotary_emb": torch.polar(torch.ones(4, 4, 4), grid),
        "cross_attention_kwargs": {},
    }


add(
    "lumina",
    "LuminaNextDiT2DModel",
    {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "hidden_size": 24,
        "num_layers": 4,
        "num_attention_heads": 3,
        "num_kv_heads": 1,
        "multiple_of": 8,
        "learn_sigma": False,
        "cross_attention_dim": 16,
    },
    _lumina,
    note="encoder_hidden_states is the fourth positional argument of a layer and never changes.",
)


def _prx(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 4, 8, 8)),
        "timestep": timestep(step, batch, 1.0),
        "encoder_hidden_states": text(batch, 6, 16, branch),
    }


add(
    "prx",
    "PRXTransformer2DModel",
    {
        "in_channels": 4,
        "patch_size": 2,
        "context_in_dim": 16,
        "hidden_size": 32,
        "mlp_ratio": 2.0,
        "num_heads": 2,
        "depth": 4,
        "axes_dim": [8, 8],
    },
    _prx,
    note="encoder_hidden_states is given by keyword and never changes.",
)


def _prior(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 8)),
        "timestep": timestep(step, batch),
        "proj_embedding": noise((batch, 8), "proj", branch),
        "encoder_hidden_states": text(batch, 7, 8, branch),
    }


add(
    "prior",
    "PriorTransformer",
    {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 4,
        "embedding_dim": 8,
        "num_embeddings": 7,
        "additional_embeddings": 4,
    },
    _prior,
    note="Kandinsky and Shap-E priors; the pipeline attribute is prior.",
)
