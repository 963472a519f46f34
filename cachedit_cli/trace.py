"""Watches one forward: how the blocks of each list were called, and which of their outputs the next block took.

Knows hooks and object identity; names of classes and attributes do not matter to it. Only what the last block of a list
returned is held, and only until the next block is called, so that large models can be watched in passing.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError
from .terms.pattern import ForwardPattern, Streams, find_slots

__all__ = ["Candidate", "Link", "Trace", "Watch", "candidates"]

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_HIDDEN, _ENCODER = ForwardPattern.Pattern_0.value.takes


@dataclass(frozen=True)
class Candidate:
    """A list whose blocks could fit by their signature."""

    path: str
    blocks: nn.ModuleList


@dataclass(frozen=True)
class Link:
    """What one block returned, and what of it the next one took.

    Attributes:
        index: The block that returned.
        outputs: Type or shape of each value returned.
        taken: Type or shape of each argument of the next block, by name.
        carried: For each value, the arguments of the next block that were this very object.
        alike: For each value, the arguments that were another tensor of its shape than at the block before.
        through: Places of the values that the block got as arguments, and returned unchanged.
    """

    index: int
    outputs: tuple[str, ...]
    taken: Mapping[str, str]
    carried: tuple[tuple[str, ...], ...]
    alike: tuple[tuple[str, ...], ...]
    through: frozenset[int]


class Trace:
    """What one forward did to one list.

    Attributes:
        order: Indices of the blocks, as they were called.
        positional: Arguments that came by position at the first call, in order.
        keywords: Arguments that came by keyword at the first call, in order.
        links: One for each call that followed another.
        differing: Arguments that were not equal at all calls, streams among them.
        kept: Places among the values returned that the model still held two blocks later.
        span: When the first and the last block were called, counted over all lists.
    """

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self.clear()

    def clear(self) -> None:
        """Forget what was seen."""
        self.order: list[int] = []
        self.positional: tuple[str, ...] = ()
        self.keywords: tuple[str, ...] = ()
        self.links: list[Link] = []
        self.differing: dict[str, None] = {}
        self.kept: set[int] = set()
        self.span = (0, 0)
        self._sizes: dict[str, int] = {}
        self._returned: tuple[Any, ...] = ()
        self._given: dict[str, Any] = {}
        self._loose: list[tuple[int, weakref.ref[Tensor]]] = []

    def watch(self, clock: Callable[[], int]) -> Callable[[], None]:
        """Record the calls of the blocks from now on; returns what stops it."""
        handles = []
        for index, block in enumerate(self.candidate.blocks):
            parameters = inspect.signature(block.forward).parameters.values()
            names = [each.name for each in parameters if each.kind in _POSITIONAL]

            def before(
                _: nn.Module, args: Any, kwargs: dict[str, Any], index: int = index, names: list[str] = names
            ) -> None:
                named = [*names[: len(args)], *(f"args[{place}]" for place in range(len(names), len(args)))]
                self._called(index, dict(zip(named, args, strict=True)), kwargs, clock())

            def after(_: nn.Module, args: Any, output: Any) -> None:
                self._returned = _values(output)

            handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(block.register_forward_hook(after))

        def stop() -> None:
            for handle in handles:
                handle.remove()

        return stop

    def _called(self, index: int, positional: Mapping[str, Any], keywords: Mapping[str, Any], moment: int) -> None:
        given = {**positional, **keywords}
        if not self.order:
            self.positional, self.keywords = tuple(positional), tuple(keywords)
            self._sizes = {name: value.numel() for name, value in given.items() if isinstance(value, Tensor)}
        else:
            self._link(given)
        self.order.append(index)
        self.span = (self.span[0] if len(self.order) > 1 else moment, moment)
        self._given = given

    def _link(self, given: Mapping[str, Any]) -> None:
        before, returned = self._given, self._returned
        changed = [name for name, value in given.items() if value is not before.get(name)]
        self.differing |= {name: None for name in changed if not _equal(given[name], before.get(name))}
        self.kept |= {place for place, ref in self._loose if ref() is not None}
        carried = tuple(
            tuple(name for name, value in given.items() if value is item and item is not None) for item in returned
        )
        alike = tuple(
            tuple(name for name in changed if isinstance(item, Tensor) and _shape(given[name]) == _shape(item))
            for item in returned
        )
        self._loose = [
            (place, weakref.ref(item))
            for place, item in enumerate(returned)
            # Autograd holds on to tensors of its own accord.
            if isinstance(item, Tensor) and not item.requires_grad and not carried[place]
        ]
        taken = {name: _shape(value) for name, value in given.items()}
        arguments = {id(value) for value in before.values()}
        through = frozenset(place for place, item in enumerate(returned) if id(item) in arguments)
        self.links.append(Link(self.order[-1], tuple(map(_shape, returned)), taken, carried, alike, through))
        self._returned = ()

    def release(self) -> None:
        """Hold no tensors any longer."""
        self._returned, self._given, self._loose = (), {}, []

    # ---- what it comes to

    def problem_of_order(self) -> str | None:
        """Return what keeps the list from being a sequence of blocks, if anything does."""
        count = len(self.candidate.blocks)
        if not self.order:
            return "the forward did not call it"
        if self.order != list(range(count)):
            shown = ", ".join(map(str, self.order[: count + 2])) + (", ..." if len(self.order) > count + 2 else "")
            return f"its blocks are called in the order {shown}, not once each in a row"
        return None

    def streams(self) -> Streams:
        """Return what the blocks hand on.

        Raises:
            InputError: They do not; with the reason.
        """
        problem = self.problem_of_order()
        if problem is not None:
            raise InputError(problem)
        count = min(len(link.outputs) for link in self.links)
        names: list[str | None] = []
        for place in range(count):
            seen = {link.carried[place] for link in self.links if link.carried[place]}
            common = [name for name in next(iter(seen), ()) if all(name in each for each in seen)]
            if seen and not common:
                several = " and ".join(sorted({name for each in seen for name in each}))
                raise InputError(f"value {place + 1} that its blocks return goes into {several} of the next ones")
            names.append(common[0] if common else self._replaced(place))
        while names and names[-1] is None and self._is_no_state(len(names) - 1):
            names.pop()
        named = [name for name in names if name is not None]
        if not named:
            raise InputError("what its blocks return is not what the next ones take")
        if len(set(named)) < len(named):
            raise InputError(f"two values that its blocks return go into one argument of the next ones, {named[0]}")
        loose = [place for place, name in enumerate(names) if name is None]
        if any(place in self.kept for place in loose):
            raise InputError(f"the model keeps value {loose[0] + 1} of every block, so that none can be left out")
        returns = tuple(name or (_ENCODER if len(loose) == 1 else f"value {at + 1}") for at, name in enumerate(names))
        found = self._sorted(named, returns)
        problem = self._misplaced(found)
        if problem is not None:
            raise InputError(problem)
        return found

    def _replaced(self, place: int) -> str | None:
        """Return the argument for which the model puts another tensor at every block, made from what they return."""
        common = [name for name in self.links[0].alike[place] if all(name in link.alike[place] for link in self.links)]
        carried = {name for link in self.links for each in link.carried for name in each}
        free = [name for name in common if name not in carried]
        return free[0] if free else None

    def _is_no_state(self, place: int) -> bool:
        return not any(link.outputs[place].startswith("(") for link in self.links)

    def _sorted(self, named: Sequence[str], returns: tuple[str, ...]) -> Streams:
        """Put the denoised stream first: the one of that name, else the largest."""
        given = (*self.positional, *self.keywords)
        takes = sorted(named, key=lambda name: given.index(name) if name in given else len(given))
        main = _HIDDEN if _HIDDEN in takes else max(takes, key=lambda name: self._sizes.get(name, 0))
        takes = [main, *(name for name in takes if name != main)]
        if takes == [_HIDDEN] and returns == (_HIDDEN,) and given[1:2] == (_ENCODER,) and _ENCODER in self._sizes:
            takes.append(_ENCODER)
        return Streams(tuple(takes), returns)

    def _misplaced(self, streams: Streams) -> str | None:
        """Return why the blocks' signatures do not show where the streams are, if they do not."""
        for block in self.candidate.blocks:
            for stream, slot in find_slots(block.forward, streams).items():
                if slot.name != stream or (stream.startswith("args[") and stream != f"args[{slot.position}]"):
                    return f"its blocks do not all call their states the same ({stream}, {slot.name})"
        return None

    def changed_between(self, streams: Streams) -> dict[str, list[int]]:
        """Return the blocks after which the model changed a stream before it gave it to the next one."""
        places = {stream: streams.returns.index(stream) for stream in streams.carried}
        found = {
            stream: [link.index for link in self.links if stream not in link.carried[place]]
            for stream, place in places.items()
        }
        return {stream: after for stream, after in found.items() if after}

    def problem(self, streams: Streams) -> str | None:
        """Return why the list does not have the pattern, or None if it does."""
        problem = self.problem_of_order()
        if problem is not None:
            return problem
        for link in self.links:
            several = len(link.outputs)
            if several < len(streams.returns):
                return (
                    f"its blocks return {several} value{'s' if several > 1 else ''}, {streams} {len(streams.returns)}"
                )
            slots = find_slots(self.candidate.blocks[link.index + 1].forward, streams)
            for stream, slot in slots.items():
                place, taken = streams.returns.index(stream), link.taken.get(slot.name, "None")
                if slot.name in link.carried[place]:
                    continue
                if any(slot.name in link.carried[streams.returns.index(other)] for other in slots if other != stream):
                    return "its blocks return the states in the other order"
                handed = link.outputs[place]
                if handed != taken:
                    return f"{stream} is {handed} after a block and {taken} before the next"
        return None

    def contradiction(self, streams: Streams) -> str | None:
        """Return how the blocks were seen to hand on their states otherwise than the pattern says, if they were."""
        for following, link in zip(self.order[1:], self.links, strict=True):
            if following != link.index + 1:
                continue
            problem = self._other_count(link, streams)
            if problem is not None:
                return f"{self.candidate.path}: {problem}"
            for stream, slot in find_slots(self.candidate.blocks[following].forward, streams).items():
                place = streams.returns.index(stream)
                at = next((i for i, names in enumerate(link.carried) if slot.name in names), place)
                if at != place:
                    return (
                        f"{self.candidate.path}: {streams} says that blocks return {stream} as value {place + 1}, "
                        f"but the next block takes value {at + 1} for it"
                    )
        return None

    @staticmethod
    def _other_count(link: Link, streams: Streams) -> str | None:
        """Return how the number of states returned differs from the pattern's, if it does."""
        says, returned = len(streams.returns), len(link.outputs)
        if returned < says:
            return f"{streams} says that blocks return {says} values, but they return {returned}"
        for place, names in enumerate(link.carried):
            if place >= says and names and place not in link.through:
                return (
                    f"{streams} says that blocks return {says} value{'s' if says > 1 else ''}, but they also return "
                    f"{names[0]} as value {place + 1}, which the next block takes"
                )
        return None


