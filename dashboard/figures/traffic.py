"""A service under traffic: hit rate and TTFT over the size of its cache, and a minute of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf

import plotly.graph_objects as go

from dashboard.figures.style import (
    MUTED,
    PHASE_COLOUR,
    RESTORE_COLOUR,
    bars,
    line,
    log_ticks,
    style_curves,
    style_rows,
)
from sim.lanes import COMPUTE, H2D
from sim.service import PHASES, RequestSpan, ServiceTimeline, WorkSpan, packed

MAX_ROWS = 40
"""Rows of requests that are drawn."""

WIDE = 8.0
"""The axis of TTFT is logarithmic if the largest value is so many times the smallest."""

SHORTEST_PART = 1 / 1400
"""Work of one kind with shorter gaps is drawn as one bar; a part of the time shown."""

REQUEST_PX, GAP_ROWS = 16, 1.0
MARGIN = 1.25
"""Factor between the curves and the ends of the axis of TTFT."""

Box = tuple[float, float, float, float, str]
"""Start, length, row, height and hover of a bar."""

LANE_NAMES = {COMPUTE: "GPU", H2D: "link"}

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")
"""Of the policies' points, because their curves may coincide."""


def hit_rate_curves(sizes: Sequence[str], rates: Mapping[str, Sequence[float]]) -> go.Figure:
    """Hit rate over the size of the host cache.

    Args:
        sizes: texts, the smallest first.
        rates: fraction of the prompt tokens found in any tier, by policy.
    """
    figure = go.Figure()
    for at, (policy, values) in enumerate(rates.items()):
        shown = [100 * value for value in values]
        _add_curve(figure, policy, SYMBOLS[at], sizes, shown, "%{y:.1f} % hits")
    x_title, y_title = "host cache of each instance", "hit rate (% of prompt tokens)"
    style_curves(figure, x_title, y_title, _named_sizes(sizes))
    return figure


def ttft_by_size(
    sizes: Sequence[str], p90_s: Mapping[str, Sequence[float]], knees: Mapping[str, int]
) -> go.Figure:
    """The p90 of TTFT over the size of the host cache, with the size from which more is useless.

    Args:
        sizes: texts, the smallest first.
        knees: by policy, the position of its knee in `sizes`.
    """
    figure = go.Figure()
    unit, scale = ("s", 1.0) if _largest(p90_s) >= 10 else ("ms", 1e3)
    for at, (policy, values) in enumerate(p90_s.items()):
        shown = [scale * value for value in values]
        _add_curve(figure, policy, SYMBOLS[at], sizes, shown, f"p90 of TTFT %{{y:,.4g}} {unit}")
    marks = [(at, scale * p90_s[policy][at], policy) for policy, at in knees.items()]
    figure.add_trace(
        go.Scatter(
            name="more does not pay",
            x=[at for at, _, _ in marks],
            y=[y for _, y, _ in marks],
            mode="markers",
            marker={
                "symbol": "circle-open",
                "size": 18,
                "color": MUTED,
                "line": {"width": 2.5},
            },
            text=[f"{policy}: {sizes[at]}" for at, _, policy in marks],
            hovertemplate="%{text}: more lowers the p90 by less than 5 %<extra></extra>",
        )
    )
    every = [scale * value for values in p90_s.values() for value in values]
    y_axis: dict[str, object] = {"rangemode": "tozero"}
    if max(every) > WIDE * min(every):
        y_axis = log_ticks(min(every) / MARGIN, max(every) * MARGIN)
    x_title, y_title = "host cache of each instance", f"p90 of TTFT ({unit})"
    style_curves(figure, x_title, y_title, _named_sizes(sizes), y_axis)
    return figure


def _largest(values: Mapping[str, Sequence[float]]) -> float:
    return max(max(row) for row in values.values())


def _add_curve(
    figure: go.Figure, policy: str, symbol: str, sizes: Sequence[str], y: list[float], hover: str
) -> None:
    colour = RESTORE_COLOUR[policy]
    x = list(range(len(sizes)))
    text = f"{policy}, %{{customdata}}: {hover}"
    curve = line(policy, x, y, text, color=colour)
    curve.update(
        mode="lines+markers",
        customdata=list(sizes),
        marker={"size": 8, "symbol": symbol, "color": colour},
    )
    figure.add_trace(curve)


def _named_sizes(sizes: Sequence[str]) -> dict[str, object]:
    """An axis of sizes at equal distances."""
    return {
        "tickmode": "array",
        "tickvals": list(range(len(sizes))),
        "ticktext": list(sizes),
        "range": [-0.25, len(sizes) - 0.75],
    }


