"""Brute-force references: the loop of a tiny transformer with DBCache and DBPrune written out, block by block.

Deliberately slow and literal; shares no code with the engine but the settings' fields.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cachedit_cli.terms.config import DBCacheConfig, DBPruneConfig

from .tiny import TinyBlock, TinyTransformer

__all__ = ["Step", "difference", "hold", "prune_reference", "reference"]

State = dict[str, Any]
_H, _E = "hidden_states", "encoder_hidden_states"

#: Forecasts one stream: (step, value) of all computed steps so far, oldest first, and the step to forecast.
Forecast = Callable[[Sequence[tuple[int, Tensor]], int], Tensor]


@dataclass
class Step:
    """What a step should have done."""

    decision: str
    reason: str
    diff: float | None = None
    blocks: list[str] = field(default_factory=list)  # computed
    margin: float = 1.0  # how far the nearest difference is from its threshold


def hold(history: Sequence[tuple[int, Tensor]], now: int) -> Tensor:
    return history[-1][1]


def difference(before: Tensor, now: Tensor) -> float:
    """Return mean|before - now| / mean|before|, in float64."""
    a, b = before.double(), now.double()
    return float((a - b).abs().mean() / a.abs().mean())


def _call(model: TinyTransformer, block: TinyBlock, state: State, temb: Tensor) -> State:
    output = model.caller(block, state[_H], state.get(_E), temb)
    values = output if isinstance(output, tuple) else (output,)
    return state | dict(zip(block.pattern.value.returns, values, strict=True))


def _output(state: State) -> Tensor:
    h: Tensor = state[_H]
    return h if state.get(_E) is None else h + state[_E].mean(1, keepdim=True)


def _by_rule(
    config: DBCacheConfig | DBPruneConfig, k: int, history: bool, cached: int, in_a_row: int
) -> tuple[str, str] | None:
    mask, warmup = config.steps_computation_mask, config.max_warmup_steps
    if not history:
        return "compute", "no-history"
    if mask is not None:
        ones = 0
        while ones < len(mask) and mask[ones] == 1:
            ones += 1
        warmup = min(warmup, ones)
    if k in range(0, warmup, config.warmup_interval):
        return "compute", "warmup"
    if mask is not None and mask[k] == 1:
        return "compute", "mask"
    if mask is not None and config.steps_computation_policy == "static":
        return "reuse", "mask"
    if config.max_cached_steps != -1 and cached >= config.max_cached_steps:
        return "compute", "max-cached"
    if config.max_continuous_cached_steps != -1 and in_a_row >= config.max_continuous_cached_steps:
        return "compute", "max-continuous"
    if config.residual_diff_threshold <= 0:
        return "compute", "threshold"
    if config.residual_diff_threshold >= 1:
        return "reuse", "threshold"
    return None


@torch.no_grad()
def reference(
    model: TinyTransformer,
    samples: Sequence[Tensor],
    encoder: Tensor,
    schedule: Sequence[Any],
    config: DBCacheConfig,
    controls: Sequence[Tensor] | None = None,
    forecast: Forecast = hold,
    absolute: bool = False,
) -> tuple[list[Tensor], list[Step]]:
    """Run one generation of one branch on a model without cache, as DBCache should."""
    blocks = model.every()
    front, end = config.Fn_compute_blocks, max(len(blocks) - config.Bn_compute_blocks, config.Fn_compute_blocks)
    carried, returns = blocks[0].pattern.value.carried, blocks[0].pattern.value.returns
    history: dict[str, list[tuple[int, Tensor]]] = {}
    before: Tensor | None = None  # front residual at the last computed step
    cached = in_a_row = 0
    outputs, steps = [], []
    for k, (sample, time) in enumerate(zip(samples, schedule, strict=True)):
        state: State = {_H: sample, _E: encoder}
        temb = model.embed(time)
        step = Step("compute", "")
        base = {name: state[name] for name in carried}
        for i in range(front):
            state = _call(model, blocks[i], state, temb)
            base = {name: state[name] for name in returns}
            step.blocks.append(blocks[i].label)
            if controls is not None:
                state = state | {_H: state[_H] + controls[i]}
        residual = base[_H] - sample
        rule = _by_rule(config, k, bool(history), cached, in_a_row)
        if front == end:
            rule = ("compute", "no-middle")
        if rule is None:
            assert before is not None
            step.diff = difference(before, residual)
            step.margin = abs(step.diff - config.residual_diff_threshold)
            rule = ("reuse" if step.diff < config.residual_diff_threshold else "compute"), "threshold"
        step.decision, step.reason = rule
        if step.decision == "compute":
            before, in_a_row = residual, 0
            after = state
            for i in range(front, end):
                after = state = _call(model, blocks[i], state, temb)
                step.blocks.append(blocks[i].label)
                if controls is not None:
                    state = state | {_H: state[_H] + controls[i]}
            for name in returns:  # what the front has not returned yet has no change, only a value
                value = after[name] if absolute or name not in base else after[name] - base[name]
                history.setdefault(name, []).append((k, value))
        else:
            cached, in_a_row = cached + 1, in_a_row + 1
            state = state | {
                name: forecast(past, k) if absolute or name not in base else base[name] + forecast(past, k)
                for name, past in history.items()
            }
            if controls is not None:
                state = state | {_H: state[_H] + controls[end - 1]}
        for i in range(end, len(blocks)):
            state = _call(model, blocks[i], state, temb)
            step.blocks.append(blocks[i].label)
            if controls is not None:
                state = state | {_H: state[_H] + controls[i]}
        outputs.append(_output(state))
        steps.append(step)
    return outputs, steps


@torch.no_grad()
def prune_reference(
    model: TinyTransformer,
    samples: Sequence[Tensor],
    encoder: Tensor,
    schedule: Sequence[Any],
    config: DBPruneConfig,
) -> tuple[list[Tensor], list[Step]]:
    """Run one generation of one branch on a model without cache, as DBPrune should."""
    blocks = model.every()
    n, threshold = len(blocks), config.residual_diff_threshold
    highest = config.max_dynamic_prune_threshold
    highest = 2 * threshold if highest is None else highest
    fixed = {*range(config.Fn_compute_blocks), *range(n - config.Bn_compute_blocks, n), *config.non_prune_block_ids}
    inputs: list[Tensor | None] = [None] * n  # at the block's last computed step
    changes: list[State] = [{} for _ in blocks]
    cached = in_a_row = 0
    outputs, steps = [], []
    for k, (sample, time) in enumerate(zip(samples, schedule, strict=True)):
        state: State = {_H: sample, _E: encoder}
        temb = model.embed(time)
        step = Step("compute", "threshold")
        rule = _by_rule(config, k, any(known is not None for known in inputs), cached, in_a_row)
        diffs: list[float] = []
        pruned = 0
        for i, block in enumerate(blocks):
            streams = block.pattern.value
            known = inputs[i]
            prune = False
            if i not in fixed and known is not None and rule is None:
                limit = threshold
                if config.enable_dynamic_prune_threshold:
                    positive = [diff for diff in diffs[:5] if diff > 0]
                    relaxed = config.dynamic_prune_threshold_relax_ratio * sum(positive) / max(len(positive), 1)
                    if positive and threshold < relaxed < highest:
                        limit = relaxed
                diff = difference(known, state[_H])
                diffs.append(diff)
                prune = diff < limit
                step.margin = min(step.margin, abs(diff - limit), abs(limit - highest) if limit != threshold else 1.0)
            elif i not in fixed and known is not None and rule is not None:
                prune = rule[0] == "reuse"
            if prune:
                pruned += 1
                change = changes[i]
                state = state | {name: state[name] + v if name in streams.carried else v for name, v in change.items()}
                continue
            entry, state = state, _call(model, block, state, temb)
            step.blocks.append(block.label)
            if i not in fixed:
                inputs[i] = entry[_H]
                changes[i] = {
                    name: state[name] - entry[name] if name in streams.carried else state[name]
                    for name in streams.returns
                }
        if rule is not None:
            step.reason = rule[1]
        step.diff = sum(diffs) / len(diffs) if diffs else None
        cached, in_a_row = (cached + 1, in_a_row + 1) if pruned else (cached, 0)
        outputs.append(_output(state))
        steps.append(step)
    return outputs, steps
