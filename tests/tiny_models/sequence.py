"""Image models that see text and image as one sequence."""

from __future__ import annotations

import torch

from .parts import TINY, Inputs, add, ids, latent, noise, text, timestep


def _qwen21(step: int, batch: int, branch: str) -> Inputs:
    slots = torch.zeros((batch, 10), dtype=torch.bool)
    slots[:, 6:] = True
    return {
        "hidden_states": latent(step, (batch, 16, 8)),
        "encoder_hidden_states": text(batch, 6, 16, branch),
        "timestep": timestep(step, batch, 1.0),
        "img_shapes": [[(1, 4, 4)]] * batch,
        "img_mask": slots,
    }


add(
    "qwen_image_21",
    "QwenImage21Transformer2DModel",
    {
        "patch_size": 1,
        "in_channels": 8,
        "out_channels": 8,
        "num_layers": 4,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "context_in_dim": 16,
        "mlp_ratio": 2,
        "axes_dims_rope": (4, 6, 6),
    },
    _qwen21,
    note="forward reads block.attn.processor of every member of the list before the loop.",
)


def _lumina2(step: int, batch: int, branch: str) -> Inputs:
    length = 6 if branch == "cond" else 4
    return {
        "hidden_states": latent(step, (batch, 4, 8, 8)),
        "timestep": timestep(step, batch, 1.0),
        "encoder_hidden_states": text(batch, length, 16, branch),
        "encoder_attention_mask": torch.ones((batch, length), dtype=torch.bool),
    }


add(
    "lumina2",
    "Lumina2Transformer2DModel",
    {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "hidden_size": 24,
        "num_layers": 4,
        "num_refiner_layers": 4,
        "num_attention_heads": 3,
        "num_kv_heads": 1,
        "multiple_of": 2,
        "axes_dim_rope": (4, 2, 2),
        "axes_lens": (64, 32, 32),
        "cap_feat_dim": 16,
    },
    _lumina2,
    note="Text and image are joined before layers, so the sequence length differs between branches.",
)


def _omnigen(step: int, batch: int, branch: str) -> Inputs:
    tokens = 6 + 1 + 16
    shift = 0 if branch == "cond" else 5
    return {
        "hidden_states": latent(step, (batch, 4, 8, 8)),
        "timestep": timestep(step, batch, 1.0),
        "input_ids": (torch.arange(6) + shift).expand(batch, -1),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": torch.ones(batch, tokens, tokens),
        "position_ids": torch.arange(tokens).expand(batch, -1),
    }


add(
    "omnigen",
    "OmniGenTransformer2DModel",
    {
        "in_channels": 4,
        "patch_size": 2,
        "hidden_size": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 32,
        "num_layers": 4,
        "pad_token_id": 0,
        "vocab_size": 32,
        "pos_embed_max_size": 8,
        "time_step_dim": 8,
        "rope_scaling": {"long_factor": [1, 2], "short_factor": [1, 2]},
    },
    _omnigen,
)


def _zimage(step: int, batch: int, branch: str) -> Inputs:
    length = 6 if branch == "cond" else 4
    return {
        "x": list(latent(step, (batch, 16, 1, 8, 8)).unbind(0)),
        "t": 1.0 - timestep(step, batch, 1.0),
        "cap_feats": list(text(batch, length, 16, branch).unbind(0)),
    }


_ZIMAGE_CONFIG = {
    "all_patch_size": (2,),
    "all_f_patch_size": (1,),
    "in_channels": 16,
    "dim": 32,
    "n_layers": 4,
    "n_refiner_layers": 4,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": 16,
    "axes_dims": [8, 4, 4],
    "axes_lens": [256, 32, 32],
}
add(
    "z_image",
    "ZImageTransformer2DModel",
    _ZIMAGE_CONFIG,
    _zimage,
    note="The carried state is called x; image and text are lists of tensors and are padded to multiples of 32.",
)
add(
    "z_image_controlnet",
    "ZImageTransformer2DModel",
    _ZIMAGE_CONFIG,
    lambda step, batch, branch: (
        _zimage(step, batch, branch)
        | {
            "controlnet_block_samples": {
                0: 0.5 * noise((batch, 64, 32), "control", 0),
                2: 0.5 * noise((batch, 64, 32), "control", 2),
            }
        }
    ),
    note="Residuals are added after the layers named by the keys of a dict.",
    needs="0.37",
)


