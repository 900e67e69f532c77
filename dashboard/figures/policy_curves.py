"""Many plans: predicted times over one input, or one measure over two."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

import pandas as pd
import plotly.graph_objects as go

from dashboard.figures.style import (
    ALERT_COLOUR,
    GAIN_SCALE,
    POLICY_COLOUR,
    RESTORE_COLOUR,
    SHARE_SCALE,
    Box,
    Settings,
    dots,
    hatching,
    line,
    log_ticks,
    style_curves,
    vertical_line,
)
from dashboard.text.crossovers import ONE_RESOURCE, intervals, policy_crossings
from planner.crossovers import crossings

Y_MARGIN = 1.15
"""Factor between the curves and the ends of the axis."""

HEADROOM = 2.5
"""Top of the axis over the slowest two-ended restore; slower policies are cut off."""

CROSS = {"symbol": "x", "size": 11, "color": ALERT_COLOUR}


@dataclass(frozen=True, slots=True)
class Measure:
    """One value of a plan that a heat map can show; `column` names it in a table of grid points."""

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
    """Makespan of every policy over one input, with the crossover of load-all and recompute-all.

    Args:
        points: `x` rising and above 0, `in_range`, and a column `<policy>_s` of each policy.
        x_title: name and unit of the input, such as `link to the device (GB/s)`.
        here: the current value of the input.
    """
    x, unit = points["x"].tolist(), x_title.partition("(")[2].rstrip(")")
    curves = {name: (x, (points[f"{name}_s"] * 1e3).tolist()) for name in POLICY_COLOUR}
    times = [value for _, column in curves.values() for value in column]
    span = min(times), max(times)
    hatched = [
        (left, right, *span)
        for (left, right), inside in zip(_log_cells(x), points["in_range"], strict=True)
        if not inside
    ]
    figure = go.Figure([hatching(hatched)] if hatched else [])
    _add_policies(figure, curves, POLICY_COLOUR, "lp")
    figure.update_traces(mode="lines+markers", marker={"size": 5}, selector={"mode": "lines"})
    for at_x, at_ms in crossings(x, curves["load-all"][1], curves["recompute-all"][1])[:1]:
        name, hover = (
            f"load-all meets recompute-all at {at_x:,.3g} {unit}",
            "equal at %{x:,.4g}: %{y:,.1f} ms",
        )
        figure.add_trace(dots(name, [at_x], [at_ms], hover, **CROSS))
    if here is not None:
        figure.add_trace(vertical_line(here, *span, f"set now: {here:,.4g} {unit}"))
    labels = [f"{value:,.3g}" for value in x]
    x_axis = {"type": "log", "tickvals": x, "ticktext": labels, "showgrid": False}
    _style(figure, x_title, "predicted makespan (ms)", x_axis, span)
    return figure


def ttft_curves(points: pd.DataFrame, x_title: str, here: float) -> go.Figure:
    """Time to first token of every policy over the rate at which the cached prefix is loaded.

    Crosses mark where load-only meets compute-only, where `two-ended` meets the faster of them,
    and where `layer-wise` meets `two-ended`. The hatched rates are where `two-ended` is slower
    than loading only or computing only.

    Args:
        points: `gib_per_s` rising, and `<policy>_s`, empty where a policy was not planned.
        here: the current rate in GiB/s.
    """
    policies = [policy for policy in RESTORE_COLOUR if f"{policy}_s" in points]
    times = points[[f"{policy}_s" for policy in policies]] * 1e3
    top = min(float(times.max().max()), HEADROOM * float(times["two-ended_s"].max()))
    span = float(times.min().min()), top
    lost = intervals(points, ONE_RESOURCE, "two-ended")
    hatched = [(one.low, one.high, *span) for one in lost]
    label = "two-ended loses to one resource alone"
    figure = go.Figure([hatching(hatched, label)] if hatched else [])
    planned = {policy: points.dropna(subset=f"{policy}_s") for policy in policies}
    curves = {
        policy: (rows["gib_per_s"].tolist(), (rows[f"{policy}_s"] * 1e3).tolist())
        for policy, rows in planned.items()
    }
    _add_policies(figure, curves, RESTORE_COLOUR, "joint", " GiB/s")
    for policy, rows in planned.items():
        if len(rows) < len(points):
            look = {"mode": "lines+markers", "marker": {"size": 6}}
            figure.update_traces(look, selector={"name": policy})
    for trace in _crosses(points):
        figure.add_trace(trace)
    figure.add_trace(vertical_line(here, *span, f"set now: {here:,.4g} GiB/s"))
    rates = points["gib_per_s"].tolist()
    x_axis = log_ticks(rates[0], rates[-1])
    _style(figure, x_title, "time to first token (ms)", x_axis, span)
    return figure


def _crosses(points: pd.DataFrame) -> Iterable[go.Scatter]:
    pairs = (
        ("load-only", "compute-only", "x"),
        ("two-ended", ONE_RESOURCE, "diamond-open"),
        ("layer-wise", "two-ended", "circle-open"),
    )
    for first, second, symbol in pairs:
        met = policy_crossings(points, first, second) if f"{first}_s" in points else []
        if met:
            rates, times_ms = zip(*((rate, seconds * 1e3) for rate, seconds in met), strict=True)
            hover = f"{first} = {second} at %{{x:,.3g}} GiB/s: %{{y:,.1f}} ms"
            look = {**CROSS, "symbol": symbol}
            yield dots(f"{first} meets {second}", rates, times_ms, hover, **look)


def _add_policies(
    figure: go.Figure,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    colours: Mapping[str, str],
    bold: str,
    x_unit: str = "",
) -> None:
    """Add one line of milliseconds for each policy."""
    for name, (x, y) in curves.items():
        hover = f"{name}: %{{y:,.1f}} ms at %{{x:,.4g}}{x_unit}"
        width = 3 if name == bold else 2
        figure.add_trace(line(name, x, y, hover, color=colours[name], width=width))


def _style(
    figure: go.Figure, x_title: str, y_title: str, x_axis: Settings, span: tuple[float, float]
) -> None:
    y_axis = log_ticks(span[0] / Y_MARGIN, span[1] * Y_MARGIN)
    style_curves(figure, x_title, y_title, x_axis, y_axis, height=440)


def heat_map(points: pd.DataFrame, measure: Measure, x_title: str, y_title: str) -> go.Figure:
    """One measure of the plan over two inputs, with its value in each cell.

    Args:
        points: columns `x`, `y`, `in_range` and the measure's; points that do not fit are absent.
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
    axes = [
        {
            "tickvals": list(range(len(values))),
            "ticktext": [f"{value:,.4g}" for value in values],
            "showgrid": False,
            "range": [-0.5, len(values) - 0.5],
        }
        for values in (columns, rows)
    ]
    style_curves(figure, x_title, y_title, *axes, height=110 + 40 * max(6, len(rows)))
    return figure


def _log_cells(x: Sequence[float]) -> list[tuple[float, float]]:
    """The interval around each point of a logarithmic axis."""
    edges = [x[0], *(sqrt(a * b) for a, b in pairwise(x)), x[-1]]
    return list(pairwise(edges))
