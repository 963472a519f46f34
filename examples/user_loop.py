"""Caching without a pipeline: your own denoising loop around a transformer, as in ComfyUI.

    python examples/user_loop.py            writes user_loop-12.png and user_loop-8.png into the current folder

The parts of the bundled model are loaded one by one; text encoding, the Euler sampler over sigmas and decoding are
plain code. All that caching needs are the four lines around ``enable_cache``, and ``refresh_context`` where the next
request has another number of steps.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

from cachedit_cli import (
    BlockAdapter,
    DBCacheConfig,
    ForwardPattern,
    demo,
    disable_cache,
    enable_cache,
    refresh_context,
    summary,
)

WORDS, SIDE = 16, 8  # tokens of the prompt; the picture has 8 times 8 tokens, each of 2 times 2 latent pixels


@dataclass
class Text:
    """A prompt as the transformer takes it."""

    words: Tensor
    pooled: Tensor


def part(kind: Any, folder: str) -> Any:
    return kind.from_pretrained(demo.path() / folder).float().eval()


@torch.no_grad()
def encode(prompt: str) -> Text:
    """Encode a prompt with both text encoders."""

    def tokens(folder: str, length: int) -> Tensor:
        tokenizer = AutoTokenizer.from_pretrained(demo.path() / folder)
        ids: Tensor = tokenizer(
            prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        return ids

    pooled = part(CLIPTextModel, "text_encoder")(tokens("tokenizer", WORDS)).pooler_output
    words = part(T5EncoderModel, "text_encoder_2")(tokens("tokenizer_2", WORDS))[0]
    return Text(words, pooled)


@torch.no_grad()
def sample(transformer: Any, text: Text, noise: Tensor, steps: int) -> Tensor:
    """Go from noise (sigma 1) to a picture (sigma 0) with Euler's method: one forward a step, nothing else."""
    places = torch.zeros(SIDE, SIDE, 3)
    places[..., 1], places[..., 2] = torch.arange(SIDE)[:, None], torch.arange(SIDE)[None]
    sigmas = torch.cat([torch.linspace(1, 1 / steps, steps), torch.zeros(1)])
    x = noise
    for sigma, following in itertools.pairwise(sigmas):
        velocity = transformer(
            hidden_states=x,
            timestep=sigma[None],
            encoder_hidden_states=text.words,
            pooled_projections=text.pooled,
            img_ids=places.reshape(-1, 3),
            txt_ids=torch.zeros(WORDS, 3),
            return_dict=False,
        )[0]
        x = x + (following - sigma) * velocity
    return x


@torch.no_grad()
def decode(vae: Any, x: Tensor) -> Image.Image:
    """Unpack the tokens into latent pixels, and decode them."""
    latents = x.reshape(1, SIDE, SIDE, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(1, 4, 2 * SIDE, 2 * SIDE)
    pixels = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample[0]
    return Image.fromarray((pixels.permute(1, 2, 0).clamp(-1, 1) * 127.5 + 127.5).round().byte().numpy())


def main(folder: Path = Path()) -> None:
    transformer = part(FluxTransformer2DModel, "transformer")
    vae = part(AutoencoderKL, "vae")
    text = encode("red heart on a white background")
    noise = torch.randn(1, SIDE * SIDE, 16, generator=torch.Generator().manual_seed(0))

    adapter = BlockAdapter(
        transformer=transformer,
        blocks=[transformer.transformer_blocks, transformer.single_transformer_blocks],
        forward_pattern=ForwardPattern.Pattern_1,
        chain=True,
    )
    config = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.3, num_inference_steps=12)
    enable_cache(adapter, cache_config=config)
    for steps in (12, 8):
        refresh_context(adapter, num_inference_steps=steps)  # a request, with as many steps as it asks for
        x = sample(transformer, text, noise, steps)
        summary(adapter)
        decode(vae, x).save(folder / f"user_loop-{steps}.png")
    disable_cache(adapter)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
