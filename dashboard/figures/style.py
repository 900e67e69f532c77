"""Colours, axes and traces that all figures share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import ceil, floor, log10
from textwrap import wrap
from typing import Literal

import plotly.graph_objects as go

from sim.units import ms

OP_COLOUR = {
    "embed": "#b58263",
    "qkv": "#9380d7",
    "quantise": "#628c9b",
    "recompute": "#d56916",
    "recompute_resident": "#9a412b",
    "place_kv": "#5ebd99",
    "dequantise": "#355f70",
    "attention": "#1a7d6a",
    "mlp": "#43749e",
    "head": "#ea8aca",
    "load_kv_weights": "#b69fba",
    "load_weights": "#8e6f96",
    "load_x": "#e9ab49",
    "load_kv": "#287cc0",
    "store_kv": "#73b1dd",
    "store_x": "#cdb46f",
    "stage_kv": "#5b8f9e",
    "prefill": "#c46035",
    "read_kv": "#49bbb5",
    "read_x": "#d3b35c",
    "fetch_kv": "#5cb6c7",
    "fetch_x": "#ca942b",
}
"""One colour per operation in every figure, readable on white and on near-black: warm for
recomputation, blue for copies of K and V, green for attention, plum for copies of weights.

Operations of one lane stay distinct in deuteranopia and protanopia; a test computes the distances.
"""

OTHER_OP_COLOUR = "#7d8790"

BREAKDOWN_COLOUR = {"compute": "#2f8d76", "exposed copy": "#c43952", "idle": "#9ca8b4"}

POLICY_COLOUR = {
    "lp": "#51af9b",
    "kvpr": "#9786df",
    "load-all": "#3a73ad",
    "recompute-all": "#e37f48",
}
"""Loading is blue and recomputing orange, as in the timeline; the LP's answer is green."""

RESTORE_COLOUR = {
    "compute-only": "#a8441c",
    "load-only": "#89b7e5",
    "two-ended": "#7848cf",
    "lp": POLICY_COLOUR["lp"],
    "layer-wise": "#c08b05",
    "joint": "#b3366c",
}
"""Policies of a restore; as above, loading is blue and computing orange."""

PHASE_COLOUR = {
    "queue": "#9ca8b4",
    "restore": OP_COLOUR["load_kv"],
    "prefill": OP_COLOUR["recompute"],
    "decode": OP_COLOUR["attention"],
}
"""Phases of a request in a service, and work of its lanes."""

SPLIT_COLOUR = {"recomputed": "#d36813", "loaded": "#2577bc", "resident": "#9ba8b8"}

ALERT_COLOUR = "#c43d0a"
"""What needs attention, such as a case out of tolerance; a label says the same."""

MUTED = "#8a96a0"
"""Grid-like marks that must be visible on white and on near-black."""

SHARE_SCALE = [[0.0, "#2f6fb3"], [0.5, "#b9b3ab"], [1.0, "#e07b39"]]
"""From all loaded to all recomputed."""

GAIN_SCALE = [[0.0, "#157a6e"], [0.5, "#7cc4b8"], [1.0, "#e9eef0"]]
"""From a large gain to none."""

ROW_PX, BAR_PART = 30, 0.72
AXIS_PX = 110
CURVE_PX = 380

LAYOUT = {
    "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
    "legend": {
        "orientation": "h",
        "x": 0,
        "y": 1.02,
        "yanchor": "bottom",
        "traceorder": "normal",
        "bgcolor": "rgba(0, 0, 0, 0)",
    },
    "hoverlabel": {"align": "left"},
    "dragmode": "zoom",
}

PHONE_LEGEND = {
    "font": {"size": 10},
    "xref": "container",
    "yref": "container",
    "x": 0,
    "y": 1,
    "yanchor": "top",
    "maxheight": 1_000,
}
"""Above the chart, as wide as the screen; a higher legend than `maxheight` has a scrollbar."""

LEGEND_ROW_PX, LEGEND_PX, ENTRY_PX, LETTER_PX = 19, 200, 45, 5.5
"""On a phone: height of a row of a legend, the usual width of a chart without the labels of its
rows, and the width of an entry without its name and of a letter of it."""

ROW_LETTERS, TITLE_LETTERS = 18, 34
"""Letters of a line of a row's label and of the title of the x axis on a phone."""

LUMINANCE = (0.2126, 0.7152, 0.0722)
INK, DARK = "black", 0.179
"""Text on colours of a luminance of at least `DARK`; white has more contrast on darker ones."""

Settings = Mapping[str, object]
"""Plotly's settings of an axis or of a layout."""

NONE: Settings = {}

Box = tuple[float, float, float, float]
"""x0, x1, y0, y1."""


