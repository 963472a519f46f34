"""What a check of `cachedit doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Check"]


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        what: A package, a device, or an option of the recipe format with its value.
        note: The version, the name of the device, or what is wrong.
    """

    what: str
    works: bool
    note: str
