"""Image models whose blocks keep text and image as two streams."""

from __future__ import annotations

import torch

from .parts import TINY, Inputs, add, installed, latent, noise, text, timestep

_QWEN_CONFIG = {
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 4,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "axes_dims_rope": (8, 4, 4),
}


def _qwen(step: int, batch: int, branch: str, images: int = 1) -> Inputs:
    length = 8 if branch == "cond" else 5
    return {
        "hidden_states": torch.cat(
            [latent(step, (batch, 16, 16))] + [noise((batch, 16, 16), "reference", i) for i in range(images - 1)], dim=1
        ),
        "encoder_hidden_states": text(batch, length, 16, branch),
        "encoder_hidden_states_mask": torch.ones((batch, length), dtype=torch.bool),
        "timestep": timestep(step, batch, 1.0),
        "img_shapes": [[(1, 4, 4)] * images] * batch,
        **({"txt_seq_lens": [length] * batch} if installed() < (0, 37) else {}),
    }


add(
    "qwen_image",
    "QwenImageTransformer2DModel",
    _QWEN_CONFIG,
    _qwen,
    note="The uncond branch has a shorter prompt, so text shapes differ between branches.",
)
add(
    "qwen_image_edit",
    "QwenImageTransformer2DModel",
    _QWEN_CONFIG | {"zero_cond_t": True},
    lambda step, batch, branch: _qwen(step, batch, branch, 2),
    note="zero_cond_t doubles temb and adds modulate_index, constant over blocks.",
    needs="0.37",
)
add(
    "qwen_image_layered",
    "QwenImageTransformer2DModel",
    _QWEN_CONFIG | {"use_additional_t_cond": True, "use_layer3d_rope": True},
    lambda step, batch, branch: (
        _qwen(step, batch, branch, 3) | {"additional_t_cond": torch.zeros(batch, dtype=torch.long)}
    ),
    needs="0.37",
)
add(
    "qwen_image_controlnet",
    "QwenImageTransformer2DModel",
    _QWEN_CONFIG,
    lambda step, batch, branch: (
        _qwen(step, batch, branch)
        | {"controlnet_block_samples": [0.5 * noise((batch, 16, 32), "control", i) for i in range(2)]}
    ),
    note="ControlNet residuals are added to hidden_states between blocks, chosen by block index.",
)


def _hidream(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 4, 8, 8)),
        "timesteps": timestep(step, batch),
        "encoder_hidden_states_t5": text(batch, 6, 8, branch, "t5"),
        "encoder_hidden_states_llama3": noise((8, batch, 6, 4), "llama", branch),
        "pooled_embeds": noise((batch, 8), "pooled", branch),
    }


add(
    "hidream",
    "HiDreamImageTransformer2DModel",
    {
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 4,
        "num_single_layers": 4,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "caption_channels": [8, 4],
        "text_emb_dim": 8,
        "num_routed_experts": 2,
        "num_activated_experts": 2,
        "axes_dims_rope": (4, 2, 2),
        "max_resolution": (8, 8),
        "llama_layers": [0, 1, 2, 3, 4, 5, 6, 7],
        "force_inference_output": True,
    },
    _hidream,
    note="Another Llama layer is concatenated before every block and cut off after it.",
)


def _sd3(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 4, 8, 8)),
        "encoder_hidden_states": text(batch, 6, 32, branch),
        "pooled_projections": noise((batch, 16), "pooled", branch),
        "timestep": timestep(step, batch),
    }


_SD3_CONFIG = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "num_layers": 5,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "caption_projection_dim": 32,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 16,
    "out_channels": 4,
    "pos_embed_max_size": 16,
}
add(
    "sd3",
    "SD3Transformer2DModel",
    _SD3_CONFIG,
    _sd3,
    note="The last block is context_pre_only and returns None as encoder_hidden_states.",
)
add(
    "sd35",
    "SD3Transformer2DModel",
    _SD3_CONFIG | {"dual_attention_layers": (0, 1), "qk_norm": "rms_norm"},
    _sd3,
    note="Blocks of one list differ: the first ones have dual attention.",
)
add(
    "sd3_controlnet",
    "SD3Transformer2DModel",
    _SD3_CONFIG,
    lambda step, batch, branch: (
        _sd3(step, batch, branch)
        | {"block_controlnet_hidden_states": [0.5 * noise((batch, 16, 32), "control", i) for i in range(2)]}
    ),
    note="ControlNet residuals are added between blocks, and the loop reads block.context_pre_only.",
)
add(
    "sd3_skip_layers",
    "SD3Transformer2DModel",
    _SD3_CONFIG,
    lambda step, batch, branch: _sd3(step, batch, branch) | {"skip_layers": [1, 2]},
    note="Skip-layer guidance: the loop itself leaves blocks out, chosen by index.",
)


