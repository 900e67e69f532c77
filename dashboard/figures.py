"""Timelines as plotly figures: pure functions, to be drawn by any page.

Times are drawn on a numeric axis in milliseconds; `px.timeline` would turn them into dates.
"""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from sim.graph import COMPUTE, LANE_OF_OP, LANES, Task
from sim.timeline import Timeline

OP_COLOUR = {
    "embed": "#a3785f",
    "qkv": "#8b79c9",
    "recompute": "#e07b39",
    "attention": "#2a9d8f",
    "mlp": "#6f8297",
    "head": "#c76b98",
    "load_x": "#f0b24a",
    "load_kv": "#3f7fc1",
    "store_kv": "#86b4e3",
    "store_x": "#d8c07a",
}
"""One colour per operation in every figure, readable on white and on near-black: warm for the
recomputed part (X and what is made of it), blue for K and V that travel, green for their use."""

PART_COLOUR = {"compute": "#2a9d8f", "exposed copy": "#d1495b", "idle": "#9aa7b5"}

SOURCES = ("predicted", "measured")
PAIR_PITCH = 2.4
"""Distance between lanes in rows: the two rows of one lane are 1 apart, lanes a little more."""

ROW_PX = 30


def paired_lanes(predicted: Timeline, measured: Timeline, step: int | None = None) -> go.Figure:
    """Both runs of one graph on one time axis: each lane's prediction above its measurement.

    Args:
        step: the decode step to show, counted in each run from the start of its first task, so
            that what earlier steps got wrong does not shift it; by default the whole run.
    """
    chosen = [
        at for at, task in enumerate(predicted.graph.tasks) if step is None or task.step == step
    ]
    tasks = predicted.graph.tasks
    lanes = [lane for lane in LANES if any(tasks[at].lane == lane for at in chosen)]
    rows = {
        (lane, source): position * PAIR_PITCH + offset
        for position, lane in enumerate(lanes)
        for offset, source in enumerate(SOURCES)
    }
    figure = go.Figure()
    for op in LANE_OF_OP:
        positions = [at for at in chosen if tasks[at].op == op]
        if positions:
            figure.add_trace(_op_bars(op, positions, chosen, (predicted, measured), step, rows))
    _style(figure, [f"{lane} {source}" for lane, source in rows], list(rows.values()))
    origin = "the start of the run" if step is None else f"the first task of step {step}"
    figure.update_xaxes(title=f"time since {origin} (ms)")
    return figure


def _op_bars(
    op: str,
    positions: Sequence[int],
    chosen: Sequence[int],
    timelines: tuple[Timeline, Timeline],
    step: int | None,
    rows: dict[tuple[str, str], float],
) -> go.Bar:
    """Every task of one operation, in both runs, as one entry of the legend."""
    base, length, row, text = [], [], [], []
    for source, timeline in zip(SOURCES, timelines, strict=True):
        origin_s = 0.0 if step is None else min(timeline.start_s[at] for at in chosen)
        for at in positions:
            task = timeline.graph.tasks[at]
            base.append((timeline.start_s[at] - origin_s) * 1e3)
            length.append(timeline.duration_s[at] * 1e3)
            row.append(rows[task.lane, source])
            text.append(_hover(task, source, *(run.duration_s[at] for run in timelines)))
    return go.Bar(
        name=op,
        orientation="h",
        base=base,
        x=length,
        y=row,
        width=0.94,
        hovertext=text,
        hovertemplate="%{hovertext}<extra></extra>",
        marker={
            "color": OP_COLOUR[op],
            "line": {"color": _darker(OP_COLOUR[op]), "width": 0.5},
        },
    )


def _darker(colour: str) -> str:
    """An edge that parts equal neighbours, and keeps a bar thinner than a pixel in its colour."""
    channels = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(0.7 * channel):02x}" for channel in channels)


def _hover(task: Task, source: str, predicted_s: float, measured_s: float) -> str:
    place = f"layer {task.layer}, step {task.step}" if task.layer >= 0 else f"step {task.step}"
    error = f", {100 * (predicted_s / measured_s - 1):+.1f} %" if measured_s > 0 else ""
    return "<br>".join(
        [
            f"<b>{task.id}</b> ({source})",
            f"{place}, tokens {task.token_start:,} to {task.token_stop:,}",
            _rate(task, predicted_s if source == "predicted" else measured_s),
            f"predicted {predicted_s * 1e3:,.3f} ms, measured {measured_s * 1e3:,.3f} ms{error}",
        ]
    )


def _rate(task: Task, seconds: float) -> str:
    """How much the task moves or computes, and how fast it did."""
    if task.lane == COMPUTE:
        size = f"{task.flops / 1e9:,.4g} GFLOP"
        rate = f"{task.flops / seconds / 1e12:,.3g} TFLOP/s" if seconds > 0 else "no time"
    else:
        size = f"{task.bytes / 1e6:,.4g} MB"
        rate = f"{task.bytes / seconds / 1e9:,.3g} GB/s" if seconds > 0 else "no time"
    return f"{size} at {rate}"


def breakdown_bars(predicted: Timeline, measured: Timeline) -> go.Figure:
    """Where the time of each run went: three parts, each instant counted once, whose sum is it."""
    parts = [
        (timeline.breakdown.compute_s, timeline.breakdown.exposed_copy_s, timeline.breakdown.idle_s)
        for timeline in (predicted, measured)
    ]
    totals = [predicted.makespan_s, measured.makespan_s]
    figure = go.Figure()
    for (part, colour), seconds in zip(PART_COLOUR.items(), zip(*parts, strict=True), strict=True):
        labels = [
            f"{value * 1e3:,.1f} ms, {100 * value / total:.1f} %" if total else "0 ms"
            for value, total in zip(seconds, totals, strict=True)
        ]
        figure.add_trace(
            go.Bar(
                name=part,
                orientation="h",
                x=[value * 1e3 for value in seconds],
                y=[0, 1],
                width=0.8,
                text=labels,
                textposition="inside",
                insidetextanchor="middle",
                textangle=0,
                textfont={"color": "white"},
                hovertemplate=f"{part}: %{{text}}<extra></extra>",
                marker={"color": colour},
            )
        )
    _style(figure, list(SOURCES), [0, 1])
    figure.update_layout(barmode="stack", uniformtext={"minsize": 11, "mode": "hide"})
    figure.update_xaxes(title="part of the makespan (ms)")
    return figure


def _style(figure: go.Figure, labels: Sequence[str], rows: Sequence[float]) -> None:
    """The look all figures share: named rows from top to bottom, only time can be zoomed."""
    figure.update_layout(
        barmode="overlay",
        height=round(ROW_PX * (rows[-1] + 1)) + 110,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        hoverlabel={"align": "left"},
        dragmode="zoom",
    )
    figure.update_xaxes(showgrid=True, zeroline=False, rangemode="tozero", separatethousands=True)
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(rows),
        ticktext=list(labels),
        range=[rows[-1] + 0.6, -0.6],
        fixedrange=True,
        showgrid=False,
        zeroline=False,
    )
