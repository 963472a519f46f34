"""Real pipelines from tiny random parts: no text encoder, and where it must be a stand-in for the VAE.

Each builder returns a pipeline and the arguments of its call, but for steps, generator and output.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from tests.tiny_models import TINY
from tests.tiny_models.parts import noise

__all__ = ["BUILDERS", "Built", "anyflow_far", "pipeline_class"]

Built = tuple[Any, dict[str, Any]]


class Pixels(nn.Module):
    """Stands in for a VAE: averages eight by eight pixels of every fourth frame; has what pipelines ask for."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            latent_channels=channels,
            z_dim=channels,
            latents_mean=[0.0] * channels,
            latents_std=[1.0] * channels,
            scaling_factor=1.0,
            shift_factor=0.0,
            batch_norm_eps=1e-4,
            block_out_channels=(1, 1, 1, 1),
            scale_factor_spatial=8,
            scale_factor_temporal=4,
            spatial_compression_ratio=8,
            temporal_compression_ratio=4,
            encoder_block_out_channels=(1, 1, 1, 1),
        )
        self.temperal_downsample = [False, True, True]
        self.spatial_compression_ratio, self.temporal_compression_ratio = 8, 4
        self.latents_mean, self.latents_std = torch.zeros(channels), torch.ones(channels)
        self.bn = SimpleNamespace(running_mean=torch.zeros(4 * channels), running_var=torch.ones(4 * channels))

    def encode(self, images: Tensor, return_dict: bool = True) -> Any:
        frames = images.unsqueeze(2) if images.ndim == 4 else images
        small = nn.functional.avg_pool3d(frames[:, :, ::4].mean(1, keepdim=True), (1, 8, 8))
        latents = small.expand(-1, self.config.z_dim, -1, -1, -1)
        latents = latents.squeeze(2) if images.ndim == 4 else latents
        certain = SimpleNamespace(sample=lambda generator=None: latents, mode=lambda: latents)
        return SimpleNamespace(latents=latents, latent=latents, latent_dist=certain) if return_dict else (certain,)

    def decode(self, latents: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        frames = latents.mean(1, keepdim=True).repeat_interleave(4, dim=2)[:, :, 3:]
        return (nn.functional.interpolate(frames, scale_factor=(1, 8, 8)).expand(-1, 3, -1, -1, -1),)


def pipeline_class(name: str) -> Any:
    """Return the class; skip where the installed diffusers lacks it, or cannot import it with what else there is."""
    try:
        return getattr(diffusers, name)
    except (AttributeError, RuntimeError) as error:
        pytest.skip(f"diffusers {diffusers.__version__} has no {name} here: {str(error).splitlines()[-1]}")


def assemble(name: str, **parts: Any) -> Any:
    """Return a pipeline of the class, of which parts that are not given are left out."""
    cls = pipeline_class(name)
    parameters = [each for each in inspect.signature(cls.__init__).parameters.values() if each.name != "self"]
    empty = inspect.Parameter.empty
    given = {each.name: parts.get(each.name, None if each.default is empty else each.default) for each in parameters}
    pipe = cls(**given)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def scheduler(**settings: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**settings)


def drawn(model: nn.Module) -> nn.Module:
    """Draw all weights, so that nothing begins at zero."""
    for index, weight in enumerate(model.parameters()):
        nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(index))
    return model.eval()


def of(branch: str, *shape: int) -> Tensor:
    return noise((1, *shape), "prompt", branch)


def prompts(*shape: int) -> dict[str, Tensor]:
    return {"prompt_embeds": of("cond", *shape), "negative_prompt_embeds": of("uncond", *shape)}


def masks(length: int, name: str = "{}prompt_attention_mask", dtype: torch.dtype = torch.bool) -> dict[str, Tensor]:
    return {name.format(prefix): torch.ones(1, length, dtype=dtype) for prefix in ("", "negative_")}


IMAGE = {"height": 64, "width": 64}
VIDEO = {**IMAGE, "num_frames": 5}


