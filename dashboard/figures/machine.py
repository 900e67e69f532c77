"""What a machine was measured to do: rates over size, and how well they predict later tasks."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10

import pandas as pd
import plotly.graph_objects as go

from dashboard.calibration import RateCurve, Subject
from dashboard.figures.style import MUTED, style_curves

CURVE_COLOURS = ("#2a9d8f", "#8b79c9")
TASK_COLOUR = "#e07b39"
MAX_DOTS = 1_500
FAR_APART = 5
"""Ratio of best rates from which two machines share a logarithmic axis."""


def rate_curves(
    subject: Subject, curves: Sequence[RateCurve], tasks: pd.DataFrame | None = None
) -> go.Figure:
    """The rate of one kind of work over its size, on one machine or on two.

    Samples are dots on the curve that is read between them; a machine without samples is dashed.

    Args:
        tasks: tasks of this work that ran, with columns `x` and `rate`.
    """
    figure = go.Figure()
    if tasks is not None and len(tasks):
        shown = _thinned(tasks)
        figure.add_trace(
            go.Scatter(
                name=f"{len(tasks):,} tasks of the run",
                x=shown["x"].tolist(),
                y=shown["rate"].tolist(),
                mode="markers",
                marker={"color": TASK_COLOUR, "size": 6, "opacity": 0.45},
                hovertemplate=f"%{{x:,.4g}} {subject.x_title}: %{{y:,.3g}} {subject.rate_title}"
                "<extra>a task that ran</extra>",
            )
        )
    for curve, colour in zip(curves, CURVE_COLOURS, strict=False):
        figure.add_trace(
            go.Scatter(
                name=f"{curve.name}, {curve.source}" + ("" if curve.sample_x else ", one rate"),
                x=curve.x,
                y=curve.rate,
                mode="lines",
                line={
                    "color": colour,
                    "width": 2.5,
                    "dash": "solid" if curve.sample_x else "dash",
                },
                hoverinfo="skip" if curve.sample_x else "all",
                hovertemplate=f"%{{x:,.4g}} {subject.x_title}: %{{y:,.3g}} {subject.rate_title}"
                f"<extra>{curve.name}</extra>",
            )
        )
        if curve.sample_x:
            figure.add_trace(
                go.Scatter(
                    name=f"{len(curve.sample_x)} samples",
                    x=curve.sample_x,
                    y=curve.sample_rate,
                    mode="markers",
                    marker={"color": colour, "size": 8, "line": {"color": "white", "width": 1}},
                    hovertemplate=f"%{{x:,.4g}} {subject.x_title}: %{{y:,.3g}} "
                    f"{subject.rate_title}<extra>sample</extra>",
                )
            )
    style_curves(figure, f"size ({subject.x_title})", f"rate ({subject.rate_title})")
    _size_axis(figure, curves)
    if _far_apart(curves):
        figure.update_yaxes(type="log", exponentformat="none", dtick=1)
    else:
        figure.update_yaxes(rangemode="tozero")
    return figure


def residual_dots(subject: Subject, tasks: pd.DataFrame, curves: Sequence[RateCurve]) -> go.Figure:
    """Error of the estimate of each task over its size, on the axis of its `rate_curves`."""
    shown = _thinned(tasks)
    figure = go.Figure()
    for inside, colour, name in (
        (True, TASK_COLOUR, "in the calibrated range"),
        (False, MUTED, "outside it"),
    ):
        part = shown[shown["in_range"] == inside]
        if len(part):
            figure.add_trace(
                go.Scatter(
                    name=name,
                    x=part["x"].tolist(),
                    y=(100 * part["error_frac"]).tolist(),
                    mode="markers",
                    marker={
                        "color": colour,
                        "size": 6,
                        "opacity": 0.5,
                        "symbol": "circle" if inside else "x",
                    },
                    hovertemplate=f"%{{x:,.4g}} {subject.x_title}: %{{y:+.1f}} %<extra></extra>",
                )
            )
    figure.add_hline(y=0, line={"color": MUTED, "width": 1})
    style_curves(figure, f"size ({subject.x_title})", "predicted / measured - 1 (%)", 260)
    _size_axis(figure, curves)
    figure.update_layout(showlegend=True)
    return figure


def _size_axis(figure: go.Figure, curves: Sequence[RateCurve]) -> None:
    """A logarithmic axis over what the curves span."""
    low, high = min(curve.x[0] for curve in curves), max(curve.x[-1] for curve in curves)
    ends = [log10(low) - 0.1, log10(high) + 0.1]
    figure.update_xaxes(type="log", exponentformat="SI", dtick=1, range=ends)


def _far_apart(curves: Sequence[RateCurve]) -> bool:
    """Whether the slowest machine could not be seen beside the fastest."""
    best = [max(curve.rate) for curve in curves]
    return max(best) > FAR_APART * min(best)


def _thinned(tasks: pd.DataFrame) -> pd.DataFrame:
    """At most `MAX_DOTS` tasks, evenly taken."""
    return tasks.iloc[:: -(-len(tasks) // MAX_DOTS)] if len(tasks) > MAX_DOTS else tasks
