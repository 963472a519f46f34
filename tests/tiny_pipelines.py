"""Whole pipelines from tiny random parts, in folders that `cachedit run` opens as it opens any other.

The text encoder and its tokenizer are the bundled model's T5; all else is random.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

from cachedit_cli import demo
from tests.tiny_models import TINY

__all__ = ["control_flux", "flux2_klein", "ltx_2", "saved", "stable_audio", "wan", "wan_from_picture"]

_T5 = demo.path() / "text_encoder_2"


def _words() -> dict[str, Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo.path() / "tokenizer_2")
    return {
        "text_encoder": transformers.T5EncoderModel.from_pretrained(_T5, dtype=torch.float32),
        "tokenizer": tokenizer,
    }


def _wan(name: str, pipeline: str, **settings: Any) -> Any:
    tiny = TINY[name]
    vae = diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )
    return getattr(diffusers, pipeline)(
        transformer=replace(tiny, config={**tiny.config, "text_dim": 128}).build(),
        vae=vae,
        scheduler=diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        **_words(),
        **settings,
    )


def wan() -> Any:
    """Text to video."""
    return _wan("wan21", "WanPipeline")


def wan_from_picture() -> Any:
    """Text and a picture to video."""
    return _wan("wan22_ti2v", "WanImageToVideoPipeline", expand_timesteps=True)


def stable_audio() -> Any:
    """Text to sound at 16 kHz."""
    vae = diffusers.AutoencoderOobleck(
        encoder_hidden_size=4,
        downsampling_ratios=[2, 4, 8],
        channel_multiples=[1, 1, 1],
        decoder_channels=4,
        decoder_input_channels=4,
        audio_channels=2,
        sampling_rate=16000,
    )
    transformer = diffusers.StableAudioDiTModel(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_attention_heads=1,
        cross_attention_dim=16,
        cross_attention_input_dim=16,
        global_states_input_dim=32,
        time_proj_dim=16,
    )
    return diffusers.StableAudioPipeline(
        vae=vae,
        projection_model=diffusers.StableAudioProjectionModel(
            text_encoder_dim=128, conditioning_dim=16, min_value=0, max_value=32
        ),
        transformer=transformer,
        scheduler=diffusers.EDMDPMSolverMultistepScheduler(
            solver_order=2, prediction_type="v_prediction", sigma_data=1.0
        ),
        **_words(),
    )


def ltx_2() -> Any:
    """Text to video with sound at 16 kHz; here the text encoder is a random Gemma."""
    tokenizer = _words()["tokenizer"]
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 1, "head_dim": 8, "vocab_size": len(tokenizer)}
    sight = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    gemma = transformers.Gemma3Config(text_config=text, vision_config={**sight, "image_size": 28, "patch_size": 14})
    connectors: dict[str, Any] = {}
    for kind in ("video", "audio"):
        connectors[f"{kind}_connector_num_attention_heads"] = connectors[f"{kind}_connector_attention_head_dim"] = 4
        connectors[f"{kind}_connector_num_layers"] = 1
        connectors[f"{kind}_connector_num_learnable_registers"] = None
    return diffusers.LTX2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        tokenizer=tokenizer,
        text_encoder=transformers.Gemma3ForConditionalGeneration(gemma),
        connectors=LTX2TextConnectors(
            caption_channels=16,
            text_proj_in_factor=3,  # layers of the text encoder, and what goes into the first
            connector_rope_base_seq_len=32,
            rope_double_precision=False,
            causal_temporal_positioning=False,
            rope_type="split",
            **connectors,
        ),
        transformer=diffusers.LTX2VideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            audio_in_channels=4,
            audio_out_channels=4,
            audio_num_attention_heads=2,
            audio_attention_head_dim=4,
            audio_cross_attention_dim=8,
            num_layers=3,
            caption_channels=16,
            rope_double_precision=False,
            rope_type="split",
        ),
        vae=diffusers.AutoencoderKLLTX2Video(
            latent_channels=4,
            block_out_channels=(8,),
            decoder_block_out_channels=(8,),
            layers_per_block=(1,),
            decoder_layers_per_block=(1, 1),
            spatio_temporal_scaling=(True,),
            decoder_spatio_temporal_scaling=(True,),
            decoder_inject_noise=(False, False),
            downsample_type=("spatial",),
            upsample_residual=(False,),
            upsample_factor=(1,),
            patch_size=1,
        ),
        audio_vae=diffusers.AutoencoderKLLTX2Audio(
            base_channels=4,
            ch_mult=(1,),
            num_res_blocks=1,
            resolution=32,
            latent_channels=2,
            mid_block_add_attention=False,
            mel_bins=8,
        ),
        vocoder=LTX2Vocoder(
            in_channels=16,
            hidden_channels=32,
            upsample_kernel_sizes=[4, 4],
            upsample_factors=[2, 2],
            resnet_kernel_sizes=[3],
            resnet_dilations=[[1, 3, 5]],
            output_sampling_rate=16000,
        ),
    )


def flux2_klein() -> Any:
    """Text and pictures to a picture; here the text encoder is a random Qwen3."""
    tokenizer = _words()["tokenizer"]
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3}
    return diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        tokenizer=tokenizer,
        text_encoder=transformers.Qwen3ForCausalLM(
            transformers.Qwen3Config(vocab_size=len(tokenizer), **heads, **layers)
        ),
        transformer=TINY["flux2"].build(),
        vae=diffusers.AutoencoderKLFlux2(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=1,
            norm_num_groups=1,
        ),
        is_distilled=True,
    )


def control_flux() -> Any:
    """The bundled model with a random ControlNet."""
    pipe = diffusers.FluxPipeline.from_pretrained(demo.path(), torch_dtype=torch.float32)
    config = {**pipe.transformer.config, "num_layers": 1, "num_single_layers": 1}
    known = inspect.signature(diffusers.FluxControlNetModel.__init__).parameters
    control = diffusers.FluxControlNetModel(**{name: value for name, value in config.items() if name in known})
    for weight in control.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    parts = {name: part for name, part in pipe.components.items() if name not in ("image_encoder", "feature_extractor")}
    return diffusers.FluxControlNetPipeline(**parts, controlnet=control)


def saved(build: Callable[[], Any], folder: Path) -> Path:
    """Save a pipeline, drawn anew from the same seed each time, and return its folder."""
    torch.manual_seed(0)
    build().save_pretrained(folder)
    return folder
