"""Runs the pages of docs/guide as their readers would: writes their files, types their commands, runs their Python.

A fenced block is followed as it stands. One-line HTML comments right in front of it say what the reader cannot see:

    <!-- file: mine.yaml -->   the block is a file that the page needs; it is written before anything runs
    <!-- exit: 2 -->           the last command of the block ends with this code, not with 0
    <!-- skip: why -->         needs a device or a download: Python is only compiled, commands are not run
    <!-- output -->            the block is what the page's Python printed since it was last compared

In a ``console`` block a line that begins with `$ ` is a command, and what stands below it is what it shows; a command
with nothing below it may show anything. A line `…` stands for any lines, and `…` within a line for any text.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cachedit_cli import registry
from cachedit_cli.cli import main

__all__ = ["Block", "Page", "blocks"]

_ANY = "…"
_NOTE = re.compile(r"<!--\s*(file|exit|skip|output)(?::\s*(.*?))?\s*-->$")
_FENCE = re.compile(r"(`{3,})\s*(\w*)\s*$")
_SHELL = re.compile(r"[|<>&;]|^\w+=")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, the number of its first line, and the comments in front of it."""

    language: str
    text: str
    line: int
    notes: Mapping[str, str]


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    found: list[Block] = []
    notes: dict[str, str] = {}
    lines = iter(enumerate(page.splitlines(), 1))
    for number, line in lines:
        note, fence = _NOTE.match(line), _FENCE.match(line)
        if fence:
            inside = []
            for _, each in lines:
                if each.strip() == fence[1]:
                    break
                inside.append(f"{each}\n")
            found.append(Block(fence[2], "".join(inside), number + 1, notes))
        notes = {**notes, note[1]: note[2] or ""} if note else {}
    return found


class Page:
    """One page, followed in an empty folder that is the current one."""

    def __init__(self, file: Path) -> None:
        self._name = file.name
        self._blocks = blocks(file.read_text(encoding="utf-8"))
        self._scope: dict[str, Any] = {"__name__": "__main__"}
        self._printed = ""

    def follow(self) -> None:
        """Do everything that the page says, in its order; raises where it does not go as the page says."""
        for block in self._blocks:
            if "file" in block.notes:
                path = Path(block.notes["file"])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text, encoding="utf-8")
        with _own_process():
            for block in self._blocks:
                if "file" not in block.notes:
                    self._follow(block, f"{self._name}:{block.line}")

    def _follow(self, block: Block, where: str) -> None:
        if block.language == "python":
            self._run_python(block)
        elif block.language == "console" and "skip" not in block.notes:
            self._run_commands(block, where)
        elif "output" in block.notes:
            _compare(where, "the Python above", block.text.splitlines(), self._printed)
            self._printed = ""

    def _run_python(self, block: Block) -> None:
        code = compile("\n" * (block.line - 1) + block.text, self._name, "exec")  # tracebacks name the page's lines
        if "skip" not in block.notes:
            with contextlib.redirect_stdout(io.StringIO()) as caught:  # without progress bars
                exec(code, self._scope)
            self._printed += caught.getvalue()

    def _run_commands(self, block: Block, where: str) -> None:
        commands = list(_commands(block.text))
        for number, (command, shown) in enumerate(commands):
            code, output = _run(command)
            last = number == len(commands) - 1
            expected = int(block.notes.get("exit", "0")) if last else 0
            assert code == expected, f"{where}: `{command}` ended with {code}, not {expected}:\n{output}"
            if shown:
                _compare(where, f"`{command}`", shown, output)


def _commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Return the commands of a block, each with the lines that it shows."""
    command, shown = "", list[str]()
    for line in text.splitlines():
        if command.endswith("\\"):
            command = f"{command[:-1].rstrip()} {line.strip()}"
        elif line.startswith("$ "):
            if command:
                yield command, shown
            command, shown = line[2:].strip(), []
        else:
            shown.append(line)
    if command:
        yield command, shown


def _run(command: str) -> tuple[int, str]:
    """Run one command; return its exit code, and what a terminal would show."""
    words = shlex.split(command, comments=True)
    if words[0] == "cachedit" and not _SHELL.search(command):
        with _own_process(), _caught() as caught:
            code = main(words[1:])
        return code, caught.getvalue()
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )
    return done.returncode, done.stdout


def _environment() -> dict[str, str]:
    """Return an environment in which `cachedit` and `python` are those that run this."""
    folder = Path(".bin").absolute()
    folder.mkdir(exist_ok=True)
    for name, what in (("python", ""), ("cachedit", "-m cachedit_cli ")):
        (folder / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {what}"$@"\n')
        (folder / name).chmod(0o755)
    package = str(Path(__file__).parents[1])
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(folder), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }


@contextlib.contextmanager
def _own_process() -> Iterator[None]:
    """Let what is registered, and imported from the current folder, be gone afterwards, as if a process ended."""
    registry.all_adapters()
    shared = registry._registry
    registry._registry = replace(
        shared,
        adapters=dict(shared.adapters),
        functions=dict(shared.functions),
        functors=dict(shared.functors),
        origins=dict(shared.origins),
        plugins={},
    )
    known = set(sys.modules)
    try:
        yield
    finally:
        registry._registry = shared
        for name in set(sys.modules) - known:
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(os.getcwd()):
                del sys.modules[name]


@contextlib.contextmanager
def _caught() -> Iterator[io.StringIO]:
    """Catch what is written, stdout and stderr in the order of a terminal."""
    caught = io.StringIO()
    with contextlib.redirect_stdout(caught), contextlib.redirect_stderr(caught):
        yield caught


def _compare(where: str, what: str, shown: list[str], output: str) -> None:
    """Compare what the page shows with what came, but for the blanks around."""
    while shown and not shown[-1].strip():
        shown = shown[:-1]
    lines = (
        r"(?:.*\n)*?" if line.strip() == _ANY else r".*".join(map(re.escape, line.rstrip().split(_ANY))) + "\n"
        for line in shown
    )
    came = "".join(f"{line.rstrip()}\n" for line in output.rstrip().splitlines())
    expected = "\n".join(shown)
    assert re.fullmatch("".join(lines), came), f"{where}: {what} shows\n{came}\nand the page says\n{expected}"
