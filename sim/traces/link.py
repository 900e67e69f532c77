"""A link that copies as a trace shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sim.errors import NotMeasured
from sim.lanes import COPY_LANES
from sim.machine.curves import Curve
from sim.machine.links import Link
from sim.machine.profile import HardwareProfile
from sim.progress import Progress
from sim.traces.events import HOST_MEMORY
from sim.traces.measured import open_trace
from sim.traces.rates import RatePoint

LEAST_BYTES = 2**16
"""Copies that are all smaller spend their time on launching, and say nothing about a rate."""


def link_from(
    link: Link, lane: str, curves: Mapping[tuple[str, str], Sequence[RatePoint]], file: str
) -> Link | None:
    """One direction of a link as the trace shows it; None without copies of `LEAST_BYTES`.

    Pinned copies are read before others, because offloading copies from pinned memory. What the
    link says of other kinds of copies stays.
    """
    for memory in HOST_MEMORY:
        points = curves.get((lane, memory), ())
        if not points or points[-1].bytes < LEAST_BYTES:
            continue
        n = sum(point.copies for point in points)
        rate = points[-1].bytes_per_s
        return replace(
            link,
            source="measured",
            bytes_per_s=rate,
            latency_s=0.0,
            paced_bytes_per_s=link.paced_bytes_per_s and rate,
            curve=Curve(
                tuple(float(point.bytes) for point in points),
                tuple(point.seconds for point in points),
            ),
            note=f"{n:,} copies ({memory}) of up to {points[-1].bytes:,} bytes in trace {file}",
        )
    return None


def with_link_from(
    hardware: HardwareProfile, path: Path | str, progress: Progress | None = None
) -> tuple[HardwareProfile, dict[str, str]]:
    """The machine with the rates of a trace's copies, and in words what each direction has now.

    A direction without large copies keeps the link that the machine has.

    Raises:
        BadFile: the trace cannot be read.
        NotMeasured: no direction has large copies, or the machine has no link.
    """
    if hardware.memory.unified:
        raise NotMeasured(
            f"CPU and GPU of {hardware.name} share one memory: it has no link to change; leave "
            "link-from out."
        )
    trace = open_trace(path, progress)
    file, curves = trace.events.file, trace.rates
    found = {lane: link_from(hardware.links.of(lane), lane, curves, file) for lane in COPY_LANES}
    links = {lane: link for lane, link in found.items() if link is not None}
    if not links:
        largest = max((points[-1].bytes for points in curves.values()), default=0)
        raise NotMeasured(
            f"trace {file} has no copy between host and device of at least 64 KiB (the largest has "
            f"{largest:,} bytes), and so no rate; record one that moves KV blocks."
        )
    text = {
        lane: f"{link.bytes_per_s / 1e9:.3g} GB/s from {link.note}"
        if link is not None
        else f"no copy of at least 64 KiB in {file}: the rate of {hardware.name}"
        for lane, link in found.items()
    }
    return replace(hardware, links=replace(hardware.links, **links)), text
