"""Crossovers of two curves, and counts at which a verdict or a limit changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import exp, isqrt, log

GRID_FACTOR = 4
"""Ratio of two neighbouring lengths of the first, coarse search."""

BOUNDARY_FRAC = 1 / 64
"""Resolution of a boundary as a fraction of the length."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Context lengths with one verdict, both ends included."""

    first_tokens: int
    last_tokens: int
    verdict: str


def crossings(
    x: Sequence[float], first: Sequence[float], second: Sequence[float]
) -> list[tuple[float, float]]:
    """Points where two curves with the same `x` meet, by log-log interpolation."""
    gaps = [log(a / b) for a, b in zip(first, second, strict=True)]
    met = []
    for at, (left, right) in enumerate(pairwise(gaps)):
        if left == 0 or left * right < 0:
            weight = left / (left - right) if left else 0.0
            at_x = exp(log(x[at]) + weight * log(x[at + 1] / x[at]))
            met.append((at_x, exp(log(first[at]) + weight * log(first[at + 1] / first[at]))))
    if gaps and gaps[-1] == 0:
        met.append((x[-1], first[-1]))
    return met


def intervals(verdict: Callable[[int], str], least: int, most: int) -> tuple[Interval, ...]:
    """Intervals of equal verdict from `least` to `most`.

    A verdict that holds only between two lengths of the coarse search with one other verdict is
    missed.
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
    return tuple(Interval(start, end, ask(start)) for start, end in zip(starts, ends, strict=True))


def _boundary(ask: Callable[[int], str], low: int, high: int) -> int:
    """A length in (`low`, `high`] whose verdict differs from that of `low`."""
    while high - low > max(1, int(low * BOUNDARY_FRAC)):
        between = min(max(isqrt(low * high), low + 1), high - 1)
        if ask(between) == ask(low):
            low = between
        else:
            high = between
    return high


def largest(value: Callable[[int], float], limit: float, start: int) -> int:
    """The largest count whose value is at most `limit`, or 0.

    Args:
        value: rises with the count, and exceeds the limit at some count.
        start: first count to try, at least 1.
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
