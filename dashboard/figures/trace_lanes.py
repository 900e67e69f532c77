"""A profiler's trace on an axis of milliseconds, a row for each stream, alone or next to a
prediction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dashboard.figures.lane_chart import BYTES, Bars, LaneChart, Row
from dashboard.figures.lanes import SOURCES
from dashboard.figures.style import OP_COLOUR
from sim.lanes import D2H, H2D
from sim.traces.events import KERNEL, KINDS, GpuWork

KIND_COLOUR = {
    KERNEL: OP_COLOUR["attention"],
    H2D: OP_COLOUR["load_kv"],
    D2H: OP_COLOUR["store_kv"],
}
PAIRED = (KERNEL, H2D, D2H)
"""What a prediction has, too."""

MAX_SINGLE_BARS = 40_000
"""Largest number of events that are drawn as one bar each, however short."""

SHORTEST_PART = 1 / 5000
"""Shortest bar of merged neighbours as a part of the time shown."""

NS_IN_MS = 1e6
NAME_CHARS = 90

Window = tuple[int, int]
"""Start and end of the time shown, in nanoseconds of the trace."""


def trace_lanes(work: Sequence[GpuWork], window: Window) -> LaneChart:
    """The kernels, copies and memsets of one GPU in a window of time, a row for each stream."""
    rows: dict[tuple[str, str], list[GpuWork]] = {}
    for one in _inside(work, window):
        rows.setdefault((one.kind, one.stream), []).append(one)
    keys = sorted(rows, key=lambda key: (KINDS.index(key[0]), len(key[1]), key[1]))
    made = [(Row(f"{kind}, stream {stream}", unit=BYTES), kind, stream) for kind, stream in keys]
    return _chart([(row, rows[kind, stream], window[0]) for row, kind, stream in made], window)


def paired_trace_lanes(
    work: Sequence[GpuWork], window: Window, predicted: Sequence[GpuWork]
) -> LaneChart:
    """The kernels and copies of a prediction above those of a window of a trace, from zero each."""
    shown_ns = max(window[1] - window[0], *(one.end_ns for one in predicted))
    sources = ((predicted, (0, shown_ns)), (work, window))
    rows = []
    for kind in PAIRED:
        for source, (every, span) in zip(SOURCES, sources, strict=True):
            queue = [one for one in _inside(every, span) if one.kind == kind]
            rows.append((Row(kind, source, BYTES), queue, span[0]))
    return _chart(rows, (0, shown_ns))


def _inside(work: Sequence[GpuWork], window: Window) -> list[GpuWork]:
    """Work that runs in the window, cut at its ends."""
    return [
        one._replace(start_ns=max(one.start_ns, window[0]), end_ns=min(one.end_ns, window[1]))
        for one in work
        if one.end_ns > window[0] and one.start_ns < window[1]
    ]


def _chart(rows: Sequence[tuple[Row, Sequence[GpuWork], int]], window: Window) -> LaneChart:
    """Rows of work, each with the time that is its zero."""
    chart = LaneChart("time (ms)", KIND_COLOUR)
    single = sum(len(queue) for _, queue, _ in rows) <= MAX_SINGLE_BARS
    shortest_ns = 0.0 if single else SHORTEST_PART * (window[1] - window[0])
    for kind in KINDS:
        if any(one.kind == kind for _, queue, _ in rows for one in queue):
            chart.kinds[kind] = len(chart.kinds)
    ends: dict[str, float] = {}
    for row, queue, zero_ns in rows:
        chart.add_row(row)
        groups = _groups(queue, shortest_ns)
        chart.add(_bars(groups, zero_ns))
        last_ns = max((one.end_ns for group in groups for one in group), default=zero_ns)
        ends[row.source] = max(ends.get(row.source, 0.0), (last_ns - zero_ns) / NS_IN_MS)
    chart.ends = list(ends.items())
    return chart


def _groups(queue: Sequence[GpuWork], shortest_ns: float) -> list[list[GpuWork]]:
    """Work of one row, neighbours that are too short to be seen in one group."""
    groups: list[list[GpuWork]] = []
    for one in queue:
        if groups and one.end_ns - groups[-1][0].start_ns <= shortest_ns:
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def _bars(groups: Sequence[Sequence[GpuWork]], zero_ns: int) -> Bars:
    """A bar for each group."""
    firsts = [group[0] for group in groups]
    ends_ns = [max(one.end_ns for one in group) for group in groups]
    named = list(map(_name_and_place, groups))
    return Bars(
        start_ms=[(first.start_ns - zero_ns) / NS_IN_MS for first in firsts],
        length_ms=[
            (end_ns - first.start_ns) / NS_IN_MS
            for first, end_ns in zip(firsts, ends_ns, strict=True)
        ],
        kind=[first.kind for first in firsts],
        name=[name for name, _ in named],
        place=[place for _, place in named],
        size=[sum(one.bytes for one in group) for group in groups],
    )


def _name_and_place(group: Sequence[GpuWork]) -> tuple[str, str]:
    """The texts of the bar of a group."""
    first = group[0]
    place = [f"GPU {first.device}, stream {first.stream}"]
    name = _short(first.name)
    if len(group) > 1:
        names = Counter(one.name for one in group).most_common(3)
        name = f"{len(group)} in a row"
        place += [f"{count} x {_short(text)}" for text, count in names]
    elif first.memory:
        place.append(f"{first.memory} host memory")
    return name, ", ".join(place)


def _short(name: str) -> str:
    return name if len(name) <= NAME_CHARS else f"{name[: NAME_CHARS - 3]}..."