def flux() -> Built:
    pipe = assemble("FluxPipeline", transformer=TINY["flux"].build(), scheduler=scheduler())
    return pipe, {**IMAGE, "prompt_embeds": of("cond", 6, 32), "pooled_prompt_embeds": of("cond", 32)}


def flux_true_cfg() -> Built:
    pipe, call = flux()
    negative = {"negative_prompt_embeds": of("uncond", 6, 32), "negative_pooled_prompt_embeds": of("uncond", 32)}
    return pipe, {**call, **negative, "true_cfg_scale": 2.0}


def flux_controlnet() -> Built:
    config: Any = {**TINY["flux"].config, "num_layers": 2, "num_single_layers": 2, "axes_dims_rope": [4, 4, 8]}
    pipe, call = flux()
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4,),
        norm_num_groups=1,
        latent_channels=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0,
    )
    parts = {"controlnet": drawn(diffusers.FluxControlNetModel(**config)), "vae": drawn(vae)}
    pipe = assemble("FluxControlNetPipeline", transformer=pipe.transformer, scheduler=scheduler(), **parts)
    return pipe, {**call, "height": 8, "width": 8, "control_image": noise((1, 3, 8, 8), "control")}


def qwen_image(name: str = "QwenImagePipeline", **parts: Any) -> Built:
    shifting = scheduler(use_dynamic_shifting=True)
    pipe = assemble(name, transformer=TINY["qwen_image"].build(), scheduler=shifting, **parts)
    call: dict[str, Any] = {"prompt_embeds": of("cond", 8, 16), "prompt_embeds_mask": torch.ones(1, 8).long()}
    call |= {"negative_prompt_embeds": of("uncond", 5, 16), "negative_prompt_embeds_mask": torch.ones(1, 5).long()}
    return pipe, {**IMAGE, **call, "true_cfg_scale": 4.0}


def qwen_image_without_guidance() -> Built:
    pipe, call = qwen_image()
    return pipe, {name: value for name, value in call.items() if "negative" not in name} | {"true_cfg_scale": 1.0}


def qwen_image_controlnet() -> Built:
    config: Any = {**TINY["qwen_image"].config, "num_layers": 2}
    parts = {"controlnet": drawn(diffusers.QwenImageControlNetModel(**config)), "vae": Pixels(4)}
    pipe, call = qwen_image("QwenImageControlNetPipeline", **parts)
    return pipe, {**call, "control_image": noise((1, 3, 64, 64), "control")}


def chroma() -> Built:
    pipe = assemble("ChromaPipeline", transformer=TINY["chroma"].build(), scheduler=scheduler())
    return pipe, {**IMAGE, **prompts(6, 32), **masks(6, dtype=torch.float32), "guidance_scale": 3.0}


def wan_22() -> Built:
    parts = {"transformer": TINY["wan21"].build(0), "transformer_2": TINY["wan21"].build(1)}
    pipe = assemble("WanPipeline", scheduler=scheduler(), boundary_ratio=0.5, **parts)
    return pipe, {**VIDEO, **prompts(6, 16)}


def sd3(name: str = "StableDiffusion3Pipeline", **parts: Any) -> Built:
    pipe = assemble(name, transformer=TINY["sd3"].build(), scheduler=scheduler(), **parts)
    pooled = {"pooled_prompt_embeds": of("cond", 16), "negative_pooled_prompt_embeds": of("uncond", 16)}
    return pipe, {**IMAGE, **prompts(6, 32), **pooled, "guidance_scale": 4.0}


def sd3_skip_layers() -> Built:
    pipe, call = sd3()
    skip = {"skip_guidance_layers": [2], "skip_layer_guidance_start": 0.1, "skip_layer_guidance_stop": 0.7}
    return pipe, {**call, **skip}


def sd3_controlnet() -> Built:
    config: Any = {**TINY["sd3"].config, "num_layers": 2}
    vae = drawn(diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=1, shift_factor=0.0))
    control = drawn(diffusers.SD3ControlNetModel(**config))
    pipe, call = sd3("StableDiffusion3ControlNetPipeline", controlnet=control, vae=vae)
    return pipe, {**call, "height": 8, "width": 8, "control_image": noise((1, 3, 8, 8), "control")}


