"""Prediction errors of many cases."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from dashboard.figures.style import (
    ALERT_COLOUR,
    MUTED,
    POLICY_COLOUR,
    RESTORE_COLOUR,
    area,
    bars,
    dots,
    line,
    log_ticks,
    rule,
    style_curves,
    style_rows,
)
from sim.results.accuracy import CaseAccuracy
from sim.units import ms, percent

FIXED = "fixed split"
COLOURS = {**POLICY_COLOUR, **RESTORE_COLOUR}
"""Of the policies of decodes and of restores."""

OURS_COLOUR = POLICY_COLOUR["lp"]
NAIVE_COLOUR = POLICY_COLOUR["kvpr"]
BAND_COLOUR = "rgba(42,157,143,0.14)"
CASE_PX = 18
MARGIN = 1.25
"""Factor between the outermost cases and the ends of the axes."""


def predicted_against_measured(cases: Sequence[CaseAccuracy]) -> go.Figure:
    """Predicted over measured makespan on log axes, with the widest tolerance as a band.

    Cases outside their own tolerance have a red edge.
    """
    values = [v for case in cases for v in (case.predicted_makespan_s, case.measured_makespan_s)]
    low, high = min(values) * 1e3 / MARGIN, max(values) * 1e3 * MARGIN
    widest = max(case.tolerance_frac for case in cases)
    below, above = 1 - widest, 1 + widest
    band = [low * below, high * below, high * above, low * above]
    figure = go.Figure(
        [
            area(f"within {percent(widest)}", [low, high, high, low], band, BAND_COLOUR),
            line("predicted = measured", [low, high], [low, high], color=MUTED, dash="dot"),
        ]
    )
    for policy in (*COLOURS, FIXED):
        group = [case for case in cases if _kind(case.policy) == policy]
        if group:
            figure.add_trace(_dots(policy, group))
    titles, axis = ("measured makespan (ms)", "predicted makespan (ms)"), log_ticks(low, high)
    style_curves(figure, *titles, axis, axis, height=480)
    return figure


def _kind(policy: str) -> str:
    return policy if policy in COLOURS else FIXED


def _dots(policy: str, group: Sequence[CaseAccuracy]) -> go.Scatter:
    drawn = dots(
        policy,
        [case.measured_makespan_s * 1e3 for case in group],
        [case.predicted_makespan_s * 1e3 for case in group],
        "%{hovertext}",
        color=COLOURS.get(policy, MUTED),
        size=10,
        line={
            "color": ["white" if case.passed else ALERT_COLOUR for case in group],
            "width": [1 if case.passed else 3 for case in group],
        },
    )
    drawn.hovertext = [_hover(case) for case in group]
    return drawn


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
    """Signed makespan error of each case: simulated, and of `max(copy, compute)`.

    A grey bar spans each case's tolerance; the error bar spans the spread of the repeats.
    """
    rows = list(range(len(cases)))
    tolerance = bars(
        "tolerance",
        [200 * case.tolerance_frac for case in cases],
        rows,
        "rgba(138,150,160,0.22)",
        "tolerance +-%{customdata:.1f} %",
        base=[-100 * case.tolerance_frac for case in cases],
        customdata=[100 * case.tolerance_frac for case in cases],
        width=0.7,
    )
    naive = dots(
        "max(copy, compute)",
        [100 * case.naive_error_frac for case in cases],
        rows,
        "max(copy, compute): %{x:+.1f} %",
        color=NAIVE_COLOUR,
        symbol="diamond-open",
        size=9,
    )
    ours = dots(
        "simulated, with the spread of the repeats",
        [100 * case.makespan_error_frac for case in cases],
        rows,
        "%{hovertext}",
        color=[OURS_COLOUR if case.passed else ALERT_COLOUR for case in cases],
        size=9,
    )
    ours.hovertext = [_hover(case) for case in cases]
    spread = [50 * case.spread_frac for case in cases]
    ours.error_x = {"array": spread, "color": MUTED, "thickness": 2, "width": 3}
    figure = go.Figure([tolerance, naive, ours])
    style_rows(
        figure,
        [case.name.rpartition("/")[2] for case in cases],
        rows or [0],
        {"title": "prediction error (%)", "rangemode": "normal"},
        height=110 + CASE_PX * len(cases),
        shapes=[rule("x", 0, width=1)],
    )
    return figure
