#!/usr/bin/env python3
"""Train emoji-flux, the bundled demo model: a small FluxPipeline that draws Noto emoji on a named background.

Knows the data, the models and their training, and writes a folder for `FluxPipeline.from_pretrained`; knows nothing of
cachedit. docs/demo-model.md says how the published weights came about. One file, so that it can be copied and changed;
in the order of its stages, each of which leaves a checkpoint in `--work`:

    vae      a small AutoencoderKL, 64x64x3 -> 16x16x4
    latents  every emoji on every background colour, exact and slightly moved, encoded once
    flux     FluxTransformer2DModel, CLIPTextModel and T5EncoderModel, from scratch and together, as a rectified flow
    decoder  the decoder of the autoencoder alone, with the encoder frozen
    export   the pipeline folder, from the averaged weights, in float16

The data is the npm package emoji-datasource-google (64x64 Noto emoji, Apache License 2.0):

    npm pack emoji-datasource-google@16.0.0 && tar xzf emoji-datasource-google-16.0.0.tgz --one-top-level=training
    python tools/train_emoji_flux.py --data training/package

Matrix products run in bfloat16; weights, optimizer state and averages stay in float32.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args, get_origin, get_type_hints

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

SIZE = 64  # pixels
MAX_TOKENS = 16  # words of a caption and the end mark, for both text encoders
LATENT_CHANNELS = 4

# Background colours that captions name; the first is what a bare name means.
COLOURS = {
    "white": (255, 255, 255),
    "black": (24, 24, 28),
    "gray": (158, 162, 168),
    "pink": (255, 176, 206),
    "red": (214, 48, 49),
    "orange": (255, 152, 48),
    "yellow": (255, 226, 92),
    "mint green": (166, 232, 196),
    "sky blue": (135, 206, 250),
    "navy blue": (28, 44, 110),
    "purple": (142, 84, 200),
    "teal": (0, 138, 138),
}

PEOPLE = "People & Body"
CATEGORIES = {
    "Smileys & Emotion",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    PEOPLE,
}
# People come in very many near-identical variants: only hands, body parts and fantasy beings are kept.
SKIPPED = {"family", "person"}
SKIPPED |= {f"person-{kind}" for kind in ("activity", "gesture", "resting", "role", "sport", "symbol")}
RENAMED = {"heavy black heart": "red heart"}

# The emoji that captions are about, by main name: common, visually distinct things.
CORE = set((Path(__file__).parent / "emoji_names.txt").read_text(encoding="utf-8").splitlines())


Stage = Literal["all", "vae", "latents", "flux", "decoder", "export"]


@dataclass(frozen=True)
class Options:
    """The command line. Times are minutes of training; a stage ends at its minutes or its steps, whichever is first."""

    data: Annotated[Path, "the unpacked npm package emoji-datasource-google"]
    out: Annotated[Path, "the pipeline folder to write"] = Path("training/emoji-flux")
    work: Annotated[Path, "checkpoints, and sheets of reconstructions to look at"] = Path("training/work")
    stage: Annotated[Stage, "one stage, or all"] = "all"
    names: Annotated[Literal["core", "all"], "emoji in captions; core: those of emoji_names.txt"] = "core"
    device: Annotated[str, "auto takes CUDA where there is one"] = "auto"
    threads: Annotated[int, "CPU threads; 0 leaves the number to torch"] = 0
    seed: Annotated[int, "of everything random"] = 0
    compile: Annotated[bool, "compile the training steps; needs a C++ compiler"] = False
    vae_minutes: Annotated[float, "time for the autoencoder"] = 14.0
    vae_steps: Annotated[float, "steps for the autoencoder"] = math.inf
    decoder_minutes: Annotated[float, "time for the decoder alone"] = 5.0
    decoder_steps: Annotated[float, "steps for the decoder alone"] = math.inf
    minutes: Annotated[float, "time for the transformer and the text encoders"] = 60.0
    steps: Annotated[float, "steps for the transformer and the text encoders"] = math.inf
    stop_minutes: Annotated[float, "stop early, without changing the learning-rate schedule"] = math.inf
    save_minutes: Annotated[float, "time between checkpoints of the transformer"] = 8.0
    init: Annotated[Path | None, "a checkpoint, flux.pt, to start from"] = None
    batch: Annotated[int, "samples a step"] = 64
    warmup: Annotated[float, "share of the run in which the learning rate rises"] = 0.02
    muon_lr: Annotated[float, "learning rate of the hidden matrices"] = 3e-3
    lr: Annotated[float, "learning rate of the rest"] = 1e-3
    embed_lr: Annotated[float, "learning rate of the token embeddings"] = 3e-3
    ema: Annotated[float, "decay of the averaged weights"] = 0.999
    t_mean: Annotated[float, "mean of the logit-normal training times; larger is noisier"] = 0.4
    caption_dropout: Annotated[float, "share of empty captions, which classifier-free guidance needs"] = 0.03
    views: Annotated[int, "views of each emoji: the exact one, then moved and scaled ones"] = 1
    exact: Annotated[float, "share of samples that show the exact view"] = 1.0
    heads: Annotated[int, "attention heads of the transformer"] = 4
    head_dim: Annotated[int, "width of a head, a multiple of 8"] = 32
    double: Annotated[int, "double-stream blocks"] = 6
    single: Annotated[int, "single-stream blocks"] = 12
    text_dim: Annotated[int, "width of the text encoders, a multiple of 32"] = 128


def parse(arguments: Sequence[str] | None) -> Options:
    """Read the command line; every field of Options is one option of it."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    hints = get_type_hints(Options, include_extras=True)
    for each in fields(Options):
        kind, text = get_args(hints[each.name])
        flag, shown = f"--{each.name.replace('_', '-')}", f"{text} (default: {each.default})"
        if each.default is MISSING:
            parser.add_argument(flag, type=kind, required=True, help=text)
        elif kind is bool:
            parser.add_argument(flag, action="store_true", help=text)
        elif get_origin(kind) is Literal:
            parser.add_argument(flag, choices=get_args(kind), default=each.default, help=shown)
        else:
            single = next(iter(get_args(kind)), kind)  # Path of Path | None
            parser.add_argument(flag, type=single, default=each.default, help=shown)
    return Options(**vars(parser.parse_args(arguments)))