def sana(name: str = "SanaPipeline", **parts: Any) -> Built:
    solver = diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    pipe = assemble(name, transformer=TINY["sana"].build(), scheduler=solver, **parts)
    size = {"height": 256, "width": 256, "use_resolution_binning": False, "negative_prompt": None}
    return pipe, {**size, **prompts(6, 12), **masks(6)}


def sana_controlnet() -> Built:
    config: Any = {**TINY["sana"].config, "num_layers": 2}
    parts = {"controlnet": drawn(diffusers.SanaControlNetModel(**config)), "vae": Pixels(4)}
    pipe, call = sana("SanaControlNetPipeline", **parts)
    return pipe, {**call, "height": 64, "width": 64, "control_image": noise((1, 3, 64, 64), "control")}


def lumina2() -> Built:
    pipe = assemble("Lumina2Pipeline", transformer=TINY["lumina2"].build(), scheduler=scheduler())
    return pipe, {**IMAGE, **prompts(6, 16), **masks(6), "cfg_trunc_ratio": 0.5}


def hunyuan_video() -> Built:
    pipe = assemble("HunyuanVideoPipeline", transformer=TINY["hunyuan_video"].build(), scheduler=scheduler())
    call = {"prompt_embeds": of("cond", 6, 16), "pooled_prompt_embeds": of("cond", 8)}
    return pipe, {**VIDEO, "height": 32, "width": 32, **call, "prompt_attention_mask": torch.ones(1, 6)}


def hunyuan_video_true_cfg() -> Built:
    pipe, call = hunyuan_video()
    negative = {"negative_prompt_embeds": of("uncond", 6, 16), "negative_pooled_prompt_embeds": of("uncond", 8)}
    return pipe, {**call, **negative, "negative_prompt_attention_mask": torch.ones(1, 6), "true_cfg_scale": 2.0}


def hunyuan_video_15_guided_for_a_part() -> Built:
    guider = diffusers.ClassifierFreeGuidance(guidance_scale=3.0, start=0.0, stop=0.6)
    tiny = TINY["hunyuan_video15"]
    tiny = replace(tiny, config={**tiny.config, "in_channels": 9})  # latents, condition and mask
    parts = {"transformer": tiny.build(), "vae": Pixels(4)}
    pipe = assemble("HunyuanVideo15Pipeline", scheduler=scheduler(), guider=guider, **parts)
    call = {**prompts(6, 16), **masks(6, "{}prompt_embeds_mask", torch.float32)}
    call |= {"prompt_embeds_2": of("cond", 4, 8), "negative_prompt_embeds_2": of("uncond", 4, 8)}
    return pipe, {**VIDEO, **call, **masks(4, "{}prompt_embeds_mask_2", torch.float32)}


def hunyuan_image() -> Built:
    guider = diffusers.AdaptiveProjectedMixGuidance(enabled=True)
    parts = {"transformer": TINY["hunyuan_image"].build(), "guider": guider}
    pipe = assemble("HunyuanImagePipeline", scheduler=scheduler(), **parts)
    call = {**prompts(6, 16), **masks(6, "{}prompt_embeds_mask", torch.float32)}
    call |= {"prompt_embeds_2": of("cond", 4, 1472), "negative_prompt_embeds_2": of("uncond", 4, 1472)}
    return pipe, {"height": 128, "width": 128, **call, **masks(4, "{}prompt_embeds_mask_2", torch.float32)}


def cogvideox() -> Built:
    solver = diffusers.CogVideoXDDIMScheduler()
    pipe = assemble("CogVideoXPipeline", transformer=TINY["cogvideox"].build(), scheduler=solver)
    return pipe, {**VIDEO, **prompts(6, 12)}