def _values(output: Any) -> tuple[Any, ...]:
    return tuple(output) if isinstance(output, (tuple, list)) else (output,)


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"({', '.join(map(str, value.shape))})"
    return "None" if value is None else type(value).__name__


def _equal(a: Any, b: Any) -> bool:
    """Return whether an argument is the same at two blocks; other tensors are compared where that costs nothing."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.device.type != "cpu" or b.device.type != "cpu":
            return False
        return torch.equal(a, b)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(x is y or _equal(x, y) for x, y in zip(a, b, strict=True))
    return isinstance(a, (bool, int, float, str)) and bool(a == b)


def candidates(model: nn.Module, streams: Streams | None = None) -> list[Candidate]:
    """Return the lists of two or more blocks that take what the pattern takes, outer lists before inner ones."""
    found = []
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) > 1 and all(_takes(block, streams) for block in module):
            found.append(Candidate(path, module))
    return found


def _takes(block: nn.Module, streams: Streams | None) -> bool:
    layer = type(block).__module__.startswith("torch.nn") and next(block.children(), None) is None
    if isinstance(block, nn.ModuleList) or layer:
        return False  # neither a list of lists nor one of single layers is a list of blocks
    signature = inspect.signature(block.forward)
    if streams is None:
        return bool(signature.parameters)
    try:
        find_slots(block.forward, streams)
    except InputError:
        return False
    return sum(parameter.kind in _POSITIONAL for parameter in signature.parameters.values()) >= len(streams.takes)


class Watch:
    """Records the next whole forward of a model, and calls ``judge`` at its end."""

    def __init__(self, model: nn.Module, traces: Sequence[Trace], judge: Callable[[], None]) -> None:
        self._traces = traces
        self._judge = judge
        self._moment = 0
        self._stops = [trace.watch(self._tick) for trace in traces]
        self._stops.append(model.register_forward_pre_hook(self._begin).remove)
        self._stops.append(model.register_forward_hook(self._end).remove)

    def _tick(self) -> int:
        self._moment += 1
        return self._moment

    def _begin(self, *_: Any) -> None:
        for trace in self._traces:  # of a forward that failed half-way
            trace.clear()

    def _end(self, *_: Any) -> None:
        self.undo()
        for trace in self._traces:
            trace.release()
        self._judge()

    def undo(self) -> None:
        """Stop watching."""
        while self._stops:
            self._stops.pop()()