def text_colour(colour: str) -> str:
    """White or black, the one with more contrast on a colour (WCAG 2.2, at least 4.5)."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in channels]
    luminance = sum(part * one for part, one in zip(LUMINANCE, linear, strict=True))
    return "white" if luminance < DARK else INK


def darker(colour: str) -> str:
    """Colour of an edge, which separates neighbours of one colour and shows very thin bars."""
    channels = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(0.8 * channel):02x}" for channel in channels)


def fit_phone(figure: go.Figure) -> None:
    """Fit a figure to a phone: its legend above it in full, texts of its axes wrapped, no zoom."""
    layout = figure.layout
    names = [trace.name for trace in figure.data if trace.name and trace.showlegend is not False]
    widths_px = [ENTRY_PX + LETTER_PX * len(name) for name in names]
    if layout.height and layout.showlegend is not False and sum(widths_px) > LEGEND_PX:
        columns = max(1, int(LEGEND_PX // max(widths_px)))
        layout.height += LEGEND_ROW_PX * (ceil(len(names) / columns) - 1)
    figure.update_layout(dragmode=False, legend=PHONE_LEGEND)
    if rows := layout.yaxis.ticktext:
        figure.update_yaxes(ticktext=[_in_lines(row, ROW_LETTERS) for row in rows])
    if title := layout.xaxis.title.text:
        figure.update_xaxes(title=_in_lines(title, TITLE_LETTERS))


def _in_lines(text: str, letters: int) -> str:
    """A text in lines of so many letters, if it has spaces at which it may break."""
    lines = [wrap(line, letters, break_on_hyphens=False) for line in text.split("<br>")]
    return "<br>".join(chain.from_iterable(lines))


def style_rows(
    figure: go.Figure,
    labels: Sequence[str],
    rows: Sequence[float],
    x_axis: Settings = NONE,
    y_axis: Settings = NONE,
    **layout: object,
) -> None:
    """Give a figure named rows, the first at the top; only its time axis can be zoomed.

    Args:
        x_axis, y_axis, layout: plotly's settings, which replace those of all such figures.
    """
    x_usual = {
        "showgrid": True,
        "zeroline": False,
        "rangemode": "tozero",
        "separatethousands": True,
    }
    y_usual = {
        "tickmode": "array",
        "tickvals": list(rows),
        "ticktext": list(labels),
        "range": [rows[-1] + 0.6, -0.6],
        "fixedrange": True,
        "showgrid": False,
        "zeroline": False,
    }
    usual = {
        "barmode": "overlay",
        "height": round(ROW_PX * (rows[-1] + 1)) + AXIS_PX,
        "xaxis": {**x_usual, **x_axis},
        "yaxis": {**y_usual, **y_axis},
    }
    _lay_out(figure, {**usual, **layout})


def style_curves(
    figure: go.Figure,
    x_title: str,
    y_title: str,
    x_axis: Settings = NONE,
    y_axis: Settings = NONE,
    **layout: object,
) -> None:
    """Give a figure named axes and a legend above.

    Args:
        x_axis, y_axis, layout: plotly's settings, which replace those of all such figures.
    """
    axis = {"zeroline": False, "separatethousands": True}
    usual = {
        "height": CURVE_PX,
        "xaxis": {"title": x_title, **axis, **x_axis},
        "yaxis": {"title": y_title, **axis, **y_axis},
    }
    _lay_out(figure, {**usual, **layout})


def _lay_out(figure: go.Figure, layout: Settings) -> None:
    """Set the whole layout by one call that replaces: each that merges takes milliseconds."""
    figure.update_layout({**LAYOUT, **layout}, overwrite=True)


def rule(axis: Literal["x", "y"], at: float, **look: object) -> dict[str, object]:
    """A line across the chart where an axis has a value, as a shape of the layout."""
    other = "y" if axis == "x" else "x"
    ends = {f"{axis}0": at, f"{axis}1": at, f"{other}0": 0, f"{other}1": 1}
    refs = {f"{axis}ref": axis, f"{other}ref": f"{other} domain"}
    return {"type": "line", **ends, **refs, "line": {"color": MUTED, **look}}


def vertical_line(x: float, low: float, high: float, name: str) -> go.Scatter:
    """A dotted vertical line with an entry in the legend; `add_vline` is wrong on log axes."""
    return line(name, [x, x], [low, high], color=MUTED, dash="dot")


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
    corners: list[tuple[float | None, float | None]] = list(
        chain.from_iterable((*outline, (None, None)) for outline in outlines)
    )
    drawn = area(name, [x for x, _ in corners], [y for _, y in corners], "rgba(0,0,0,0)")
    drawn.fillpattern = {"shape": "/", "size": 9, "solidity": 0.12, "fgcolor": MUTED}
    return drawn


def uncalibrated_spans(x: Sequence[float], in_range: Sequence[bool]) -> list[tuple[float, float]]:
    """Intervals of a sampled axis around points outside the calibrated range.

    An interval reaches from such a point half-way to its calibrated neighbours.
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


