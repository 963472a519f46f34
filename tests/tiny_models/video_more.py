"""LTX, Cosmos, Kandinsky, Sana and further video models."""

from __future__ import annotations

import torch

from .parts import TINY, Inputs, add, ids, latent, noise, sigma, text, timestep


def _ltx(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 32, 4)),
        "encoder_hidden_states": text(batch, 6, 12, branch),
        "timestep": timestep(step, batch),
        "encoder_attention_mask": torch.ones((batch, 6), dtype=torch.bool),
        "num_frames": 2,
        "height": 4,
        "width": 4,
    }


add(
    "ltx_video",
    "LTXVideoTransformer3DModel",
    {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 16,
        "num_layers": 4,
        "caption_channels": 12,
    },
    _ltx,
)


def _ltx2(step: int, batch: int, branch: str) -> Inputs:
    return _ltx(step, batch, branch) | {
        "audio_hidden_states": latent(step, (batch, 9, 4), "audio"),
        "audio_encoder_hidden_states": text(batch, 6, 12, branch, "audio-text"),
        "audio_num_frames": 9,
        "fps": 25.0,
    }


add(
    "ltx2",
    "LTX2VideoTransformer3DModel",
    {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 16,
        "audio_in_channels": 4,
        "audio_out_channels": 4,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 4,
        "audio_cross_attention_dim": 8,
        "num_layers": 4,
        "caption_channels": 12,
        "rope_double_precision": False,
    },
    _ltx2,
    note="The second carried stream is audio; encoder_hidden_states is text, passed by keyword, and constant.",
)


def _allegro(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 4, 2, 8, 8)),
        "encoder_hidden_states": text(batch, 6, 12, branch),
        "timestep": timestep(step, batch),
        "attention_mask": torch.ones(batch, 2, 8, 8),
        "encoder_attention_mask": torch.ones(batch, 6),
    }


add(
    "allegro",
    "AllegroTransformer3DModel",
    {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 4,
        "cross_attention_dim": 24,
        "sample_width": 8,
        "sample_height": 8,
        "sample_frames": 2,
        "caption_channels": 12,
    },
    _allegro,
)


def _cosmos(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 4, 2, 8, 8)),
        "timestep": timestep(step, batch, 1.0),
        "encoder_hidden_states": text(batch, 6, 16, branch),
        "fps": 30,
    }


_COSMOS_CONFIG = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 4,
    "mlp_ratio": 2,
    "text_embed_dim": 16,
    "adaln_lora_dim": 4,
    "max_size": (4, 8, 8),
    "patch_size": (1, 2, 2),
    "rope_scale": (2.0, 1.0, 1.0),
    "concat_padding_mask": False,
    "extra_pos_embed_type": "learnable",
}
add(
    "cosmos",
    "CosmosTransformer3DModel",
    _COSMOS_CONFIG,
    _cosmos,
    note="concat_padding_mask is off here only because that path imports torchvision.",
)
add(
    "cosmos25_transfer",
    "CosmosTransformer3DModel",
    _COSMOS_CONFIG
    | {
        "extra_pos_embed_type": None,
        "img_context_dim_in": 8,
        "img_context_num_tokens": 4,
        "img_context_dim_out": 24,
        "controlnet_block_every_n": 2,
        "use_crossattn_projection": True,
        "crossattn_proj_in_channels": 20,
        "encoder_hidden_states_channels": 16,
    },
    lambda step, batch, branch: (
        _cosmos(step, batch, branch)
        | {
            "encoder_hidden_states": (text(batch, 6, 20, branch), noise((batch, 4, 8), "image-context")),
            "block_controlnet_hidden_states": [0.5 * noise((batch, 32, 24), "control", i) for i in range(2)],
        }
    ),
    note="encoder_hidden_states is a (text, image) tuple; a residual is given to every n-th block as an argument.",
    needs="0.37",
)


def _cosmos3(step: int, batch: int, branch: str) -> Inputs:
    und, gen = (4, 8)
    total = und + gen
    positions = torch.zeros(3, total, dtype=torch.long)
    positions[:, :und] = torch.arange(und)
    positions[:, und:] = ids(2, 2, 2).long().T + und
    vision = torch.arange(und, total)
    return {
        "input_ids": torch.arange(und) + (1 if branch == "cond" else 9),
        "text_indexes": torch.arange(und),
        "position_ids": positions,
        "und_len": und,
        "sequence_length": total,
        "vision_tokens": [latent(step, (1, 2, 2, 2, 2))],
        "vision_token_shapes": [(2, 2, 2)],
        "vision_sequence_indexes": vision,
        "vision_mse_loss_indexes": vision,
        "vision_timesteps": torch.full((gen,), 1000.0 * sigma(step)),
        "vision_noisy_frame_indexes": [torch.tensor([0, 1])],
    }


add(
    "cosmos3",
    "Cosmos3OmniTransformer",
    {
        "head_dim": 12,
        "hidden_size": 24,
        "intermediate_size": 48,
        "latent_channel": 2,
        "latent_patch_size": 1,
        "num_attention_heads": 2,
        "num_hidden_layers": 4,
        "num_key_value_heads": 1,
        "patch_latent_dim": 2,
        "rope_axes_dim": [2, 2, 2],
        "rope_theta": 10000.0,
        "vocab_size": 32,
    },
    _cosmos3,
    max_batch=1,
    note="The denoised stream comes second: layer(und_seq, gen_seq, rotary_emb) -> (und_seq, gen_seq); no batch axis.",
    needs="0.41",
)


def _latte(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 4, 2, 8, 8)),
        "timestep": timestep(step, batch),
        "encoder_hidden_states": text(batch, 6, 12, branch),
        "enable_temporal_attentions": True,
    }


