"""Parts of pages that show a plan: its memory, its lanes over time, and its files."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from dashboard.controls.lanes import draw_lanes
from dashboard.controls.widgets import chart
from dashboard.data.exports import saved_bytes, trace_bytes
from dashboard.figures import NamedRun, lanes_of, memory_bars
from planner import DecodePlan, Plan
from sim.cost.model import CostModel
from sim.graph.memory import footprint
from sim.graph.timeline import Timeline


def show_memory(plan: DecodePlan, key: str = "memory") -> None:
    """What the plan puts in GPU and host memory, against their capacity."""
    need = footprint(plan.simulated_graph())
    figure = memory_bars(need, plan.hardware.memory)
    chart(figure, "Bytes in GPU and host memory", key, bare=True)


def show_lanes(plan: Plan, timeline: Timeline) -> None:
    """The predicted timeline, lane by lane."""
    draw_lanes(lanes_of([predicted_run(plan, timeline)]))


def predicted_run(plan: Plan, timeline: Timeline, name: str = "") -> NamedRun:
    """A plan's predicted run with the estimates of its tasks."""
    costs = CostModel(plan.hardware, plan.model, plan.workload)
    return NamedRun(name, timeline, [costs.estimate(task) for task in timeline.graph.tasks])


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
