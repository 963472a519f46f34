"""Real pipelines from tiny random parts, of the families that diffusers got last, or that want a part more."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from tests.adapters.pipelines import IMAGE, VIDEO, Built, Pixels, assemble, drawn, masks, of, prompts, scheduler
from tests.adapters.pipelines_more import unipc
from tests.tiny_models import TINY
from tests.tiny_models.parts import noise

__all__ = ["NEW", "sana_wm_refiner"]


def tokenizer() -> Any:
    """Return a real tokenizer of thirty words, <0> to <29>, and one for all others."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {f"<{index}>": index for index in range(30)} | {"other": 30, "end": 31}
    words = Tokenizer(models.WordLevel(known, unk_token="other"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="other", eos_token="end", chat_template=template)


def ace_step(**guidance: Any) -> Built:
    """Guidance by a batch of two; the encoder of the conditions is a real one."""
    pipe = assemble(
        "AceStepPipeline",
        transformer=TINY["ace_step"].build(),
        scheduler=scheduler(num_train_timesteps=1),
    )
    from diffusers.pipelines.ace_step.modeling_ace_step import AceStepConditionEncoder

    encoder = AceStepConditionEncoder(
        hidden_size=32,
        intermediate_size=32,
        text_hidden_dim=16,
        timbre_hidden_dim=8,
        num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    pipe.register_modules(condition_encoder=drawn(encoder))
    words, lines = torch.ones(1, 6), torch.ones(1, 4)
    pipe.encode_prompt = lambda **_: (of("cond", 6, 16), words, of("lyrics", 4, 16), lines)
    return pipe, {"prompt": "a", "audio_duration": 0.64, **guidance}


def ace_step_guided_for_a_part() -> Built:
    """Outside of the interval the batch is half as large."""
    return ace_step(cfg_interval_start=0.2, cfg_interval_end=0.6)


def consisid() -> Built:
    """Needs OpenCV only to look for a face, for which numbers stand in."""
    from diffusers.pipelines.consisid.pipeline_consisid import ConsisIDPipeline

    tiny = TINY["consisid"]
    tiny = replace(tiny, config={**tiny.config, "in_channels": 8})
    parts = {"transformer": tiny.build(), "scheduler": diffusers.CogVideoXDDIMScheduler()}
    pipe = ConsisIDPipeline(tokenizer=None, text_encoder=None, vae=Pixels(4), **parts)
    pipe.set_progress_bar_config(disable=True)
    inputs = tiny.inputs()
    face = {"id_cond": inputs["id_cond"], "id_vit_hidden": inputs["id_vit_hidden"]}
    return pipe, {**VIDEO, **prompts(6, 12), **face, "image": noise((1, 3, 64, 64), "image").clamp(0, 1)}


def cosmos3() -> Built:
    """The tokens of the text go through all layers beside those of the video."""
    pipe = assemble(
        "Cosmos3OmniPipeline",
        transformer=TINY["cosmos3"].build(),
        scheduler=unipc(),
        vae=Pixels(2),
        enable_safety_checker=False,
        text_tokenizer=tokenizer(),
    )
    call = {"prompt": "<3> <4>", "negative_prompt": "<5>", "use_system_prompt": False}
    return pipe, {**VIDEO, **call, "guidance_scale": 4.0}


def joyimage_edit_plus() -> Built:
    """The patches of the pictures to edit are put back into the latents in every step."""
    tiny = TINY["joyimage_edit_plus"]
    pipe = assemble("JoyImageEditPlusPipeline", transformer=tiny.build(), scheduler=scheduler(), vae=Pixels(4))
    pipe.image_processor.get_default_height_width = lambda *_: (64, 64)
    words = torch.ones(1, 6)
    pipe.encode_prompt_multiple_images = lambda prompt, **_: (
        of("cond" if "a<" in prompt[0] else "uncond", 6, 16),
        words,
    )
    return pipe, {**IMAGE, "images": [Image.new("RGB", (64, 64), "red")], "prompt": "a", "negative_prompt": "b"}


def kandinsky6() -> Built:
    """Video and audio, the second carried stream."""
    pipe = assemble(
        "Kandinsky6TI2VAPipeline", transformer=TINY["kandinsky6"].build(), scheduler=scheduler(), vae=Pixels(4)
    )
    pipe.audio_vae, pipe.vocoder = SimpleNamespace(), SimpleNamespace()
    pooled = {"pooled_prompt_embeds": of("cond", 8), "negative_pooled_prompt_embeds": of("uncond", 8)}
    return pipe, {**VIDEO, **prompts(6, 16), **pooled}


def kandinsky6_sr() -> Built:
    """Two tiles, each with a loop of its own."""
    tiny = TINY["kandinsky6_sr"]
    tiny = replace(tiny, config={**tiny.config, "tile_sizes": ((64, 64),)})
    pipe = assemble("Kandinsky6SRPipeline", transformer=tiny.build(), scheduler=scheduler(), vae=Pixels(4))
    return pipe, {"video": noise((1, 5, 3, 32, 48), "video").clamp(0, 1), "resolution_scale": 2, "output_type": "pt"}


def longcat_audio() -> Built:
    """Guidance by a second forward that nothing announces."""
    pipe = assemble(
        "LongCatAudioDiTPipeline", transformer=TINY["longcat_audio"].build(), scheduler=scheduler(), vae=Pixels(8)
    )
    lengths = torch.tensor([6])
    pipe.encode_prompt = lambda prompt, _: (of("cond" if prompt == ["a"] else "uncond", 6, 16), lengths)
    return pipe, {"prompt": "a", "negative_prompt": "b", "audio_duration_s": 1.4}


def omnigen() -> Built:
    """Masks and positions are made of the words by diffusers' processor, whose pictures alone need torchvision."""
    from diffusers.pipelines.omnigen import pipeline_omnigen
    from diffusers.pipelines.omnigen.processor_omnigen import OmniGenCollator, OmniGenMultiModalProcessor

    processor = OmniGenMultiModalProcessor.__new__(OmniGenMultiModalProcessor)
    processor.text_tokenizer, processor.max_image_size, processor.collator = tokenizer(), 1024, OmniGenCollator()
    vars(pipeline_omnigen).setdefault("OmniGenMultiModalProcessor", lambda *_, **__: processor)
    pipe = assemble("OmniGenPipeline", transformer=TINY["omnigen"].build(), scheduler=scheduler(), vae=Pixels(4))
    pipe.multimodal_processor = processor
    return pipe, {**IMAGE, "prompt": "<3> <4>"}


class Chat:
    """Stands in for a processor of words and pictures, which is asked how long its system prompt is."""

    def __init__(self) -> None:
        self.tokenizer = tokenizer()

    def apply_chat_template(self, *_: object, **__: object) -> list[list[int]]:
        return [[1, 2]]


def qwen_image_21(*, use_kv_cache: bool = False) -> Built:
    tiny = TINY["qwen_image_21"]
    tiny = replace(tiny, config={**tiny.config, "causal_condition": use_kv_cache})
    parts = {"transformer": tiny.build(), "scheduler": scheduler(use_dynamic_shifting=True), "processor": Chat()}
    pipe = assemble("QwenImage21Pipeline", **parts)
    return pipe, {**IMAGE, **prompts(6, 16), "true_cfg_scale": 4.0, "use_kv_cache": use_kv_cache}


def qwen_image_21_with_its_kv_cache() -> Built:
    """From the second step on the sequence is shorter."""
    return qwen_image_21(use_kv_cache=True)


def sana_wm() -> Built:
    """The way of the camera is part of the conditioning, and the first frame stays."""
    pipe = assemble("SanaWMPipeline", transformer=TINY["sana_wm"].build(), scheduler=scheduler(), vae=Pixels(4))
    way = np.tile(np.eye(4, dtype=np.float32), (5, 1, 1))
    call = {
        "image": Image.new("RGB", (64, 64), "red"),
        "prompt": "a",
        "c2w": way,
        "intrinsics": [60.0, 60.0, 32.0, 32.0],
    }
    return pipe, {**IMAGE, **prompts(6, 12), **masks(6), **call}


def sana_wm_refiner() -> Built:
    """Two windows after the first frame; between them are forwards that only fill the KV cache."""
    pipe = assemble("SanaWMLTX2Refiner", transformer=TINY["sana_wm_refiner"].build(), scheduler=scheduler())
    encoded = of("cond", 6, 12), torch.ones(1, 6)
    pipe._encode_prompt = lambda *_, **__: encoded
    call = {"sana_latent": noise((1, 4, 5, 2, 2), "latents"), "prompt": "a", "fps": 16.0, "block_size": 2}
    return pipe, {**call, "sigmas": (0.9, 0.7, 0.5, 0.3, 0.0)}


def stable_audio_3() -> Built:
    tiny = replace(TINY["stable_audio3"], config={**TINY["stable_audio3"].config, "global_cond_dim": 16})
    transformer = tiny.build()
    from diffusers.pipelines.stable_audio_3.modeling_stable_audio_3 import StableAudio3DurationEmbedder

    pipe = assemble(
        "StableAudio3Pipeline",
        transformer=transformer,
        scheduler=scheduler(num_train_timesteps=1),
        duration_embedder=drawn(StableAudio3DurationEmbedder(output_dim=16, fourier_dim=8)),
    )
    pipe.vae = SimpleNamespace(downsampling_ratio=4, config=SimpleNamespace(sampling_rate=16, latent_dim=8))
    call = {**prompts(6, 16), **masks(6, "{}encoder_attention_mask", torch.long)}
    return pipe, {**call, "duration": 4.0, "guidance_scale": 3.0}


NEW = {
    build.__name__: build
    for build in (
        ace_step,
        ace_step_guided_for_a_part,
        consisid,
        cosmos3,
        joyimage_edit_plus,
        kandinsky6,
        kandinsky6_sr,
        longcat_audio,
        omnigen,
        qwen_image_21,
        qwen_image_21_with_its_kv_cache,
        sana_wm,
        stable_audio_3,
    )
}
