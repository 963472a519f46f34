"""Further real pipelines from tiny random parts: those that lead their loop in a way of their own, and the families
that ``pipelines`` has not.

Where a pipeline has no argument for embeddings, a function in the place of ``encode_prompt`` stands in for the text
encoder.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers.hooks import LayerSkipConfig
from PIL import Image

from tests.adapters.pipelines import IMAGE, VIDEO, Built, Pixels, assemble, hunyuan_image, masks, of, prompts, scheduler
from tests.tiny_models import TINY
from tests.tiny_models.parts import noise

__all__ = ["MORE"]


def unipc() -> Any:
    return diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)


def ideogram4() -> Built:
    """Two instances of one class in every step: one for the prompt, one for the image alone."""
    tiny = TINY["ideogram4"]
    tiny = replace(tiny, config={**tiny.config, "in_channels": 8})
    parts = {"transformer": tiny.build(0), "unconditional_transformer": tiny.build(1), "vae": Pixels(2)}
    pipe = assemble("Ideogram4Pipeline", scheduler=scheduler(), **parts)

    def encoded(prompt: str, grid_h: int, grid_w: int, max_sequence_length: int, device: torch.device) -> Any:
        count = grid_h * grid_w
        places = pipe._prepare_ids(torch.tensor([max_sequence_length]), grid_h, grid_w, max_sequence_length, device)
        text = of("cond", max_sequence_length, 16)
        return (torch.cat([text, torch.zeros(1, count, 16)], dim=1), *places)

    pipe.encode_prompt = encoded
    return pipe, {**IMAGE, "prompt": "a", "max_sequence_length": 6, "guidance_scale": 4.0, "guidance_schedule": None}


def shap_e() -> Built:
    """The transformer is called ``prior``, and the solver calls it twice a step."""
    config = {
        **TINY["prior"].config,
        "additional_embeddings": 0,
        "embedding_proj_dim": 8,
        "clip_embed_dim": 16,
        "time_embed_dim": 16,
        "time_embed_act_fn": "gelu",
        "norm_in_type": "layer",
        "encoder_hid_proj_type": None,
        "added_emb_type": None,
    }
    solver = diffusers.HeunDiscreteScheduler(beta_schedule="exp", num_train_timesteps=1024, prediction_type="sample")
    pipe = assemble("ShapEPipeline", prior=replace(TINY["prior"], config=config).build(), scheduler=solver)
    pipe._encode_prompt = lambda *_: torch.cat([of("uncond", 8), of("cond", 8)])
    return pipe, {"prompt": "a"}


def kandinsky_prior() -> Built:
    """The transformer is called ``prior``."""
    pipe = assemble(
        "KandinskyV22PriorPipeline",
        prior=TINY["prior"].build(),
        scheduler=diffusers.UnCLIPScheduler(prediction_type="sample"),
    )
    # A negative prompt is embedded by itself, too: two embeddings, each with guidance.
    both = (torch.cat([of("uncond", *shape)] * 2 + [of("cond", *shape)] * 2) for shape in ((8,), (7, 8)))
    encoded = (*both, torch.ones(4, 7, dtype=torch.bool))
    pipe._encode_prompt = lambda *_: encoded
    return pipe, {"prompt": "a", "negative_prompt": "b", "output_type": "pt"}


def glm_image_with_two_equal_images() -> Built:
    """Before the loop, a forward for each image that is given; here the two forwards have the same arguments."""
    parts = {"transformer": TINY["glm_image"].build(), "vae": Pixels(4)}
    pipe = assemble("GlmImagePipeline", scheduler=scheduler(), **parts)
    pictures = torch.zeros(2, 64, 64, 3).numpy()
    call = {
        "image": [pictures[0], pictures[1]],
        "prior_token_ids": (torch.arange(16) % 7)[None],
        "prior_token_image_ids": [torch.arange(32) % 16 % 7],
        "source_image_grid_thw": [torch.tensor([[1, 4, 4], [1, 4, 4]])],
    }
    return pipe, {**IMAGE, **prompts(6, 16), **call}


def chronoedit() -> Built:
    """After two steps only the first and the last frame are left."""
    tiny = TINY["chronoedit"]
    tiny = replace(tiny, config={**tiny.config, "in_channels": 12, "image_dim": 16, "added_kv_proj_dim": 24})
    parts = {"transformer": tiny.build(), "vae": Pixels(4), "scheduler": unipc()}
    pipe = assemble("ChronoEditPipeline", **parts)
    call = {"image": noise((1, 3, 64, 64), "image").clamp(0, 1)}
    pipe.encode_image = lambda *_: noise((1, 257, 16), "image")
    reasoning = {"enable_temporal_reasoning": True, "num_temporal_reasoning_steps": 2, "num_frames": 9}
    return pipe, {**VIDEO, **prompts(6, 16), **call, **reasoning}


def framepack() -> Built:
    """Two sections of a video, each with a loop of its own, and guidance by a second forward."""
    parts = {
        "transformer": TINY["hunyuan_video_framepack"].build(),
        "vae": Pixels(4),
        "scheduler": scheduler(use_dynamic_shifting=True),
    }
    pipe = assemble("HunyuanVideoFramepackPipeline", **parts)
    pipe.encode_image = lambda *_, **__: noise((1, 5, 16), "image")
    call = {"image": noise((1, 3, 64, 64), "image").clamp(0, 1), "num_frames": 17, "latent_window_size": 3}
    for prefix, branch in (("", "cond"), ("negative_", "uncond")):
        call[f"{prefix}prompt_embeds"] = of(branch, 6, 16)
        call[f"{prefix}pooled_prompt_embeds"] = of(branch, 8)
        call[f"{prefix}prompt_attention_mask"] = torch.ones(1, 6)
    return pipe, {**IMAGE, **call, "true_cfg_scale": 2.0}


def wan_vace() -> Built:
    tiny = TINY["wan_vace"]
    tiny = replace(tiny, config={**tiny.config, "vace_in_channels": 2 * 4 + 64})
    pipe = assemble("WanVACEPipeline", transformer=tiny.build(), vae=Pixels(4), scheduler=scheduler())
    return pipe, {**VIDEO, **prompts(6, 16)}


def wan_animate() -> Built:
    """Two segments of a video, each with a loop of its own."""
    pipe = assemble("WanAnimatePipeline", transformer=TINY["wan_animate"].build(), vae=Pixels(4), scheduler=scheduler())
    picture = Image.new("RGB", (64, 64), "red")
    pipe.encode_image = lambda *_: noise((1, 257, 16), "image")
    call = {"image": picture, "pose_video": [picture] * 9, "face_video": [picture] * 9, "segment_frame_length": 5}
    return pipe, {**IMAGE, **prompts(6, 16), **call, "guidance_scale": 3.0}


def ltx2() -> Built:
    """Three branches in every step: guidance in one batch, perturbed blocks, and each modality alone."""
    pipe = assemble("LTX2Pipeline", transformer=TINY["ltx2"].build(), scheduler=scheduler(), vae=Pixels(4))
    facts = SimpleNamespace(mel_bins=16, latent_channels=1, sample_rate=16000)
    pipe.audio_vae = SimpleNamespace(config=facts, latents_mean=torch.zeros(4), latents_std=torch.ones(4))
    pipe.connectors = lambda embeds, mask, **_: (embeds, embeds, mask)
    call = {"num_frames": 9, "spatio_temporal_guidance_blocks": [2]}
    return pipe, {**IMAGE, **prompts(6, 12), **masks(6), **call, "stg_scale": 1.0, "modality_scale": 3.0}


def hunyuan_image_three_branches() -> Built:
    """A guider with three branches, the third for a part of the steps."""
    pipe, call = hunyuan_image()
    skipped = LayerSkipConfig(indices=[1], fqn="transformer_blocks")
    part = {"skip_layer_guidance_start": 0.2, "skip_layer_guidance_stop": 0.7}
    pipe.register_modules(guider=diffusers.SkipLayerGuidance(guidance_scale=3.0, skip_layer_config=skipped, **part))
    return pipe, call


def ovis_image() -> Built:
    pipe = assemble("OvisImagePipeline", transformer=TINY["ovis_image"].build(), scheduler=scheduler())
    return pipe, {**IMAGE, **prompts(6, 32), "negative_prompt": None}


def bria_fibo2() -> Built:
    pipe = assemble("BriaFibo2Pipeline", transformer=TINY["bria_fibo2"].build(), scheduler=scheduler())
    return pipe, {**IMAGE, **prompts(3, 6, 16), **masks(6, "{}prompt_embeds_mask")}


def ernie_image() -> Built:
    pipe = assemble("ErnieImagePipeline", transformer=TINY["ernie_image"].build(), scheduler=scheduler())
    call = {"prompt_embeds": [of("cond", 6, 16)[0]], "negative_prompt_embeds": [of("uncond", 6, 16)[0]]}
    return pipe, {**IMAGE, **call, "use_pe": False}


def joyimage_edit() -> Built:
    pipe = assemble("JoyImageEditPipeline", transformer=TINY["joyimage"].build(), scheduler=scheduler(), vae=Pixels(4))
    pipe.vae_image_processor.get_default_height_width = lambda *_: (64, 64)
    return pipe, {**IMAGE, **prompts(6, 16), **masks(6, "{}prompt_embeds_mask")}


def bria_fibo() -> Built:
    """Each block gets text of its own, from another layer of the text encoder."""
    pipe = assemble("BriaFiboPipeline", transformer=TINY["bria_fibo"].build(), scheduler=scheduler(), vae=Pixels(4))
    layers = [noise((1, 6, 16), "layer", index) for index in range(8)]
    encoded = (
        of("cond", 6, 32),
        of("uncond", 6, 32),
        torch.zeros(1, 6, 3),
        torch.ones(1, 6),
        torch.ones(1, 6),
        layers,
        layers,
    )
    pipe.encode_prompt = lambda **_: encoded
    return pipe, {**IMAGE, "prompt": "a"}


def lumina() -> Built:
    tiny = replace(TINY["lumina"], config={**TINY["lumina"].config, "learn_sigma": True})
    pipe = assemble("LuminaPipeline", transformer=tiny.build(), scheduler=scheduler())
    return pipe, {**IMAGE, **prompts(6, 16), **masks(6)}


def allegro() -> Built:
    pipe = assemble(
        "AllegroPipeline", transformer=TINY["allegro"].build(), scheduler=diffusers.EulerAncestralDiscreteScheduler()
    )
    return pipe, {**VIDEO, **prompts(6, 12), **masks(6), "negative_prompt": None, "clean_caption": False}


def cosmos() -> Built:
    solver = diffusers.EDMEulerScheduler(sigma_schedule="karras")
    pipe = assemble(
        "CosmosTextToWorldPipeline",
        transformer=TINY["cosmos"].build(),
        scheduler=solver,
        safety_checker=Pixels(1),
        vae=Pixels(4),
    )
    return pipe, {**VIDEO, **prompts(6, 16)}


def motif_video() -> Built:
    pipe = assemble(
        "MotifVideoPipeline",
        transformer=TINY["motif_video"].build(),
        scheduler=scheduler(),
        vae=Pixels(4),
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=3.0),
    )
    return pipe, {**VIDEO, **prompts(6, 16), **masks(6)}


def hunyuan_dit() -> Built:
    pipe = assemble(
        "HunyuanDiTPipeline",
        transformer=TINY["hunyuan_dit"].build(),
        scheduler=diffusers.DDPMScheduler(),
        requires_safety_checker=False,
    )
    call = {**prompts(4, 8), **masks(4, dtype=torch.long), "use_resolution_binning": False, "target_size": (64, 64)}
    call |= {"prompt_embeds_2": of("cond", 4, 8), "negative_prompt_embeds_2": of("uncond", 4, 8)}
    return pipe, {**IMAGE, **call, **masks(4, "{}prompt_attention_mask_2", torch.long)}


def helios() -> Built:
    pipe = assemble("HeliosPipeline", transformer=TINY["helios"].build(), scheduler=scheduler(), vae=Pixels(4))
    return pipe, {**IMAGE, "num_frames": 5, "num_latent_frames_per_chunk": 2, **prompts(6, 16)}


def wan_video_to_video() -> Built:
    """Guidance by a second forward that nothing announces."""
    pipe = assemble("WanVideoToVideoPipeline", transformer=TINY["wan21"].build(), scheduler=unipc(), vae=Pixels(4))
    return pipe, {
        **IMAGE,
        **prompts(6, 16),
        "latents": noise((1, 4, 2, 8, 8), "latents"),
        "video": None,
        "strength": 1.0,
    }


def flux_kontext() -> Built:
    """As FLUX with guidance, which nothing announces here."""
    pipe = assemble("FluxKontextPipeline", transformer=TINY["flux"].build(), scheduler=scheduler())
    call = {"prompt_embeds": of("cond", 6, 32), "pooled_prompt_embeds": of("cond", 32)}
    negative = {"negative_prompt_embeds": of("uncond", 6, 32), "negative_pooled_prompt_embeds": of("uncond", 32)}
    return pipe, {**IMAGE, **call, **negative, "true_cfg_scale": 2.0, "max_area": 64 * 64}


def stable_audio() -> Built:
    solver = diffusers.EDMDPMSolverMultistepScheduler()
    tiny = replace(TINY["stable_audio"], config={**TINY["stable_audio"].config, "global_states_input_dim": 24})
    pipe = assemble("StableAudioPipeline", transformer=tiny.build(), scheduler=solver)
    pipe.vae = SimpleNamespace(hop_length=4, config=SimpleNamespace(sampling_rate=16, audio_channels=1))
    pipe.projection_model = SimpleNamespace(config=SimpleNamespace(min_value=0.0, max_value=9.0))
    pipe.encode_prompt = lambda *_, **__: torch.cat([of("uncond", 6, 12), of("cond", 6, 12)])
    seconds = torch.cat([of("cond", 1, 12)] * 2)
    pipe.encode_duration = lambda *_, **__: (seconds, seconds)
    return pipe, prompts(6, 12)


def longcat_image() -> Built:
    tiny = replace(TINY["longcat_image"], config={**TINY["longcat_image"].config, "in_channels": 64})
    pipe = assemble("LongCatImagePipeline", transformer=tiny.build(), scheduler=scheduler())
    places = torch.zeros(6, 3)
    pipe.encode_prompt = lambda prompt, **_: (of("cond" if prompt == "a" else "uncond", 6, 32), places)
    return pipe, {**IMAGE, "prompt": "a", "negative_prompt": "b", "enable_prompt_rewrite": False}


def dit() -> Built:
    tiny = replace(TINY["dit"], config={**TINY["dit"].config, "num_embeds_ada_norm": 1000})  # and one for no class
    pipe = assemble(
        "DiTPipeline",
        transformer=tiny.build(),
        scheduler=diffusers.DDIMScheduler(),
        vae=diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=1),
    )
    return pipe, {"class_labels": [1], "output_type": "np"}


MORE = {
    build.__name__: build
    for build in (
        allegro,
        bria_fibo,
        bria_fibo2,
        chronoedit,
        cosmos,
        dit,
        ernie_image,
        flux_kontext,
        framepack,
        glm_image_with_two_equal_images,
        helios,
        hunyuan_dit,
        hunyuan_image_three_branches,
        ideogram4,
        joyimage_edit,
        kandinsky_prior,
        longcat_image,
        ltx2,
        lumina,
        motif_video,
        ovis_image,
        shap_e,
        stable_audio,
        wan_animate,
        wan_vace,
        wan_video_to_video,
    )
}
