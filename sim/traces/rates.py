"""Rates of copies by their size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor, log2
from statistics import median

from sim.lanes import COPY_LANES
from sim.traces.events import GpuWork
from sim.traces.measures import NS

MAX_SIZES = 12
"""Sizes that a curve keeps apart; more are grouped by powers of two."""


@dataclass(frozen=True, slots=True)
class RatePoint:
    """Copies of one size, or of nearly one.

    Args:
        bytes, seconds: medians.
        copies: how many there are.
    """

    bytes: int
    copies: int
    seconds: float

    @property
    def bytes_per_s(self) -> float:
        return self.bytes / self.seconds


def rate_curves(work: Iterable[GpuWork]) -> dict[tuple[str, str], tuple[RatePoint, ...]]:
    """Points by direction and host memory, by size; copies without a size or a time are left out.

    Larger copies never take less time: medians that say otherwise are averaged with their
    neighbours.
    """
    copies: dict[tuple[str, str], dict[int, list[int]]] = {}
    for one in work:
        if one.kind in COPY_LANES and one.bytes > 0 and one.end_ns > one.start_ns:
            sizes = copies.setdefault((one.kind, one.memory), {})
            sizes.setdefault(one.bytes, []).append(one.end_ns - one.start_ns)
    return {key: _points(sizes) for key, sizes in sorted(copies.items())}


def _points(sizes: Mapping[int, Sequence[int]]) -> tuple[RatePoint, ...]:
    groups: dict[int, list[tuple[int, int]]] = {}
    for size, durations in sizes.items():
        group = size if len(sizes) <= MAX_SIZES else floor(log2(size))
        groups.setdefault(group, []).extend((size, duration) for duration in durations)
    points = []
    for _, copies in sorted(groups.items()):
        size = round(median(one for one, _ in copies))
        points.append(RatePoint(size, len(copies), median(spent for _, spent in copies) / NS))
    return _rising(points)


def _rising(points: Sequence[RatePoint]) -> tuple[RatePoint, ...]:
    """The points with seconds that do not fall, by pooling neighbours (isotonic regression)."""
    pools: list[tuple[float, list[RatePoint]]] = []
    for point in points:
        pool = [point]
        seconds = point.seconds
        while pools and pools[-1][0] > seconds:
            pool = pools.pop()[1] + pool
            n = sum(one.copies for one in pool)
            seconds = sum(one.seconds * one.copies for one in pool) / n
        pools.append((seconds, pool))
    return tuple(replace(one, seconds=seconds) for seconds, pool in pools for one in pool)
