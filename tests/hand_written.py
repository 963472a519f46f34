"""A transformer of nobody's, in the place of the bundled pipeline's: what a user's own module would look like.

Its blocks call their states otherwise than diffusers' do, return them in the other order, and get a value each.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["MODULE", "PLUGIN", "a_pipeline"]

MODULE = '''\
"""My own transformer."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.cache_utils import CacheMixin
from torch import nn


class MyBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.image, self.words = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, words, image, moment, strength=1.0):
        heard = self.words(words).mean(1, keepdim=True)
        image = image + 0.1 * strength * torch.tanh(self.image(image) + heard + moment)
        return words + 0.1 * torch.tanh(heard), image


class MyTransformer(ModelMixin, ConfigMixin, CacheMixin):
    @register_to_config
    def __init__(self, in_channels=16, width=24, joint_attention_dim=32, depth=6, guidance_embeds=False, {more}):
        super().__init__()
        self.enter, self.hear = nn.Linear(in_channels, width), nn.Linear(joint_attention_dim, width)
        self.layers = nn.ModuleList(MyBlock(width) for _ in range(depth))
        self.leave = nn.Linear(width, in_channels)

    def forward(self, hidden_states, encoder_hidden_states, timestep, pooled_projections=None, img_ids=None,
                txt_ids=None, guidance=None, joint_attention_kwargs=None, return_dict=True):
        image, words = self.enter(hidden_states), self.hear(encoder_hidden_states)
        moment = timestep.reshape(-1, 1, 1).to(image.dtype)
        {loop}
        return (self.leave(image),)
'''

LOOP = """for index, layer in enumerate(self.layers):
            words, image = layer(words, image, moment, strength=1.0 - 0.01 * index)"""

PLUGIN = """\
from cachedit_cli import Streams
from cachedit_cli.registry import BlockList, ModelAdapter, register

register(
    ModelAdapter(
        name="mine",
        transformer="MyTransformer",
        lists=(BlockList("layers", Streams(("image", "words"), ("words", "image")), "depth"),),
        guidance="one forward",
    )
)
"""


def a_pipeline(folder: Path, module: str, loop: str = LOOP) -> Path:
    """Write the bundled pipeline with a transformer of ``module`` in it, and that module beside it; return its folder.

    The module has to be importable when the pipeline is loaded.
    """
    import torch
    from diffusers import FluxPipeline

    from cachedit_cli import demo

    (folder / f"{module}.py").write_text(MODULE.format(more="patch_size=1", loop=loop))
    space: dict[str, Any] = {"__name__": module}
    exec(MODULE.format(more="patch_size=1", loop=loop), space)
    pipe = FluxPipeline.from_pretrained(demo.path(), torch_dtype=torch.float32, local_files_only=True)
    config = pipe.transformer.config
    torch.manual_seed(0)
    pipe.transformer = space["MyTransformer"](
        in_channels=config.in_channels, joint_attention_dim=config.joint_attention_dim
    )
    made = folder / "pipeline"
    pipe.save_pretrained(made)
    index = made / "model_index.json"
    facts = json.loads(index.read_text())
    facts["transformer"] = [module, "MyTransformer"]
    index.write_text(json.dumps(facts))
    return made
