"""BlockAdapter and ParamsModifier: what to wrap and with which settings, as data.

Knows how the flat and nested forms of the spec are laid out; wraps nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import nn

from ..errors import InputError
from .config import CacheConfig, CalibratorConfig
from .functor import PatchFunctor
from .pattern import ForwardPattern, Streams, as_streams

__all__ = ["BlockAdapter", "Member", "ParamsModifier"]

T = TypeVar("T")
Pattern = ForwardPattern | Streams


@dataclass(frozen=True)
class ParamsModifier:
    """Settings of one block list; only what they set replaces the shared ones.

    Attributes:
        cache_config: Made with ``DBCacheConfig.reset(...)`` or ``DBPruneConfig.reset(...)``.
        calibrator_config: A calibrator of its own for this list.
    """

    cache_config: CacheConfig | None = None
    calibrator_config: CalibratorConfig | None = None


@dataclass(frozen=True)
class Member:
    """One unit of blocks that is decided together, resolved from a BlockAdapter.

    Attributes:
        name: Name of the context.
        transformer: The model that it is part of.
        blocks: The blocks, in order.
        streams: What they take and return.
        modifier: Settings of its own.
        leader: Which member's decision it shares, by its place among the members; None decides itself.
        lengths: Blocks of each member of the adapter.
    """

    name: str
    transformer: nn.Module
    blocks: tuple[nn.Module, ...]
    streams: Streams
    modifier: ParamsModifier | None
    leader: int | None = None
    lengths: tuple[int, ...] = ()


@dataclass
class BlockAdapter:
    """What to cache in a pipeline or a bare transformer.

    With one transformer, ``blocks`` is a block list or several of them; with several transformers, one entry each,
    which may be a list of block lists again. ``forward_pattern`` and ``params_modifiers`` have the form of ``blocks``,
    or are one value for all.

    Attributes:
        pipe: The diffusers pipeline, if there is one.
        transformer: The transformer or transformers; None takes the pipeline's.
        blocks: The ``nn.ModuleList`` or lists that the transformer loops over; None with ``auto``.
        forward_pattern: Pattern, or streams by name, of each list.
        params_modifiers: Settings per list.
        patch_functor: Adapts a model whose loop fits no pattern; applied before, undone after.
        auto: Find the block lists that fit the pattern.
        has_separate_cfg: Guidance runs as a second forward, for models that do not tell otherwise.
        chain: Decide the lists of a transformer together, as one long list.
        alternate: The lists of a transformer take turns, block by block: they share the first one's decision.
        skips: The model hands outputs of its first blocks to its last ones in reverse order, which needs Bn <= Fn.
    """

    pipe: Any = None
    transformer: nn.Module | Sequence[nn.Module] | None = None
    blocks: nn.ModuleList | Sequence[nn.ModuleList | Sequence[nn.ModuleList]] | None = None
    forward_pattern: Pattern | Sequence[Pattern | Sequence[Pattern]] | None = None
    params_modifiers: ParamsModifier | Sequence[ParamsModifier | Sequence[ParamsModifier | None] | None] | None = None
    patch_functor: PatchFunctor | None = None
    auto: bool = False
    has_separate_cfg: bool | None = None
    chain: bool = False
    alternate: bool = False
    skips: bool = False

    def transformers(self) -> list[nn.Module]:
        """Return the transformers, the pipeline's own by default.

        Raises:
            InputError: There is neither a transformer nor a pipeline that has one.
        """
        given = self.transformer
        if given is None and self.pipe is not None:
            found = [getattr(self.pipe, name, None) for name in ("transformer", "transformer_2")]
            given = [model for model in found if isinstance(model, nn.Module)]
        if given is None or (not isinstance(given, nn.Module) and not given):
            raise InputError("BlockAdapter: give a transformer, or a pipe that has one")
        return [given] if isinstance(given, nn.Module) else list(given)

    def members(self) -> list[Member]:
        """Return the units to wrap, checked against the transformers.

        Raises:
            InputError: Lists, patterns and modifiers do not correspond, or a list is not part of its transformer.
        """
        models = self.transformers()
        if self.blocks is None:
            raise InputError("BlockAdapter: blocks are missing; name the block lists, or set auto=True")
        if self.forward_pattern is None:
            raise InputError("BlockAdapter: forward_pattern is missing; see ForwardPattern")
        blocks = _by_model(self.blocks, len(models), nn.ModuleList, "blocks")
        counts = [len(lists) for lists in blocks]
        patterns = _like(self.forward_pattern, counts, (ForwardPattern, Streams), "forward_pattern")
        modifiers = _like(self.params_modifiers, counts, (ParamsModifier, type(None)), "params_modifiers")
        members: list[Member] = []
        for index, model in enumerate(models):
            found = list(zip(blocks[index], patterns[index], modifiers[index], strict=True))
            first = len(members)
            for lists, pattern, modifier in _joined(found) if self.chain else (((b,), p, m) for b, p, m in found):
                names = [self._name(model, index, item) for item in lists]
                every = tuple(block for item in lists for block in item)
                if not every:
                    raise InputError(f"{' + '.join(names)}: this block list is empty")
                member = Member(" + ".join(names), model, every, as_streams(pattern), modifier)
                if self.alternate and len(members) > first:
                    if len(every) != len(members[first].blocks):
                        raise InputError(f"{member.name}: lists that take turns have one length, and this has another")
                    member = replace(member, modifier=members[first].modifier, leader=first)
                members.append(member)
        lengths = tuple(len(member.blocks) for member in members)
        return [replace(member, lengths=lengths) for member in members]

    def _name(self, model: nn.Module, index: int, blocks: nn.ModuleList) -> str:
        if not isinstance(blocks, nn.ModuleList):
            raise InputError(f"BlockAdapter: blocks: a {type(blocks).__name__} is no nn.ModuleList")
        path = next((name for name, module in model.named_modules() if module is blocks), None) or _part(model, blocks)
        if path is None:
            raise InputError(f"BlockAdapter: blocks: a list given is no part of {type(model).__name__}")
        component = "transformer" if index == 0 else f"transformer_{index + 1}"
        parts = getattr(self.pipe, "components", {})
        return f"{next((name for name, part in parts.items() if part is model), component)}.{path}"


def _part(model: nn.Module, blocks: nn.ModuleList) -> str | None:
    """Return the name of a slice of one of the model's lists: 'transformer_blocks[0:8]'."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(blocks):
            start = next((index for index, block in enumerate(module) if block is blocks[0]), len(module))
            part = module[start : start + len(blocks)]
            if len(part) == len(blocks) and all(a is b for a, b in zip(part, blocks, strict=True)):
                return f"{name}[{start}:{start + len(blocks)}]"
    return None


