"""Steps masks (SCM): which steps compute (1) and which may reuse (0), from a policy or from bins.

Knows numbers and lists only; what a 0 means at run time is decided elsewhere.

A policy is fixed by its mask at 28 steps. At N steps:

1. *How many* compute: two steps, the ends, plus the rest of the policy's computed steps in proportion to N, rounded
   up. So the count never falls as N grows, and policies keep their order.
2. *Where it starts*: the leading run keeps its share of the computed steps, rounded up.
3. *Where the others go*: the policy's computed steps after its leading run are read as a curve, position over
   number, which is sampled as often as there are steps to place and stretched to end on the last step. Refreshes stay
   dense early and sparse late, and a longer schedule gets more of them instead of longer computed runs.
4. *Limit*: from the end towards the start, a step is moved right where the cached run after it would be longer than
   the policy's own longest, times N / 28, plus one; and left where two would meet.

At 28 steps the sampling meets the policy's own steps. The tests check the laws for every N up to 1,000.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from itertools import groupby, zip_longest

from ..errors import InputError

__all__ = ["POLICIES", "bins_of", "shaped", "steps_mask"]

_REFERENCE = {
    "slow": "1111111101110011100110010001",
    "medium": "1111110110001100011000110001",
    "fast": "1111110100010000100000100001",
    "ultra": "1111001000001000000100000001",
}
_STEPS = 28
_ENDS = 2

POLICIES = tuple(_REFERENCE)


def steps_mask(
    compute_bins: Sequence[int] | None = None,
    cache_bins: Sequence[int] | None = None,
    total_steps: int | None = None,
    mask_policy: str = "medium",
) -> list[int]:
    """Return one bit a step: 1 computes, 0 may reuse.

    Args:
        compute_bins: Lengths of the computed runs. Given together with ``cache_bins``, they replace the policy.
        cache_bins: Lengths of the cached runs between them; the first follows the first computed run.
        total_steps: Number of steps; bins are truncated to it, and None lays them out in full.
        mask_policy: One of ``POLICIES``, from most to fewest computed steps.
    """
    if total_steps is not None and (not _is_whole(total_steps) or total_steps < 1):
        raise InputError(f"total_steps: {total_steps!r} is not a whole number >= 1")
    if compute_bins is not None or cache_bins is not None:
        return _from_bins(compute_bins, cache_bins, total_steps)
    if mask_policy not in _REFERENCE:
        near = difflib.get_close_matches(str(mask_policy).lower(), POLICIES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it is one of {', '.join(POLICIES)}"
        raise InputError(f"mask_policy: unknown policy {mask_policy!r} ({hint})")
    if total_steps is None:
        raise InputError(f"total_steps: the policy {mask_policy!r} needs the number of steps, for example 28")
    return _from_policy(_REFERENCE[mask_policy], total_steps)


def bins_of(bits: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the lengths of the computed and of the cached runs of a mask that begins with 1."""
    if not bits or bits[0] != 1 or any(bit not in (0, 1) for bit in bits):
        raise InputError("a mask is a list of 0 and 1 that begins with 1: its first step has nothing to reuse")
    runs = [len(list(run)) for _, run in groupby(bits)]
    return runs[0::2], runs[1::2]


def shaped(shape: Sequence[int] | str | None, steps: int, count: int) -> list[int]:
    """Return a mask of ``steps`` bits, ``count`` of them 1, in the shape of a policy or of another mask.

    Args:
        shape: A policy, or bits; None takes the policy whose share of computed steps is the nearest.
        steps: Number of steps.
        count: How many compute, from 1 to ``steps``.
    """
    if shape is None:
        wanted = count / steps
        shape = min(POLICIES, key=lambda policy: abs(_REFERENCE[policy].count("1") / _STEPS - wanted))
    reference = _REFERENCE.get(shape) if isinstance(shape, str) else None
    bits = reference or "".join(str(int(bit)) for bit in shape)
    if (len(bits), bits.count("1")) == (steps, count):
        return [int(bit) for bit in bits]
    if "0" not in bits:
        return shaped(None, steps, count)
    if "1" not in bits.lstrip("1"):
        return [int(step < count) for step in range(steps)]
    # Fewer computed steps than the shape has need longer cached runs.
    return _resampled(bits, steps, count, max(1, _ceil(bits.count("1") * steps, len(bits) * count)))


