"""The loops of modular pipelines, from tiny random parts: neither text encoders nor what makes latents of pictures.

Each builder returns a pipeline, the arguments of its call but for steps and generator, and what to ask it for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import torch

from tests.adapters.pipelines import Pixels, drawn, of, scheduler
from tests.tiny_models import TINY
from tests.tiny_models.parts import noise

__all__ = ["MODULAR", "Modular"]

Modular = tuple[Any, dict[str, Any], str]


def guided(**settings: Any) -> Any:
    return diffusers.ClassifierFreeGuidance(guidance_scale=3.0, **settings)


def in_a_row(pipeline: Any, steps: dict[str, Any]) -> Any:
    blocks = diffusers.SequentialPipelineBlocks.from_blocks_dict(steps)
    return pipeline(blocks=blocks)


def flux3() -> Modular:
    """Guidance for a part of the steps."""
    from diffusers.modular_pipelines.flux3 import Flux3AutoBlocks

    blocks = Flux3AutoBlocks()
    for name in set(blocks.sub_blocks) - {"denoise"}:
        blocks.sub_blocks.pop(name)
    pipe = blocks.init_pipeline()
    parts = {"transformer": TINY["flux3"].build(), "scheduler": scheduler()}
    pipe.update_components(guider=guided(stop=0.6), **parts)
    prompts = {"prompt_embeds": of("cond", 6, 32), "negative_prompt_embeds": of("uncond", 5, 32)}
    return pipe, {"height": 64, "width": 64, **prompts}, "latents"


def minimax_h3() -> Modular:
    """One packed sequence of text, sound and video, each with times of its own; guidance is distilled.

    Where each row stands is given: the step that lays them out makes no fewer than five seconds of video.
    """
    from diffusers.modular_pipelines import minimax_h3 as modular
    from diffusers.modular_pipelines.minimax_h3.before_denoise import MiniMaxH3SetTimestepsStep
    from diffusers.modular_pipelines.minimax_h3.denoise import MiniMaxH3DenoiseStep

    tiny = TINY["minimax_h3"]
    inputs = tiny.inputs()
    steps = {"set_timesteps": MiniMaxH3SetTimestepsStep(), "denoise": MiniMaxH3DenoiseStep()}
    pipe = in_a_row(modular.MiniMaxH3ModularPipeline, steps)
    times = {"scheduler": diffusers.MiniMaxH3Scheduler(), "audio_scheduler": diffusers.MiniMaxH3Scheduler()}
    pipe.update_components(transformer=tiny.build(), **times)
    places = ("token_tags", "position_ids", "video_indices", "audio_indices", "text_indices")
    rows = {name: inputs[name] for name in places}
    states = {"latents": inputs["hidden_states"][0], "audio_latents": inputs["audio_hidden_states"][0]}
    prompt = {"prompt_embeds": inputs["encoder_hidden_states"]}
    lengths = {name: rows[name] for name in places if name.endswith("indices")}
    return pipe, {**lengths, **states, **prompt, "denoiser_input_fields": rows}, "latents"


def minimax_music3() -> Modular:
    """Two windows of the music, each with a loop of its own, whose times rise."""
    from diffusers.modular_pipelines.minimax_music3.modular_blocks_minimax_music3 import MiniMaxMusic3CoreDenoiseStep

    pipe = MiniMaxMusic3CoreDenoiseStep().init_pipeline()
    encoder = diffusers.MiniMaxMusic3ConditionEncoder(8, 1, 12, output_hop_length=512 * 32)
    rising = scheduler(num_train_timesteps=1, invert_sigmas=True)
    parts = {"transformer": TINY["minimax_music3"].build(), "condition_encoder": drawn(encoder)}
    pipe.update_components(guider=guided(), scheduler=rising, **parts)
    return pipe, {"frame_hiddens": noise((1, 220, 8), "frames")}, "latent_chunks"


def qwen_image() -> Modular:
    """Guidance for a part of the steps."""
    from diffusers.modular_pipelines import QwenImageAutoBlocks

    blocks = QwenImageAutoBlocks()
    for name in set(blocks.sub_blocks) - {"denoise"}:
        blocks.sub_blocks.pop(name)
    pipe = blocks.init_pipeline()
    parts = {"transformer": TINY["qwen_image"].build(), "scheduler": scheduler(use_dynamic_shifting=True)}
    pipe.update_components(guider=guided(stop=0.6), **parts)
    call: dict[str, Any] = {"height": 64, "width": 64}
    for prefix, branch, length in (("", "cond", 8), ("negative_", "uncond", 5)):
        call[f"{prefix}prompt_embeds"] = of(branch, length, 16)
        call[f"{prefix}prompt_embeds_mask"] = torch.ones(1, length).long()
    return pipe, call, "latents"


def wan_animate_2() -> Modular:
    """Begins with a forward that fills the KV cache; the branch without the prompt leaves out the tenth block."""
    from diffusers.modular_pipelines import wan_animate_2 as modular
    from diffusers.modular_pipelines.wan_animate_2.before_denoise import WanAnimate2PrepareSegmentsStep
    from diffusers.modular_pipelines.wan_animate_2.denoise import WanAnimate2DenoiseStep

    tiny = TINY["wan_animate_2"]
    tiny = replace(tiny, config={**tiny.config, "in_dim": 12, "num_layers": 11})
    steps = {"prepare_segments": WanAnimate2PrepareSegmentsStep(), "denoise": WanAnimate2DenoiseStep()}
    pipe = in_a_row(modular.WanAnimate2ModularPipeline, steps)
    pipe.update_components(transformer=tiny.build(), vae=Pixels(4), scheduler=scheduler(), guider=guided())
    prompts = {"prompt_embeds": of("cond", 6, 16), "negative_prompt_embeds": of("uncond", 6, 16)}
    call = {
        "reference_image_latents": noise((8, 1, 8, 8), "reference"),
        "driving_video_pixels": noise((1, 3, 5, 64, 64), "driving"),
        "condition_clip_context": noise((1, 3, 8), "clip"),
        "prompt_ref_embeds": of("reference", 6, 16),
        "num_segments": 1,
        "segment_frame_length": 5,
        "effective_segment": 4,
        "height": 64,
        "width": 64,
    }
    return pipe, {**call, **prompts}, "segment_frames"


MODULAR = {build.__name__: build for build in (flux3, minimax_h3, minimax_music3, qwen_image, wan_animate_2)}
