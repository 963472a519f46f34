"""YAML with positions: text into a tree whose every value knows its file, line and column; trees laid over each other.

Knows YAML and what may be wrong with a file; knows nothing of the fields of a recipe. PyYAML's safe loader does the
scanning; the tree is built from its events, so that duplicate keys, aliases, tags, depth and size are judged before
anything is expanded. Plain scalars follow YAML 1.2 (`1e-3` is a number, `010` is ten, `no` and `2024-01-01` are text).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import yaml

from .errors import InputError

__all__ = [
    "UNREAD",
    "Mark",
    "Node",
    "Problem",
    "complain",
    "dotted",
    "merge",
    "node_of",
    "parse",
    "plain",
    "put",
    "read",
    "shorten",
]

MAX_BYTES = 1 << 20
MAX_VALUES = 10_000
MAX_DEPTH = 32
MAX_SHOWN = 100
UNREAD: Any = ...  # the value of what is complained of already
MAX_TEXT = 500

_TAG = "tag:yaml.org,2002:"
# What a scalar can be: its tag, how it is written, what it means. Of a plain one, the first that fits.
_SCALARS: tuple[tuple[str, re.Pattern[str], Callable[[str], Any]], ...] = (
    ("null", re.compile(r"~|null|Null|NULL|"), lambda text: None),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), lambda text: text.lower() == "true"),
    ("int", re.compile(r"[-+]?[0-9]{1,1000}"), int),
    ("int", re.compile(r"0o[0-7]+"), lambda text: int(text, 8)),
    ("int", re.compile(r"0x[0-9a-fA-F]+"), lambda text: int(text, 16)),
    ("float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), float),
    ("float", re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"), lambda text: float(text.replace(".", ""))),
    ("str", re.compile(r".*", re.DOTALL), str),
)
_NO_TEXT = "holds half a character (a lone surrogate), which no file can hold"
_PLAIN_KEY = re.compile(r"[^\s.:'\"]{1,60}")
_HINTS = {
    "found character '\\t' that cannot start any token": "a tab cannot indent YAML (use spaces)",
    "mapping values are not allowed here": "a second ':' in one value (put the value in quotes)",
    "expected <block end>": "the indentation does not fit the lines above",
}


@dataclass(frozen=True)
class Mark:
    """Where something was written: a file with line and column, from 1, or a command line option without them."""

    source: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Node:
    """A value with the place it was written at, and that of the key that leads to it."""

    value: Any  # dict[str, Node], list[Node], str, int, float, bool, None or UNREAD
    mark: Mark
    key: Mark | None = None


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, for one line of the message."""

    mark: Mark
    path: str
    text: str

    def __str__(self) -> str:
        text = self.text if len(self.text) <= MAX_TEXT else f"{self.text[:MAX_TEXT]} ..."
        return f"{self.mark}: {self.path}: {text}" if self.path else f"{self.mark}: {text}"


Inherit = Callable[[Sequence[str], Mapping[str, Node], Mapping[str, Node]], set[str]]


def complain(problems: Iterable[Problem], first: str = "") -> InputError:
    """Return the error that lists all problems: of the first file, of others, of options; each from top to bottom."""
    found = sorted(dict.fromkeys(problems), key=lambda problem: problem.mark.line is None)
    sources = list(dict.fromkeys([first, *(problem.mark.source for problem in found)]))
    found.sort(key=lambda each: (sources.index(each.mark.source), each.mark.line or 0, each.mark.column or 0))
    lines = [str(problem) for problem in found[:MAX_SHOWN]]
    if len(found) > MAX_SHOWN:
        lines.append(f"... and {len(found) - MAX_SHOWN} more")
    return InputError("\n".join(lines))


def dotted(path: Iterable[str | int]) -> str:
    """Return the path to a key as `--set` takes it; keys that would spoil the line are quoted."""
    return ".".join(
        part if _PLAIN_KEY.fullmatch(part) and part.isprintable() else shorten(part) for part in map(str, path)
    )


