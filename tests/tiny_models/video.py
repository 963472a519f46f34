"""HunyuanVideo, CogVideoX and other video models with a stream of text."""

from __future__ import annotations

from typing import Any

import torch

from .parts import Inputs, add, latent, noise, text, timestep


def _hunyuan_video(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 4, 2, 4, 4)),
        "timestep": timestep(step, batch),
        "encoder_hidden_states": text(batch, 6, 16, branch),
        "encoder_attention_mask": torch.ones(batch, 6),
        "pooled_projections": noise((batch, 8), "pooled", branch),
        "guidance": torch.full((batch,), 6000.0),
    }


_HUNYUAN_VIDEO_CONFIG = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 10,
    "num_layers": 4,
    "num_single_layers": 4,
    "num_refiner_layers": 1,
    "mlp_ratio": 2.0,
    "patch_size": 1,
    "patch_size_t": 1,
    "guidance_embeds": True,
    "text_embed_dim": 16,
    "pooled_projection_dim": 8,
    "rope_axes_dim": (2, 4, 4),
}
add("hunyuan_video", "HunyuanVideoTransformer3DModel", _HUNYUAN_VIDEO_CONFIG, _hunyuan_video)
add(
    "hunyuan_video_i2v",
    "HunyuanVideoTransformer3DModel",
    _HUNYUAN_VIDEO_CONFIG | {"image_condition_type": "token_replace"},
    _hunyuan_video,
    note="Token-replace image-to-video: two more positional block arguments, the same for all blocks.",
)


def _framepack(step: int, batch: int, branch: str) -> Inputs:
    kwargs = _hunyuan_video(step, batch, branch)
    kwargs |= {
        "hidden_states": latent(step, (batch, 4, 3, 4, 4)),
        "image_embeds": text(batch, 5, 16, "cond", "clip"),
        "indices_latents": torch.arange(10.0, 13.0),
        "latents_clean": noise((batch, 4, 2, 4, 4), "clean"),
        "indices_latents_clean": torch.arange(8.0, 10.0),
        "latents_history_2x": noise((batch, 4, 2, 4, 4), "2x"),
        "indices_latents_history_2x": torch.arange(6.0, 8.0),
        "latents_history_4x": noise((batch, 4, 8, 4, 4), "4x"),
        "indices_latents_history_4x": torch.arange(0.0, 8.0),
    }
    return kwargs


add(
    "hunyuan_video_framepack",
    "HunyuanVideoFramepackTransformer3DModel",
    _HUNYUAN_VIDEO_CONFIG
    | {"patch_size": 2, "has_image_proj": True, "image_proj_dim": 16, "has_clean_x_embedder": True},
    _framepack,
    note="History tokens precede the noisy ones in hidden_states.",
)


def _hunyuan_video15(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 4, 2, 4, 4)),
        "timestep": timestep(step, batch),
        "encoder_hidden_states": text(batch, 6, 16, branch),
        "encoder_attention_mask": torch.ones(batch, 6),
        "encoder_hidden_states_2": text(batch, 4, 8, branch, "byt5"),
        "encoder_attention_mask_2": torch.ones(batch, 4),
        "image_embeds": torch.zeros(batch, 3, 12),
    }


def _shrink_hunyuan_video15(model: Any) -> None:
    model.context_embedder_2 = type(model.context_embedder_2)(8, 32, 16)


add(
    "hunyuan_video15",
    "HunyuanVideo15Transformer3DModel",
    {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 4,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "patch_size": 1,
        "patch_size_t": 1,
        "text_embed_dim": 16,
        "text_embed_2_dim": 8,
        "image_embed_dim": 12,
        "rope_axes_dim": (2, 2, 4),
        "target_size": 16,
        "task_type": "t2v",
    },
    _hunyuan_video15,
    prepare=_shrink_hunyuan_video15,
)


def _cogvideox(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 2, 4, 8, 8)),
        "encoder_hidden_states": text(batch, 6, 12, branch),
        "timestep": timestep(step, batch),
    }


