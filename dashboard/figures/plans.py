"""One plan: recomputed, loaded and resident tokens of each layer, and its time against others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from dashboard.figures.style import (
    ALERT_COLOUR,
    BAR_PART,
    MUTED,
    POLICY_COLOUR,
    SHARE_SCALE,
    SPLIT_COLOUR,
    bars,
    columns,
    dots,
    hatching,
    line,
    style_curves,
    style_rows,
    time_bars,
    uncalibrated_spans,
)
from planner import PART_NAMES, StepSplit
from planner.decode.plan import Sensitivity
from sim.units import ms, percent

PIXELS_PER_STEP = 22
MAX_MAP_PX = 420
LABEL_ROOM = 1.2
"""Length of the axis over that of the longest bar, so that its label fits after it."""


def split_map(steps: Sequence[StepSplit]) -> go.Figure:
    """Recomputed share of the past tokens by layer and step, with all counts in the hover.

    A layer that reads no rows, such as one with a linear state, is left blank.
    """
    counts = [
        list(
            zip(
                step.recomputed_tokens,
                step.loaded_tokens,
                step.resident_tokens,
                step.layer_tokens,
                strict=True,
            )
        )
        for step in steps
    ]
    figure = go.Figure(
        go.Heatmap(
            z=[[100 * cell[0] / cell[3] if cell[3] else None for cell in row] for row in counts],
            x=list(range(len(steps[0].recomputed_tokens))),
            y=[step.step for step in steps],
            customdata=counts,
            colorscale=SHARE_SCALE,
            zmin=0,
            zmax=100,
            xgap=1,
            ygap=1,
            colorbar={"title": {"text": "recomputed (%)", "side": "right"}, "thickness": 12},
            hovertemplate=(
                "layer %{x}, step %{y}<br>%{customdata[0]:,} tokens recomputed"
                "<br>%{customdata[1]:,} loaded<br>%{customdata[2]:,} resident"
                "<br>of %{customdata[3]:,} past tokens<extra></extra>"
            ),
        )
    )
    whole = {"showgrid": False, "tickformat": "d"}
    y_axis = {"autorange": "reversed", "dtick": _tick(steps), **whole}
    height = min(MAX_MAP_PX, 150 + PIXELS_PER_STEP * len(steps))
    style_curves(figure, "layer", "decode step", whole, y_axis, height=height)
    return figure


def _tick(steps: Sequence[StepSplit]) -> int:
    return max(1, len(steps) // 8)


def split_by_layer(step: StepSplit) -> go.Figure:
    """Recomputed, loaded and resident tokens of every layer in one step, stacked."""
    figure = go.Figure()
    for way, colour in SPLIT_COLOUR.items():
        counts = list(getattr(step, f"{way}_tokens"))
        if any(counts) or way != "resident":
            hover = f"layer %{{x}}: %{{y:,}} tokens {way}"
            figure.add_trace(columns(way, counts, colour, hover))
    x_axis, y_title = {"showgrid": False, "tickformat": "d"}, f"past tokens in step {step.step}"
    style_curves(figure, "layer", y_title, x_axis, height=300, barmode="stack", bargap=0.15)
    return figure


def policy_bars(
    makespans_s: Mapping[str, float], lower_bound_s: float | None, chosen: str
) -> go.Figure:
    """Makespan of every policy, fastest first, with its speed-up.

    A line marks the lower bound, interrupted by the bars, whose labels it would cross.
    """
    ordered = sorted(makespans_s, key=makespans_s.__getitem__)
    figure = time_bars(
        {name: makespans_s[name] for name in ordered},
        "load-all",
        [POLICY_COLOUR.get(name, MUTED) for name in ordered],
        "predicted makespan (ms)",
        [f"<b>{name}</b>" if name == chosen else name for name in ordered],
        showlegend=True,
    )
    if lower_bound_s is not None:
        bound = f"no split is faster than {ms(lower_bound_s)}"
        half = BAR_PART / 2
        y: list[float | None] = []
        for row in range(len(ordered) + 1):
            y += [row - 1 + half, row - half, None]
        x = [None if one is None else lower_bound_s * 1e3 for one in y]
        figure.add_trace(line(bound, x, y, color=MUTED, dash="dot"))
    return figure


def sensitivity_bars(sensitivities: Sequence[Sensitivity]) -> go.Figure:
    """Time saved by 10 % more of each part of the machine: by the duals, and solved again."""
    figure = go.Figure()
    rows = list(range(len(sensitivities)))
    for name, colour, values in (
        (
            "estimated by the LP",
            POLICY_COLOUR["lp"],
            [one.saved_by_duals_frac for one in sensitivities],
        ),
        ("checked by planning again", MUTED, [one.saved_frac for one in sensitivities]),
    ):
        figure.add_trace(
            bars(
                name,
                [100 * value for value in values],
                rows,
                colour,
                f"{name}: %{{x:.2f}} %",
                text=[percent(round(value, 3) + 0.0) for value in values],
                textposition="outside",
                constraintext="none",
                cliponaxis=False,
            )
        )
    labels = [" ".join(PART_NAMES[one.part]) for one in sensitivities]
    values = [one for bar in figure.data for one in bar.x]
    ends = [min(0.0, *values), LABEL_ROOM * max(1.0, *values)]
    x_axis = {"title": "part of the makespan saved (%)", "range": ends}
    style_rows(figure, labels, rows, x_axis, barmode="group", bargap=0.25)
    return figure


def split_curve(
    points: pd.DataFrame,
    marks: Mapping[str, tuple[float, float]],
    levels: Mapping[str, float],
) -> go.Figure:
    """Makespan over the tokens that every layer recomputes.

    Args:
        points: columns `tokens`, `makespan_s` and `in_range`, by rising tokens.
        marks: tokens and seconds of named points.
        levels: seconds of plans that are no point of this curve, such as the LP's.
    """
    figure = go.Figure()
    tokens = points["tokens"].tolist()
    makespans_ms = (points["makespan_s"] * 1e3).tolist()
    ceiling, floor = max(makespans_ms), min(makespans_ms)
    spans = uncalibrated_spans(tokens, points["in_range"].tolist())
    if spans:
        bottom = min(floor, *(value * 1e3 for value in levels.values())) if levels else floor
        figure.add_trace(hatching((left, right, bottom, ceiling) for left, right in spans))
    name, hover = "same split in every layer", "recompute %{x:,} tokens: %{y:,.1f} ms"
    figure.add_trace(line(name, tokens, makespans_ms, hover, color="#e07b39", width=2.5))
    for name, seconds in levels.items():
        figure.add_trace(
            line(
                f"{name}: {ms(seconds)}",
                [tokens[0], tokens[-1]],
                [seconds * 1e3] * 2,
                f"{name}: %{{y:,.1f}} ms",
                color=POLICY_COLOUR.get(name, MUTED),
                dash="dash",
                width=1.5,
            )
        )
    for name, (count, seconds) in marks.items():
        figure.add_trace(
            dots(
                f"{name}: {count:,.0f} tokens, {ms(seconds)}",
                [count],
                [seconds * 1e3],
                f"{name}: %{{x:,}} tokens, %{{y:,.1f}} ms",
                color=POLICY_COLOUR.get(name, ALERT_COLOUR),
                size=12,
                symbol="circle" if name in POLICY_COLOUR else "diamond",
                line={"color": "white", "width": 1.5},
            )
        )
    style_curves(figure, "past tokens recomputed in every layer", "predicted makespan (ms)")
    return figure
