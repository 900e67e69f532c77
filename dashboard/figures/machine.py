"""Rates of a machine over the size of the work, and the errors of its samples and tasks."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10

import pandas as pd
import plotly.graph_objects as go

from dashboard.data.calibration import RateCurve, Subject
from dashboard.data.residuals import spread_by_size
from dashboard.figures.style import MUTED, POLICY_COLOUR, area, dots, line, rule, style_curves

CURVE_COLOURS = (POLICY_COLOUR["lp"], POLICY_COLOUR["kvpr"])
TASK_COLOUR = "#e07b39"
MAX_DOTS = 1_500
FAINT = 0.25
FAR_APART = 5
"""Ratio of best rates from which two machines share a logarithmic axis."""


def rate_curves(
    subject: Subject, curves: Sequence[RateCurve], tasks: pd.DataFrame | None = None
) -> go.Figure:
    """The rate of one kind of work over its size, on one machine or on two.

    Dots on a curve are its medians, faint dots its samples. A machine without measurements is
    dashed.

    Args:
        tasks: tasks of this work that ran, with columns `x` and `rate`.
    """
    figure = go.Figure()
    hover = f"%{{x:,.4g}} {subject.x_title}: %{{y:,.3g}} {subject.rate_title}"
    if tasks is not None and len(tasks):
        name = f"{len(tasks):,} tasks of the run"
        look = {"color": TASK_COLOUR, "size": 6, "opacity": 0.45}
        figure.add_trace(_dots(name, tasks, "rate", f"{hover}<extra>a task that ran</extra>", look))
    for curve, colour in zip(curves, CURVE_COLOURS, strict=False):
        if len(curve.samples):
            figure.add_trace(_sample_dots(curve, colour, curve.samples["rate"], hover))
        measured = bool(curve.point_x)
        figure.add_trace(
            line(
                f"{curve.name}, {curve.source}" + ("" if measured else ", one rate"),
                curve.x,
                curve.rate,
                "" if measured else f"{hover}<extra>{curve.name}</extra>",
                color=colour,
                width=2.5,
                dash="solid" if measured else "dash",
            )
        )
        if measured:
            figure.add_trace(
                dots(
                    f"{len(curve.point_x)} medians",
                    curve.point_x,
                    curve.point_rate,
                    f"{hover}<extra>median</extra>",
                    color=colour,
                    size=8,
                    line={"color": "white", "width": 1},
                )
            )
    y_axis: dict[str, object] = {"rangemode": "tozero"}
    if _far_apart(curves):
        y_axis = {"type": "log", "exponentformat": "none", "dtick": 1}
    titles = f"size ({subject.x_title})", f"rate ({subject.rate_title})"
    style_curves(figure, *titles, _size_axis(curves), y_axis)
    return figure


def sample_residuals(subject: Subject, curves: Sequence[RateCurve]) -> go.Figure:
    """Error of each sample against its curve, over its size, with the spread at each size."""
    figure = go.Figure()
    for curve, colour in zip(curves, CURVE_COLOURS, strict=False):
        if len(curve.samples):
            spread = spread_by_size(curve.samples)
            band = area(
                f"{curve.name}, 10th to 90th percentile",
                [*spread.index, *spread.index[::-1]],
                [*(100 * spread["high"]), *(100 * spread["low"][::-1])],
                colour,
            )
            band.opacity = FAINT
            figure.add_trace(band)
            percent = 100 * curve.samples["residual_frac"]
            hover = f"%{{x:,.4g}} {subject.x_title}: %{{y:+.1f}} %"
            figure.add_trace(_sample_dots(curve, colour, percent, hover))
    return _residual_axes(figure, subject, curves, "sample / curve - 1 (%)")


def _residual_axes(
    figure: go.Figure, subject: Subject, curves: Sequence[RateCurve], y_title: str
) -> go.Figure:
    style_curves(
        figure,
        f"size ({subject.x_title})",
        y_title,
        _size_axis(curves),
        height=260,
        showlegend=True,
        shapes=[rule("y", 0, width=1)],
    )
    return figure


def _sample_dots(curve: RateCurve, colour: str, y: pd.Series, hover: str) -> go.Scatter:
    """The samples of a curve, each at its size and its `y`."""
    name, look = f"{curve.name}, {len(curve.samples):,} samples", {"color": colour, "size": 5}
    samples = curve.samples.assign(y=y)
    return _dots(name, samples, "y", f"{hover}<extra>a sample</extra>", {**look, "opacity": FAINT})


def _dots(
    name: str, table: pd.DataFrame, column: str, hover: str, look: dict[str, object]
) -> go.Scatter:
    """A column over `x`, thinned to at most `MAX_DOTS` rows."""
    shown = _thinned(table)
    return dots(name, shown["x"].tolist(), shown[column].tolist(), hover, **look)


def residual_dots(subject: Subject, tasks: pd.DataFrame, curves: Sequence[RateCurve]) -> go.Figure:
    """Error of the estimate of each task over its size, on the axis of its `rate_curves`."""
    shown = _thinned(tasks)
    shown = shown.assign(percent=100 * shown["error_frac"])
    hover = f"%{{x:,.4g}} {subject.x_title}: %{{y:+.1f}} %"
    figure = go.Figure()
    for inside, colour, name, symbol in (
        (True, TASK_COLOUR, "in the calibrated range", "circle"),
        (False, MUTED, "outside the calibrated range", "x"),
    ):
        part = shown[shown["in_range"] == inside]
        if len(part):
            look = {"color": colour, "size": 6, "opacity": 0.5, "symbol": symbol}
            figure.add_trace(_dots(name, part, "percent", hover, look))
    return _residual_axes(figure, subject, curves, "predicted / measured - 1 (%)")


def _size_axis(curves: Sequence[RateCurve]) -> dict[str, object]:
    """A logarithmic axis over what the curves span."""
    low, high = min(curve.x[0] for curve in curves), max(curve.x[-1] for curve in curves)
    ends = [log10(low) - 0.1, log10(high) + 0.1]
    return {"type": "log", "exponentformat": "SI", "dtick": 1, "range": ends}


def _far_apart(curves: Sequence[RateCurve]) -> bool:
    """Whether a linear axis would hide the slower machine."""
    best = [max(curve.rate) for curve in curves]
    return max(best) > FAR_APART * min(best)


def _thinned(tasks: pd.DataFrame) -> pd.DataFrame:
    """At most `MAX_DOTS` rows, evenly spaced."""
    return tasks.iloc[:: -(-len(tasks) // MAX_DOTS)] if len(tasks) > MAX_DOTS else tasks