_COGVIDEOX_CONFIG = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 8,
    "text_embed_dim": 12,
    "num_layers": 4,
    "sample_width": 8,
    "sample_height": 8,
    "sample_frames": 5,
    "patch_size": 2,
    "temporal_compression_ratio": 4,
    "max_text_seq_length": 6,
}
add("cogvideox", "CogVideoXTransformer3DModel", _COGVIDEOX_CONFIG, _cogvideox)


def _consisid(step: int, batch: int, branch: str) -> Inputs:
    return _cogvideox(step, batch, branch) | {
        "id_cond": noise((batch, 4), "identity"),
        "id_vit_hidden": [noise((batch, 3, 4), "vit", 0)],
    }


_CONSISID_FACE = {
    "cross_attn_interval": 2,
    "is_kps": False,
    "cross_attn_dim_head": 4,
    "cross_attn_num_heads": 2,
    "LFE_id_dim": 4,
    "LFE_vit_dim": 4,
    "LFE_depth": 5,
    "LFE_dim_head": 8,
    "LFE_num_heads": 2,
    "LFE_num_id_token": 1,
    "LFE_num_querie": 2,
    "LFE_output_dim": 10,
    "LFE_ff_mult": 1,
    "LFE_num_scale": 1,
}
add(
    "consisid",
    "ConsisIDTransformer3DModel",
    _COGVIDEOX_CONFIG | _CONSISID_FACE | {"is_train_face": True},
    _consisid,
    note="With is_train_face a face cross-attention is added after every cross_attn_interval-th block.",
)
add("consisid_no_face", "ConsisIDTransformer3DModel", _COGVIDEOX_CONFIG | {"is_train_face": False}, _cogvideox)


def _mochi(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 4, 2, 8, 8)),
        "encoder_hidden_states": text(batch, 6, 16, branch),
        "timestep": timestep(step, batch),
        "encoder_attention_mask": torch.ones((batch, 6), dtype=torch.bool),
    }


add(
    "mochi",
    "MochiTransformer3DModel",
    {
        "patch_size": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 5,
        "pooled_projection_dim": 16,
        "in_channels": 4,
        "text_embed_dim": 16,
        "time_embed_dim": 8,
        "max_sequence_length": 6,
    },
    _mochi,
    note="The last block is context_pre_only: its encoder_hidden_states output is the input of that block.",
)


def _easyanimate(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 4, 2, 8, 8)),
        "timestep": timestep(step, batch),
        "encoder_hidden_states": text(batch, 6, 16, branch),
    }


add(
    "easyanimate",
    "EasyAnimateTransformer3DModel",
    {
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "in_channels": 4,
        "out_channels": 4,
        "patch_size": 2,
        "num_layers": 4,
        "mmdit_layers": 4,
        "sample_width": 90,
        "sample_height": 60,
        "text_embed_dim": 16,
        "time_embed_dim": 8,
        "add_noise_in_inpaint_model": True,
    },
    _easyanimate,
)


def _motif(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 9, 2, 4, 4)),
        "timestep": timestep(step, batch),
        "encoder_hidden_states": text(batch, 6, 16, branch),
        "encoder_attention_mask": torch.ones(batch, 6),
    }


_MOTIF_CONFIG = {
    "in_channels": 9,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 4,
    "num_single_layers": 8,
    "mlp_ratio": 2.0,
    "patch_size": 1,
    "patch_size_t": 1,
    "text_embed_dim": 16,
    "rope_axes_dim": (4, 4, 4),
}
add("motif_video", "MotifVideoTransformer3DModel", _MOTIF_CONFIG, _motif)
add(
    "motif_video_decoder",
    "MotifVideoTransformer3DModel",
    _MOTIF_CONFIG | {"num_decoder_layers": 4},
    _motif,
    note="The last num_decoder_layers single blocks run on another carried state, with other arguments.",
)