def _hunyuan_image(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 4, 4, 4)),
        "timestep": timestep(step, batch),
        "encoder_hidden_states": text(batch, 6, 16, branch),
        "encoder_attention_mask": torch.ones(batch, 6),
    }


add(
    "hunyuan_image",
    "HunyuanImageTransformer2DModel",
    {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 4,
        "num_single_layers": 4,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "patch_size": (1, 1),
        "text_embed_dim": 16,
        "rope_axes_dim": (4, 4),
    },
    _hunyuan_image,
)


def _sized(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 4, 8, 8)),
        "encoder_hidden_states": text(batch, 6, 16, branch),
        "timestep": timestep(step, batch),
        "original_size": torch.tensor([[64.0, 64.0]] * batch),
        "target_size": torch.tensor([[64.0, 64.0]] * batch),
        "crop_coords": torch.zeros(batch, 2),
    }


add(
    "cogview3plus",
    "CogView3PlusTransformer2DModel",
    {
        "patch_size": 2,
        "in_channels": 4,
        "num_layers": 4,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "out_channels": 4,
        "text_embed_dim": 16,
        "time_embed_dim": 8,
        "condition_dim": 4,
        "pos_embed_max_size": 8,
        "sample_size": 8,
    },
    _sized,
)
add(
    "cogview4",
    "CogView4Transformer2DModel",
    {
        "patch_size": 2,
        "in_channels": 4,
        "num_layers": 4,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "out_channels": 4,
        "text_embed_dim": 16,
        "time_embed_dim": 8,
        "condition_dim": 4,
        "sample_size": 8,
        "rope_axes_dim": (8, 8),
    },
    _sized,
)


def _glm_image(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 4, 8, 8)),
        "encoder_hidden_states": text(batch, 6, 16, branch),
        "prior_token_id": (torch.arange(16) % 7).expand(batch, -1),
        "prior_token_drop": torch.full((batch, 16), branch != "cond"),
        "timestep": timestep(step, batch),
        "target_size": torch.tensor([[64.0, 64.0]] * batch),
        "crop_coords": torch.zeros(batch, 2),
    }


add(
    "glm_image",
    "GlmImageTransformer2DModel",
    {
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 4,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "text_embed_dim": 16,
        "time_embed_dim": 16,
        "condition_dim": 8,
        "prior_vq_quantizer_codebook_size": 16,
    },
    _glm_image,
    note="Plain while kv_caches is None; for editing each block gets kv_caches[index].",
)


def _auraflow(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 4, 8, 8)),
        "encoder_hidden_states": text(batch, 6, 16, branch),
        "timestep": timestep(step, batch, 1.0),
    }


add(
    "auraflow",
    "AuraFlowTransformer2DModel",
    {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "num_mmdit_layers": 4,
        "num_single_dit_layers": 4,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "caption_projection_dim": 16,
        "out_channels": 4,
        "pos_embed_max_size": 16,
    },
    _auraflow,
    note="Text is joined to the image between the two lists.",
)


def _joyimage(step: int, batch: int, branch: str) -> Inputs:
    return {
        "hidden_states": latent(step, (batch, 4, 1, 8, 8)),
        "timestep": timestep(step, batch),
        "encoder_hidden_states": text(batch, 6, 16, branch),
    }


_JOY_CONFIG = {
    "patch_size": [1, 2, 2],
    "in_channels": 4,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "text_dim": 16,
    "mlp_width_ratio": 2.0,
    "num_layers": 4,
    "rope_dim_list": [4, 6, 6],
}
add("joyimage", "JoyImageEditTransformer3DModel", _JOY_CONFIG, _joyimage)
add(
    "joyimage_edit_plus",
    "JoyImageEditPlusTransformer3DModel",
    _JOY_CONFIG,
    lambda step, batch, branch: {
        "hidden_states": latent(step, (batch, 16, 4, 1, 2, 2)),
        "timestep": timestep(step, batch),
        "encoder_hidden_states": text(batch, 6, 16, branch),
        "shape_list": [[(1, 2, 4), (1, 2, 4)]] * batch,
    },
)


def _glm_image_edit(step: int, batch: int, branch: str) -> Inputs:
    from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache

    caches = GlmImageKVCache(num_layers=4)
    caches.set_mode("write")
    for index in range(4):
        caches[index].store(noise((batch, 5, 2, 8), "key", index), noise((batch, 5, 2, 8), "value", index))
    caches.set_mode("read" if branch == "cond" else "skip")
    return _glm_image(step, batch, branch) | {"kv_caches": caches}


add(
    "glm_image_edit",
    "GlmImageTransformer2DModel",
    TINY["glm_image"].config,
    _glm_image_edit,
    note="Image editing: every block gets kv_caches[index].",
)