def hover_of(text: str) -> dict[str, str]:
    """Hover settings of a trace: a plotly template, or none for an empty text."""
    if not text:
        return {"hoverinfo": "skip"}
    return {"hovertemplate": text if "<extra>" in text else f"{text}<extra></extra>"}


def line(
    name: str,
    x: Sequence[float | None],
    y: Sequence[float | None],
    hover: str = "",
    **look: object,
) -> go.Scatter:
    """A line through points, interrupted at None; `look` holds plotly's line settings."""
    look = {"width": 2, **look}
    return go.Scatter(name=name, x=x, y=y, mode="lines", line=look, **hover_of(hover))


def dots(
    name: str, x: Sequence[float], y: Sequence[float], hover: str, **look: object
) -> go.Scatter:
    """Markers at points; `look` holds plotly's marker settings."""
    return go.Scatter(name=name, x=x, y=y, mode="markers", marker=look, **hover_of(hover))


def area(
    name: str, x: Sequence[float | None], y: Sequence[float | None], colour: str
) -> go.Scatter:
    """A filled outline without an edge; None separates outlines."""
    return go.Scatter(
        name=name,
        x=x,
        y=y,
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=colour,
        hoverinfo="skip",
    )


def bars(
    name: str,
    x: Sequence[float],
    rows: Sequence[float],
    colour: str | Sequence[str],
    hover: str,
    **more: object,
) -> go.Bar:
    """Horizontal bars in rows; `more` holds plotly's settings of the trace."""
    marker = {"color": colour, "line": {"width": 0}}
    return go.Bar(name=name, orientation="h", x=x, y=rows, marker=marker, **hover_of(hover), **more)


def columns(name: str, y: Sequence[float], colour: str, hover: str, **more: object) -> go.Bar:
    """Vertical bars at 0, 1, 2 and so on, one for each value of `y`."""
    marker = {"color": colour, "line": {"width": 0}}
    x = list(range(len(y)))
    return go.Bar(name=name, x=x, y=y, marker=marker, **hover_of(hover), **more)


@dataclass(slots=True)
class TaskBoxes:
    """Boxes of one operation over time, one list for each setting of plotly's bars."""

    base_ms: list[float] = field(default_factory=list)
    length_ms: list[float] = field(default_factory=list)
    middle: list[float] = field(default_factory=list)
    height: list[float] = field(default_factory=list)
    hover: list[str] = field(default_factory=list)

    def add(self, times_s: tuple[float, float], middle: float, height: float, hover: str) -> None:
        """Add a box from `times_s[0]` to `times_s[1]`."""
        self.base_ms.append(times_s[0] * 1e3)
        self.length_ms.append((times_s[1] - times_s[0]) * 1e3)
        self.middle.append(middle)
        self.height.append(height)
        self.hover.append(hover)

    def trace(self, op: str) -> go.Bar:
        """All boxes as one entry of the legend."""
        colour = OP_COLOUR.get(op, OTHER_OP_COLOUR)
        return go.Bar(
            name=op,
            orientation="h",
            base=self.base_ms,
            x=self.length_ms,
            y=self.middle,
            width=self.height,
            hovertext=self.hover,
            **hover_of("%{hovertext}"),
            marker={"color": colour, "line": {"color": darker(colour), "width": 0.5}},
        )


def time_bars(
    times_s: Mapping[str, float],
    base: str,
    colours: Sequence[str],
    x_title: str,
    names: Sequence[str] = (),
    **layout: object,
) -> go.Figure:
    """Times in the order given, and how many times as fast as `base` each is.

    Args:
        colours: one for each time.
        names: of the rows, if they are not the keys of `times_s`.
        layout: plotly's settings.
    """
    rows = list(range(len(times_s)))
    figure = go.Figure(
        bars(
            "",
            [value * 1e3 for value in times_s.values()],
            rows,
            colours,
            "%{text}",
            width=BAR_PART,
            text=[f"{ms(value)} · {times_s[base] / value:.2f} x" for value in times_s.values()],
            textposition="auto",
            insidetextanchor="start",
            textangle=0,
            insidetextfont={"color": [text_colour(colour) for colour in colours]},
            showlegend=False,
        )
    )
    x_axis = {"title": f"{x_title}<br>x: times as fast as {base}"}
    style_rows(figure, names or list(times_s), rows, x_axis, NONE, **layout)
    return figure
