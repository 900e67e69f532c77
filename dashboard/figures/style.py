"""The look that all figures share: colours by meaning, rows from top to bottom, hatching."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from math import ceil, floor, log10

import plotly.graph_objects as go

OP_COLOUR = {
    "embed": "#a3785f",
    "qkv": "#8b79c9",
    "quantise": "#5b8fb0",
    "recompute": "#e07b39",
    "recompute_resident": "#b85c38",
    "place_kv": "#57b894",
    "dequantise": "#2f6f8f",
    "attention": "#2a9d8f",
    "mlp": "#6f8297",
    "head": "#c76b98",
    "load_kv_weights": "#b79ab8",
    "load_weights": "#8d6e97",
    "load_x": "#f0b24a",
    "load_kv": "#3f7fc1",
    "store_kv": "#86b4e3",
    "store_x": "#d8c07a",
    "stage_kv": "#5b8f9e",
    "prefill": "#d9683c",
    "read_kv": "#5cc0b8",
    "read_x": "#e3c46b",
    "fetch_kv": "#4fb3c8",
    "fetch_x": "#cf9a35",
}
"""One colour per operation in every figure, readable on white and on near-black: warm for the
recomputed part (X and what is made of it), blue for K and V that travel, green for their use, plum
for weights that travel."""

OTHER_OP_COLOUR = "#7d8790"

PART_COLOUR = {"compute": "#2a9d8f", "exposed copy": "#d1495b", "idle": "#9aa7b5"}

POLICY_COLOUR = {
    "lp": "#2a9d8f",
    "kvpr": "#8b79c9",
    "load-all": "#3f7fc1",
    "recompute-all": "#e07b39",
}
"""Loading is blue and recomputing orange, as in the timeline; the LP's answer is green."""

RESTORE_COLOUR = {
    "compute-only": "#e07b39",
    "load-only": "#3f7fc1",
    "two-ended": "#8b79c9",
    "lp": "#2a9d8f",
    "layer-wise": "#c9932e",
    "joint": "#c2467d",
}
"""Policies of a restore; as above, loading is blue and computing orange."""

WAY_COLOUR = {"recomputed": "#e07b39", "loaded": "#3f7fc1", "resident": "#9aa7b5"}

LATE_COLOUR = "#d1495b"
MUTED = "#8a96a0"
"""Grid-like marks that must be visible on white and on near-black."""

SHARE_SCALE = [[0.0, "#2f6fb3"], [0.5, "#b9b3ab"], [1.0, "#e07b39"]]
"""From all loaded to all recomputed."""

GAIN_SCALE = [[0.0, "#157a6e"], [0.5, "#7cc4b8"], [1.0, "#e9eef0"]]
"""From a large gain to none."""

ROW_PX = 30
AXIS_PX = 110
CURVE_PX = 380

Box = tuple[float, float, float, float]
"""x0, x1, y0, y1."""


def darker(colour: str) -> str:
    """An edge that parts equal neighbours, and keeps a bar thinner than a pixel in its colour."""
    channels = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(0.8 * channel):02x}" for channel in channels)


def style_rows(figure: go.Figure, labels: Sequence[str], rows: Sequence[float]) -> None:
    """Named rows from top to bottom, of which only the other axis can be zoomed."""
    figure.update_layout(
        barmode="overlay",
        height=round(ROW_PX * (rows[-1] + 1)) + AXIS_PX,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        hoverlabel={"align": "left"},
        dragmode="zoom",
    )
    figure.update_xaxes(showgrid=True, zeroline=False, rangemode="tozero", separatethousands=True)
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(rows),
        ticktext=list(labels),
        range=[rows[-1] + 0.6, -0.6],
        fixedrange=True,
        showgrid=False,
        zeroline=False,
    )


def style_curves(figure: go.Figure, x_title: str, y_title: str, height: int = CURVE_PX) -> None:
    """Curves over a named axis with a legend above."""
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        hoverlabel={"align": "left"},
        dragmode="zoom",
    )
    figure.update_xaxes(title=x_title, zeroline=False, separatethousands=True)
    figure.update_yaxes(title=y_title, zeroline=False, separatethousands=True)


def vertical_line(x: float, low: float, high: float, name: str) -> go.Scatter:
    """A dotted line with an entry in the legend, right on linear and logarithmic axes."""
    return go.Scatter(
        name=name,
        x=[x, x],
        y=[low, high],
        mode="lines",
        line={"color": MUTED, "dash": "dot", "width": 2},
        hoverinfo="skip",
    )


def log_ticks(low: float, high: float) -> dict[str, object]:
    """A logarithmic axis from `low` to `high` with ticks at 1, 2 and 5 times powers of ten."""
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    shown = [tick for tick in ticks if low <= tick <= high]
    return {
        "type": "log",
        "range": [log10(low), log10(high)],
        "tickvals": shown,
        "ticktext": [f"{tick:,g}" for tick in shown],
    }


def hatching(boxes: Iterable[Box], name: str = "outside the calibrated range") -> go.Scatter:
    """Hatched rectangles, one entry of the legend for all of them."""
    outlines = [((x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)) for x0, x1, y0, y1 in boxes]
    corners = list(chain.from_iterable((*outline, (None, None)) for outline in outlines))
    return go.Scatter(
        name=name,
        x=[x for x, _ in corners],
        y=[y for _, y in corners],
        mode="lines",
        fill="toself",
        fillcolor="rgba(0,0,0,0)",
        fillpattern={"shape": "/", "size": 9, "solidity": 0.12, "fgcolor": MUTED},
        line={"width": 0},
        hoverinfo="skip",
    )


def uncalibrated_spans(x: Sequence[float], in_range: Sequence[bool]) -> list[tuple[float, float]]:
    """Stretches of a sampled axis around points outside the calibrated range.

    A stretch reaches from such a point half-way to its calibrated neighbours.
    """
    spans: list[tuple[float, float]] = []
    for at, inside in enumerate(in_range):
        if inside:
            continue
        left = x[at] if at == 0 else (x[at - 1] + x[at]) / 2
        right = x[at] if at == len(x) - 1 else (x[at] + x[at + 1]) / 2
        if spans and spans[-1][1] == left:
            spans[-1] = (spans[-1][0], right)
        else:
            spans.append((left, right))
    return spans