def shorten(value: Any) -> str:
    """Return the value as a person would name it, on one short line."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, int) and value.bit_length() > 200:
        return "a number of more than 60 digits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]} ... {text[-12:]}"


def read(path: str) -> str:
    """Return the text of a recipe file."""
    shown = path.replace("\0", "\\0")
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"{shown}: there is no such file") from None
    except IsADirectoryError:
        raise InputError(f"{shown}: is a folder (name one recipe file in it)") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{shown}: cannot be read: {reason}") from None
    if len(raw) > MAX_BYTES:
        raise InputError(f"{shown}: is larger than 1 MiB, so it is hardly a recipe")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wrong = raw[error.start]
        raise InputError(f"{shown}: is no text in UTF-8 (byte 0x{wrong:02x} at offset {error.start})") from None


def parse(text: str, source: str, positions: bool = True) -> tuple[Node | None, list[Problem]]:
    """Return the tree of the only document in ``text`` (None if there is none) and what is wrong with it."""
    builder = _Builder(text, source, positions)
    try:
        tree = builder.document()
    except _Stop as stop:
        return None, [*builder.problems, stop.problem]
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        mark = Mark(source, before.count("\n") + 1, error.position - before.rfind("\n")) if positions else Mark(source)
        return None, [Problem(mark, "", f"holds the character U+{ord(text[error.position]):04X}, which no text has")]
    except yaml.MarkedYAMLError as error:
        mark = builder.mark(error.problem_mark or error.context_mark)
        problem = error.problem or error.context or "cannot be read"
        hint = next((hint for known, hint in _HINTS.items() if problem.startswith(known)), problem)
        return None, [*builder.problems, Problem(mark, "", f"not valid YAML: {hint}")]
    return tree, builder.problems


def plain(node: Node) -> Any:
    """Return the tree as plain data."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def node_of(value: Any, mark: Mark) -> Node:
    """Return plain data as a tree that was written at ``mark`` as a whole."""
    if isinstance(value, dict):
        return Node({key: node_of(child, mark) for key, child in value.items()}, mark)
    if isinstance(value, (list, tuple)):
        return Node([node_of(child, mark) for child in value], mark)
    if not _is_text(value):
        raise complain([Problem(mark, "", _NO_TEXT)])
    return Node(value, mark)


def merge(base: Node, over: Node, inherit: Inherit, at: tuple[str, ...] = ()) -> Node:
    """Return ``over`` laid over ``base``: mappings are merged, everything else is replaced.

    ``inherit`` is asked for each pair of mappings which keys of the lower one the upper one does away with.
    """
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    gone = inherit(at, base.value, over.value)
    merged = {key: child for key, child in base.value.items() if key not in gone}
    for key, child in over.value.items():
        merged[key] = merge(merged[key], child, inherit, (*at, key)) if key in merged else child
    return replace(over, value=merged)


def put(node: Node, path: Sequence[str], value: Node, inherit: Inherit, at: tuple[str, ...] = ()) -> Node:
    """Return the tree with ``value`` at ``path`` below ``node``; items of lists are named by their number, from 0.

    As where trees are merged, a mapping replaces what is no mapping.
    """
    if not path:
        return replace(value, key=value.mark)
    head, rest = path[0], path[1:]
    if head.isdecimal() and not isinstance(node.value, dict):
        items = node.value if isinstance(node.value, list) else []
        if len(head) > 9 or int(head) >= len(items):
            there = f"the list ends with {len(items) - 1}" if items else f"{dotted(at)} is no list with entries"
            raise complain([Problem(value.mark, dotted((*at, head)), f"no such entry ({there})")])
        child = put(items[int(head)], rest, value, inherit, (*at, head))
        return replace(node, value=[*items[: int(head)], child, *items[int(head) + 1 :]])
    entries: dict[str, Node] = node.value if isinstance(node.value, dict) else {}
    child = put(entries.get(head, Node(None, value.mark, value.mark)), rest, value, inherit, (*at, head))
    gone = inherit(at, entries, {head: child})
    mark = node.mark if isinstance(node.value, dict) else value.mark
    return Node({key: entry for key, entry in entries.items() if key not in gone} | {head: child}, mark, node.key)


def _is_text(value: Any) -> bool:
    """Tell whether a value is no string with halves of characters, as escapes and broken arguments make them."""
    return not isinstance(value, str) or not any("\ud800" <= character <= "\udfff" for character in value)


class _Position(Protocol):
    """A mark of PyYAML, from 0."""

    @property
    def line(self) -> int: ...

    @property
    def column(self) -> int: ...