def service_lanes(timeline: ServiceTimeline, zero_s: float) -> go.Figure:
    """Requests as bars of their phases, and below them the lanes of every instance.

    Args:
        zero_s: time of the trace that the axis counts from.
    """
    figure = go.Figure()
    rows = packed(timeline.requests, timeline.end_s)
    n_rows = min(MAX_ROWS, max(rows, default=-1) + 1)
    drawn = [(one, row) for one, row in zip(timeline.requests, rows, strict=True) if row < n_rows]
    lanes = sorted({(one.instance, one.lane) for one in timeline.work})
    place = {lane: n_rows + GAP_ROWS + 2 * at for at, lane in enumerate(lanes)}
    for phase in PHASES:
        boxes: list[Box] = [
            (*_clipped(timeline, start_s, end_s), row, 0.86, _request_hover(one, phase, zero_s))
            for one, row in drawn
            for name, start_s, end_s in one.phases
            if name == phase and end_s > timeline.start_s and start_s < timeline.end_s
        ]
        boxes += [
            (
                *_clipped(timeline, group[0].start_s, group[-1].end_s),
                place[group[0].instance, group[0].lane],
                1.7,
                _work_hover(group),
            )
            for group in _groups(timeline, phase)
        ]
        if boxes:
            figure.add_trace(_phase(phase, boxes, zero_s))
    several = len({instance for instance, _ in lanes}) > 1
    labels = [
        f"{LANE_NAMES.get(lane, lane)}{f' {instance + 1}' if several else ''}"
        for instance, lane in lanes
    ]
    last = max(place.values(), default=float(n_rows))
    middle = [(n_rows - 1) / 2] if n_rows else []
    start_s, end_s = timeline.start_s - zero_s, timeline.end_s - zero_s
    style_rows(
        figure,
        [*(["requests"] if n_rows else []), *labels],
        [*middle, *place.values()] or [0.0],
        {"title": "time since the first arrival (s)", "range": [start_s, end_s]},
        {"range": [last + 1.2, -0.8]},
        height=round(REQUEST_PX * (last + 2)) + 110,
    )
    return figure


def _clipped(timeline: ServiceTimeline, start_s: float, end_s: float) -> tuple[float, float]:
    """Start and length within the part that is shown."""
    start_s, end_s = max(start_s, timeline.start_s), min(end_s, timeline.end_s)
    return start_s, end_s - start_s


def _groups(timeline: ServiceTimeline, phase: str) -> list[list[WorkSpan]]:
    """Work of one kind on every lane; neighbours without a visible gap are together."""
    shortest_s = SHORTEST_PART * (timeline.end_s - timeline.start_s)
    by_lane = sorted(timeline.work, key=lambda one: (one.instance, one.lane, one.start_s))
    groups: list[list[WorkSpan]] = []
    for one in by_lane:
        last = groups[-1][-1] if groups else None
        if (
            last is not None
            and (last.instance, last.lane, last.kind) == (one.instance, one.lane, one.kind)
            and one.start_s - last.end_s <= shortest_s
        ):
            groups[-1].append(one)
        else:
            groups.append([one])
    return [group for group in groups if group[0].kind == phase]


def _phase(phase: str, boxes: Sequence[Box], zero_s: float) -> go.Bar:
    return bars(
        phase,
        [length for _, length, *_ in boxes],
        [row for _, _, row, *_ in boxes],
        PHASE_COLOUR[phase],
        "%{hovertext}",
        base=[start - zero_s for start, *_ in boxes],
        width=[height for *_, height, _ in boxes],
        hovertext=[hover for *_, hover in boxes],
    )


def _request_hover(one: RequestSpan, phase: str, zero_s: float) -> str:
    spent = [f"{name} {_seconds(end_s - start_s)}" for name, start_s, end_s in one.phases]
    return "<br>".join(
        [
            f"<b>request {one.request + 1:,}</b>, {phase}",
            f"arrives at {one.arrival_s - zero_s:,.2f} s, instance {one.instance + 1}",
            f"{one.prompt_tokens:,} prompt tokens, {one.hit_tokens:,} of them cached",
            ", ".join(spent),
        ]
    )


def _work_hover(group: Sequence[WorkSpan]) -> str:
    first, busy_s = group[0], sum(one.end_s - one.start_s for one in group)
    name = LANE_NAMES.get(first.lane, first.lane)
    lines = [f"<b>{name}</b>, {first.kind}", f"{_seconds(busy_s)} of work"]
    if tokens := sum(one.tokens for one in group):
        lines.append(f"{tokens:,} prompt tokens")
    if decoding := max(one.decoding for one in group):
        lines.append(f"up to {decoding} requests decode")
    return "<br>".join(lines)


def _seconds(seconds: float) -> str:
    if seconds == inf:
        return "beyond this minute"
    return f"{1e3 * seconds:,.1f} ms" if seconds < 10 else f"{seconds:,.1f} s"
