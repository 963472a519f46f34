"""Budgets: where a given number of computed steps goes, by an error profile or by the shape of a steps mask.

Knows numbers and lists only. ``speedup`` becomes a budget here, once it is known what a reused step costs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..errors import InputError
from .mask import shaped

__all__ = ["budget_for", "budget_mask", "computed_steps", "resampled"]


def computed_steps(budget: float, steps: int) -> int:
    """Return the number of computed steps: a whole number as it is, a share (a float up to 1) of ``steps``, rounded.

    Raises:
        InputError: The budget is larger than the number of steps.
    """
    if isinstance(budget, int) and budget > steps:
        raise InputError(f"budget: {budget} steps are to be computed, but there are only {steps}")
    return budget if isinstance(budget, int) else min(steps, max(1, round(budget * steps)))


def budget_for(speedup: float, steps: int, share: float) -> int:
    """Return how many of ``steps`` may be computed for a loop that is ``speedup`` times as fast.

    Args:
        share: Part of a computed step's time that a reused one saves, 0 to 1.

    Raises:
        InputError: Even with one computed step it would not be so fast; names the most there is.
    """
    most = steps / (1 + (steps - 1) * (1 - share))
    if speedup > most:
        raise InputError(
            f"speedup: {speedup:g} cannot be reached: a reused step saves {share:.0%} of a computed one's time here, "
            f"which allows {most:.2f} at the most, with one of {steps} steps computed; ask for less, or lower "
            "Fn_compute_blocks and Bn_compute_blocks"
        )
    return max(1, min(steps, math.floor(steps * (1 / speedup - (1 - share)) / share + 1e-9)))


def budget_mask(
    count: int, steps: int, profile: Sequence[float] | None = None, shape: Sequence[int] | str | None = None
) -> list[int]:
    """Return one bit a step, ``count`` of them 1, the first among them.

    Args:
        count: Steps that compute.
        steps: Steps of the generation.
        profile: How much a step suffers from being reused, in any unit; any number of steps is interpolated, and None
            goes by ``shape``.
        shape: Mask policy or mask whose shape is taken; None takes the policy of the nearest share of computed steps.
    """
    if profile is None:
        return shaped(shape, steps, count)
    weights = resampled(profile, steps)
    # Shortest path: the error of a reused step grows with the distance to the last computed one, its square with the
    # square. best[k] is the least cost with step k computed as the last of those placed so far.
    runs = [[0.0, *_running(weights[step + 1 :])] for step in range(steps)]  # by step, and steps that reuse it
    best = [math.inf] * steps
    best[0] = 0.0
    before: list[list[int]] = []
    for _ in range(count - 1):
        now, origin = [math.inf] * steps, [0] * steps
        for step in range(1, steps):
            now[step], origin[step] = min((best[last] + runs[last][step - last - 1], last) for last in range(step))
        before.append(origin)
        best = now
    _, last = min((best[step] + runs[step][steps - 1 - step], step) for step in range(steps))
    computed = [last]
    for origin in reversed(before):
        computed.append(origin[computed[-1]])
    return [int(step in set(computed)) for step in range(steps)]


def _running(weights: Sequence[float]) -> list[float]:
    total, sums = 0.0, []
    for distance, weight in enumerate(weights, 1):
        total += weight * distance**2
        sums.append(total)
    return sums


def resampled(profile: Sequence[float], steps: int) -> list[float]:
    """Return a profile over ``steps`` steps, by linear interpolation over the same time from first to last step."""
    if len(profile) == steps or len(profile) == 1:
        return list(profile) * (steps if len(profile) == 1 else 1)
    found = []
    for step in range(steps):
        place = step * (len(profile) - 1) / max(steps - 1, 1)
        low = min(int(place), len(profile) - 2)
        found.append(profile[low] + (profile[low + 1] - profile[low]) * (place - low))
    return found
