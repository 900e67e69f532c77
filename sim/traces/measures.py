"""Busy, hidden, exposed and idle time of GPUs, from the intervals in which they work."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Any

from sim.graph.timeline import Interval, intersection, length, union
from sim.lanes import COPY_LANES, D2H, H2D
from sim.traces.events import KERNEL, GpuWork, StepMark, TraceEvents

NS = 1e9
OTHER = "other"
"""All work that is neither a kernel nor a copy over the link."""

_COLLECTIVE = re.compile(r"nccl.*Kernel|rccl.*Kernel", re.I)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """Seconds of one or several GPUs, each instant of a GPU counted once in every line.

    Args:
        span_s: from the first start to the last end of any GPU's work.
        kernel_s: at least one kernel runs.
        h2d_copy_s, d2h_copy_s: at least one copy of that direction runs.
        h2d_hidden_s, d2h_hidden_s: part of it in which a kernel runs too.
        copy_s: a copy of either direction runs.
        exposed_copy_s: the part of it in which no kernel runs.
        other_s: neither a kernel nor such a copy, but a memset or a copy within or between devices.
        idle_s: no work at all.
        collective_s: at least one kernel of NCCL or RCCL runs.
        collective_hidden_s: part of it in which another kernel runs too.
    """

    span_s: float = 0.0
    kernel_s: float = 0.0
    h2d_copy_s: float = 0.0
    h2d_hidden_s: float = 0.0
    d2h_copy_s: float = 0.0
    d2h_hidden_s: float = 0.0
    copy_s: float = 0.0
    exposed_copy_s: float = 0.0
    other_s: float = 0.0
    idle_s: float = 0.0
    collective_s: float = 0.0
    collective_hidden_s: float = 0.0

    @property
    def overlap_frac(self) -> float | None:
        """Hidden part of the copy time of both directions; None where nothing is copied."""
        return 1.0 - self.exposed_copy_s / self.copy_s if self.copy_s else None

    @property
    def h2d_overlap_frac(self) -> float | None:
        """Hidden part of the copy time; None where nothing is copied."""
        return self.h2d_hidden_s / self.h2d_copy_s if self.h2d_copy_s else None

    @property
    def d2h_overlap_frac(self) -> float | None:
        return self.d2h_hidden_s / self.d2h_copy_s if self.d2h_copy_s else None

    @property
    def collective_overlap_frac(self) -> float | None:
        return self.collective_hidden_s / self.collective_s if self.collective_s else None

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "overlap_frac": self.overlap_frac,
            "h2d_overlap_frac": self.h2d_overlap_frac,
            "d2h_overlap_frac": self.d2h_overlap_frac,
            "collective_overlap_frac": self.collective_overlap_frac,
        }


@dataclass(frozen=True, slots=True)
class Idle:
    """Idle seconds by what the next work on the GPU waited for.

    Args:
        host_s: the host had not launched it yet.
        host_sync_s: the same while a thread of the host waited for the GPU.
        waiting_s: it was launched, and waited for an event, for its stream or for its start.
        unknown_s: the trace does not say when it was launched.
    """

    host_s: float = 0.0
    host_sync_s: float = 0.0
    waiting_s: float = 0.0
    unknown_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """One marked step.

    Args:
        start_s: from the start of the trace.
        measures: of the work that it launched, and of the work without a known launch in its
            annotation. A copy is hidden by the kernels of any step. `span_s` runs from the start of
            the annotation to its end or that of the last work it launched.
    """

    name: str
    start_s: float
    measures: Measures

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "start_s": self.start_s, **self.measures.to_dict()}


class Busy:
    """Disjoint, sorted intervals of one GPU by what runs, in nanoseconds."""

    def __init__(self, work: Iterable[GpuWork]) -> None:
        parts: dict[str, list[Interval]] = {}
        collective: list[Interval] = []
        computing: list[Interval] = []
        is_collective: dict[str, bool] = {}
        for one in work:
            times = (one.start_ns, one.end_ns)
            if one.kind != KERNEL:
                kind = one.kind if one.kind in COPY_LANES else OTHER
                parts.setdefault(kind, []).append(times)
                continue
            known = is_collective.get(one.name)
            if known is None:
                known = is_collective[one.name] = _COLLECTIVE.match(one.name) is not None
            (collective if known else computing).append(times)
        self.collectives, self.computing = union(collective), union(computing)
        self.kernels = _joined(self.collectives, self.computing)
        self.copies = {lane: union(parts.get(lane, ())) for lane in COPY_LANES}
        self.moving = _joined(*self.copies.values())
        self.working = _joined(self.kernels, self.moving)
        self.any = _joined(self.working, union(parts.get(OTHER, ())))

    def measures(self, start_ns: float, end_ns: float, hiding: Busy | None = None) -> Measures:
        """Seconds over the span from start to end, that holds all of this.

        Args:
            hiding: all work of the GPU, whose kernels hide these copies; by default this is all.
        """
        hider = hiding or self
        kernels, computing = hider.kernels, hider.computing
        hidden = {lane: _shared(self.copies[lane], kernels) for lane in COPY_LANES}
        if self.copies[H2D] and self.copies[D2H]:
            hidden_ns = _shared(self.moving, kernels)
        else:
            hidden_ns = sum(hidden.values())
        exposed_ns = length(self.moving) - hidden_ns
        busy_ns = length(self.any) if hiding is None else _shared([(start_ns, end_ns)], hider.any)
        return Measures(
            span_s=(end_ns - start_ns) / NS,
            kernel_s=length(self.kernels) / NS,
            h2d_copy_s=length(self.copies[H2D]) / NS,
            h2d_hidden_s=hidden[H2D] / NS,
            d2h_copy_s=length(self.copies[D2H]) / NS,
            d2h_hidden_s=hidden[D2H] / NS,
            copy_s=length(self.moving) / NS,
            exposed_copy_s=exposed_ns / NS,
            other_s=(length(self.any) - length(self.working)) / NS,
            idle_s=(end_ns - start_ns - busy_ns) / NS,
            collective_s=length(self.collectives) / NS,
            collective_hidden_s=_shared(self.collectives, computing) / NS,
        )


def _joined(left: list[Interval], right: list[Interval]) -> list[Interval]:
    """What either of two disjoint, sorted lists covers."""
    return union([*left, *right]) if left and right else left or right


def _shared(some: Sequence[Interval], others: Sequence[Interval]) -> float:
    """Length of what both of two disjoint, sorted lists cover."""
    if not some or not others:
        return 0
    first = bisect_left(others, some[0][0], key=lambda one: one[1])
    last = bisect_right(others, some[-1][1], key=lambda one: one[0])
    return length(intersection(some, others[first:last]))


def total(parts: Sequence[Measures], span_s: float) -> Measures:
    """Sums over GPUs, with the span that they share."""
    sums = {
        one.name: sum(getattr(part, one.name) for part in parts)
        for one in fields(Measures)
        if one.name != "span_s"
    }
    return replace(Measures(**sums), span_s=span_s)


def steps_of(events: TraceEvents, busy: dict[int, Busy], origin_ns: int) -> tuple[Step, ...]:
    """The marked steps; sums over GPUs if there are several."""
    marks = events.steps
    starts = [mark.start_ns for mark in marks]
    parts: list[list[GpuWork]] = [[] for _ in marks]
    ends = [mark.end_ns for mark in marks]
    for one in events.work if marks else ():
        if one.launch_ns is not None:
            at = bisect_right(starts, one.launch_ns) - 1
            if at >= 0 and one.launch_ns < marks[at].end_ns:
                parts[at].append(one)
                ends[at] = max(ends[at], one.end_ns)
            continue
        for at in range(max(bisect_right(starts, one.start_ns) - 1, 0), len(marks)):
            if marks[at].start_ns >= one.end_ns:
                break
            start_ns, end_ns = _clipped(one, marks[at])
            if start_ns < end_ns:
                parts[at].append(one._replace(start_ns=start_ns, end_ns=end_ns))
    return tuple(
        Step(
            mark.name,
            (mark.start_ns - origin_ns) / NS,
            _step_measures(part, mark.start_ns, end_ns, busy),
        )
        for mark, part, end_ns in zip(marks, parts, ends, strict=True)
    )


def _clipped(work: GpuWork, mark: StepMark) -> tuple[int, int]:
    return max(work.start_ns, mark.start_ns), min(work.end_ns, mark.end_ns)


def _step_measures(
    work: Sequence[GpuWork], start_ns: int, end_ns: int, busy: dict[int, Busy]
) -> Measures:
    by_device: dict[int, list[GpuWork]] = {device: [] for device in busy}
    for one in work:
        by_device[one.device].append(one)
    found = [
        Busy(part).measures(start_ns, end_ns, busy[device]) for device, part in by_device.items()
    ]
    return total(found, (end_ns - start_ns) / NS)


def idle_by_cause(events: TraceEvents, busy: dict[int, Busy], span: tuple[int, int]) -> Idle:
    """Idle time of all GPUs between the first and the last work of any."""
    syncs = union(events.syncs)
    host = host_sync = waiting = unknown = 0.0
    first: dict[tuple[int, int], GpuWork] = {}
    for one in events.work:
        first.setdefault((one.device, one.start_ns), one)
    for device, intervals in busy.items():
        bounds = [(span[0], span[0]), *intervals.any, (span[1], span[1])]
        for (_, free_ns), (next_ns, _) in pairwise(bounds):
            if next_ns <= free_ns:
                continue
            work = first.get((device, int(next_ns)))
            if work is None:  # this GPU is done before another
                launched_ns = next_ns
            elif work.launch_ns is None:
                unknown += next_ns - free_ns
                continue
            else:
                launched_ns = min(max(work.launch_ns, free_ns), next_ns)
            late_ns = launched_ns - free_ns
            synced_ns = _shared([(free_ns, launched_ns)], syncs) if late_ns else 0
            host_sync += synced_ns
            host += late_ns - synced_ns
            waiting += next_ns - launched_ns
    return Idle(host / NS, host_sync / NS, waiting / NS, unknown / NS)
