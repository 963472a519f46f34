"""Wan and its relatives."""

from __future__ import annotations

import torch

from .parts import Inputs, add, latent, noise, text, timestep

_WAN_CONFIG = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 4,
    "rope_max_seq_len": 32,
}


def _wan(step: int, batch: int, branch: str, channels: int = 4) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, channels, 2, 8, 8)),
        "timestep": timestep(step, batch),
        "encoder_hidden_states": text(batch, 6, 16, branch),
    }


add("wan21", "WanTransformer3DModel", _WAN_CONFIG, _wan)
add(
    "wan21_i2v",
    "WanTransformer3DModel",
    _WAN_CONFIG | {"image_dim": 16, "added_kv_proj_dim": 24},
    lambda step, batch, branch: (
        _wan(step, batch, branch) | {"encoder_hidden_states_image": text(batch, 257, 16, "cond", "clip")}
    ),
    note="257 image tokens precede the text; the attention splits them off by a fixed text length.",
)
add(
    "wan22_ti2v",
    "WanTransformer3DModel",
    _WAN_CONFIG,
    lambda step, batch, branch: (
        _wan(step, batch, branch) | {"timestep": timestep(step, batch)[:, None].expand(batch, 32)}
    ),
    note="expand_timesteps: one timestep per token, so temb is (batch, tokens, 6, dim).",
)


def _wan_vace(step: int, batch: int, branch: str) -> Inputs:
    return _wan(step, batch, branch) | {
        "control_hidden_states": noise((batch, 8, 2, 8, 8), "control"),
        "control_hidden_states_scale": torch.tensor([1.0, 0.5, 0.25]),
    }


add(
    "wan_vace",
    "WanVACETransformer3DModel",
    _WAN_CONFIG | {"num_layers": 6, "vace_layers": [0, 2, 4], "vace_in_channels": 8},
    _wan_vace,
    note="A second list, vace_blocks, runs first; its hints are added to hidden_states after blocks 0, 2 and 4.",
)


def _wan_animate(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 12, 4, 8, 8)),
        "timestep": timestep(step, batch),
        "encoder_hidden_states": text(batch, 6, 16, branch),
        "encoder_hidden_states_image": text(batch, 257, 16, "cond", "clip"),
        "pose_hidden_states": noise((batch, 4, 3, 8, 8), "pose"),
        "face_pixel_values": noise((batch, 3, 9, 16, 16), "face", branch).clamp(-1, 1),
    }


add(
    "wan_animate",
    "WanAnimateTransformer3DModel",
    {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 12,
        "latent_channels": 4,
        "out_channels": 4,
        "text_dim": 16,
        "freq_dim": 32,
        "ffn_dim": 32,
        "num_layers": 6,
        "image_dim": 16,
        "added_kv_proj_dim": 24,
        "rope_max_seq_len": 32,
        "motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16},
        "motion_encoder_size": 16,
        "motion_style_dim": 8,
        "motion_dim": 4,
        "motion_encoder_dim": 16,
        "face_encoder_hidden_dim": 16,
        "face_encoder_num_heads": 2,
        "inject_face_latents_blocks": 2,
    },
    _wan_animate,
    note="A face adapter output is added to hidden_states after every inject_face_latents_blocks-th block.",
)
add("chronoedit", "ChronoEditTransformer3DModel", _WAN_CONFIG | {"rope_temporal_skip_len": 8}, _wan)
add(
    "skyreels_v2",
    "SkyReelsV2Transformer3DModel",
    _WAN_CONFIG,
    _wan,
    note="encoder_hidden_states is passed but never changes.",
)
add(
    "skyreels_v2_df",
    "SkyReelsV2Transformer3DModel",
    _WAN_CONFIG | {"num_frame_per_block": 2},
    lambda step, batch, branch: (
        _wan(step, batch, branch)
        | {"timestep": timestep(step, batch)[:, None].expand(batch, 2), "enable_diffusion_forcing": True}
    ),
    note="Diffusion forcing: one timestep per frame.",
)


def _anyflow(step: int, batch: int, branch: str) -> Inputs:
    times = timestep(step, batch)[:, None].expand(batch, 2)
    return {
        "hidden_states": latent(step, (batch, 2, 4, 8, 8)),
        "timestep": times,
        "r_timestep": times * 0.5,
        "encoder_hidden_states": text(batch, 6, 16, branch),
    }


_ANYFLOW_CONFIG = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 4,
    "rope_max_seq_len": 32,
}
add("anyflow", "AnyFlowTransformer3DModel", _ANYFLOW_CONFIG, _anyflow)


def _helios(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 4, 2, 8, 8)),
        "timestep": timestep(step, batch),
        "encoder_hidden_states": text(batch, 6, 16, branch),
        "indices_hidden_states": torch.tensor([[6.0, 7.0]]).expand(batch, -1),
        "indices_latents_history_short": torch.tensor([[5.0]]).expand(batch, -1),
        "indices_latents_history_mid": torch.tensor([[4.0]]).expand(batch, -1),
        "indices_latents_history_long": torch.tensor([[0.0, 1.0, 2.0, 3.0]]).expand(batch, -1),
        "latents_history_short": noise((batch, 4, 1, 8, 8), "short"),
        "latents_history_mid": noise((batch, 4, 1, 8, 8), "mid"),
        "latents_history_long": noise((batch, 4, 4, 8, 8), "long"),
    }


add(
    "helios",
    "HeliosTransformer3DModel",
    {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 16,
        "freq_dim": 32,
        "ffn_dim": 32,
        "num_layers": 4,
        "rope_dim": (4, 4, 4),
    },
    _helios,
    note="History tokens precede the noisy ones in hidden_states.",
)


def _anyflow_far(step: int, batch: int, branch: str) -> Inputs:
    return _anyflow(step, batch, branch) | {"chunk_partition": [1, 1]}


add(
    "anyflow_far",
    "AnyFlowFARTransformer3DModel",
    _ANYFLOW_CONFIG | {"compressed_patch_size": (1, 4, 4), "full_chunk_limit": 3, "chunk_partition": (1, 1)},
    _anyflow_far,
    note="This is the training-style forward; the pipeline runs chunk by chunk with a key-value cache per block.",
)


def _wan_animate_2(step: int, batch: int, branch: str) -> Inputs:
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    return {
        "hidden_states": [latent(step, (4, 2, 4, 4))],
        "timestep": timestep(step, 1),
        "encoder_hidden_states": [text(1, 6, 16, branch)[0]],
        "condition_latents": [noise((6, 2, 4, 4), "condition")],
        "kv_cache": WanAnimate2KVCache(4),
        "kv_cache_mode": "extract",
        "seq_len": 8,
        "offset_grid_sizes": torch.tensor([[2, 2, 2]]),
    }


add(
    "wan_animate_2",
    "WanAnimate2Transformer3DModel",
    {
        "patch_size": (1, 2, 2),
        "text_len": 8,
        "in_dim": 10,
        "dim": 32,
        "ffn_dim": 32,
        "freq_dim": 32,
        "text_dim": 16,
        "out_dim": 4,
        "num_heads": 2,
        "num_layers": 4,
        "use_img_emb": False,
    },
    _wan_animate_2,
    max_batch=1,
    note="Every block gets its own kv_cache entry, and the unconditional forward leaves out block 9.",
)
