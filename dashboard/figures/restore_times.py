"""Times to first token: over the rate of a tier, and when the machine is not as assumed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from dashboard.figures.style import (
    LATE_COLOUR,
    MUTED,
    RESTORE_COLOUR,
    hatching,
    log_ticks,
    style_curves,
    style_rows,
    vertical_line,
)
from dashboard.text.crossovers import ONE_RESOURCE, policy_crossings, stretches
from sim.machine.availability import Availability
from sim.units import ms

Y_MARGIN = 1.15
HEADROOM = 2.5
"""Of the slowest two-ended restore: above that a resource alone is cut off, however slow it is."""

GOOD_COLOUR = RESTORE_COLOUR["lp"]
LANE_COLOUR = {"compute": "#d9683c", "h2d": "#3f7fc1", "disk": "#5cc0b8", "net": "#4fb3c8"}


def ttft_curves(points: pd.DataFrame, x_title: str, here: float) -> go.Figure:
    """Time to first token of every policy over the rate at which the cached prefix comes.

    Crosses mark where loading alone meets computing alone, where `two-ended` meets the better of
    them, and where `layer-wise` meets `two-ended`; hatched is where `two-ended` loses to one
    resource.

    Args:
        points: `gib_per_s` rising, and `<policy>_s`, empty where a policy was not planned.
        here: the rate that is set.
    """
    figure = go.Figure()
    policies = [policy for policy in RESTORE_COLOUR if f"{policy}_s" in points]
    times = points[[f"{policy}_s" for policy in policies]] * 1e3
    low, high = float(times.min().min()), float(times.max().max())
    high = min(high, HEADROOM * float(times["two-ended_s"].max()))
    x = points["gib_per_s"].tolist()
    lost = stretches(points, ONE_RESOURCE, "two-ended")
    if lost:
        boxes = ((one.low, one.high, low, high) for one in lost)
        figure.add_trace(hatching(boxes, "two-ended loses to one resource alone"))
    for policy in policies:
        known = points[f"{policy}_s"].dropna() * 1e3
        thick = policy == "joint"
        figure.add_trace(
            go.Scatter(
                name=policy,
                x=points.loc[known.index, "gib_per_s"].tolist(),
                y=known.tolist(),
                mode="lines+markers" if len(known) < len(points) else "lines",
                line={"color": RESTORE_COLOUR[policy], "width": 3 if thick else 2},
                marker={"size": 6},
                hovertemplate=f"{policy}: %{{y:,.1f}} ms at %{{x:,.4g}} GiB/s<extra></extra>",
            )
        )
    for trace in _crosses(points):
        figure.add_trace(trace)
    figure.add_trace(vertical_line(here, low, high, f"set now: {here:,.4g} GiB/s"))
    style_curves(figure, x_title, "time to first token (ms)", 440)
    figure.update_xaxes(**log_ticks(x[0], x[-1]))
    figure.update_yaxes(**log_ticks(low / Y_MARGIN, high * Y_MARGIN))
    return figure


def _crosses(points: pd.DataFrame) -> Iterable[go.Scatter]:
    pairs = (
        ("load-only", "compute-only", "x"),
        ("two-ended", ONE_RESOURCE, "diamond-open"),
        ("layer-wise", "two-ended", "circle-open"),
    )
    for first, second, symbol in pairs:
        if f"{first}_s" not in points:
            continue
        met = policy_crossings(points, first, second)
        if met:
            yield go.Scatter(
                name=f"{first} meets {second}",
                x=[rate for rate, _ in met],
                y=[seconds * 1e3 for _, seconds in met],
                mode="markers",
                marker={"symbol": symbol, "size": 11, "color": LATE_COLOUR},
                hovertemplate=f"{first} = {second} at %{{x:,.3g}} GiB/s: %{{y:,.1f}} ms"
                "<extra></extra>",
            )


def ttft_bars(times_s: Mapping[str, float], base: str) -> go.Figure:
    """Times to first token in the order given, each with its ratio to that of `base`."""
    rows = list(range(len(times_s)))
    texts = [f"{ms(value)} · {value / times_s[base]:.3f} x" for value in times_s.values()]
    figure = go.Figure(
        go.Bar(
            orientation="h",
            x=[value * 1e3 for value in times_s.values()],
            y=rows,
            width=0.72,
            text=texts,
            textposition="auto",
            insidetextanchor="start",
            textangle=0,
            insidetextfont={"color": "white"},
            hovertemplate="%{text}<extra></extra>",
            marker={
                "color": [
                    LATE_COLOUR if name == base else RESTORE_COLOUR["lp"] for name in times_s
                ],
                "line": {"width": 0},
            },
            showlegend=False,
        )
    )
    style_rows(figure, list(times_s), rows)
    figure.update_xaxes(title="time to first token (ms)")
    return figure


def availability_steps(trace: Availability, lanes: Sequence[str], end_s: float) -> go.Figure:
    """How much of each lane there is, from the request until `end_s`."""
    last_s = max([end_s, *(step.start_s * 1.1 for step in trace.steps)])
    figure = go.Figure()
    for lane in lanes:
        times = [0.0, *(step.start_s for step in trace.steps), last_s]
        figure.add_trace(
            go.Scatter(
                name=lane,
                x=[time_s * 1e3 for time_s in times],
                y=[100 * trace.at(time_s, lane) for time_s in times],
                mode="lines",
                line={"color": LANE_COLOUR.get(lane, MUTED), "width": 2.5, "shape": "hv"},
                hovertemplate=f"{lane}: %{{y:.4g}} % from %{{x:,.1f}} ms<extra></extra>",
            )
        )
    style_curves(figure, "time since the request (ms)", "available (%)", 200)
    figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(showlegend=True)
    return figure