class _Stop(Exception):
    """Reading on makes no sense."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class _Builder:
    """Builds one tree from the parser's events."""

    def __init__(self, text: str, source: str, positions: bool) -> None:
        self.source = source
        self.positions = positions
        self.problems: list[Problem] = []
        self._text = text
        self._anchors: dict[str, tuple[Node, int]] = {}
        self._open: list[str] = []
        self._values = 0

    def mark(self, start: _Position | None) -> Mark:
        if start is None or not self.positions:
            return Mark(self.source)
        return Mark(self.source, start.line + 1, start.column + 1)

    def document(self) -> Node | None:
        self._events = yaml.parse(self._text, Loader=yaml.SafeLoader)
        next(self._events)  # the stream
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        tree = self._node(next(self._events), ())
        next(self._events)  # the end of the document
        more = next(self._events)
        if isinstance(more, yaml.DocumentStartEvent):
            raise _Stop(Problem(self.mark(more.start_mark), "", "a second document begins; a recipe is one document"))
        return tree

    def _node(self, event: yaml.Event, at: tuple[str, ...]) -> Node:
        mark = self.mark(event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, mark, at)
        anchor, before = event.anchor if isinstance(event, yaml.NodeEvent) else None, self._values
        self._count(1, mark)
        if len(at) > MAX_DEPTH:
            raise _Stop(Problem(mark, "", f"nested deeper than {MAX_DEPTH} levels"))
        if anchor is not None:
            self._open.append(anchor)
        value: Any = None
        if isinstance(event, yaml.MappingStartEvent):
            self._check_tag(event.tag, "map", mark, at)
            value = self._mapping(at)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._check_tag(event.tag, "seq", mark, at)
            value = self._sequence(at)
        elif isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event, mark, at)
        node = Node(value, mark)
        if anchor is not None:
            self._open.pop()
            self._anchors[anchor] = (node, self._values - before)
        return node

    def _alias(self, event: yaml.AliasEvent, mark: Mark, at: tuple[str, ...]) -> Node:
        if event.anchor not in self._anchors:
            own = event.anchor in self._open
            text = f"*{event.anchor} stands inside its own value" if own else f"there is no &{event.anchor} above"
            self.problems.append(Problem(mark, dotted(at), text))
            return Node(UNREAD, mark)
        node, values = self._anchors[event.anchor]
        self._count(values, mark)
        return node

    def _count(self, values: int, mark: Mark) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            text = f"more than {MAX_VALUES:,} values, those of an alias counted each time it is used"
            raise _Stop(Problem(mark, "", text))

    def _check_tag(self, tag: str | None, allowed: str, mark: Mark, at: tuple[str, ...]) -> None:
        if tag not in (None, "!", _TAG + allowed):
            shown = tag.replace(_TAG, "!!") if tag else ""
            self.problems.append(
                Problem(mark, dotted(at), f"the tag {shown} does not belong here (a recipe is plain data)")
            )

    def _sequence(self, at: tuple[str, ...]) -> list[Node]:
        items: list[Node] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(event, (*at, str(len(items)))))
        return items

    def _mapping(self, at: tuple[str, ...]) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        merged: list[Node] = []
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            name = self._key(event, at)
            key = self.mark(event.start_mark)
            child = self._node(next(self._events), (*at, name or "?"))
            if name == "<<" and isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
                merged += self._merge_key(child, at)
            elif name in entries:
                first = entries[name].key
                where = f" (first on line {first.line})" if first is not None and first.line is not None else ""
                self.problems.append(Problem(key, dotted((*at, name)), f"the key is given twice{where}"))
            elif name is not None:
                entries[name] = replace(child, key=key)
        for mapping in merged:  # each below what is there already: own keys count most, then earlier mappings
            entries = mapping.value | entries
        return entries

    def _key(self, event: yaml.Event, at: tuple[str, ...]) -> str | None:
        """Return the key, or None after having said why it is none."""
        key = self._node(event, (*at, "?"))
        if isinstance(key.value, str):
            return key.value
        if key.value is UNREAD:
            return None
        hint = "" if isinstance(key.value, (dict, list)) else " (put it in quotes)"
        text = f"a key is {shorten(key.value)}, but keys are text{hint}"
        self.problems.append(Problem(self.mark(event.start_mark), dotted(at), text))
        return None

    def _merge_key(self, child: Node, at: tuple[str, ...]) -> list[Node]:
        """Return the mappings that `<<` merges in, those that count most first."""
        mappings = child.value if isinstance(child.value, list) else [child]
        for each in mappings:
            if not isinstance(each.value, dict) and each.value is not UNREAD:
                text = f"merges {shorten(each.value)}, but only mappings can be merged"
                self.problems.append(Problem(each.mark, dotted((*at, "<<")), text))
        return [each for each in mappings if isinstance(each.value, dict)]

    def _scalar(self, event: yaml.ScalarEvent, mark: Mark, at: tuple[str, ...]) -> Any:
        tag = (event.tag or "").removeprefix(_TAG)
        if tag == "!" or (not tag and not event.implicit[0]):
            tag = "str"
        for name, written, meaning in _SCALARS:
            if tag in ("", name) and written.fullmatch(event.value):
                if not _is_text(event.value):
                    self.problems.append(Problem(mark, dotted(at), _NO_TEXT))
                return meaning(event.value)
        self._check_tag(event.tag, "", mark, at)
        return UNREAD