def _from_policy(reference: str, steps: int) -> list[int]:
    computed = reference.count("1")
    return _resampled(reference, steps, min(steps, _ceil(_ENDS * _STEPS + (computed - _ENDS) * steps, _STEPS)), 1)


def _resampled(reference: str, steps: int, count: int, stretch: int) -> list[int]:
    """Return the reference's shape over ``steps`` steps, ``count`` computed; runs may be ``stretch`` times as long."""
    own = [position for position, bit in enumerate(reference) if bit == "1"]
    own_lead = reference.index("0")
    longest = stretch * max(len(run) for run in reference.split("1"))
    if count in (1, steps):
        return [int(step < count) for step in range(steps)]
    lead = min(_ceil(own_lead * count, len(own)), count - 1)

    # The curve, from the end of the leading run (0 steps placed) to the last step (all of them).
    curve = [position - (own_lead - 1) for position in own[own_lead - 1 :]]
    places = list(range(lead))
    for number in range(1, count - lead + 1):
        whole, part = divmod(number * (len(curve) - 1), count - lead)
        rise = (curve[whole + 1] - curve[whole]) * part if part else 0
        numerator = (curve[whole] * (count - lead) + rise) * (steps - lead)
        denominator = (count - lead) * curve[-1]
        places.append(lead - 1 + (2 * numerator + denominator) // (2 * denominator))  # rounded to the nearest

    # Cached runs may not outgrow the policy's own longest.
    limit = longest * steps // len(reference) + 1
    for index in range(count - 2, 0, -1):
        after = places[index + 1]
        places[index] = min(max(places[index], after - 1 - limit), after - 1)
    places[0] = 0
    for index in range(1, count):  # where so many are placed that the leading run was pushed together
        places[index] = max(places[index], places[index - 1] + 1)
    computed = set(places)
    return [int(step in computed) for step in range(steps)]


def _from_bins(compute_bins: Sequence[int] | None, cache_bins: Sequence[int] | None, steps: int | None) -> list[int]:
    compute = _checked("compute_bins", compute_bins, "cache_bins")
    cache = _checked("cache_bins", cache_bins, "compute_bins")
    if compute[0] == 0:
        raise InputError("compute_bins[0]: 0, but the first step has nothing to reuse; begin with at least 1")
    if len(compute) - len(cache) not in (0, 1):
        raise InputError(
            f"compute_bins has length {len(compute)} and cache_bins {len(cache)}; they alternate, compute first, "
            "so compute_bins has as many as cache_bins or one more"
        )
    total = sum(compute) + sum(cache)
    if steps is not None and total < steps:
        raise InputError(f"compute_bins and cache_bins sum to {total}, but there are {steps} steps")
    bits: list[int] = []
    for computed, cached in zip_longest(compute, cache, fillvalue=0):
        bits += [1] * computed + [0] * cached
    return bits[:steps]


def _checked(name: str, bins: object, other: str) -> Sequence[int]:
    if bins is None:
        raise InputError(f"{name}: missing; {other} needs it")
    if isinstance(bins, str) or not isinstance(bins, Sequence):
        raise InputError(f"{name}: {bins!r} is not a list of whole numbers")
    if not bins:
        raise InputError(f"{name}: empty; give the length of at least one run")
    for place, length in enumerate(bins):
        if not _is_whole(length) or length < 0:
            raise InputError(f"{name}[{place}]: {length!r} is not a whole number >= 0")
    return bins


def _ceil(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