def ltx_video() -> Built:
    pipe = assemble("LTXPipeline", transformer=TINY["ltx_video"].build(), scheduler=scheduler())
    return pipe, {**IMAGE, "num_frames": 9, **prompts(6, 12), **masks(6)}


def cogview4() -> Built:
    pipe = assemble("CogView4Pipeline", transformer=TINY["cogview4"].build(), scheduler=scheduler())
    return pipe, {**IMAGE, **prompts(6, 16)}


def cogview3_plus() -> Built:
    solver = diffusers.CogVideoXDDIMScheduler()
    pipe = assemble("CogView3PlusPipeline", transformer=TINY["cogview3plus"].build(), scheduler=solver)
    return pipe, {**IMAGE, **prompts(6, 16)}


def pixart() -> Built:
    solver = diffusers.DPMSolverMultistepScheduler()
    pipe = assemble("PixArtAlphaPipeline", transformer=TINY["pixart"].build(), scheduler=solver)
    call = {**prompts(6, 12), **masks(6, dtype=torch.long), "negative_prompt": None}
    return pipe, {**IMAGE, **call, "use_resolution_binning": False}


def auraflow() -> Built:
    pipe = assemble("AuraFlowPipeline", transformer=TINY["auraflow"].build(), scheduler=scheduler())
    return pipe, {**IMAGE, **prompts(6, 16), **masks(6, dtype=torch.long)}


def krea2() -> Built:
    parts = {"transformer": TINY["krea2"].build(), "scheduler": scheduler(use_dynamic_shifting=True)}
    pipe = assemble("Krea2Pipeline", patch_size=2, is_distilled=False, **parts)
    return pipe, {**IMAGE, **prompts(6, 2, 16), **masks(6, "{}prompt_embeds_mask"), "guidance_scale": 3.0}


def nucleus() -> Built:
    parts = {"transformer": TINY["nucleusmoe_image"].build(), "scheduler": scheduler(use_dynamic_shifting=True)}
    pipe = assemble("NucleusMoEImagePipeline", **parts)
    return pipe, {**IMAGE, **prompts(6, 16), **masks(6, "{}prompt_embeds_mask"), "guidance_scale": 3.0}


def prx() -> Built:
    pipe = assemble("PRXPipeline", transformer=TINY["prx"].build(), scheduler=scheduler())
    return pipe, {**IMAGE, **prompts(6, 16), **masks(6), "use_resolution_binning": False}


def z_image_truncated() -> Built:
    pipe = assemble("ZImagePipeline", transformer=TINY["z_image"].build(), scheduler=scheduler())
    call = {"prompt_embeds": [of("cond", 6, 16)[0]], "negative_prompt_embeds": [of("uncond", 4, 16)[0]]}
    return pipe, {**IMAGE, **call, "guidance_scale": 4.0, "cfg_truncation": 0.5}


def hidream() -> Built:
    pipe = assemble("HiDreamImagePipeline", transformer=TINY["hidream"].build(), scheduler=scheduler())
    pipe.default_sample_size = 8  # else every size becomes one megapixel
    call: dict[str, Any] = {}
    for prefix, branch in (("", "cond"), ("negative_", "uncond")):
        call[f"{prefix}prompt_embeds_t5"] = of(branch, 6, 8)
        call[f"{prefix}prompt_embeds_llama3"] = of(branch, 8, 6, 4).transpose(0, 1)
        call[f"{prefix}pooled_prompt_embeds"] = of(branch, 8)
    return pipe, {**IMAGE, **call}


def mochi() -> Built:
    parts = {"transformer": TINY["mochi"].build(), "scheduler": scheduler(invert_sigmas=True)}
    pipe = assemble("MochiPipeline", **parts)
    return pipe, {**IMAGE, "num_frames": 7, **prompts(6, 16), **masks(6)}


def latte() -> Built:
    pipe = assemble("LattePipeline", transformer=TINY["latte"].build(), scheduler=diffusers.DDIMScheduler())
    call = {**prompts(6, 12), "negative_prompt": None, "mask_feature": False}
    return pipe, {**IMAGE, "video_length": 2, **call}


