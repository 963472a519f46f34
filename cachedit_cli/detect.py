"""Finds the block lists of a model that nobody registered: by the signatures of their blocks and one traced forward.

A list counts when its blocks are called one after another and hand their states on. Names of classes and attributes do
not matter; what the blocks were really called with and what they returned does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .engine.install import Installation
from .engine.pattern import ForwardPattern, Streams, find_slots, unpack
from .errors import InputError

__all__ = ["Candidate", "Trace", "candidates", "keep_what_fits", "refuse_contradictions"]


@dataclass(frozen=True)
class Candidate:
    """A list whose blocks could fit by their signature."""

    path: str
    blocks: nn.ModuleList


@dataclass
class Call:
    """One call of a block in the traced forward."""

    index: int
    given: dict[str, Any]
    output: Any = None


@dataclass
class Trace:
    """What one forward did to one list."""

    candidate: Candidate
    calls: list[Call] = field(default_factory=list)

    def watch(self) -> Callable[[], None]:
        """Record the calls of the blocks from now on; returns what stops it."""
        handles = []
        for index, block in enumerate(self.candidate.blocks):
            names = list(inspect.signature(block.forward).parameters)

            def before(
                _: nn.Module, args: Any, kwargs: dict[str, Any], index: int = index, names: list[str] = names
            ) -> None:
                self.calls.append(Call(index, {**dict(zip(names, args, strict=False)), **kwargs}))

            def after(_: nn.Module, args: Any, output: Any, index: int = index) -> None:
                next(call for call in reversed(self.calls) if call.index == index).output = output

            handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(block.register_forward_hook(after))

        def stop() -> None:
            for handle in handles:
                handle.remove()

        return stop

    def streams(self) -> Streams | None:
        """Return what the blocks were seen to hand on, or None where the loop does something in between."""
        seen = {self._handed(a, b) for a, b in zip(self.calls, self.calls[1:], strict=False)}
        if len(seen) != 1 or self.problem_of_order() is not None:
            return None
        names = seen.pop()
        if not names or None in names or len(set(names)) < len(names):
            return None
        returns = tuple(name for name in names if name is not None)
        takes = tuple(name for name in self.calls[0].given if name in returns)
        found = Streams(takes, returns)
        hidden, encoder = ForwardPattern.Pattern_0.value.takes
        if found == ForwardPattern.Pattern_3.value and encoder in self.calls[0].given:
            return Streams((hidden, encoder), (hidden,))
        return found

    @staticmethod
    def _handed(call: Call, following: Call) -> tuple[str | None, ...]:
        outputs = call.output if isinstance(call.output, (tuple, list)) else (call.output,)
        return tuple(
            next((name for name, value in following.given.items() if value is output and output is not None), None)
            for output in outputs
        )

    def problem_of_order(self) -> str | None:
        """Return what keeps the list from being a sequence of blocks, if anything does."""
        order = [call.index for call in self.calls]
        if not order:
            return "the forward did not call it"
        if order != list(range(len(self.candidate.blocks))):
            return f"its blocks are called in the order {order}, not once each in a row"
        return None

    def problem(self, streams: Streams) -> str | None:
        """Return why the list does not have the pattern, or None if it does."""
        problem = self.problem_of_order()
        if problem is not None:
            return problem
        for call, following in zip(self.calls, self.calls[1:], strict=False):
            slots = find_slots(self.candidate.blocks[following.index].forward, streams)
            outputs = unpack(call.output, streams.returns)
            several = len(call.output) if isinstance(call.output, (tuple, list)) else 1
            if several < len(streams.returns):
                return (
                    f"its blocks return {several} value{'s' if several > 1 else ''}, {streams} {len(streams.returns)}"
                )
            for stream, slot in slots.items():
                problem = self._mismatch(stream, outputs, following.given.get(slot.name), several)
                if problem is not None:
                    return problem
        return None

    def contradiction(self, streams: Streams) -> str | None:
        """Return how the blocks were seen to hand on their states otherwise than the pattern says, if they were."""
        for call, following in zip(self.calls, self.calls[1:], strict=False):
            if following.index != call.index + 1 or not isinstance(call.output, (tuple, list)):
                continue
            for stream, slot in find_slots(self.candidate.blocks[following.index].forward, streams).items():
                taken, place = following.given.get(slot.name), streams.returns.index(stream)
                at = next((i for i, value in enumerate(call.output) if value is taken and value is not None), place)
                if at != place:
                    return (
                        f"{self.candidate.path}: {streams} says that blocks return {stream} as value {place + 1}, "
                        f"but the next block takes value {at + 1} for it"
                    )
        return None

    @staticmethod
    def _mismatch(stream: str, outputs: Mapping[str, Any], taken: Any, several: int) -> str | None:
        handed = outputs[stream]
        if handed is taken:
            return None
        if not isinstance(handed, Tensor) or not isinstance(taken, Tensor):
            return f"its blocks hand on {type(handed).__name__} for {stream}, and take {type(taken).__name__}"
        if any(taken is value for name, value in outputs.items() if name != stream):
            return "its blocks return the states in the other order"
        if handed.shape != taken.shape:
            return (
                f"{stream} has the shape {tuple(handed.shape)} after a block and {tuple(taken.shape)} before the next"
            )
        return None


def candidates(model: nn.Module, streams: Streams | None) -> list[Candidate]:
    """Return the lists of two or more blocks that take what the pattern takes, outer lists before inner ones."""
    found = []
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) > 1 and all(_takes(block, streams) for block in module):
            found.append(Candidate(path, module))
    return found


def _takes(block: nn.Module, streams: Streams | None) -> bool:
    if next(block.children(), None) is None:
        return False  # a single layer is no block
    signature = inspect.signature(block.forward)
    if streams is None:
        return bool(signature.parameters)
    try:
        find_slots(block.forward, streams)
    except InputError:
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(parameter.kind in kinds for parameter in signature.parameters.values()) >= len(streams.takes)


class Watch:
    """Records the next whole forward of a model, and calls ``judge`` at its end."""

    def __init__(self, model: nn.Module, traces: Sequence[Trace], judge: Callable[[], None]) -> None:
        self._traces = traces
        self._judge = judge
        self._stops = [trace.watch() for trace in traces]
        self._stops.append(model.register_forward_pre_hook(self._begin).remove)
        self._stops.append(model.register_forward_hook(self._end).remove)

    def _begin(self, *_: Any) -> None:
        for trace in self._traces:  # of a forward that failed half-way
            trace.calls.clear()

    def _end(self, *_: Any) -> None:
        self.undo()
        self._judge()
        self._begin()

    def undo(self) -> None:
        while self._stops:
            self._stops.pop()()


def refuse_contradictions(installation: Installation) -> None:
    """Look at the next forward, and refuse patterns that the blocks contradict.

    The cache is taken out then, and the forward ends with an InputError.
    """
    members = installation.adapter.members()
    for model in installation.transformers:
        traces = {
            m.name: (Trace(Candidate(m.name, nn.ModuleList(m.blocks))), m.streams)
            for m in members
            if m.transformer is model
        }

        def judge(traces: dict[str, tuple[Trace, Streams]] = traces, model: nn.Module = model) -> None:
            problems = [text for trace, streams in traces.values() if (text := trace.contradiction(streams))]
            if problems:
                installation.remove()
                raise InputError("\n".join(f"{type(model).__name__}: {text}" for text in problems))

        installation.undo_with(Watch(model, [trace for trace, _ in traces.values()], judge))


def keep_what_fits(
    installation: Installation, model: nn.Module, found: Mapping[str, Candidate], streams: Streams
) -> None:
    """Trace the next forward of a model whose candidates (by unit) are all wrapped, and unwrap those that do not fit.

    The first forward computes everything, so that nothing is lost by looking at it. If nothing fits, the cache is taken
    out and the forward ends with an InputError that gives the reason for each list.
    """
    traces = {unit: Trace(candidate) for unit, candidate in found.items()}

    def judge() -> None:
        fitting: dict[str, str] = {}
        problems = []
        for unit, trace in traces.items():
            path = trace.candidate.path
            problem = trace.problem(streams)
            if problem is not None:
                problems.append(f"{path}: {problem}")
            elif not any(path.startswith(f"{outer}.") for outer in fitting.values()):
                fitting[unit] = path
        if not fitting:
            installation.remove()
            lines = "\n".join(f"  {line}" for line in problems)
            raise InputError(f"{type(model).__name__}: no block list has {streams}:\n{lines}")
        installation.retain(set(fitting))

    installation.undo_with(Watch(model, list(traces.values()), judge))