def _joined(found: list[tuple[nn.ModuleList, Any, Any]]) -> Iterator[tuple[tuple[nn.ModuleList, ...], Any, Any]]:
    lists, patterns, modifiers = zip(*found, strict=True)
    if len({as_streams(pattern) for pattern in patterns}) > 1:
        raise InputError("BlockAdapter: chain joins lists of one pattern, and these have several")
    yield lists, patterns[0], modifiers[0]


def _by_model(value: Any, models: int, kind: type, what: str) -> list[list[Any]]:
    """Lay out a value, list or nested list as one list per transformer."""
    if isinstance(value, kind):
        value = [value]
    items = list(value)
    if models == 1 and all(isinstance(item, kind) for item in items):
        return [items]
    if len(items) != models:
        raise InputError(f"BlockAdapter: {what}: {len(items)} entries for {models} transformers")
    return [[item] if isinstance(item, kind) else list(item) for item in items]


def _like(value: Any, counts: list[int], kinds: tuple[type, ...], what: str) -> list[list[Any]]:
    """Lay out one value for all, a flat or a nested list, in the form of the block lists."""
    if isinstance(value, kinds):
        return [[value] * count for count in counts]
    items = list(value)
    if all(isinstance(item, kinds) for item in items):
        if len(items) != sum(counts):
            raise InputError(f"BlockAdapter: {what}: {len(items)} given for {sum(counts)} block lists")
        flat = iter(items)
        return [[next(flat) for _ in range(count)] for count in counts]
    nested = [[item] if isinstance(item, kinds) else list(item) for item in items]
    if [len(group) for group in nested] != counts:
        raise InputError(f"BlockAdapter: {what}: its form {[len(g) for g in nested]} differs from the blocks' {counts}")
    return nested
