"""One plan: which tokens of which layer take which way, and how it compares with others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from dashboard.figures.style import (
    MUTED,
    POLICY_COLOUR,
    SHARE_SCALE,
    WAY_COLOUR,
    hatching,
    style_curves,
    style_rows,
    uncalibrated_spans,
    vertical_line,
)
from planner import PARTS, StepSplit
from planner.decode.plan import Sensitivity
from sim.units import ms, percent

PIXELS_PER_STEP = 22
MAX_MAP_PX = 420


def way_map(steps: Sequence[StepSplit]) -> go.Figure:
    """Layer by step: the share of the past tokens whose K and V are recomputed.

    The hover tells all three ways: recomputed, loaded, resident.
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
            z=[[100 * cell[0] / cell[3] for cell in row] for row in counts],
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
    style_curves(
        figure, "layer", "decode step", min(MAX_MAP_PX, 150 + PIXELS_PER_STEP * len(steps))
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, tickformat="d", dtick=_tick(steps))
    figure.update_xaxes(showgrid=False, tickformat="d")
    return figure


def _tick(steps: Sequence[StepSplit]) -> int:
    return max(1, len(steps) // 8)


def ways_by_layer(step: StepSplit) -> go.Figure:
    """One step: tokens of every layer by how their K and V reach the attention, stacked."""
    figure = go.Figure()
    layers = list(range(len(step.recomputed_tokens)))
    for way, colour in WAY_COLOUR.items():
        counts = list(getattr(step, f"{way}_tokens"))
        if any(counts) or way != "resident":
            figure.add_trace(
                go.Bar(
                    name=way,
                    x=layers,
                    y=counts,
                    marker={"color": colour, "line": {"width": 0}},
                    hovertemplate=f"layer %{{x}}: %{{y:,}} tokens {way}<extra></extra>",
                )
            )
    style_curves(figure, "layer", f"past tokens in step {step.step}", 300)
    figure.update_layout(barmode="stack", bargap=0.15)
    figure.update_xaxes(showgrid=False, tickformat="d")
    return figure


def policy_bars(makespans_s: Mapping[str, float], lower_bound_s: float, chosen: str) -> go.Figure:
    """Makespan of every policy, fastest first, with its ratio to load-all and the lower bound."""
    ordered = sorted(makespans_s, key=makespans_s.__getitem__)
    base_s = makespans_s["load-all"]
    figure = go.Figure(
        go.Bar(
            orientation="h",
            x=[makespans_s[name] * 1e3 for name in ordered],
            y=list(range(len(ordered))),
            width=0.72,
            text=[
                f"{ms(makespans_s[name])} · {makespans_s[name] / base_s:.3f} x load-all"
                for name in ordered
            ],
            textposition="auto",
            insidetextanchor="start",
            textangle=0,
            insidetextfont={"color": "white"},
            hovertemplate="%{text}<extra></extra>",
            marker={
                "color": [POLICY_COLOUR.get(name, MUTED) for name in ordered],
                "line": {"width": 0},
            },
            showlegend=False,
        )
    )
    bound = f"no split is faster than {ms(lower_bound_s)}"
    figure.add_trace(vertical_line(lower_bound_s * 1e3, -0.6, len(ordered) - 0.4, bound))
    labels = [f"<b>{name}</b>" if name == chosen else name for name in ordered]
    style_rows(figure, labels, list(range(len(ordered))))
    figure.update_layout(showlegend=True)
    figure.update_xaxes(title="predicted makespan (ms)")
    return figure


def sensitivity_bars(sensitivities: Sequence[Sensitivity]) -> go.Figure:
    """What 10 % more of each part of the machine saves: by the duals, and solved again."""
    figure = go.Figure()
    rows = list(range(len(sensitivities)))
    for name, colour, values in (
        ("by the duals", "#2a9d8f", [one.saved_by_duals_frac for one in sensitivities]),
        ("solved again", MUTED, [one.saved_frac for one in sensitivities]),
    ):
        figure.add_trace(
            go.Bar(
                name=name,
                orientation="h",
                x=[100 * value for value in values],
                y=rows,
                text=[percent(round(value, 3) + 0.0) for value in values],
                textposition="outside",
                constraintext="none",
                cliponaxis=False,
                hovertemplate=f"{name}: %{{x:.2f}} %<extra></extra>",
                marker={"color": colour, "line": {"width": 0}},
            )
        )
    labels = [" ".join(PARTS[one.part]) for one in sensitivities]
    style_rows(figure, labels, rows)
    figure.update_layout(barmode="group", bargap=0.25)
    figure.update_xaxes(title="part of the makespan saved (%)")
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
        levels: seconds of answers that are no point of this curve, as the LP's with its own split
            for every layer.
    """
    figure = go.Figure()
    tokens = points["tokens"].tolist()
    makespans_ms = (points["makespan_s"] * 1e3).tolist()
    ceiling, floor = max(makespans_ms), min(makespans_ms)
    spans = uncalibrated_spans(tokens, points["in_range"].tolist())
    if spans:
        bottom = min(floor, *(value * 1e3 for value in levels.values())) if levels else floor
        figure.add_trace(hatching((left, right, bottom, ceiling) for left, right in spans))
    figure.add_trace(
        go.Scatter(
            name="same split in every layer",
            x=tokens,
            y=makespans_ms,
            mode="lines",
            line={"color": "#e07b39", "width": 2.5},
            hovertemplate="recompute %{x:,} tokens: %{y:,.1f} ms<extra></extra>",
        )
    )
    for name, seconds in levels.items():
        figure.add_trace(
            go.Scatter(
                name=f"{name}: {ms(seconds)}",
                x=[tokens[0], tokens[-1]],
                y=[seconds * 1e3] * 2,
                mode="lines",
                line={"color": POLICY_COLOUR.get(name, MUTED), "dash": "dash", "width": 1.5},
                hovertemplate=f"{name}: %{{y:,.1f}} ms<extra></extra>",
            )
        )
    for name, (count, seconds) in marks.items():
        figure.add_trace(
            go.Scatter(
                name=f"{name}: {count:,.0f} tokens, {ms(seconds)}",
                x=[count],
                y=[seconds * 1e3],
                mode="markers",
                marker={
                    "color": POLICY_COLOUR.get(name, "#d1495b"),
                    "size": 12,
                    "symbol": "circle" if name in POLICY_COLOUR else "diamond",
                    "line": {"color": "white", "width": 1.5},
                },
                hovertemplate=f"{name}: %{{x:,}} tokens, %{{y:,.1f}} ms<extra></extra>",
            )
        )
    style_curves(figure, "past tokens recomputed in every layer", "predicted makespan (ms)")
    return figure
