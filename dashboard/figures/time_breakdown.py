"""Time of two runs: by compute, exposed copy and idle time, and by lane."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from dashboard.figures.lanes import PAIR_PITCH, SOURCES
from dashboard.figures.style import BREAKDOWN_COLOUR, MUTED, bars, style_rows, text_colour
from sim.graph.timeline import Timeline
from sim.lanes import LANES, TIER_LANES

WORKS = "works"
CAUSE_COLOUR = {
    WORKS: "#43967e",
    "waits for compute": "#af87c0",
    "waits for h2d": "#297bc2",
    "waits for d2h": "#90bdf2",
    "waits for disk": "#256657",
    "waits for net": "#4e4db9",
    "hand-over": "#d59c30",
    "drained": "#c5ccca",
}
"""Other causes are grey."""


def breakdown_bars(predicted: Timeline, measured: Timeline) -> go.Figure:
    """Compute, exposed copy and idle time of each run; they add up to its makespan."""
    parts = [
        (timeline.breakdown.compute_s, timeline.breakdown.exposed_copy_s, timeline.breakdown.idle_s)
        for timeline in (predicted, measured)
    ]
    totals = [predicted.makespan_s, measured.makespan_s]
    figure = go.Figure()
    for (part, colour), seconds in zip(
        BREAKDOWN_COLOUR.items(), zip(*parts, strict=True), strict=True
    ):
        labels = [
            f"{value * 1e3:,.1f} ms, {100 * value / total:.1f} %" if total else "0 ms"
            for value, total in zip(seconds, totals, strict=True)
        ]
        figure.add_trace(_stacked(part, colour, [value * 1e3 for value in seconds], [0, 1], labels))
    x_axis = {"title": "part of the makespan (ms)"}
    fitted = {"minsize": 11, "mode": "hide"}
    style_rows(figure, list(SOURCES), [0, 1], x_axis, barmode="stack", uniformtext=fitted)
    return figure


def lane_use_bars(predicted: Timeline, measured: Timeline) -> go.Figure:
    """Working and waiting time of each lane in both runs, by cause of the wait."""
    lanes = [
        lane
        for lane in (*LANES, *TIER_LANES)
        if any(name == lane for _, name in measured.graph.lanes)
    ]
    rows = {
        (lane, source): position * PAIR_PITCH + offset
        for position, lane in enumerate(lanes)
        for offset, source in enumerate(SOURCES)
    }
    spent: dict[str, dict[float, float]] = {WORKS: {}}
    for source, timeline in zip(SOURCES, (predicted, measured), strict=True):
        for lane in lanes:
            uses = {WORKS: timeline.busy_s(lane), **timeline.idle_by_cause(lane)}
            for what, seconds in uses.items():
                spent.setdefault(what, {})[rows[lane, source]] = seconds
    known = list(CAUSE_COLOUR)
    figure = go.Figure()
    for what in sorted(spent, key=lambda cause: (*known, cause).index(cause)):
        x = [seconds * 1e3 for seconds in spent[what].values()]
        labels = [f"{value:,.1f} ms" for value in x]
        colour = CAUSE_COLOUR.get(what, MUTED)
        figure.add_trace(_stacked(what, colour, x, list(spent[what]), labels))
    names = [f"{lane} {source}" for lane, source in rows]
    x_axis, fitted = {"title": "time of the lane (ms)"}, {"minsize": 10, "mode": "hide"}
    style_rows(figure, names, list(rows.values()), x_axis, barmode="stack", uniformtext=fitted)
    return figure


def _stacked(
    name: str, colour: str, x: Sequence[float], rows: Sequence[float], labels: Sequence[str]
) -> go.Bar:
    return bars(
        name,
        x,
        rows,
        colour,
        f"{name}: %{{text}}",
        width=0.8,
        text=labels,
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        textfont={"color": text_colour(colour)},
    )
