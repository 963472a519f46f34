"""Finds the block lists of a model that nobody registered, and checks those that somebody named.

Both look at the first forward, which computes everything anyway: what the blocks were really called with and what they
returned decides (``trace``). The caches are put in and taken out by the engine.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from .engine.install import Installation
from .errors import InputError
from .terms.block_adapter import BlockAdapter
from .terms.pattern import ForwardPattern, Streams, as_streams, numbered
from .trace import Candidate, Trace, Watch, candidates

__all__ = ["Found", "choose", "find_and_admit", "refuse_contradictions"]

_SHORT = 3  # lists up to this length are left out where a longer one fits


@dataclass(frozen=True)
class Found:
    """What a forward showed of a model's lists.

    Attributes:
        fitting: The lists to cache, with their streams, in the order of the forward.
        reasons: Why each other list is left out, by its path.
        alternate: The lists to cache take turns, block by block.
    """

    fitting: tuple[tuple[Candidate, Streams], ...]
    reasons: dict[str, str]
    alternate: bool = False

    def as_lines(self) -> list[str]:
        """Return the lists to cache, then the others with their reasons, one line each."""
        lines = [f"{each.path}: {len(each.blocks)} blocks, {streams}" for each, streams in self.fitting]
        return [*lines, *(f"{path}: left out: {reason}" for path, reason in self.reasons.items())]


def choose(traces: Sequence[Trace], pattern: Streams | None = None) -> Found:
    """Return which of the lists that were watched can be cached, and how; only those of a pattern if one is given."""
    fitting: list[tuple[Trace, Streams]] = []
    reasons: dict[str, str] = {}
    for trace in traces:
        path = trace.candidate.path
        if any(path.startswith(f"{outer.candidate.path}.") for outer, _ in fitting):
            continue  # inside a block that is cached as a whole
        try:
            streams = pattern if pattern is not None else trace.streams()
        except InputError as error:
            reasons[path] = str(error)
            continue
        problem = trace.problem(streams)
        if problem is None:
            fitting.append((trace, streams))
        else:
            reasons[path] = problem
    longest = max((len(trace.candidate.blocks) for trace, _ in fitting), default=0)
    for trace, _ in fitting:
        count = len(trace.candidate.blocks)
        if count <= _SHORT < longest:
            reasons[trace.candidate.path] = f"its {count} blocks save little"
    left = sorted((each for each in fitting if each[0].candidate.path not in reasons), key=lambda each: each[0].span)
    turns = [(a, b) for (a, _), (b, _) in itertools.pairwise(left) if b.span[0] < a.span[1]]
    alternate = bool(turns) and len(turns) == len(left) - 1 and len({len(t.candidate.blocks) for t, _ in left}) == 1
    if not alternate:
        for first, second in turns:
            reasons[second.candidate.path] = f"its blocks take turns with those of {first.candidate.path}"
    kept = tuple((trace.candidate, streams) for trace, streams in left if trace.candidate.path not in reasons)
    return Found(kept, reasons, alternate)


def find_and_admit(installation: Installation) -> None:
    """Look at the next forward of each transformer, and cache the lists that fit.

    If nothing fits, the cache is taken out and the forward ends with an InputError that gives the reason for each list.

    Raises:
        InputError: A transformer has no list of blocks, or none that takes what the pattern takes.
    """
    adapter = installation.adapter
    given = adapter.forward_pattern
    if given is not None and not isinstance(given, (ForwardPattern, Streams)):
        raise InputError("BlockAdapter: auto takes one forward_pattern for all lists, or none")
    pattern = as_streams(given) if given is not None else None
    for model in installation.transformers:
        traces = [Trace(candidate) for candidate in candidates(model, pattern)]
        if not traces:
            what = f"takes {', '.join(pattern.takes)}, as {pattern} does" if pattern else "could be cached"
            raise InputError(f"{_class_name(model)}: no list of blocks {what}")

        def judge(model: nn.Module = model, traces: Sequence[Trace] = tuple(traces)) -> None:
            found = choose(traces, pattern)
            try:
                if not found.fitting:
                    raise InputError(_nothing(model, pattern, found.reasons))
                known = len(installation.log.contexts)
                installation.admit(model, _adapter(installation, model, found))
                for info in installation.log.contexts[known : known + 1]:
                    info.notes += [f"{path} is left out: {reason}" for path, reason in found.reasons.items()]
            except BaseException:
                installation.remove()
                raise

        installation.undo_with(Watch(model, traces, judge))


def _adapter(installation: Installation, model: nn.Module, found: Found) -> BlockAdapter:
    """Return the adapter for what was found; the other transformers keep their place, by which units are named."""
    models = installation.transformers
    return replace(
        installation.adapter,
        auto=False,
        transformer=models,
        blocks=[[candidate.blocks for candidate, _ in found.fitting] if each is model else [] for each in models],
        forward_pattern=[[streams for _, streams in found.fitting] if each is model else [] for each in models],
        alternate=found.alternate,
    )


def _nothing(model: nn.Module, pattern: Streams | None, reasons: dict[str, str]) -> str:
    what = f"has {pattern}" if pattern is not None else "can be cached"
    return "\n".join([f"{_class_name(model)}: no block list {what}:", *_indented(reasons)])


def _indented(reasons: dict[str, str]) -> Iterable[str]:
    return (f"  {path}: {reason}" for path, reason in reasons.items())


def _class_name(model: Any) -> str:
    return type(getattr(model, "_orig_mod", model)).__name__


def refuse_contradictions(installation: Installation) -> None:
    """Look at the next forward, and refuse patterns that the blocks contradict.

    The cache is taken out then, and the forward ends with an InputError.
    """
    members = installation.adapter.members()
    for model in installation.transformers:
        traces = [
            (Trace(Candidate(member.name, nn.ModuleList(member.blocks))), member.streams)
            for member in members
            if member.transformer is model
        ]

        def judge(model: nn.Module = model, traces: Sequence[tuple[Trace, Streams]] = tuple(traces)) -> None:
            problems = [(text, trace) for trace, streams in traces if (text := trace.contradiction(streams))]
            if problems:
                installation.remove()
                lines = (f"{_class_name(model)}: {text}; {_instead(trace)}" for text, trace in problems)
                raise InputError("\n".join(lines))

        installation.undo_with(Watch(model, [trace for trace, _ in traces], judge))


def _instead(trace: Trace) -> str:
    """Return what to say in the place of a pattern that the forward contradicted."""
    try:
        streams = trace.streams()
    except InputError as error:
        return f"and no other pattern fits: {error}"
    pattern = numbered(trace.candidate.blocks[0].forward, streams)
    if pattern is not None:
        return f"{pattern.name} fits what they return"
    return f"they hand on {streams}, which no numbered pattern says and `adapter: auto` finds"
