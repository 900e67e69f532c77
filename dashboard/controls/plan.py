"""Parts of pages that show a plan: its memory, its lanes over time, and its files."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from dashboard.controls.widgets import chart
from dashboard.data.exports import saved_bytes, trace_bytes
from dashboard.figures import memory_bars, predicted_lanes
from planner import DecodePlan
from sim.graph.memory import footprint
from sim.graph.timeline import Timeline

MAX_DRAWN_TASKS = 20_000


def show_memory(plan: DecodePlan) -> None:
    """What the plan puts in GPU and host memory, against their capacity."""
    need = footprint(plan.simulated_graph())
    figure = memory_bars(need, plan.hardware.memory)
    chart(figure, "Bytes in GPU and host memory", "memory", bare=True)


def show_lanes(plan: DecodePlan, timeline: Timeline) -> None:
    """The predicted timeline, lane by lane."""
    tasks = len(timeline.graph.tasks)
    if tasks > MAX_DRAWN_TASKS:
        st.info(f"The timeline of {tasks:,} tasks is not drawn; its trace opens in Perfetto.")
        return
    chart(predicted_lanes(timeline), f"Predicted lanes of policy {plan.policy}", "lanes")


def plan_downloads(plan: DecodePlan, timeline: Timeline) -> None:
    """Buttons that give the plan, for `kvoverlap run`, and its predicted timeline as a trace."""
    row = st.container(horizontal=True)
    stem = f"{plan.model.name}-{plan.policy}".replace(":", "-")
    files: tuple[tuple[str, str, str, Callable[[], bytes]], ...] = (
        ("Plan for kvoverlap run", "plan.json", "application/json", lambda: saved_bytes(plan)),
        (
            "Predicted trace for Perfetto",
            "predicted.trace.json.gz",
            "application/gzip",
            lambda: trace_bytes(timeline, stem),
        ),
    )
    for label, name, mime, made in files:
        row.download_button(
            label, made, file_name=f"{stem}.{name}", mime=mime, on_click="ignore", key=name
        )
