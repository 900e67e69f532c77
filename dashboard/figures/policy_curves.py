"""Many plans: how the answer moves with one input, or with two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

import pandas as pd
import plotly.graph_objects as go

from dashboard.figures.style import (
    GAIN_SCALE,
    POLICY_COLOUR,
    SHARE_SCALE,
    Box,
    hatching,
    log_ticks,
    style_curves,
    vertical_line,
)
from dashboard.text.crossovers import crossings

Y_MARGIN = 1.15
"""Room above and below the curves, as a factor."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of a plan that a heat map can show; `column` names it in a table of points."""

    label: str
    column: str
    scale: float
    text: str
    colours: Sequence[Sequence[object]]


MEASURES = (
    Measure("lp / load-all", "lp_of_load_all", 1.0, ".2f", GAIN_SCALE),
    Measure("lp / best of the two extremes", "lp_of_best_extreme", 1.0, ".2f", GAIN_SCALE),
    Measure("makespan of lp (ms)", "lp_s", 1e3, ",.0f", GAIN_SCALE),
    Measure("tokens recomputed by lp (%)", "recomputed_frac", 100.0, ".0f", SHARE_SCALE),
)


def crossover_curves(points: pd.DataFrame, x_title: str, here: float | None) -> go.Figure:
    """Makespan of every policy over one input, and where loading meets recomputing.

    Args:
        points: `x` rising and above 0, `in_range`, and a column `<policy>_s` of each policy.
        x_title: name and unit of the input.
        here: the input as it is set now.
    """
    figure = go.Figure()
    x = points["x"].tolist()
    columns = {name: points[f"{name}_s"] * 1e3 for name in POLICY_COLOUR}
    low, high = (pick(pick(column) for column in columns.values()) for pick in (min, max))
    hatched = [
        (left, right, low, high)
        for (left, right), inside in zip(_log_cells(x), points["in_range"], strict=True)
        if not inside
    ]
    if hatched:
        figure.add_trace(hatching(hatched))
    for name, column in columns.items():
        figure.add_trace(
            go.Scatter(
                name=name,
                x=x,
                y=column.tolist(),
                mode="lines+markers",
                line={"color": POLICY_COLOUR[name], "width": 3 if name == "lp" else 2},
                marker={"size": 5},
                hovertemplate=f"{name}: %{{y:,.1f}} ms at %{{x:,.4g}}<extra></extra>",
            )
        )
    met = crossings(x, columns["load-all"].tolist(), columns["recompute-all"].tolist())
    for meet in met[:1]:
        figure.add_trace(
            go.Scatter(
                name=f"load-all meets recompute-all at {meet[0]:,.3g}",
                x=[meet[0]],
                y=[meet[1]],
                mode="markers",
                marker={"symbol": "x", "size": 11, "color": "#d1495b"},
                hovertemplate="equal at %{x:,.4g}: %{y:,.1f} ms<extra></extra>",
            )
        )
    if here is not None:
        figure.add_trace(vertical_line(here, low, high, f"set now: {here:,.4g}"))
    style_curves(figure, x_title, "predicted makespan (ms)", 440)
    figure.update_xaxes(
        type="log", tickvals=x, ticktext=[f"{value:,.3g}" for value in x], showgrid=False
    )
    figure.update_yaxes(**log_ticks(low / Y_MARGIN, high * Y_MARGIN))
    return figure


def heat_map(points: pd.DataFrame, measure: Measure, x_title: str, y_title: str) -> go.Figure:
    """One measure of the plan over two inputs, each cell with its number.

    Args:
        points: columns `x`, `y`, `in_range` and the measure's; absent cells did not fit.
    """
    columns, rows = (sorted(points[axis].unique().tolist()) for axis in ("x", "y"))
    table = points.pivot(index="y", columns="x", values=measure.column) * measure.scale
    table = table.reindex(index=rows, columns=columns)
    figure = go.Figure(
        go.Heatmap(
            z=[[None if pd.isna(value) else value for value in row] for row in table.to_numpy()],
            x=list(range(len(columns))),
            y=list(range(len(rows))),
            colorscale=measure.colours,
            texttemplate=f"%{{z:{measure.text}}}",
            xgap=1,
            ygap=1,
            colorbar={"title": {"text": measure.label, "side": "right"}, "thickness": 12},
            customdata=[[(x, y) for x in columns] for y in rows],
            hovertemplate=(
                f"%{{customdata[0]:,.4g}} {x_title}<br>%{{customdata[1]:,.4g}} {y_title}"
                f"<br>{measure.label}: %{{z:{measure.text}}}<extra></extra>"
            ),
        )
    )
    outside: list[Box] = [
        (columns.index(x) - 0.5, columns.index(x) + 0.5, rows.index(y) - 0.5, rows.index(y) + 0.5)
        for x, y, inside in zip(points["x"], points["y"], points["in_range"], strict=True)
        if not inside
    ]
    if outside:
        figure.add_trace(hatching(outside))
    style_curves(figure, x_title, y_title, 110 + 40 * max(6, len(rows)))
    for axis, values in ((figure.update_xaxes, columns), (figure.update_yaxes, rows)):
        axis(
            tickvals=list(range(len(values))),
            ticktext=[f"{value:,.4g}" for value in values],
            showgrid=False,
            range=[-0.5, len(values) - 0.5],
        )
    return figure


def _log_cells(x: Sequence[float]) -> list[tuple[float, float]]:
    """The stretch around each point of an axis that rises by factors."""
    edges = [x[0], *(sqrt(a * b) for a, b in pairwise(x)), x[-1]]
    return list(pairwise(edges))
