"""What a machine was measured to do: rates over size, and how well they predict later tasks."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10

import pandas as pd
import plotly.graph_objects as go

from dashboard.data.calibration import RateCurve, Subject
from dashboard.data.residuals import spread_by_size
from dashboard.figures.style import MUTED, style_curves

CURVE_COLOURS = ("#2a9d8f", "#8b79c9")
TASK_COLOUR = "#e07b39"
MAX_DOTS = 1_500
FAINT = 0.25
FAR_APART = 5
"""Ratio of best rates from which two machines share a logarithmic axis."""


def rate_curves(
    subject: Subject, curves: Sequence[RateCurve], tasks: pd.DataFrame | None = None
) -> go.Figure:
    """The rate of one kind of work over its size, on one machine or on two.

    Medians are dots on the curve that is read between them, with the samples faint around them; a
    machine that was not measured is dashed.

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
        if len(curve.samples):
            hover = f"%{{x:,.4g}} {subject.x_title}: %{{y:,.3g}} {subject.rate_title}"
            figure.add_trace(_sample_dots(curve, colour, curve.samples["rate"], hover))
        figure.add_trace(
            go.Scatter(
                name=f"{curve.name}, {curve.source}" + ("" if curve.point_x else ", one rate"),
                x=curve.x,
                y=curve.rate,
                mode="lines",
                line={
                    "color": colour,
                    "width": 2.5,
                    "dash": "solid" if curve.point_x else "dash",
                },
                hoverinfo="skip" if curve.point_x else "all",
                hovertemplate=f"%{{x:,.4g}} {subject.x_title}: %{{y:,.3g}} {subject.rate_title}"
                f"<extra>{curve.name}</extra>",
            )
        )
        if curve.point_x:
            figure.add_trace(
                go.Scatter(
                    name=f"{len(curve.point_x)} medians",
                    x=curve.point_x,
                    y=curve.point_rate,
                    mode="markers",
                    marker={"color": colour, "size": 8, "line": {"color": "white", "width": 1}},
                    hovertemplate=f"%{{x:,.4g}} {subject.x_title}: %{{y:,.3g}} "
                    f"{subject.rate_title}<extra>median</extra>",
                )
            )
    style_curves(figure, f"size ({subject.x_title})", f"rate ({subject.rate_title})")
    _size_axis(figure, curves)
    if _far_apart(curves):
        figure.update_yaxes(type="log", exponentformat="none", dtick=1)
    else:
        figure.update_yaxes(rangemode="tozero")
    return figure


def sample_residuals(subject: Subject, curves: Sequence[RateCurve]) -> go.Figure:
    """How far each sample lies from its curve over its size, with the spread at each size."""
    figure = go.Figure()
    for curve, colour in zip(curves, CURVE_COLOURS, strict=False):
        if len(curve.samples):
            spread = spread_by_size(curve.samples)
            figure.add_trace(
                go.Scatter(
                    name=f"{curve.name}, 10th to 90th percentile",
                    x=[*spread.index, *spread.index[::-1]],
                    y=[*(100 * spread["high"]), *(100 * spread["low"][::-1])],
                    mode="lines",
                    fill="toself",
                    fillcolor=colour,
                    opacity=FAINT,
                    line={"width": 0},
                    hoverinfo="skip",
                )
            )
            percent = 100 * curve.samples["residual_frac"]
            hover = f"%{{x:,.4g}} {subject.x_title}: %{{y:+.1f}} %"
            figure.add_trace(_sample_dots(curve, colour, percent, hover))
    figure.add_hline(y=0, line={"color": MUTED, "width": 1})
    style_curves(figure, f"size ({subject.x_title})", "sample / curve - 1, of seconds (%)", 260)
    _size_axis(figure, curves)
    figure.update_layout(showlegend=True)
    return figure


def _sample_dots(curve: RateCurve, colour: str, y: pd.Series, hover: str) -> go.Scatter:
    """The samples of a curve, each at its size and its `y`."""
    shown = _thinned(curve.samples.assign(y=y))
    return go.Scatter(
        name=f"{curve.name}, {len(curve.samples):,} samples",
        x=shown["x"].tolist(),
        y=shown["y"].tolist(),
        mode="markers",
        marker={"color": colour, "size": 5, "opacity": FAINT},
        hovertemplate=f"{hover}<extra>a sample</extra>",
    )


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