# ---------------------------------------------------------------------------------------------------------------- data
def clean(name: str) -> str:
    """Return a name as captions write it."""
    return re.sub(r"\s+", " ", re.sub(r"[^a-z0-9' ]+", " ", name.lower())).strip()


def wanted(row: dict[str, Any], image: Path) -> bool:
    """Tell whether the model learns this emoji."""
    if row["category"] not in CATEGORIES or row["subcategory"] in SKIPPED or not row["has_img_google"]:
        return False
    joined = row["category"] == PEOPLE and "200D" in row["unified"]  # one more variant of hands or people
    return not joined and "CLOCK FACE" not in row["name"] and image.exists()


def load_emoji(data: Path) -> tuple[Tensor, list[list[str]]]:
    """Return RGBA images, uint8 [N, 4, 64, 64], and for each its names, the main one first."""
    rows = json.loads((data / "emoji_pretty.json").read_text(encoding="utf-8"))
    images, main, short = [], [], []
    for row in sorted(rows, key=lambda row: row["sort_order"]):
        path = data / "img" / "google" / "64" / row["image"]
        if not wanted(row, path):
            continue
        image = Image.open(path).convert("RGBA")
        if image.size != (SIZE, SIZE):
            image = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        images.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
        name = clean(row["name"])
        main.append(RENAMED.get(name, name))
        short.append({clean(name) for name in row["short_names"] if not re.search(r"\d", name)})
    if not images:
        raise SystemExit(f"{data} has no emoji with images: is it the unpacked npm package emoji-datasource-google?")
    # A short name counts only if it means one emoji.
    uses = Counter(name for group in short for name in group) + Counter(main)
    own = [
        sorted(name for name in group - {first} if uses[name] == 1) for first, group in zip(main, short, strict=True)
    ]
    return torch.stack(images), [[first, *others] for first, others in zip(main, own, strict=True)]


def moves(count: int, scale: tuple[float, float], shift: float, generator: torch.Generator | None = None) -> Tensor:
    """Return random affine maps [count, 2, 3]; the shift is a share of half the picture."""
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / torch.empty(count).uniform_(*scale, generator=generator)
    theta[:, :, 2] = torch.empty(count, 2).uniform_(-shift, shift, generator=generator)
    return theta


def compose(rgba: Tensor, colours: Tensor, theta: Tensor | None = None) -> Tensor:
    """Put emoji, uint8 [B, 4, H, W], on colours, [B, 3] from 0 to 1; the result is RGB from -1 to 1."""
    x = rgba.float() / 255
    x = torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], 1)  # premultiplied, so that interpolation leaves no fringe
    if theta is not None:
        grid = F.affine_grid(theta.to(x.device), list(x.shape), align_corners=False)
        x = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    x = (x[:, :3] + (1 - x[:, 3:]) * colours[:, :, None, None]) * 2 - 1
    return x.contiguous(memory_format=torch.channels_last)


