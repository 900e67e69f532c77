"""The canvas that draws the lanes of one or two runs, on every page.

It is one Streamlit component of plain JavaScript. The zoom is in the address of the page as `zoom`.
"""

from __future__ import annotations

from pathlib import Path
from time import sleep

import streamlit as st

import dashboard
from dashboard.figures.lane_chart import LaneChart

FOLDER = Path(dashboard.__file__).parent / "lane_view"
SCRIPTS = ("model.js", "draw.js", "input.js", "view.js")
"""One module, in this order."""

MAX_DRAWN = 100_000
"""Largest number of bars; their data has about 15 MB."""

LARGE, PAUSE_S = 5_000, 0.4
"""Bars from which a page pauses until they are drawn. The threads of the server take turns, so that
a page that goes on computing would delay by about a second the data that it has just sent."""


def _read(*names: str) -> str:
    return "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in names)


_component = st.components.v2.component(
    "kvoverlap_lanes", html=_read("view.html"), css=_read("view.css"), js=_read(*SCRIPTS)
)


def draw_lanes(chart: LaneChart, key: str = "lanes") -> None:
    """The chart, with its legend, minimap, explanation of a bar, table and downloads."""
    if len(chart) > MAX_DRAWN:
        st.info(f"{len(chart):,} tasks are too many to draw: choose a step or some layers.")
        return
    with st.container(key=key):
        _component(key=f"{key}_view", data=chart.encoded, height="content")
    if len(chart) > LARGE:
        sleep(PAUSE_S)
