"""Where the bundled model is and what its pipeline call needs: the one place to change when better weights come.

Knows a folder and three numbers; knows nothing of recipes, and needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

__all__ = ["DEFAULTS", "MODEL_ID", "path"]

#: The model id that means the bundled model in a recipe.
MODEL_ID = "demo"

#: Arguments of the pipeline call that the model was trained with; others damage its pictures.
DEFAULTS: Mapping[str, int] = MappingProxyType({"height": 64, "width": 64, "max_sequence_length": 16})

_FOLDER = "emoji-flux"


def path() -> Path:
    """Return the folder of the bundled model, for ``DiffusionPipeline.from_pretrained``."""
    # A real folder beside this file, also when installed: from_pretrained reads nothing else.
    return Path(__file__).parent / "demo_model" / _FOLDER
