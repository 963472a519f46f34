"""Models of sound, and of video with sound."""

from __future__ import annotations

import torch

from .parts import Inputs, add, ids, latent, noise, sigma, text, timestep


def _stable_audio(step: int, batch: int, branch: str) -> Inputs:
    angles = torch.outer(torch.arange(17.0), torch.linspace(1.0, 0.1, 4)).repeat(1, 2)
    return {
        "hidden_states": latent(step, (batch, 4, 16)),
        "timestep": timestep(step, batch, 1.0),
        "encoder_hidden_states": text(batch, 6, 12, branch),
        "global_hidden_states": noise((batch, 1, 12), "global", branch),
        "rotary_embedding": (angles.cos(), angles.sin()),
    }


add(
    "stable_audio",
    "StableAudioDiTModel",
    {
        "sample_size": 16,
        "in_channels": 4,
        "num_layers": 4,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "num_key_value_attention_heads": 2,
        "out_channels": 4,
        "cross_attention_dim": 12,
        "time_proj_dim": 8,
        "global_states_input_dim": 12,
        "cross_attention_input_dim": 12,
    },
    _stable_audio,
    note="encoder_hidden_states is given by keyword, is not the second parameter of a block, and never changes.",
)


def _stable_audio3(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 8, 16)),
        "timestep": timestep(step, batch, 0.01),
        "encoder_hidden_states": text(batch, 6, 16, branch),
        "global_hidden_states": noise((batch, 12), "global", branch),
    }


add(
    "stable_audio3",
    "StableAudio3DiTModel",
    {
        "io_channels": 8,
        "patch_size": 1,
        "embed_dim": 32,
        "depth": 4,
        "num_heads": 4,
        "cond_token_dim": 16,
        "global_cond_dim": 12,
        "local_add_cond_dim": 5,
        "timestep_features_dim": 16,
        "ff_mult": 2,
        "num_memory_tokens": 3,
        "use_differential_attention": True,
    },
    _stable_audio3,
    note="Text arrives as context=, by keyword.",
)


def _ace_step(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 16, 8)),
        "timestep": timestep(step, batch, 1.0),
        "timestep_r": timestep(step, batch, 1.0),
        "encoder_hidden_states": text(batch, 6, 32, branch),
        "context_latents": noise((batch, 16, 16), "context"),
    }


add(
    "ace_step",
    "AceStepTransformer1DModel",
    {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "in_channels": 24,
        "audio_acoustic_hidden_dim": 8,
        "patch_size": 2,
        "rope_theta": 10000.0,
        "sliding_window": 2,
    },
    _ace_step,
    note="attention_mask alternates between layers (sliding or full), and forward reads layers[0].self_attn.",
)


def _longcat_audio(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 16, 8)),
        "encoder_hidden_states": text(batch, 6, 16, branch),
        "encoder_attention_mask": torch.ones((batch, 6), dtype=torch.bool),
        "attention_mask": torch.ones((batch, 16), dtype=torch.bool),
        "timestep": timestep(step, batch, 1.0),
        "latent_cond": torch.zeros(batch, 16, 8),
    }


add(
    "longcat_audio",
    "LongCatAudioDiTTransformer",
    {
        "dit_dim": 32,
        "dit_depth": 4,
        "dit_heads": 2,
        "dit_text_dim": 16,
        "latent_dim": 8,
        "text_conv": False,
        "ff_mult": 2.0,
    },
    _longcat_audio,
    note="Text arrives as cond=, by keyword.",
)


def _minimax_music3(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 8, 16)),
        "timestep": timestep(step, batch, 1.0),
        "encoder_hidden_states": text(batch, 16, 12, branch),
    }


add(
    "minimax_music3",
    "MiniMaxMusic3Transformer1DModel",
    {
        "in_channels": 8,
        "condition_dim": 12,
        "num_layers": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "ff_inner_dim": 32,
        "rotary_dim": 4,
        "fourier_embedding_dim": 8,
    },
    _minimax_music3,
)


def _minimax_h3(step: int, batch: int, branch: str) -> Inputs:
    n_text, n_audio, n_video = (4, 6, 8)
    total = n_text + n_audio + n_video
    tags = torch.zeros(total, dtype=torch.long)
    tags[:n_text] = 1
    tags[n_text : n_text + n_audio] = 2
    times = torch.zeros(total, dtype=torch.long)
    times[n_text : n_text + n_audio] = 1
    positions = torch.zeros(total, 3)
    positions[:, 0] = torch.arange(total)
    positions[n_text + n_audio :, 1:] = ids(4, 2)
    return {
        "hidden_states": latent(step, (batch, n_video, 16)),
        "audio_hidden_states": latent(step, (batch, n_audio, 6), "audio"),
        "encoder_hidden_states": text(batch, n_text, 8, branch),
        "timestep": torch.tensor([sigma(step), sigma(step) * 0.8]),
        "timestep_indices": times,
        "token_tags": tags,
        "position_ids": positions,
        "video_indices": torch.arange(n_text + n_audio, total),
        "audio_indices": torch.arange(n_text, n_text + n_audio),
        "text_indices": torch.arange(n_text),
    }


add(
    "minimax_h3",
    "MiniMaxH3Transformer3DModel",
    {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "hidden_size": 24,
        "num_layers": 4,
        "num_refiner_layers": 2,
        "ffn_dim": 32,
        "in_channels": 4,
        "audio_in_channels": 6,
        "text_dim": 8,
        "freq_dim": 8,
        "time_embed_hidden_dim": 24,
        "time_embed_dim": 16,
        "rope_freq_dim": 2,
    },
    _minimax_h3,
    note="Text, audio and video are one packed sequence.",
)
