"""What happens to errors: exit codes, one readable message on stderr, and a file with the traceback of a bug.

Knows the exit codes of CacheditError and Typer's way to end; knows no command.

    0 done    1 the work failed    2 the input was wrong    3 a bug    130 interrupted
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper

from . import __version__
from .errors import CacheditError

__all__ = ["guarded", "results_alone", "tell", "tracebacks"]

BUG = 3
INTERRUPTED = 130


def guarded(command: Callable[[Sequence[str]], object], arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code, whatever happens."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal or pipe that cannot show a mark gets a question mark for it, not a crash.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        command(arguments)
    except SystemExit as end:  # Typer's end of all commands, interrupts and usage errors among them
        if end.code == INTERRUPTED:
            tell("interrupted")
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except CacheditError as error:
        tell(str(error))
        return error.exit_code
    except Exception as error:
        tell(_bug(error, arguments))
        return BUG
    return 0


def tell(text: str) -> None:
    """Write a message for people that is no result."""
    sys.stderr.write(f"{text}\n")


@contextmanager
def results_alone(wanted: bool) -> Iterator[None]:
    """Keep stdout for the result that follows: what libraries and workers write there meanwhile goes to stderr."""
    if not wanted:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def tracebacks(wanted: bool) -> Iterator[None]:
    """Show where an error came from, before the message that it ends with."""
    try:
        yield
    except Exception as error:
        if wanted:
            tell("".join(traceback.format_exception(error)))
        raise


def _bug(error: Exception, arguments: Sequence[str]) -> str:
    what = f"this is a bug in cachedit: {type(error).__name__}: {error}"
    story = "".join(traceback.format_exception(error))
    facts = f"cachedit {__version__}, Python {sys.version}, {sys.platform}\narguments: {list(arguments)}\n\n{story}"
    try:
        number, name = tempfile.mkstemp(prefix="cachedit-bug-", suffix=".txt", text=True)
        with os.fdopen(number, "w", encoding="utf-8", errors="replace") as file:
            file.write(facts)
    except OSError:
        return f"{what}\n{facts}"
    return f"{what}\nPlease report it and attach {name}, which holds the traceback."
