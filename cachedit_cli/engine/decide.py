"""The rules: compute or reuse, and why. Pure functions on plain numbers; the first rule that fires is the reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..terms.config import CacheConfig

__all__ = ["Verdict", "View", "by_budget", "by_difference", "by_rule"]


class Verdict(NamedTuple):
    """A decision and its reason."""

    decision: Literal["compute", "reuse"]
    reason: str


@dataclass(frozen=True, slots=True)
class View:
    """What the rules may look at.

    Attributes:
        k: Step in its branch, from 0.
        step: Step of the generation, from 0; the index into the mask.
        history: Something of the right shape is stored.
        cached: Steps reused so far in this generation.
        in_a_row: Steps reused since the last computed one.
        ahead: Steps computed so far beyond those that a budget had planned until now.
    """

    k: int
    step: int
    history: bool
    cached: int
    in_a_row: int
    ahead: int = 0


def by_rule(config: CacheConfig, mask: Sequence[int] | None, view: View) -> Verdict | None:
    """Apply the rules that need no measurement; None leaves it to the difference."""
    if not view.history:
        return Verdict("compute", "no-history")
    warmup = 0 if config.dial else config.max_warmup_steps  # a budget's plan leaves nothing to warm-up
    if mask is not None:
        leading = next((step for step, bit in enumerate(mask) if not bit), len(mask))
        warmup = min(warmup, leading)
    if view.k < warmup and view.k % config.warmup_interval == 0:
        return Verdict("compute", "warmup")
    if mask is not None:
        why = "budget" if config.dial else "mask"
        if view.step >= len(mask) or mask[view.step]:
            return Verdict("reuse" if config.dial and view.ahead > 0 else "compute", why)
        if config.steps_computation_policy == "static":
            return Verdict("reuse", why)
    if 0 <= config.max_cached_steps <= view.cached:
        return Verdict("compute", "max-cached")
    if 0 <= config.max_continuous_cached_steps <= view.in_a_row:
        return Verdict("compute", "max-continuous")
    if config.residual_diff_threshold <= 0:
        return Verdict("compute", "threshold")
    if config.residual_diff_threshold >= 1:
        return Verdict("reuse", "threshold")
    return None


def by_budget(config: CacheConfig, mask: Sequence[int] | None, view: View, verdict: Verdict) -> Verdict:
    """Let a step be computed that no budget planned only if the next planned one can be left out for it.

    One at a time: a threshold that every step exceeds would else have the whole budget spent at the start.
    """
    moves = verdict.decision == "compute" and verdict.reason in ("max-cached", "max-continuous", "threshold", "guard")
    if not moves or mask is None or not config.dial or (view.ahead <= 0 and any(mask[view.step + 1 :])):
        return verdict
    return Verdict("reuse", "budget")


def by_difference(diff: float, threshold: float) -> Verdict:
    """Reuse below the threshold; a difference that is not finite computes."""
    return Verdict("reuse" if math.isfinite(diff) and diff < threshold else "compute", "threshold")
