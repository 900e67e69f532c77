"""A profiler's trace on an axis of milliseconds, a row for each stream, alone or next to a
prediction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import plotly.graph_objects as go

from dashboard.figures.lanes import (
    BAR_ROWS,
    MAX_SINGLE_BARS,
    PAIR_PITCH,
    SHORTEST_PART,
    SOURCES,
)
from dashboard.figures.style import OP_COLOUR, OTHER_OP_COLOUR, TaskBoxes, style_rows
from sim.lanes import D2H, H2D
from sim.traces.events import KERNEL, KINDS, GpuWork

KIND_COLOUR = {
    KERNEL: OP_COLOUR["attention"],
    H2D: OP_COLOUR["load_kv"],
    D2H: OP_COLOUR["store_kv"],
}
PAIRED = (KERNEL, H2D, D2H)
"""What a prediction has, too."""

NS_IN_S = 1e9
HOVER_CHARS = 90

Window = tuple[int, int]
"""Start and end of the time shown, in nanoseconds of the trace."""


def trace_lanes(work: Sequence[GpuWork], window: Window) -> go.Figure:
    """The kernels, copies and memsets of one GPU in a window of time, a row for each stream."""
    rows: dict[tuple[str, str], list[GpuWork]] = {}
    for one in _inside(work, window):
        rows.setdefault((one.kind, one.stream), []).append(one)
    keys = sorted(rows, key=lambda key: (KINDS.index(key[0]), len(key[1]), key[1]))
    labels = [f"{kind}, stream {stream}" for kind, stream in keys]
    places = [float(at) for at in range(len(keys))]
    return _figure([(rows[key], window[0]) for key in keys], labels, places, window)


def paired_trace_lanes(
    work: Sequence[GpuWork], window: Window, predicted: Sequence[GpuWork]
) -> go.Figure:
    """The kernels and copies of a prediction above those of a window of a trace, from zero each."""
    shown_ns = max(window[1] - window[0], *(one.end_ns for one in predicted))
    sources = ((predicted, (0, shown_ns)), (work, window))
    rows, labels, places = [], [], []
    for lane, kind in enumerate(PAIRED):
        for at, (source, (every, span)) in enumerate(zip(SOURCES, sources, strict=True)):
            rows.append(([one for one in _inside(every, span) if one.kind == kind], span[0]))
            labels.append(f"{kind} {source}")
            places.append(lane * PAIR_PITCH + at)
    return _figure(rows, labels, places, (0, shown_ns))


def _inside(work: Sequence[GpuWork], window: Window) -> list[GpuWork]:
    """Work that runs in the window, cut at its ends."""
    return [
        one._replace(start_ns=max(one.start_ns, window[0]), end_ns=min(one.end_ns, window[1]))
        for one in work
        if one.end_ns > window[0] and one.start_ns < window[1]
    ]


def _figure(
    rows: Sequence[tuple[Sequence[GpuWork], int]],
    labels: Sequence[str],
    places: Sequence[float],
    window: Window,
) -> go.Figure:
    """Rows of work, each with the time that is its zero."""
    boxes: dict[str, TaskBoxes] = {}
    single = sum(len(queue) for queue, _ in rows) <= MAX_SINGLE_BARS
    shortest_ns = 0.0 if single else SHORTEST_PART * (window[1] - window[0])
    for (queue, zero_ns), place in zip(rows, places, strict=True):
        for group in _groups(queue, shortest_ns):
            times = group[0].start_ns, max(one.end_ns for one in group)
            start_s, end_s = ((time_ns - zero_ns) / NS_IN_S for time_ns in times)
            box = boxes.setdefault(group[0].kind, TaskBoxes())
            box.add((start_s, end_s), place, BAR_ROWS, _hover(group))
    figure = go.Figure()
    for kind in sorted(boxes, key=KINDS.index):
        figure.add_trace(boxes[kind].trace(kind, KIND_COLOUR.get(kind, OTHER_OP_COLOUR)))
    style_rows(figure, labels, list(places) or [0.0])
    figure.update_xaxes(title="time (ms)")
    return figure


def _groups(queue: Sequence[GpuWork], shortest_ns: float) -> list[list[GpuWork]]:
    """Work of one row, neighbours that are too short to be seen in one group."""
    groups: list[list[GpuWork]] = []
    for one in queue:
        if groups and one.end_ns - groups[-1][0].start_ns <= shortest_ns:
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def _hover(group: Sequence[GpuWork]) -> str:
    spent_ns = sum(one.end_ns - one.start_ns for one in group)
    lines = [f"{spent_ns / 1e6:,.3f} ms, GPU {group[0].device}, stream {group[0].stream}"]
    if len(group) == 1:
        (one,) = group
        name = one.name if len(one.name) <= HOVER_CHARS else f"{one.name[: HOVER_CHARS - 3]}..."
        lines.insert(0, f"<b>{_inert(name)}</b>")
        if one.bytes and spent_ns:
            rate = f"{one.bytes / spent_ns:,.3g} GB/s"
            lines.append(f"{one.bytes / 1e6:,.4g} MB at {rate}{one.memory and f', {one.memory}'}")
    else:
        names = Counter(one.name for one in group).most_common(3)
        lines.insert(0, f"<b>{len(group)} in a row</b>")
        lines += [f"{count} {_inert(name[:HOVER_CHARS])}" for name, count in names]
    return "<br>".join(lines)


def _inert(name: str) -> str:
    """A name of a file, with the marks that plotly reads as HTML replaced."""
    return name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
