"""Exceptions and their exit codes. Knows nothing else of the package.

CacheditError         something a person has to read (never raised itself)
├── InputError        recipe, option, file or argument is wrong      exit code 2
└── RunError          the work itself failed                         exit code 1
"""

from __future__ import annotations

from typing import ClassVar

__all__ = ["CacheditError", "InputError", "RunError"]


class CacheditError(Exception):
    """Base of all expected errors; the message is complete and made for people."""

    exit_code: ClassVar[int] = 1


class InputError(CacheditError, ValueError):
    """What the user gave is wrong: says where, what and how to mend it."""

    exit_code = 2


class RunError(CacheditError, RuntimeError):
    """The input was right, but the work failed."""
