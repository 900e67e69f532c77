"""How far predictions are off, over many cases."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from dashboard.figures.style import (
    LATE_COLOUR,
    MUTED,
    POLICY_COLOUR,
    RESTORE_COLOUR,
    log_ticks,
    style_curves,
    style_rows,
)
from sim.results.accuracy import CaseAccuracy
from sim.units import ms, percent

FIXED = "fixed split"
COLOURS = {**POLICY_COLOUR, **RESTORE_COLOUR}
"""Of the policies of decodes and of restores."""

OURS_COLOUR = "#2a9d8f"
NAIVE_COLOUR = "#b98ac9"
MARGIN = 1.25
"""Room around the outermost cases of the scatter, as a factor."""


def predicted_against_measured(cases: Sequence[CaseAccuracy]) -> go.Figure:
    """One dot for each case on two equal logarithmic axes, with the widest tolerance as a band.

    Cases out of their own tolerance have a red edge.
    """
    values = [v for case in cases for v in (case.predicted_makespan_s, case.measured_makespan_s)]
    low, high = min(values) * 1e3 / MARGIN, max(values) * 1e3 * MARGIN
    widest = max(case.tolerance_frac for case in cases)
    figure = go.Figure()
    figure.add_trace(
        go.Scatter(
            name=f"within {percent(widest)}",
            x=[low, high, high, low],
            y=[low * (1 - widest), high * (1 - widest), high * (1 + widest), low * (1 + widest)],
            mode="lines",
            line={"width": 0},
            fill="toself",
            fillcolor="rgba(42,157,143,0.14)",
            hoverinfo="skip",
        )
    )
    figure.add_trace(
        go.Scatter(
            name="predicted = measured",
            x=[low, high],
            y=[low, high],
            mode="lines",
            line={"color": MUTED, "width": 1.5, "dash": "dot"},
            hoverinfo="skip",
        )
    )
    for policy in (*COLOURS, FIXED):
        group = [case for case in cases if _kind(case.policy) == policy]
        if group:
            figure.add_trace(_dots(policy, group))
    style_curves(figure, "measured makespan (ms)", "predicted makespan (ms)", 480)
    figure.update_xaxes(**log_ticks(low, high))
    figure.update_yaxes(**log_ticks(low, high))
    return figure


def _kind(policy: str) -> str:
    return policy if policy in COLOURS else FIXED


def _dots(policy: str, group: Sequence[CaseAccuracy]) -> go.Scatter:
    return go.Scatter(
        name=policy,
        x=[case.measured_makespan_s * 1e3 for case in group],
        y=[case.predicted_makespan_s * 1e3 for case in group],
        mode="markers",
        marker={
            "color": COLOURS.get(policy, MUTED),
            "size": 10,
            "line": {
                "color": ["white" if case.passed else LATE_COLOUR for case in group],
                "width": [1 if case.passed else 3 for case in group],
            },
        },
        hovertext=[_hover(case) for case in group],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _hover(case: CaseAccuracy) -> str:
    return "<br>".join(
        [
            f"<b>{case.name}</b>",
            f"{case.model}, batch {case.batch_size}, prompt {case.prompt_tokens:,}, {case.policy}",
            f"predicted {ms(case.predicted_makespan_s)}, measured {ms(case.measured_makespan_s)}, "
            f"{percent(case.makespan_error_frac, signed=True)}",
            f"spread {percent(case.spread_frac)}, tolerance {percent(case.tolerance_frac)}",
        ]
    )


def errors_by_case(cases: Sequence[CaseAccuracy]) -> go.Figure:
    """Signed makespan error of each case, ours beside that of `max(copy, compute)`.

    A grey bar spans each case's tolerance, the line through our mark the spread of the repeats.
    """
    rows = list(range(len(cases)))
    figure = go.Figure()
    figure.add_trace(
        go.Bar(
            name="tolerance",
            orientation="h",
            base=[-100 * case.tolerance_frac for case in cases],
            x=[200 * case.tolerance_frac for case in cases],
            y=rows,
            width=0.7,
            marker={"color": "rgba(138,150,160,0.22)", "line": {"width": 0}},
            hovertemplate="tolerance +-%{customdata:.1f} %<extra></extra>",
            customdata=[100 * case.tolerance_frac for case in cases],
        )
    )
    figure.add_trace(
        go.Scatter(
            name="max(copy, compute)",
            x=[100 * case.naive_error_frac for case in cases],
            y=rows,
            mode="markers",
            marker={"color": NAIVE_COLOUR, "symbol": "diamond-open", "size": 9},
            hovertemplate="max(copy, compute): %{x:+.1f} %<extra></extra>",
        )
    )
    figure.add_trace(
        go.Scatter(
            name="simulated, with the repeats' spread",
            x=[100 * case.makespan_error_frac for case in cases],
            y=rows,
            mode="markers",
            error_x={
                "array": [50 * case.spread_frac for case in cases],
                "color": MUTED,
                "thickness": 2,
                "width": 3,
            },
            marker={
                "color": [OURS_COLOUR if case.passed else LATE_COLOUR for case in cases],
                "size": 9,
            },
            hovertext=[_hover(case) for case in cases],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    )
    style_rows(figure, [case.name.rpartition("/")[2] for case in cases], rows or [0])
    figure.update_layout(height=110 + 22 * len(cases))
    figure.add_vline(x=0, line={"color": MUTED, "width": 1})
    figure.update_xaxes(title="predicted / measured - 1 (%)", rangemode="normal")
    return figure
