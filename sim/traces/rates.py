"""Rates of copies by their size, and a link that has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor, log2
from statistics import median

from sim.errors import NotMeasured
from sim.lanes import COPY_LANES
from sim.machine.curves import Curve
from sim.machine.links import Link
from sim.machine.profile import HardwareProfile
from sim.traces.events import HOST_MEMORY, GpuWork
from sim.traces.measures import NS

MAX_SIZES = 12
"""Sizes that a curve keeps apart; more are grouped by powers of two."""

LEAST_BYTES = 2**20
"""Smaller copies spend their time on launching, and say nothing about the rate of large ones."""


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


def link_from(
    lane: str, curves: Mapping[tuple[str, str], Sequence[RatePoint]], file: str
) -> Link | None:
    """One direction of a link as the trace shows it; None without copies of `LEAST_BYTES`.

    Pinned copies are read before others, because offloading copies from pinned memory.
    """
    for memory in HOST_MEMORY:
        points = curves.get((lane, memory), ())
        if not points or points[-1].bytes < LEAST_BYTES:
            continue
        n = sum(point.copies for point in points)
        return Link(
            source="measured",
            bytes_per_s=points[-1].bytes_per_s,
            curve=Curve(
                tuple(float(point.bytes) for point in points),
                tuple(point.seconds for point in points),
            ),
            note=f"{n:,} copies ({memory}) in trace {file}",
        )
    return None


def with_links_of(
    hardware: HardwareProfile, work: Sequence[GpuWork], file: str
) -> tuple[HardwareProfile, dict[str, str]]:
    """The machine with the rates of a trace's copies, and what was found in each direction.

    A direction without large copies keeps the link that the machine has.

    Raises:
        NotMeasured: no direction has large copies, or the machine has no link.
    """
    if hardware.memory.unified:
        raise NotMeasured(
            f"CPU and GPU of {hardware.name} share one memory: it has no link to change; leave "
            "--link-from out."
        )
    curves = rate_curves(work)
    found = {lane: link_from(lane, curves, file) for lane in COPY_LANES}
    links = {lane: link for lane, link in found.items() if link is not None}
    if not links:
        largest = max((points[-1].bytes for points in curves.values()), default=0)
        raise NotMeasured(
            f"trace {file} has no copy between host and device of at least 1 MiB (the largest has "
            f"{largest:,} bytes), and so no rate; record one that moves KV blocks."
        )
    text = {
        lane: f"{link.bytes_per_s / 1e9:.3g} GB/s from {link.note}"
        if link is not None
        else f"no copy of at least 1 MiB in {file}: {hardware.name}'s rate"
        for lane, link in found.items()
    }
    return replace(hardware, links=replace(hardware.links, **links)), text
