"""Makes inputs for a transformer from the signature of its forward, and corrects them until the forward goes through.

The sizes that a model wants are not looked up anywhere: every tensor gets a size of its own that nothing else has, and
the first layer that refuses it says which one it wants. Models whose inputs depend on each other otherwise than usual
are not guessed; who asks is told where it ended.
"""

from __future__ import annotations

import inspect
import linecache
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

__all__ = ["guess"]

GRID = 4  # rows and columns of tokens
WORDS = 8  # text tokens
_ROUNDS = 24  # corrections before a layout is given up
_UNIQUE = (1009, 1061, 1123, 1181, 1249, 1303, 1373, 1433, 1489, 1553, 1613, 1693, 1747, 1811, 1871, 1931)
_MORE = 20  # channels that a model may add to those of an input

#: Ways in which transformers take their sample: tokens, images, videos with channels first, videos with frames first,
#: videos with channels last, sequences with channels first, and one tensor for each picture.
LAYOUTS = ("tokens", "image", "video", "frames", "last", "sequence", "list")


class _Corrected(Exception):
    """An input was changed; the forward begins again."""


@dataclass
class Inputs:
    """What the forward will get.

    Attributes:
        forward: The parameters of the model's forward.
        layout: How the sample, the first of them, is laid out.
        size: Of the feature dimension of each tensor.
        rank: Of each other tensor.
        wanted: Optional parameters that are given.
        indices: Parameters that take whole numbers.
    """

    forward: Mapping[str, inspect.Parameter]
    layout: str
    device: torch.device
    grid: tuple[int, int] = (GRID, GRID)
    frames: int = 4
    words: int = WORDS
    axes: int = 3
    size: dict[str, int] = field(default_factory=dict)
    rank: dict[str, int] = field(default_factory=dict)
    wanted: set[str] = field(default_factory=set)
    indices: set[str] = field(default_factory=set)

    @property
    def sample(self) -> str:
        return next(iter(self.forward))

    def values(self) -> dict[str, Any]:
        """Return the arguments of a forward."""
        return {
            name: self._value(name)
            for name, parameter in self.forward.items()
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            and (parameter.default is parameter.empty or name in self.wanted or _usual(name))
        }

    def _unique(self, name: str) -> int:
        return self.size.setdefault(name, _UNIQUE[len(self.size) % len(_UNIQUE)])

    def _tensor(self, *shape: int) -> Tensor:
        return torch.ones(shape, device=self.device)

    def _value(self, name: str) -> Any:
        fixed = _fixed(name, *self.grid, self.words)
        if fixed is not _UNKNOWN:
            return fixed
        rows, columns = self.grid
        tokens = rows * columns
        if name == self.sample:
            size, sides, frames = self._unique(name), (2 * rows, 2 * columns), self.frames
            if self.layout == "list":
                return [self._tensor(size, 1, *sides)]
            shapes = {
                "tokens": (1, tokens, size),
                "image": (1, size, *sides),
                "video": (1, size, frames, *sides),
                "frames": (1, frames, size, *sides),
                "last": (1, frames, *sides, size),
                "sequence": (1, size, tokens),
            }
            return self._tensor(*shapes[self.layout])
        if name == "added_cond_kwargs":
            return {"resolution": self._tensor(1, 2), "aspect_ratio": self._tensor(1, 1)}
        if name.endswith("_ids"):
            return self._tensor(self.words if "txt" in name or "text" in name else tokens, self.axes)
        if re.search(r"size|crop|coords", name):
            return self._tensor(1, 2)
        if name == "padding_mask":
            return self._tensor(1, 1, 2 * rows, 2 * columns)
        if "mask" in name:
            return torch.ones(1, self.words, dtype=torch.bool, device=self.device)
        if "label" in name:
            return torch.zeros(1, dtype=torch.long, device=self.device)
        if _is_moment(name):
            return self._tensor(1) * 0.5
        if name in self.indices:
            return torch.zeros(1, tokens, dtype=torch.long, device=self.device)
        size = self._unique(name)
        rank = self.rank.get(name, 2 if "pooled" in name or "global" in name or name.startswith("proj") else 3)
        if self.layout == "list":
            return [self._tensor(self.words, size)]
        text = {1: (size,), 2: (1, size), 3: (1, self.words, size), 4: (1, 1, self.words, size)}
        return self._tensor(*text.get(rank, (1, size, self.frames, 2 * rows, 2 * columns)))

    def of_size(self, shape: torch.Size, place: int) -> tuple[str, int] | None:
        """Return the input whose unique size is in a dimension, and how often."""
        unique = {name: size for name, size in self.size.items() if size in _UNIQUE and shape[place] >= size}
        name = min(unique, key=lambda each: (shape[place] % unique[each], shape[place] // unique[each]), default=None)
        if name is None or shape[place] % unique[name] > _MORE:
            return None
        return name, shape[place] // unique[name]


_UNKNOWN = object()


def _fixed(name: str, rows: int, columns: int, words: int) -> Any:
    """Return what an argument that is no tensor gets."""
    known: dict[str, Any] = {
        "return_dict": False,
        "num_frames": 1,
        "height": rows,
        "width": columns,
        "img_shapes": [[(1, rows, columns)]],
        "txt_seq_lens": [words],
    }
    return known.get(name, _UNKNOWN)


def _usual(name: str) -> bool:
    """Return whether an argument is given although the signature would let it be left out."""
    return name in (
        "return_dict",
        "height",
        "width",
        "num_frames",
        "img_shapes",
        "added_cond_kwargs",
        "class_labels",
    ) or name in ("encoder_hidden_states", "pooled_projections", "timestep", "timesteps", "img_ids", "txt_ids")


def _is_moment(name: str) -> bool:
    return name in ("t", "r", "sigma", "guidance") or name.startswith("timestep") or name.endswith("timestep")


@contextmanager
def _asked(inputs: Inputs) -> Iterator[None]:
    """Look at what each layer gets, and correct the input that has the wrong size there."""

    def before(layer: nn.Module, args: Any) -> None:
        if not args or not isinstance(args[0], Tensor):
            return
        taken = args[0]
        if isinstance(layer, nn.Linear):
            _fit(inputs, taken, -1, layer.in_features)
        elif isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            dimensions = len(layer.kernel_size) + 2
            if taken.dim() != dimensions:
                _rerank(inputs, taken, dimensions)
            elif taken.shape[1] != layer.in_channels:
                _fit(inputs, taken, 1, layer.in_channels)
        elif isinstance(layer, nn.Embedding):
            if taken.is_floating_point():
                _fit_index(inputs, taken)
        elif isinstance(weight := getattr(layer, "weight", None), Tensor) and weight.dim() == 1:
            _fit(inputs, taken, -1, weight.shape[0])

    handle = register_module_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


def _fit(inputs: Inputs, taken: Tensor, place: int, wanted: int) -> None:
    if taken.shape[place] == wanted:
        return
    found = inputs.of_size(taken.shape, place)
    if found is not None:
        name, times = found
        rest = taken.shape[place] - times * inputs.size[name]
        if wanted > rest and (wanted - rest) % times == 0:
            inputs.size[name] = (wanted - rest) // times
            raise _Corrected


def _fit_index(inputs: Inputs, taken: Tensor) -> None:
    for place in range(taken.dim()):
        found = inputs.of_size(taken.shape, place)
        if found is not None and found[0] not in inputs.indices:
            inputs.indices.add(found[0])
            raise _Corrected


def _rerank(inputs: Inputs, taken: Tensor, rank: int) -> None:
    for place in range(taken.dim()):
        found = inputs.of_size(taken.shape, place)
        if found is not None and found[0] != inputs.sample and 1 <= rank <= 5:
            inputs.rank[found[0]] = rank
            raise _Corrected


def guess(model: nn.Module, run: Callable[[Mapping[str, Any]], None]) -> str | None:
    """Call ``run`` with inputs until it goes through; return why it never does, or None.

    Args:
        model: The transformer.
        run: Runs one forward with the arguments that it gets, and raises what the forward raises.
    """
    forward = inspect.signature(model.forward).parameters
    device = next(model.parameters()).device
    config = dict(getattr(model, "config", {}))
    axes = next((len(value) for key, value in config.items() if "axes" in key and isinstance(value, (list, tuple))), 3)
    furthest: tuple[int, str] = (-1, "it takes no inputs")
    for grid, frames, words in _samples(config):
        for layout in LAYOUTS:
            inputs = Inputs(forward, layout, device, grid, frames, words, axes)
            ended, rounds = _corrected(inputs, run)
            if ended is None:
                return None
            furthest = max(furthest, (rounds, ended))
    return furthest[1]


def _samples(config: Mapping[str, Any]) -> list[tuple[tuple[int, int], int, int]]:
    """Return rows and columns of tokens, frames, words: few, then those that the configuration is made for."""
    size, frames = config.get("sample_size"), config.get("sample_frames")
    sides = [config.get(f"sample_{side}", size) for side in ("height", "width")]
    found = [((GRID, GRID), 4, WORDS)]
    if all(isinstance(side, int) for side in sides):
        between = config.get("temporal_compression_ratio") or 1
        count = (frames - 1) // between + 1 if isinstance(frames, int) else 4
        found.append(((sides[0] // 2, sides[1] // 2), count, config.get("max_text_seq_length") or WORDS))
    return found


def _corrected(inputs: Inputs, run: Callable[[Mapping[str, Any]], None]) -> tuple[str | None, int]:
    for rounds in range(_ROUNDS):
        try:
            with _asked(inputs), torch.no_grad():
                run(inputs.values())
        except _Corrected:
            continue
        except Exception as error:
            if not _learned(inputs, error):
                return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}", rounds
        else:
            return None, rounds
    return "its inputs could not be made", _ROUNDS


def _learned(inputs: Inputs, error: Exception) -> bool:
    """Correct the inputs by what the error and its place say; returns whether anything was."""
    frames = list(_frames(error.__traceback__))
    for frame, line in reversed(frames):
        counts = re.search(r"values to unpack \(expected (\d+)", str(error))
        named = re.search(r"=\s*(\w+)\.(?:shape|size\(\))", line)
        if counts and named and isinstance(frame.get(named[1]), Tensor):
            rank, name = int(counts[1]), named[1]
            if name in inputs.forward and name != inputs.sample and inputs.rank.get(name) != rank and rank <= 5:
                inputs.rank[name] = rank
                return True
            return False
    missing = [
        name
        for frame, line in reversed(frames)
        for name, parameter in inputs.forward.items()
        if parameter.default is None
        and name not in inputs.wanted
        and not _usual(name)
        and name in frame
        and frame[name] is None
        and re.search(rf"\b{name}\b", line)
    ]
    if missing and isinstance(error, (AttributeError, TypeError, ValueError)):
        inputs.wanted.add(missing[0])
        return True
    return False


def _frames(trace: TracebackType | None) -> Iterator[tuple[Mapping[str, Any], str]]:
    while trace is not None:
        code = trace.tb_frame.f_code
        yield trace.tb_frame.f_locals, linecache.getline(code.co_filename, trace.tb_lineno)
        trace = trace.tb_next