add(
    "latte",
    "LatteTransformer3DModel",
    {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 4,
        "cross_attention_dim": 16,
        "attention_bias": True,
        "sample_size": 8,
        "patch_size": 2,
        "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": 1000,
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-06,
        "caption_channels": 12,
        "video_length": 2,
    },
    _latte,
    note="Spatial and temporal blocks alternate, with a reshape between them.",
)


def _kandinsky5(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 2, 8, 8, 4)),
        "encoder_hidden_states": text(batch, 6, 16, branch),
        "timestep": timestep(step, batch),
        "pooled_projections": noise((batch, 8), "pooled", branch),
        "visual_rope_pos": [torch.arange(2), torch.arange(4), torch.arange(4)],
        "text_rope_pos": torch.arange(6),
        "scale_factor": (1.0, 2.0, 2.0),
        "return_dict": True,
    }


add(
    "kandinsky5",
    "Kandinsky5Transformer3DModel",
    {
        "in_visual_dim": 4,
        "in_text_dim": 16,
        "in_text_dim2": 8,
        "time_dim": 16,
        "out_visual_dim": 4,
        "patch_size": (1, 2, 2),
        "model_dim": 24,
        "ff_dim": 32,
        "num_text_blocks": 4,
        "num_visual_blocks": 4,
        "axes_dims": (4, 4, 4),
    },
    _kandinsky5,
    note="Arguments are positional and called visual_embed and text_embed; return_dict=False gives a bare tensor.",
)


def _kandinsky6(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": torch.cat([latent(step, (batch, 2, 8, 8, 4)), noise((batch, 2, 8, 8, 5), "condition")], -1),
        "encoder_hidden_states": text(batch, 6, 16, branch),
        "pooled_projections": noise((batch, 8), "pooled", branch),
        "timestep": timestep(step, batch),
        "audio_hidden_states": latent(step, (batch, 10, 4), "audio"),
    }


add(
    "kandinsky6",
    "Kandinsky6Transformer3DModel",
    {
        "in_visual_dim": 4,
        "out_visual_dim": 4,
        "in_text_dim": 16,
        "in_text_dim2": 8,
        "time_dim": 16,
        "model_dim": 24,
        "ff_dim": 32,
        "num_text_blocks": 4,
        "num_visual_blocks": 4,
        "axes_dims": (4, 4, 4),
        "in_audio_dim": 4,
        "out_audio_dim": 4,
        "ca_rope": True,
        "cross_gates": True,
        "fix_modulation": True,
    },
    _kandinsky6,
    note="The second carried stream is audio, not text; it is None for silent video.",
)


def _sana_video(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 4, 2, 8, 8)),
        "encoder_hidden_states": text(batch, 6, 12, branch),
        "timestep": timestep(step, batch),
    }


add(
    "sana_video",
    "SanaVideoTransformer3DModel",
    {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "num_layers": 4,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 12,
        "cross_attention_dim": 24,
        "caption_channels": 12,
        "sample_size": 8,
        "patch_size": (1, 2, 2),
        "rope_max_seq_len": 32,
    },
    _sana_video,
)


def _sana_wm(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 4, 3, 4, 4)),
        "timestep": timestep(step, batch)[:, None, None].expand(batch, 1, 3),
        "encoder_hidden_states": text(batch, 6, 12, branch).unsqueeze(1),
        "encoder_attention_mask": torch.ones(batch, 6),
    }


add(
    "sana_wm",
    "SanaWMTransformer3DModel",
    {
        "in_channels": 4,
        "num_layers": 4,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "patch_size": (1, 1, 1),
        "softmax_every_n": 2,
        "linear_head_dim": 16,
        "caption_channels": 12,
        "mlp_ratio": 2.0,
        "chunk_plucker_channels": 8,
        "chunk_plucker_post_attn_blocks": 2,
        "use_chunk_plucker_post_attn": False,
    },
    _sana_wm,
    note="Arguments are positional and called x and y; linear and softmax attention alternate.",
)
add(
    "ltx2_stg",
    "LTX2VideoTransformer3DModel",
    TINY["ltx2"].config | {"perturbed_attn": True},
    lambda step, batch, branch: (
        _ltx2(step, batch, branch) | {"spatio_temporal_guidance_blocks": [1], "perturbation_mask": torch.zeros(batch)}
    ),
    note="Spatio-temporal guidance: blocks named by index are perturbed.",
    needs="0.38",
)


def _sana_wm_refiner(step: int, batch: int, branch: str) -> Inputs:
    angles = noise((batch, 8, 16), "rope").repeat_interleave(2, dim=-1)[..., :16]
    return {
        "hidden_states": latent(step, (batch, 8, 4)),
        "encoder_hidden_states": text(batch, 6, 12, branch),
        "timestep": timestep(step, batch)[:, None].expand(batch, 8),
        "video_rotary_emb": (angles.cos(), angles.sin()),
    }


add(
    "sana_wm_refiner",
    "SanaWMLTX2RefinerTransformer3DModel",
    TINY["ltx2"].config,
    _sana_wm_refiner,
    note="Plain while kv_cache is None; the refiner hands every block its own cache.",
)


def _kandinsky6_sr(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": torch.cat([latent(step, (batch, 2, 8, 8, 4)), noise((batch, 2, 8, 8, 5), "anchor")], -1),
        "timestep": timestep(step, batch),
    }


add(
    "kandinsky6_sr",
    "Kandinsky6SRTransformer3DModel",
    {
        "in_visual_dim": 4,
        "out_visual_dim": 4,
        "time_dim": 16,
        "model_dim": 32,
        "ff_dim": 32,
        "num_visual_blocks": 4,
        "axes_dims": (4, 6, 6),
    },
    _kandinsky6_sr,
    note="Attention runs through flex_attention.",
)
