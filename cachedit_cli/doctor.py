"""What works on this machine: versions, devices, number formats, the model's options, folders, the bundled model.

Knows the packages that cachedit needs and how to try a device; prints nothing. Imports torch, and diffusers for the
options.
"""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__, demo, ffmpeg
from .doctor_checks import Check
from .errors import InputError
from .models import hub_cache, locate

if TYPE_CHECKING:
    import torch

__all__ = ["Check", "Findings", "examine"]


@dataclass(frozen=True)
class Findings:
    """All findings; ``healthy`` if `cachedit run demo` can work."""

    versions: list[Check]
    devices: list[Check]
    options: list[Check]

    @property
    def healthy(self) -> bool:
        return all(check.works for check in self.versions)

    def as_dict(self) -> dict[str, Any]:
        """Return the findings as plain data."""
        return {"healthy": self.healthy, **asdict(self)}

    def lines(self) -> Iterator[str]:
        """Yield the findings for people, one a line."""
        for title, checks in (
            ("versions", self.versions),
            ("devices", self.devices),
            ("options of recipes", self.options),
        ):
            yield title
            width = max((len(check.what) for check in checks), default=0)
            for check in checks:
                yield f"  {'yes' if check.works else 'no':3}  {check.what:{width}}  {check.note}".rstrip()


def examine() -> Findings:
    """Look at the machine; what cannot be tried counts as not working."""
    versions = _versions()
    try:
        import torch
    except Exception as error:  # a broken installation raises anything
        versions.append(Check("torch", False, f"cannot be imported: {error}"))
        return Findings(versions, [], _places())
    devices = _devices()
    formats = [
        _format(name, dtype, device.what)
        for device in devices
        if device.works
        for name, dtype in (
            ("float32", torch.float32),
            ("bfloat16", torch.bfloat16),
            ("float16", torch.float16),
        )
    ]
    best = next((device.what for device in devices if device.works), "cpu")
    options = [Check("model.device: auto", True, f"takes {best}"), *formats]
    if all(check.works for check in versions):  # without them, diffusers cannot be imported
        from .doctor_options import model_options
        from .pipeline import quiet

        with quiet():
            options += model_options(torch.device(best))
    return Findings(versions, devices, [*options, *_places()])


def _versions() -> list[Check]:
    found = [Check("cachedit", True, __version__), Check("python", True, platform.python_version())]
    for requirement in metadata.requires("cachedit") or ():
        if "extra ==" in requirement:
            continue
        name, _, least = requirement.partition(">=")
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            found.append(Check(name, False, f"missing; {requirement} is needed"))
        else:
            old = _numbers(version) < _numbers(least)
            found.append(Check(name, not old, f"{version}, but {requirement} is needed" if old else version))
    return found


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _devices() -> list[Check]:
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())] if cuda else []
    build = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
    names = ", ".join(
        f"cuda:{index} {card.name}, {card.total_memory / 2**30:.0f} GiB" for index, card in enumerate(cards)
    )
    return [
        Check("cuda", cuda, names if cuda else f"none found; {build}"),
        Check("mps", mps, "Apple GPU" if mps else "none found"),
        Check("cpu", True, f"{platform.machine()}, {torch.get_num_threads()} threads"),
    ]


def _format(name: str, dtype: torch.dtype, device: str) -> Check:
    """Try the kinds of operations that models are made of."""
    import torch
    from torch.nn import functional

    what = f"model.dtype: {name} on {device}"
    try:
        picture = torch.ones(1, 4, 8, 8, device=device, dtype=dtype)
        tokens = functional.conv2d(picture, picture[:, :, :3, :3]).reshape(1, 1, 6, 6)
        mixed = functional.scaled_dot_product_attention(tokens, tokens, tokens)
        total = functional.layer_norm(mixed @ tokens, (6,)).float().sum().item()
    except (RuntimeError, TypeError) as error:
        return Check(what, False, str(error).partition("\n")[0])
    return Check(what, math.isfinite(total), "" if math.isfinite(total) else "does not compute finite numbers")


def _places() -> list[Check]:
    """Look at the folders that runs read and write."""
    try:
        model = locate(demo.MODEL_ID)
        size = sum(file.stat().st_size for file in demo.path().rglob("*") if file.is_file())
        bundled = Check("model.id: demo", True, f"{model.pipeline}, {size / 1e6:.1f} MB")
    except InputError as error:
        bundled = Check("model.id: demo", False, str(error))
    hub = _writable("model.id: hub ids", hub_cache())
    if hub.works and os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        hub = Check(hub.what, False, f"HF_HUB_OFFLINE is set: only what {hub_cache()} holds")
    return [bundled, hub, _writable("output.dir: outputs", Path("outputs")), _films(), _ray()]


def _ray() -> Check:
    """Look for what `--ray` needs."""
    try:
        return Check("run --ray", True, f"ray {metadata.version('ray')}")
    except metadata.PackageNotFoundError:
        return Check("run --ray", False, "needs Ray: pip install 'cachedit[ray]'")


def _films() -> Check:
    """Look for what writes and reads films."""
    try:
        return Check("output.format: mp4", True, ffmpeg.program())
    except InputError as error:
        return Check("output.format: mp4", False, f"needs {error}")


def _writable(what: str, folder: Path) -> Check:
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    works = there.is_dir() and os.access(there, os.W_OK)
    return Check(what, works, str(folder) if works else f"{folder}: {there} cannot be written")
