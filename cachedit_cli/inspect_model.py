"""What `cachedit inspect` finds out: how a model's blocks are called, what they hand on, and how they would be cached.

Watches one forward (``trace``) of an instance without weights or, where that fails, of a small one; ``inspect_real``
watches the real model.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from . import pipeline, registry
from .detect import Found, choose
from .errors import InputError
from .guess import guess
from .miniature import build, real, shrunk, weightless
from .registry import ModelAdapter
from .target import Part, class_named, resolve
from .terms.pattern import ForwardPattern, Streams, as_streams, numbered
from .terms.sample import Sample
from .trace import Candidate, Trace, Watch, candidates

__all__ = ["Inspection", "ListFacts", "ModelFacts", "Seen", "facts", "inspect"]

_LARGEST = 250_000_000  # parameters of an instance that is made to be watched


@dataclass(frozen=True)
class ListFacts:
    """One block list.

    Attributes:
        path: Where it is, from the transformer.
        blocks: How many there are, and ``block`` their class.
        parameters: Weights in all of them.
        positional: Arguments that come by position, in order.
        keywords: Arguments that come by keyword, in order.
        pattern: What the forward showed: 'Pattern_1', or names; None if it was not seen, or if nothing is handed on.
        registered: The same as the adapter says it; None if it has none for this list.
        changed: Streams that the model changes between blocks: after which blocks.
        differing: Other arguments that are not the same for all blocks.
        problem: Why it is left out, if it is.
        number: The pattern's number in a recipe, where one says the same.
    """

    path: str
    blocks: int
    block: str
    parameters: int
    positional: list[str] = field(default_factory=list)
    keywords: list[str] = field(default_factory=list)
    pattern: str | None = None
    registered: str | None = None
    changed: dict[str, list[int]] = field(default_factory=dict)
    differing: list[str] = field(default_factory=list)
    problem: str | None = None
    number: int | None = None


@dataclass(frozen=True)
class ModelFacts:
    """One transformer.

    Attributes:
        part: Name in the pipeline.
        transformer: Its class.
        parameters: All its weights.
        lists: Lists that are cached, and others that were looked at, in the order of the forward.
        adapter: Name of the adapter that would be used; None if the lists are found at the first forward.
        why: Why that one.
        guidance: How guidance is computed, as the adapter says.
        traced: What the forward was watched on; None if there was none.
        reason: Why there was none.
        notes: What else to know.
        blocks: A section to paste into a recipe; None where no list can be named.
    """

    part: str
    transformer: str
    parameters: int
    lists: list[ListFacts]
    adapter: str | None
    why: str
    guidance: str | None
    traced: str | None
    reason: str | None
    notes: list[str]
    blocks: str | None


@dataclass(frozen=True)
class Inspection:
    """What was found out of a target."""

    target: str
    what: str
    pipeline: str | None
    models: list[ModelFacts]

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Seen:
    """An instance and what a forward showed of it."""

    model: nn.Module
    traces: Sequence[Trace] = ()
    traced: str | None = None
    reason: str | None = None


def inspect(target: str) -> Inspection:
    """Look at a model without its weights.

    Raises:
        InputError: There is no such model, or its class cannot be built.
    """
    found = resolve(target)
    with pipeline.quiet():
        models = [facts(part, _unweighted(part)) for part in found.parts]
    return Inspection(target, found.what, found.pipeline, models)


# ------------------------------------------------------------------------------------------------------------ watching


def _unweighted(part: Part) -> Seen:
    """Watch a forward: of the adapter's sample, of the full model without weights, or of a small one."""
    cls = class_named(part.transformer)
    if cls is None:
        raise InputError(f"{part.transformer}: this diffusers has no such class{_needed(part.transformer)}")
    model = weightless(cls, part.config)
    adapter = registry.find(part.transformer)
    found = _sampled(cls, adapter.sample) if adapter is not None and adapter.sample is not None else None
    if isinstance(found, list):
        return Seen(model, found, "a forward of the smallest instance (random weights)")
    size = "full size, no weights" + ("" if part.config else ", default configuration")
    traces = [Trace(each) for each in candidates(model)]
    reason = guess(model, _runner(model, traces))
    if reason is None:
        return Seen(model, traces, f"a forward of the model ({size})")
    reason = found or reason
    try:
        config = shrunk(cls, part.config)
        if sum(weight.numel() for weight in weightless(cls, config).parameters()) > _LARGEST:
            return Seen(model, reason=reason)
        small = build(cls, config, torch.device("cpu"))
    except InputError:
        return Seen(model, reason=reason)
    traces = [Trace(each) for each in candidates(small)]
    if guess(small, _runner(small, traces)) is not None:
        return Seen(model, reason=reason)
    return Seen(model, traces, "a forward of a small instance (few layers, random weights)")


def _sampled(cls: type[nn.Module], sample: Sample) -> list[Trace] | str:
    """Return what a forward of the adapter's sample showed, or why it does not go through with this diffusers."""
    try:
        model = build(cls, sample.config, torch.device("cpu"))
        traces = [Trace(each) for each in candidates(model)]
        with torch.no_grad():
            _runner(model, traces)({"return_dict": False, **real(sample.inputs)})
    except Exception as error:
        return f"{type(error).__name__}: {pipeline.first_line(error)}"
    return traces


def _needed(transformer: str) -> str:
    adapter = registry.find(transformer)
    return f"; it came with {adapter.needs}" if adapter is not None else ""


def _runner(model: nn.Module, traces: Sequence[Trace]) -> Any:
    def run(values: Mapping[str, Any]) -> None:
        watch = Watch(model, traces, lambda: None)
        try:
            model(**values)
        finally:
            watch.undo()

    return run