def skyreels_v2() -> Built:
    solver = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    pipe = assemble("SkyReelsV2Pipeline", transformer=TINY["skyreels_v2"].build(), scheduler=solver)
    return pipe, {**VIDEO, **prompts(6, 16)}


def anyflow() -> Built:
    parts = {"transformer": TINY["anyflow"].build(), "scheduler": diffusers.FlowMapEulerDiscreteScheduler()}
    return assemble("AnyFlowPipeline", **parts), {**VIDEO, **prompts(6, 16)}


def anyflow_far() -> Built:
    parts = {"transformer": TINY["anyflow_far"].build(), "scheduler": diffusers.FlowMapEulerDiscreteScheduler()}
    pipe = assemble("AnyFlowFARPipeline", **parts)
    return pipe, {**VIDEO, "num_frames": 13, "chunk_partition": [1, 1, 2], **prompts(6, 16), "guidance_scale": 3.0}


def kandinsky5() -> Built:
    pipe = assemble("Kandinsky5T2VPipeline", transformer=TINY["kandinsky5"].build(), scheduler=scheduler())
    call: dict[str, Any] = {}
    for prefix, branch in (("", "cond"), ("negative_", "uncond")):
        call[f"{prefix}prompt_embeds_qwen"] = of(branch, 6, 16)
        call[f"{prefix}prompt_embeds_clip"] = of(branch, 8)
        call[f"{prefix}prompt_cu_seqlens"] = torch.tensor([0, 6])
    return pipe, {**VIDEO, **call}


def sana_video() -> Built:
    pipe = assemble("SanaVideoPipeline", transformer=TINY["sana_video"].build(), scheduler=scheduler())
    size = {"height": 256, "width": 256, "frames": 5, "use_resolution_binning": False, "negative_prompt": None}
    return pipe, {**size, **prompts(6, 12), **masks(6, dtype=torch.long)}


def glm_image() -> Built:
    pipe = assemble("GlmImagePipeline", transformer=TINY["glm_image"].build(), scheduler=scheduler())
    return pipe, {**IMAGE, **prompts(6, 16), "prior_token_ids": (torch.arange(16) % 7)[None]}


def easyanimate() -> Built:
    parts = {"transformer": TINY["easyanimate"].build(), "scheduler": scheduler(), "vae": Pixels(4)}
    return assemble("EasyAnimatePipeline", **parts), {**VIDEO, **prompts(6, 16), **masks(6, dtype=torch.long)}


def bria() -> Built:
    parts = {"transformer": TINY["bria"].build(), "scheduler": scheduler(), "vae": Pixels(1)}
    return assemble("BriaPipeline", **parts), {**IMAGE, **prompts(6, 32)}


def flux2_klein() -> Built:
    parts = {"transformer": TINY["flux2"].build(), "scheduler": scheduler(use_dynamic_shifting=True), "vae": Pixels(1)}
    pipe = assemble("Flux2KleinPipeline", is_distilled=False, **parts)
    return pipe, {**IMAGE, **prompts(6, 32), "guidance_scale": 3.0}


BUILDERS = {
    build.__name__: build
    for build in (
        anyflow,
        auraflow,
        bria,
        chroma,
        cogvideox,
        cogview3_plus,
        cogview4,
        easyanimate,
        flux,
        flux2_klein,
        flux_controlnet,
        flux_true_cfg,
        glm_image,
        hidream,
        hunyuan_image,
        hunyuan_video,
        hunyuan_video_15_guided_for_a_part,
        hunyuan_video_true_cfg,
        kandinsky5,
        krea2,
        latte,
        ltx_video,
        lumina2,
        mochi,
        nucleus,
        pixart,
        prx,
        qwen_image,
        qwen_image_controlnet,
        qwen_image_without_guidance,
        sana,
        sana_controlnet,
        sana_video,
        sd3,
        sd3_controlnet,
        sd3_skip_layers,
        skyreels_v2,
        wan_22,
        z_image_truncated,
    )
}