def _ernie(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 4, 4, 4)),
        "timestep": timestep(step, batch),
        "text_bth": text(batch, 6, 16, branch),
        "text_lens": torch.full((batch,), 6),
    }


add(
    "ernie_image",
    "ErnieImageTransformer2DModel",
    {
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_layers": 4,
        "ffn_hidden_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "patch_size": 1,
        "text_in_dim": 16,
        "rope_axes_dim": (8, 4, 4),
    },
    _ernie,
    note="The carried state is called x and has shape (tokens, batch, dim).",
)


def _ideogram4(step: int, batch: int, branch: str) -> Inputs:
    text_len, image = (6, 16)
    positions = torch.zeros(batch, text_len + image, 3, dtype=torch.long)
    positions[:, :text_len] = torch.arange(text_len)[:, None]
    positions[:, text_len:, 1:] = ids(4, 4).long()
    positions[:, text_len:] += 65536
    indicator = torch.full((batch, text_len + image), 3, dtype=torch.long)
    indicator[:, text_len:] = 2
    hidden = torch.zeros(batch, text_len + image, 4)
    hidden[:, text_len:] = latent(step, (batch, image, 4))
    features = torch.zeros(batch, text_len + image, 16)
    features[:, :text_len] = text(batch, text_len, 16, branch)
    return {
        "hidden_states": hidden,
        "timestep": timestep(step, batch, 0.1),
        "encoder_hidden_states": features,
        "position_ids": positions,
        "segment_ids": torch.ones(batch, text_len + image, dtype=torch.long),
        "indicator": indicator,
    }


add(
    "ideogram4",
    "Ideogram4Transformer2DModel",
    {
        "in_channels": 4,
        "num_layers": 4,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "adaln_dim": 16,
        "llm_features_dim": 16,
        "rope_theta": 10000,
        "mrope_section": (2, 1, 1),
    },
    _ideogram4,
)


def _krea2(step: int, batch: int, branch: str) -> Inputs:
    text_len = 6
    positions = torch.zeros(text_len + 16, 3)
    positions[text_len:, 1:] = ids(4, 4)
    return {
        "hidden_states": latent(step, (batch, 16, 4)),
        "encoder_hidden_states": noise((batch, text_len, 2, 16), "text", branch),
        "timestep": timestep(step, batch, 1.0),
        "position_ids": positions,
    }


add(
    "krea2",
    "Krea2Transformer2DModel",
    {
        "in_channels": 4,
        "num_layers": 4,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 32,
        "timestep_embed_dim": 8,
        "text_hidden_dim": 16,
        "num_text_layers": 2,
        "text_num_attention_heads": 2,
        "text_num_key_value_heads": 1,
        "text_intermediate_size": 16,
        "num_layerwise_text_blocks": 1,
        "num_refiner_text_blocks": 1,
        "axes_dims_rope": (4, 2, 2),
    },
    _krea2,
)


def _nucleus(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 16, 16)),
        "img_shapes": [(1, 4, 4)] * batch,
        "encoder_hidden_states": text(batch, 6, 16, branch),
        "encoder_hidden_states_mask": torch.ones((batch, 6), dtype=torch.bool),
        "timestep": timestep(step, batch, 1.0),
    }


add(
    "nucleusmoe_image",
    "NucleusMoEImageTransformer2DModel",
    {
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 4,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "axes_dims_rope": (8, 4, 4),
        "moe_enabled": False,
        "capacity_factors": [8.0] * 4,
    },
    _nucleus,
)


def _qwen21_kv(step: int, batch: int, branch: str) -> Inputs:
    from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache

    return _qwen21(step, batch, branch) | {"kv_cache": QwenImage21KVCache(4), "kv_cache_mode": "extract"}


add(
    "qwen_image_21_kv",
    "QwenImage21Transformer2DModel",
    TINY["qwen_image_21"].config,
    _qwen21_kv,
    note="With kv_cache every block gets its own layer_cache.",
)
