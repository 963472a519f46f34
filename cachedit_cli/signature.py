"""Where a transformer's forward takes the noisy sample, the time, and what tells its branches apart."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from .terms.pattern import Slot

__all__ = ["Signature"]

_TIMES = ("timestep", "timesteps", "t", "sigma", "sigmas", "time", "time_step")


def _is_filled(store: Any) -> bool:
    """Return whether a forward fills a KV cache that says so in its layers, as GLM-Image's does for each image."""
    return any(getattr(layer, "mode", None) == "write" for layer in getattr(store, "caches", ()))


class Signature:
    """Where a transformer's forward takes the sample, the time and everything else."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        names = [name for name, p in inspect.signature(forward).parameters.items() if p.kind not in kinds]
        self._names = names
        self._sample = Slot(names[0], 0) if names else Slot("", -1)
        time = next((name for name in _TIMES if name in names[1:]), None)
        self.time = Slot(time, names.index(time)) if time is not None else None
        self._stores = [Slot(name, place) for place, name in enumerate(names) if "cache" in name]

    def sample(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
        """Return the noisy input; what equals nothing where there is none, as the forward only fills a KV cache."""
        if any(_is_filled(store.read(args, kwargs)) for store in self._stores):
            return object()
        return self._sample.read(args, kwargs)

    def moment(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], wait: bool, scheduler: object = None
    ) -> float | None:
        """Return the time as a number, the mean where it is one per sample, frame or token.

        On a device that would have to be waited for, it is minus the steps that the loop's ``scheduler`` has counted,
        once it has: that falls as well. None if the model is not told, or if nothing but to ``wait`` would tell.
        """
        value = self.time.read(args, kwargs) if self.time is not None else None
        if isinstance(value, Tensor):
            if value.device.type != "cpu":
                counted = getattr(scheduler, "step_index", None)
                if isinstance(counted, int):
                    return -float(counted)
                if not wait:
                    return None
            one = value if value.numel() == 1 else value.detach().double().mean()
            value = one.reshape(()).tolist()
        return float(value) if isinstance(value, (int, float)) else None

    def marks(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[dict[str, Tensor], tuple[object, ...]]:
        """Return what tells branches apart: conditioning tensors by name, and flags that have to be equal."""
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        tensors: dict[str, Tensor] = {}
        flags: list[object] = []
        for name in sorted(given):
            value = given[name]
            if name == self._sample.name or (self.time is not None and name == self.time.name) or "control" in name:
                continue  # ControlNet residuals are large and move with every step
            if isinstance(value, Tensor):
                tensors[name] = value
            elif isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value):
                tensors |= {f"{name}.{i}": item for i, item in enumerate(value) if isinstance(item, Tensor)}
            elif value is None or isinstance(value, (bool, str)):
                flags.append((name, value))
            elif isinstance(value, (list, tuple, set)) and all(isinstance(item, int) for item in value):
                flags.append((name, tuple(sorted(value))))
            elif isinstance(value, Mapping):  # a forward that only fills a KV cache says so in there (AnyFlow-FAR)
                flags.extend((name, key, item) for key, item in value.items() if isinstance(item, bool))
        return tensors, tuple(flags)