# ------------------------------------------------------------------------------------------------------- what it means


def facts(part: Part, seen: Seen) -> ModelFacts:
    """Return what is known of a transformer, and what a forward showed."""
    adapter = registry.find(part.transformer)
    found = choose(seen.traces) if seen.traces else Found((), {})
    said = {entry.path: as_streams(entry.pattern) for entry in adapter.lists} if adapter is not None else {}
    shown = {trace.candidate.path: trace for trace in seen.traces if trace.order or trace.candidate.path in said}
    whole = {each.path: each for each in candidates(seen.model)}
    for path in said:
        blocks = seen.model.get_submodule(path)
        if isinstance(blocks, nn.ModuleList):
            whole.setdefault(path, Candidate(path, blocks))
    if said and not any(len(whole[path].blocks) for path in said if path in whole):
        raise InputError(f"{' + '.join(said)}: this block list is empty, as the model's configuration says")
    whole = {path: each for path, each in whole.items() if len(each.blocks)}
    measured = {candidate.path: streams for candidate, streams in found.fitting}
    wanted = said if adapter is not None else measured
    ordered = sorted({*shown, *said, *measured} & whole.keys(), key=lambda path: _place(path, shown, list(whole)))
    lists = [_list(whole[path], shown.get(path), measured.get(path), said, found) for path in ordered]
    return ModelFacts(
        part=part.name,
        transformer=part.transformer,
        parameters=_count(seen.model),
        lists=[each for each in lists if not _inside(each.path, wanted)],
        adapter=adapter.name if adapter is not None else None,
        why=_why(part.transformer, adapter),
        guidance=adapter.guidance if adapter is not None else None,
        traced=seen.traced,
        reason=seen.reason,
        notes=_notes(adapter, measured, said, found),
        blocks=_section(part.name, [each for each in lists if each.path in wanted], adapter, found),
    )


def _place(path: str, shown: Mapping[str, Trace], order: Sequence[str]) -> tuple[int, int]:
    return shown[path].span[0] if path in shown else 0, order.index(path)


def _inside(path: str, outer: Mapping[str, Streams]) -> bool:
    return any(path.startswith(f"{each}.") for each in outer)


def _count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _list(
    candidate: Candidate, trace: Trace | None, streams: Streams | None, said: Mapping[str, Streams], found: Found
) -> ListFacts:
    path, blocks = candidate.path, candidate.blocks
    registered = said.get(path)
    meant = streams or registered
    if streams is None and trace is not None and registered is not None and trace.problem(registered) is None:
        streams = registered
    carried = meant.carried if meant is not None else ()
    return ListFacts(
        path=path,
        blocks=len(blocks),
        block=" + ".join(dict.fromkeys(type(block).__name__ for block in blocks)),
        parameters=_count(blocks),
        positional=list(trace.positional) if trace is not None else [],
        keywords=list(trace.keywords) if trace is not None else [],
        pattern=str(streams) if streams is not None else None,
        registered=str(registered) if registered is not None else None,
        changed=trace.changed_between(meant) if trace is not None and trace.order and meant is not None else {},
        differing=[name for name in trace.differing if name not in carried] if trace is not None else [],
        problem=None if registered is not None else found.reasons.get(path),
        number=_number(blocks, meant) if meant is not None else None,
    )


def _number(blocks: nn.ModuleList, streams: Streams) -> int | None:
    """Return the number of the pattern by which a recipe can say the same, if there is one."""
    pattern = numbered(blocks[0].forward, streams)
    return list(ForwardPattern).index(pattern) if pattern is not None else None


def _why(transformer: str, adapter: ModelAdapter | None) -> str:
    if adapter is not None:
        return f"registered for the class {transformer} by {registry.origin(adapter)}"
    near = difflib.get_close_matches(transformer, [each.transformer for each in registry.all_adapters()], 1, 0.7)
    hint = f" (the nearest that is: {near[0]})" if near else ""
    return f"none is registered for {transformer}{hint}; `adapter: auto` finds the lists at the first forward"


def _notes(
    adapter: ModelAdapter | None, measured: Mapping[str, Streams], said: Mapping[str, Streams], found: Found
) -> list[str]:
    notes = [adapter.note] if adapter is not None and adapter.note else []
    for path, streams in said.items():
        seen = measured.get(path)
        if seen is not None and (seen.returns, seen.carried) != (streams.returns, streams.carried):
            notes.append(f"{path}: the adapter says {streams}, and this forward shows {seen}")
    if adapter is not None and adapter.chain:
        notes.append("its lists are decided as one")
    if found.alternate or (adapter is not None and adapter.alternate):
        notes.append("its lists take turns, block by block, and share a decision")
    return notes


def _section(part: str, lists: Sequence[ListFacts], adapter: ModelAdapter | None, found: Found) -> str | None:
    """Return the `blocks:` section that says in a recipe what the adapter, or the forward, says of the lists."""
    if not lists or found.alternate or (adapter is not None and (adapter.alternate or adapter.functor is not None)):
        return None
    if any(each.number is None for each in lists):
        return None
    paths = [f"{part}.{each.path}" for each in lists]
    if adapter is not None and adapter.chain and len(lists) > 1:
        return f"blocks:\n  - path: [{', '.join(paths)}]\n    pattern: {lists[0].number}\n"
    entries = (f"  - path: {path}\n    pattern: {each.number}\n" for path, each in zip(paths, lists, strict=True))
    return f"blocks:\n{''.join(entries)}"
