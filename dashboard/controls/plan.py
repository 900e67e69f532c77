"""Parts of pages that show a plan: its memory, its lanes over time, and its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress

import streamlit as st

from dashboard.asking import answer, show_reason, show_remedies
from dashboard.controls.lanes import draw_lanes
from dashboard.controls.widgets import chart
from dashboard.data.exports import saved_bytes, trace_bytes
from dashboard.data.runs import Case
from dashboard.figures import MemoryUse, NamedRun, lanes_of, memory_bars
from dashboard.questions.remedies import Asking
from dashboard.questions.restore import request_of, restore_memory
from dashboard.session import facts_of
from planner import DecodePlan, Plan
from planner.restore import RestorePlan
from sim.cost.model import CostModel
from sim.errors import DoesNotFit, KvOverlapError
from sim.graph.memory import Footprint, footprint
from sim.graph.timeline import Timeline
from sim.machine.profile import Memory


def show_memory(uses: Mapping[str, tuple[MemoryUse, Memory]], key: str = "memory_bar") -> None:
    """What fills GPU and host memory, against their capacity, as for `memory_bars`."""
    chart(memory_bars(uses), "Bytes in GPU and host memory", key, bare=True)


def show_plan_memory(plans: Mapping[str, DecodePlan], key: str = "memory_bar") -> None:
    """What decodes put in GPU and host memory, by names that are empty for the only one."""
    uses = {name: MemoryUse.of_decode(facts_of(one).memory) for name, one in plans.items()}
    show_memory({name: (use, plans[name].hardware.memory) for name, use in uses.items()}, key)


def show_restore_memory(plan: RestorePlan) -> None:
    """What a restore needs: the prompt's K and V on the GPU, the cached part in host memory."""
    use = restore_memory(plan.model, plan.hardware, plan.workload, plan.x_bytes)
    show_memory({"": (MemoryUse(*use), plan.hardware.memory)})


def show_case_memory(case: Case) -> None:
    """What a measured case has in GPU and host memory."""
    graph, hardware = case.graph, case.measured.hardware
    if case.restores:
        request = request_of(graph)
        has_x = any(task.op == "load_x" for task in graph.tasks)
        x_bytes = request.x_bytes(graph.model) if has_x else 0
        use = MemoryUse(*restore_memory(graph.model, hardware, request, x_bytes))
    else:
        use = MemoryUse.of_decode(footprint(graph))
    show_memory({"": (use, hardware.memory)})


def show_refused(error: KvOverlapError, asking: Asking) -> None:
    """Why a question has no answer, what does not fit, and buttons that lead to an answer."""
    show_reason(error)
    if isinstance(error, DoesNotFit):
        question = asking.question
        with suppress(KvOverlapError):
            need = answer(question.memory, key=question.key)
            use = MemoryUse.of_decode(need) if isinstance(need, Footprint) else MemoryUse(*need)
            show_memory({"": (use, question.machine.memory)}, "needed")
    show_remedies(error, asking)


def show_lanes(plan: Plan, timeline: Timeline) -> None:
    """The predicted timeline, lane by lane."""
    draw_lanes(lanes_of([predicted_run(plan, timeline)]))


def predicted_run(plan: Plan, timeline: Timeline, name: str = "") -> NamedRun:
    """A plan's predicted run with the estimates of its tasks."""
    costs = CostModel(plan.hardware, plan.model, plan.workload)
    return NamedRun(name, timeline, [costs.estimate(task) for task in timeline.graph.tasks])


def plan_downloads(plan: Plan, timeline: Timeline) -> None:
    """Buttons that give the plan, for `kvoverlap run`, and its predicted timeline as a trace.

    The lanes have a button that gives the timeline as CSV.
    """
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