def colour_table(device: torch.device) -> Tensor:
    """Return the background colours, [colours, 3] from 0 to 1."""
    return torch.tensor(list(COLOURS.values()), dtype=torch.float32, device=device) / 255


# ------------------------------------------------------------------------------------------------ training, in general
class Training:
    """Paces one stage: iterating yields the share done, from 0 to 1, with the learning rates set for it."""

    def __init__(
        self, name: str, optimizers: Sequence[torch.optim.Optimizer], minutes: float, steps: float, warmup: float = 0.03
    ) -> None:
        self.name, self.seconds, self.step = name, 0.0, 0
        self._optimizers, self._limit, self._steps, self._warmup = optimizers, 60 * minutes, steps, warmup
        self._peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        self._errors: list[float] = []

    def __iter__(self) -> Iterator[float]:
        last = time.monotonic()
        while True:
            now = time.monotonic()
            self.seconds += min(now - last, 20.0)  # not the time for which the process was stopped
            last = now
            progress = max(self.seconds / self._limit, self.step / self._steps)
            if progress >= 1:
                return
            self._set_rates(progress)
            yield progress
            self.step += 1
            if self.step == 2:
                self.seconds, last = 0.0, time.monotonic()  # compilation does not count

    def _set_rates(self, progress: float) -> None:
        """Warm up in a line, then decay as a cosine."""
        after = (progress - self._warmup) / (1 - self._warmup)
        rate = progress / self._warmup if after < 0 else 0.5 * (1 + math.cos(math.pi * after))
        for optimizer, peaks in zip(self._optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * rate

    def descend(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        """Take one step against the gradient of the loss, whose norm is cut at 1."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in self._optimizers:
            optimizer.step()

    def tell(self, squared_error: Tensor) -> None:
        """Print how it goes, now and then: the mean of the last hundred squared errors."""
        self._errors = [*self._errors[-99:], squared_error.item()]
        if self.step in (4, 19, 49) or self.step % 100 == 99:
            mean = sum(self._errors) / len(self._errors)
            print(f"{self.name}: step {self.step + 1}, {self.seconds:.0f} s, squared error {mean:.4f}", flush=True)


def autocast(device: torch.device) -> torch.autocast:
    """Run the matrix products in bfloat16."""
    return torch.autocast(device.type, dtype=torch.bfloat16)


def average(into: Sequence[Tensor], parameters: Sequence[Tensor], decay: float) -> None:
    """Move the averaged weights towards the present ones."""
    torch._foreach_lerp_(list(into), [parameter.detach() for parameter in parameters], 1 - decay)


def save(state: Any, file: Path) -> None:
    """Write a checkpoint whole or not at all."""
    partial = file.with_suffix(".tmp")
    torch.save(state, partial)
    os.replace(partial, file)


def load(file: Path) -> Any:
    """Read a checkpoint."""
    return torch.load(file, map_location="cpu", weights_only=True)


# --------------------------------------------------------------------------------------------------------- autoencoder
def build_vae() -> Any:
    """Return the autoencoder, untrained."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENT_CHANNELS,
        sample_size=SIZE,
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[32, 64, 96],
        layers_per_block=1,
        norm_num_groups=8,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def load_vae(work: Path, device: torch.device) -> Any:
    """Return the autoencoder of the first stage."""
    vae = build_vae()
    vae.load_state_dict(load(work / "vae.pt"))
    return vae.to(device, memory_format=torch.channels_last)


def pyramid_l1(a: Tensor, b: Tensor) -> Tensor:
    """L1 of pixels and of their gradients at three scales: keeps edges sharp without a perceptual network."""
    total = torch.zeros((), device=a.device)
    for weight in (1.0, 0.5, 0.5):
        d = a - b
        across, down = d[..., 1:] - d[..., :-1], d[..., 1:, :] - d[..., :-1, :]
        total = total + weight * (d.abs().mean() + across.abs().mean() + down.abs().mean())
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return total


def train_vae(options: Options, device: torch.device, rgba: Tensor) -> None:
    """Train the autoencoder on emoji before named and random backgrounds: on crops first, which are cheap."""
    vae = build_vae().to(device, memory_format=torch.channels_last).train()
    parameters = list(vae.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    training = Training("vae", [optimizer], options.vae_minutes, options.vae_steps)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = vae.encoder(x).float().chunk(2, 1)
        logvar = logvar.clamp(-20, 10)
        divergence = 0.5 * (mean.pow(2) + logvar.exp() - 1 - logvar).mean()
        z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        return vae.decoder(z.to(x.dtype)).float(), divergence

    step: Callable[[Tensor], tuple[Tensor, Tensor]] = torch.compile(forward) if options.compile else forward
    named, half = colour_table(device), SIZE // 2
    for progress in training:
        crops = progress < 0.8
        count = 24 if crops else 12
        chosen = rgba[torch.randint(len(rgba), (count,))]
        background = torch.where(
            torch.rand(count, 1, device=device) < 0.4,
            torch.rand(count, 3, device=device),
            named[torch.randint(len(named), (count,), device=device)],
        )
        x = compose(chosen, background, moves(count, (0.86, 1.04), 0.12))
        if crops:
            top, left = random.randint(0, half), random.randint(0, half)
            x = x[..., top : top + half, left : left + half].contiguous(memory_format=torch.channels_last)
        with autocast(device):
            y, divergence = step(x)
        training.descend(pyramid_l1(y, x) + 1e-3 * divergence, parameters)
        training.tell(F.mse_loss(y.detach(), x))
    save(vae.state_dict(), options.work / "vae.pt")
    draw_sheet(vae, rgba, options.work / "vae.png")


def tune_decoder(options: Options, device: torch.device, rgba: Tensor) -> None:
    """Train the decoder on, on slightly noisy latents; with the encoder frozen, the encoded latents stay valid."""
    vae = load_vae(options.work, device).train()
    vae.encoder.requires_grad_(False)
    parameters = list(vae.decoder.parameters())
    averaged = copy.deepcopy(vae.decoder).requires_grad_(False)
    optimizer = torch.optim.AdamW(parameters, lr=6e-4, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    training = Training("decoder", [optimizer], options.decoder_minutes, options.decoder_steps)
    named, noise = colour_table(device), 0.15 / load(options.work / "latents.pt")["scale"]
    count = 12
    for _ in training:
        chosen = rgba[torch.randint(len(rgba), (count,))]
        background = named[torch.randint(len(named), (count,), device=device)]
        x = compose(chosen, background, moves(count, (0.86, 1.04), 0.12) if training.step % 2 else None)
        with autocast(device):
            with torch.no_grad():
                z = vae.encoder(x)[:, :LATENT_CHANNELS].float()
                z = z + noise * torch.rand(count, 1, 1, 1, device=device) * torch.randn_like(z)
            y = vae.decoder(z).float()
        training.descend(pyramid_l1(y, x), parameters)
        done = training.step + 1
        average(list(averaged.parameters()), parameters, min(0.995, done / (done + 10)))
        training.tell(F.mse_loss(y.detach(), x))
    vae.decoder.load_state_dict(averaged.state_dict())
    save(vae.state_dict(), options.work / "vae_tuned.pt")
    draw_sheet(vae, rgba, options.work / "vae_tuned.png")


@torch.no_grad()
def draw_sheet(vae: Any, rgba: Tensor, file: Path) -> None:
    """Write 24 emoji, each beside its reconstruction, as one picture at double size."""
    generator = torch.Generator().manual_seed(1)
    chosen = rgba[torch.randint(len(rgba), (24,), generator=generator)]
    colours = colour_table(rgba.device)[torch.randint(len(COLOURS), (24,), generator=generator)]
    x = compose(chosen, colours)
    with autocast(rgba.device):
        y = vae.decode(vae.encode(x).latent_dist.mean).sample.float()
    rows = torch.stack([x, y], 1).reshape(4, 12, 3, SIZE, SIZE).permute(0, 3, 1, 4, 2).reshape(4 * SIZE, 12 * SIZE, 3)
    sheet = Image.fromarray(((rows.clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy())
    sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST).save(file)


@torch.no_grad()
def encode_latents(options: Options, device: torch.device, rgba: Tensor) -> None:
    """Write normalised latents [emoji, colour, view, 4, 16, 16] in bfloat16, and the shift and scale they took."""
    vae = load_vae(options.work, device).eval()
    colours, size = colour_table(device), SIZE // 4
    latents = torch.empty(len(rgba), len(colours), options.views, LATENT_CHANNELS, size, size)
    generator = torch.Generator().manual_seed(options.seed)
    for start in range(0, len(rgba), 8):
        part = rgba[start : start + 8]
        emoji = part.repeat_interleave(len(colours), 0)
        background = colours.repeat(len(part), 1)
        for view in range(options.views):
            theta = moves(len(part), (0.88, 1.02), 0.1, generator) if view else None
            x = compose(emoji, background, None if theta is None else theta.repeat_interleave(len(colours), 0))
            with autocast(device):
                z = vae.encode(x).latent_dist.mean
            latents[start : start + 8, :, view] = z.float().cpu().unflatten(0, (len(part), len(colours)))
        if start % 160 == 0:
            print(f"latents: {start} of {len(rgba)} emoji", flush=True)
    shift, scale = latents.mean().item(), 1 / latents.std().item()
    state = {"latents": ((latents - shift) * scale).bfloat16(), "shift": shift, "scale": scale}
    save(state, options.work / "latents.pt")


# -------------------------------------------------------------------------------------------------------------- models
def build_tokenizer(names: list[list[str]]) -> Any:
    """Return a word-level tokenizer: lower case, split at spaces and punctuation, closed by the end mark."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word for group in names for name in group for word in name.replace("'", " ' ").split()}
    words |= {word for colour in COLOURS for word in colour.split()}
    words |= {"a", "an", "the", "on", "in", "with", "of", "and", "background", "emoji", "'"}
    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=MAX_TOKENS,
        padding_side="right",
        truncation_side="right",
        clean_up_tokenization_spaces=False,
    )


def build_models(options: Options, words: int) -> nn.ModuleDict:
    """Return the transformer and both text encoders, untrained, under the pipeline's names."""
    from diffusers import FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    wide, eighth = options.text_dim, options.head_dim // 8
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=options.double,
        num_single_layers=options.single,
        attention_head_dim=options.head_dim,
        num_attention_heads=options.heads,
        joint_attention_dim=wide,
        pooled_projection_dim=wide,
        guidance_embeds=False,
        axes_dims_rope=(2 * eighth, 3 * eighth, 3 * eighth),
    )
    for name, parameter in transformer.named_parameters():  # the usual start of a DiT: adaLN-zero, Xavier elsewhere
        modulation = ".norm" in name and "linear" in name
        if modulation or name.startswith(("norm_out", "proj_out")) or name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words,
            hidden_size=wide,
            intermediate_size=2 * wide,
            projection_dim=wide,
            num_hidden_layers=2,
            num_attention_heads=wide // 32,
            max_position_embeddings=MAX_TOKENS,
            hidden_act="quick_gelu",
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
            attention_dropout=0.0,
            attn_implementation="eager",  # quickest at 16 tokens; not part of what is saved
        )
    )
    nn.init.normal_(text_encoder.get_input_embeddings().weight, std=0.3)
    text_encoder_2 = T5EncoderModel(
        T5Config(
            vocab_size=words,
            d_model=wide,
            d_kv=32,
            d_ff=2 * wide,
            num_layers=2,
            num_heads=wide // 32,
            dropout_rate=0.0,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=32,
            feed_forward_proj="relu",
            pad_token_id=0,
            eos_token_id=1,
            is_encoder_decoder=False,
            use_cache=False,
        )
    )
    return nn.ModuleDict({"transformer": transformer, "text_encoder": text_encoder, "text_encoder_2": text_encoder_2})


class CpuAttention:
    """The mathematics of diffusers' FluxAttnProcessor (0.42) in a form whose backward pass is quick on a CPU.

    Plain matrix products for the attention, a signed permutation matrix for the rotary embedding. For training only:
    the pipeline that is written has diffusers' own processor.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        cos, sin, turn = cast("tuple[Tensor, Tensor, Tensor]", image_rotary_emb)
        heads = (attn.heads, attn.head_dim)

        def normed(x: Tensor, norm: Any) -> Tensor:
            y = x.view(*x.shape[:-1], *heads).float()
            scale = torch.rsqrt(y.square().mean(-1, keepdim=True) + norm.eps)
            return y * scale * cast(Tensor, norm.weight)

        q = normed(attn.to_q(hidden_states), attn.norm_q)
        k = normed(attn.to_k(hidden_states), attn.norm_k)
        v = attn.to_v(hidden_states).unflatten(-1, heads)
        text = 0
        if encoder_hidden_states is not None:
            text = encoder_hidden_states.shape[1]
            q = torch.cat([normed(attn.add_q_proj(encoder_hidden_states), attn.norm_added_q), q], 1)
            k = torch.cat([normed(attn.add_k_proj(encoder_hidden_states), attn.norm_added_k), k], 1)
            v = torch.cat([attn.add_v_proj(encoder_hidden_states).unflatten(-1, heads), v], 1)
        q, k, v = q.to(v.dtype).transpose(1, 2), k.to(v.dtype).transpose(1, 2), v.transpose(1, 2)
        q = (q * cos + (q @ turn) * sin).to(v.dtype)
        k = (k * cos + (k @ turn) * sin).to(v.dtype)
        weights = torch.softmax((q @ k.mT).float() * attn.head_dim**-0.5, -1).to(v.dtype)
        out = (weights @ v).transpose(1, 2).flatten(2)
        if encoder_hidden_states is None:
            return cast(Tensor, out)
        return attn.to_out[0](out[:, text:]), attn.to_add_out(out[:, :text])


class CpuGelu(nn.Module):
    """GELU's tanh approximation written with a sigmoid, which is quicker when compiled; after a projection or not."""

    def __init__(self, proj: nn.Module | None = None) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.proj is None else self.proj(x)
        y = x.float()
        return (y * torch.sigmoid(1.5957691216057308 * y * (1 + 0.044715 * y * y))).to(x.dtype)


def quicken(transformer: Any) -> Tensor:
    """Exchange what is slow in training on a CPU; return the rotary permutation (a, b) -> (-b, a)."""
    for block in [*transformer.transformer_blocks, *transformer.single_transformer_blocks]:
        block.attn.processor = CpuAttention()
    for block in transformer.transformer_blocks:
        for feed in (block.ff, block.ff_context):
            feed.net[0] = CpuGelu(feed.net[0].proj)
    for block in transformer.single_transformer_blocks:
        block.act_mlp = CpuGelu()
    width = transformer.config.attention_head_dim
    turn = torch.zeros(width, width)
    turn[range(1, width, 2), range(0, width, 2)] = -1
    turn[range(0, width, 2), range(1, width, 2)] = 1
    return turn


class Velocity(nn.Module):
    """Ids, packed latents and times in, velocity out: FluxTransformer2DModel.forward with a fixed rotary table."""

    def __init__(self, models: nn.ModuleDict, device: torch.device, compile_blocks: bool) -> None:
        super().__init__()
        self.models = models
        transformer = cast(Any, models["transformer"])
        self.rotary = transformer.pos_embed(position_ids(device))
        if device.type == "cpu":
            self.rotary = (*self.rotary, quicken(transformer))
        if compile_blocks:
            for block in [*transformer.transformer_blocks, *transformer.single_transformer_blocks]:
                block.compile()

    def forward(self, ids: Tensor, x: Tensor, t: Tensor) -> Tensor:
        transformer = cast(Any, self.models["transformer"])
        pooled = self.models["text_encoder"](ids).pooler_output
        h = transformer.x_embedder(x)
        time_and_text = transformer.time_text_embed(t * 1000, pooled.float())
        e = transformer.context_embedder(self.models["text_encoder_2"](ids)[0]).to(h.dtype)
        for block in transformer.transformer_blocks:
            e, h = block(h, e, time_and_text, self.rotary)
        for block in transformer.single_transformer_blocks:
            e, h = block(h, e, time_and_text, self.rotary)
        return cast(Tensor, transformer.proj_out(transformer.norm_out(h, time_and_text)))


def position_ids(device: torch.device) -> Tensor:
    """Return the positions of text and image tokens as FluxPipeline numbers them."""
    side = SIZE // 8
    image = torch.zeros(side, side, 3)
    image[..., 1] += torch.arange(side)[:, None]
    image[..., 2] += torch.arange(side)[None]
    return torch.cat([torch.zeros(MAX_TOKENS, 3), image.view(-1, 3)]).to(device)


def pack(z: Tensor) -> Tensor:
    """Pack latents as FluxPipeline does: [B, C, H, W] -> [B, H/2 * W/2, 4 C]."""
    return F.pixel_unshuffle(z, 2).flatten(2).mT.contiguous()


# ----------------------------------------------------------------------------------------------------- the transformer
class Batches:
    """Random captions with their latents; every emoji once before any comes again."""

    def __init__(self, options: Options, device: torch.device, tokenizer: Any, names: list[list[str]]) -> None:
        self._options, self._device = options, device
        self._latents = load(options.work / "latents.pt")["latents"]
        captioned = [(emoji, name) for emoji, group in enumerate(names) for name in group if len(name.split()) <= 9]
        self._owner = torch.tensor([emoji for emoji, _ in captioned])
        self._rows: dict[int, list[int]] = {}
        for row, (emoji, _) in enumerate(captioned):
            self._rows.setdefault(emoji, []).append(row)
        self._order: list[int] = []

        def ids(texts: list[str]) -> Tensor:
            options = {"padding": "max_length", "max_length": MAX_TOKENS, "truncation": True, "return_tensors": "pt"}
            return cast(Tensor, tokenizer(texts, **options).input_ids)

        def on_colours(subjects: list[str]) -> Tensor:
            texts = [f"{subject} on a {colour} background" for subject in subjects for colour in COLOURS]
            return ids(texts).view(len(subjects), len(COLOURS), -1)

        plain = [name for _, name in captioned]
        self._bare, self._plain = ids(plain), on_colours(plain)
        self._article = on_colours([f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in plain])

    def _row(self) -> int:
        """Return the next emoji under its main name, or at times under another one."""
        if not self._order:
            self._order = random.sample(sorted(self._rows), len(self._rows))
        first, *others = self._rows[self._order.pop()]
        return first if not others or random.random() < 0.65 else random.choice(others)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Return caption ids [B, 16] and packed latents [B, 64, 16]."""
        count = self._options.batch
        rows = torch.tensor([self._row() for _ in range(count)])
        colours = torch.randint(len(COLOURS) + 3, (count,)).sub(3).clamp(min=0)  # white four times as often
        style = torch.rand(count)
        bare, article = style > 0.92, style < 0.12
        colours = torch.where(bare, 0, colours)
        exact = torch.rand(count) < self._options.exact
        views = torch.where(exact, 0, torch.randint(self._latents.shape[2], (count,)))
        ids = torch.where(article[:, None], self._article[rows, colours], self._plain[rows, colours])
        ids = torch.where(bare[:, None], self._bare[rows], ids)
        ids = torch.where((torch.rand(ids.shape) < 0.004) & (ids > 2), 2, ids)  # a few words become unknown
        empty = torch.zeros_like(ids[:1])
        empty[0, 0] = 1
        ids = torch.where((torch.rand(count) < self._options.caption_dropout)[:, None], empty, ids)
        z = self._latents[self._owner[rows], colours, views].float()
        return ids.to(self._device), pack(z).to(self._device)


class Muon(torch.optim.Optimizer):
    """Momentum, then an orthogonalised update, for hidden matrices; equal shapes go as one batch.

    The update is as large as AdamW's: 0.2 sqrt(max(rows, columns)).
    """

    def __init__(self, matrices: list[nn.Parameter], lr: float) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": 0.95, "weight_decay": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    shapes.setdefault(matrix.shape, []).append(matrix)
            for (rows, columns), matrices in shapes.items():
                gradients = [cast(Tensor, matrix.grad) for matrix in matrices]
                momenta = [self.state[matrix].setdefault("momentum", torch.zeros_like(matrix)) for matrix in matrices]
                torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
                nesterov = torch._foreach_lerp(gradients, momenta, group["momentum"])
                x = torch.stack(list(nesterov)).bfloat16()
                x = orthogonalise(x.mT.contiguous()).mT if rows > columns else orthogonalise(x)
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                size = 0.2 * max(rows, columns) ** 0.5
                torch._foreach_add_(matrices, list(x.float().unbind()), alpha=-group["lr"] * size)


def orthogonalise(x: Tensor) -> Tensor:
    """Bring the singular values of wide matrices [B, rows, columns] near 1, by five Newton-Schulz iterations."""
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).bfloat16()
    for _ in range(5):
        y = x @ x.mT
        x = 3.4445 * x + (-4.7750 * y + 2.0315 * (y @ y)) @ x
    return x


def build_optimizers(options: Options, models: nn.ModuleDict) -> list[torch.optim.Optimizer]:
    """Return AdamW for embeddings, norms, biases and the last layer, and Muon for the matrices between."""
    hidden, decayed, plain, tokens = [], [], [], []
    ends = ("embed", "shared", "norm", "relative_attention", "proj_out")
    for name, parameter in models.named_parameters():
        inner = "single_transformer_blocks" in name and "proj_out" in name  # a hidden matrix, whatever its name
        if "token_embedding" in name or "shared" in name:
            tokens.append(parameter)
        elif parameter.ndim == 2 and (inner or not any(end in name for end in ends)):
            hidden.append(parameter)
        elif parameter.ndim == 2 and "embed" not in name:
            decayed.append(parameter)
        else:
            plain.append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": 0.01},
        {"params": plain, "weight_decay": 0.0},
        {"params": tokens, "weight_decay": 0.0, "lr": options.embed_lr},
    ]
    return [torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98), fused=True), Muon(hidden, options.muon_lr)]


def start_from(models: nn.ModuleDict, file: Path, vocabulary: dict[str, int]) -> None:
    """Take over the averaged weights of another run; token embeddings are matched by word."""
    saved = load(file)
    known, state = saved["vocab"], models.state_dict()
    shared = [word for word in vocabulary if word in known]
    here, there = torch.tensor([[vocabulary[word], known[word]] for word in shared]).T
    for key, value in saved["ema"].items():
        if any(part in key for part in ("token_embedding", "shared", "embed_tokens")) and len(value) == len(known):
            state[key][here] = value[there].to(state[key])
        else:
            state[key] = value
    models.load_state_dict(state)


def train_flux(options: Options, device: torch.device, names: list[list[str]]) -> None:
    """Train the transformer and the text encoders together to predict noise minus latent."""
    tokenizer = build_tokenizer(names)
    models = build_models(options, len(tokenizer)).to(device).train()
    for name, model in models.items():
        print(f"{name}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    if options.init:
        start_from(models, options.init, tokenizer.get_vocab())
    averaged = copy.deepcopy(models).eval().requires_grad_(False)
    batches = Batches(options, device, tokenizer, names)
    velocity = Velocity(models, device, options.compile)
    parameters, averages = list(models.parameters()), list(averaged.parameters())
    training = Training("flux", build_optimizers(options, models), options.minutes, options.steps, options.warmup)
    file, saves = options.work / "flux.pt", 1

    def keep() -> None:
        save({"ema": averaged.state_dict(), "vocab": tokenizer.get_vocab(), "step": training.step}, file)

    for _ in training:
        if training.seconds > 60 * options.stop_minutes:
            break
        ids, x = batches.draw()
        t = torch.sigmoid(torch.randn(options.batch, device=device) + options.t_mean)  # logit-normal, as in SD3
        noise = torch.randn_like(x)
        with autocast(device):
            predicted = velocity(ids, (1 - t[:, None, None]) * x + t[:, None, None] * noise, t)
        loss = F.mse_loss(predicted.float(), noise - x)
        training.descend(loss, parameters)
        done = training.step + 1
        average(averages, parameters, min(options.ema, (1 + done) / (10 + done)))
        training.tell(loss.detach())
        if training.seconds > 60 * options.save_minutes * saves:
            saves += 1
            keep()
    keep()


# -------------------------------------------------------------------------------------------------------------- export
def export(options: Options, names: list[list[str]]) -> None:
    """Write the pipeline folder from the newest checkpoints."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
    from safetensors.torch import load_file, save_file

    tokenizer = build_tokenizer(names)
    models = build_models(options, len(tokenizer))
    models.load_state_dict(load(options.work / "flux.pt")["ema"])
    vae, tuned, latents = build_vae(), options.work / "vae_tuned.pt", load(options.work / "latents.pt")
    vae.load_state_dict(load(tuned if tuned.exists() else options.work / "vae.pt"))
    vae.register_to_config(scaling_factor=latents["scale"], shift_factor=latents["shift"])
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=False),
        vae=vae,
        text_encoder=models["text_encoder"],
        tokenizer=tokenizer,
        text_encoder_2=models["text_encoder_2"],
        tokenizer_2=build_tokenizer(names),
        transformer=models["transformer"],
    )
    pipeline.to(torch.float16).save_pretrained(options.out, safe_serialization=True)
    # transformers 5 writes names that transformers 4 does not know: of a class, and of CLIP's weights. Both read these.
    for name in ("model_index.json", "tokenizer/tokenizer_config.json", "tokenizer_2/tokenizer_config.json"):
        file = options.out / name
        text = file.read_text(encoding="utf-8").replace("TokenizersBackend", "PreTrainedTokenizerFast")
        file.write_text(text, encoding="utf-8")
    weights = options.out / "text_encoder" / "model.safetensors"
    named = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in load_file(weights).items()}
    save_file(named, weights, metadata={"format": "pt"})
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    print(f"wrote {options.out}: {size / 1e6:.1f} MB")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stages that the command line asks for."""
    options = parse(arguments)
    cuda = options.device == "auto" and torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu" if options.device == "auto" else options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(options.seed)
    random.seed(options.seed)
    options.work.mkdir(parents=True, exist_ok=True)
    rgba, names = load_emoji(options.data)
    chosen = [index for index, group in enumerate(names) if options.names == "all" or group[0] in CORE]
    print(f"{len(rgba)} emoji for the autoencoder, {len(chosen)} for the captions, on {device}", flush=True)
    rgba, names = rgba.to(device), [names[index] for index in chosen]
    stages: dict[str, Callable[[], None]] = {
        "vae": lambda: train_vae(options, device, rgba),
        "latents": lambda: encode_latents(options, device, rgba[chosen]),
        "flux": lambda: train_flux(options, device, names),
        "decoder": lambda: tune_decoder(options, device, rgba[chosen]),
        "export": lambda: export(options, names),
    }
    for name, stage in stages.items():
        if options.stage in ("all", name):
            stage()


if __name__ == "__main__":
    main()
