"""Draws docs/images/demo.png: the same prompts and seeds without caching (above) and with the demo recipe's (below).

python tools/readme_picture.py
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline
from PIL import Image, ImageDraw, ImageFont

from cachedit_cli import cached, demo
from cachedit_cli.recipe import load

PROMPTS = ("red heart", "cat face", "slice of pizza", "rocket", "automobile", "strawberry")
BACKGROUNDS = ("white", "sky blue", "white", "navy blue", "white", "yellow")
SCALE, EDGE, LABEL = 2, 64, 90


def draw(pipe: Any) -> tuple[list[Image.Image], float]:
    """Return a picture a prompt, and the seconds that all took."""
    began = time.perf_counter()
    pictures = [
        pipe(
            f"{prompt} on a {background} background",
            num_inference_steps=28,
            generator=torch.Generator().manual_seed(0),
            **demo.DEFAULTS,
        ).images[0]
        for prompt, background in zip(PROMPTS, BACKGROUNDS, strict=True)
    ]
    return pictures, time.perf_counter() - began


def main() -> None:
    pipe = FluxPipeline.from_pretrained(demo.path(), torch_dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    recipe = load("demo")
    draw(pipe)
    plain, slow = draw(pipe)
    with cached(pipe, recipe.cache_config(28), recipe.calibrator_config()) as cache:
        reused, fast = draw(pipe)
    rows = cache.log.rows
    saved = sum(row.saved for row in rows) / sum(row.saved + row.computed for row in rows)
    size = SCALE * EDGE
    sheet = Image.new("RGB", (LABEL + len(PROMPTS) * (size + 4), 2 * (size + 4)), "white")
    text, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for row, (name, pictures) in enumerate(((f"plain\n{slow:.1f} s", plain), (f"cached\n{fast:.1f} s", reused))):
        text.multiline_text((8, row * (size + 4) + size // 2 - 14), name, "black", font)
        for column, picture in enumerate(pictures):
            sheet.paste(picture.resize((size, size)), (LABEL + column * (size + 4), row * (size + 4)))
    target = Path(__file__).parent.parent / "docs" / "images" / "demo.png"
    target.parent.mkdir(exist_ok=True)
    sheet.save(target, optimize=True)
    print(f"{target}: {saved:.1%} of the block calls saved, {slow:.2f} s and {fast:.2f} s")


if __name__ == "__main__":
    main()
