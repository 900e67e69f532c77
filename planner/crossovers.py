"""Context lengths at which the recommendation changes, found by bisection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import isqrt

GRID_FACTOR = 4
"""Ratio of neighbouring context lengths in the first, coarse search."""

BOUNDARY_FRAC = 1 / 64
"""Boundaries are located to within this fraction of a length."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A range of context lengths with one verdict, both ends included."""

    first_tokens: int
    last_tokens: int
    verdict: str


def stretches(verdict: Callable[[int], str], least: int, most: int) -> tuple[Stretch, ...]:
    """Lengths from `least` to `most` by verdict.

    A verdict that holds only between two neighbouring lengths of the coarse search is not found.
    """
    ask = cache(verdict)
    lengths = [least]
    while lengths[-1] < most:
        lengths.append(min(lengths[-1] * GRID_FACTOR, most))
    starts = [least]
    for low, high in pairwise(lengths):
        while ask(low) != ask(high):
            low = _boundary(ask, low, high)
            starts.append(low)
    ends = [*(start - 1 for start in starts[1:]), most]
    return tuple(Stretch(start, end, ask(start)) for start, end in zip(starts, ends, strict=True))


def _boundary(ask: Callable[[int], str], low: int, high: int) -> int:
    """The length in (low, high] from which the verdict differs from that at `low`."""
    while high - low > max(1, int(low * BOUNDARY_FRAC)):
        between = min(max(isqrt(low * high), low + 1), high - 1)
        if ask(between) == ask(low):
            low = between
        else:
            high = between
    return high


def largest(value: Callable[[int], float], limit: float, start: int) -> int:
    """The largest count whose value is at most `limit`, 0 if there is none.

    Args:
        value: rises with the count and at some count is above the limit, or infinite.
        start: where to begin, at least 1.
    """
    ask = cache(value)
    low, high = (start, 2 * start) if ask(start) <= limit else (0, start)
    while low and ask(high) <= limit:
        low, high = high, 2 * high
    halve = False
    while high - low > 1:
        between = (low + high) // 2
        if not halve and low and ask(high) < float("inf"):  # nearly a straight line
            rise = (ask(high) - ask(low)) / (high - low)
            between = min(max(low + int((limit - ask(low)) / rise), low + 1), high - 1)
        halve = not halve
        if ask(between) <= limit:
            low = between
        else:
            high = between
    return low
