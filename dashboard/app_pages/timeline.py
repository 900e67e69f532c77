"""Predicted against measured, task by task, for one case of one run."""

import re

import streamlit as st

from dashboard.controls.widgets import Picked, cards, chart, pair, pick_case, table_downloads
from dashboard.data.exports import trace_bytes
from dashboard.data.runs import Case, run_stamp
from dashboard.figures import View, breakdown_bars, lane_use_bars, paired_lanes
from dashboard.perfetto import joint_trace, perfetto_button
from dashboard.session import case_plan, stored_accuracy
from dashboard.text.comparison import (
    answer,
    busy_lanes,
    circumstances,
    compare_command,
    metrics,
    run_accuracy,
    task_errors,
)
from sim.errors import KvOverlapError

ABOUT = "One plan: predicted by the simulator, then run on a device, task by task."
ALL_STEPS = "all"
WORST_TASKS = 100


def show_page() -> None:
    """Menus, then the case that they choose."""
    try:
        picked = pick_case(ABOUT)
    except KvOverlapError as error:
        st.error(str(error))
        return
    if picked is None:
        return
    if picked.run is not None and not picked.run.finished:
        folder = picked.run.folder
        st.warning(f"{folder} has no report: its measurement is going on or was broken off.")
    case = picked.case
    summary = show_answer(case)
    show_lanes(case)
    show_parts(case)
    show_worst_tasks(case, picked)
    show_ways_out(case, picked)
    summary.markdown(" ".join([limit_of(case), *accuracy_of(picked)]))


def show_answer(case: Case) -> st.delta_generator.DeltaGenerator:
    """The answer line and the figures that explain it; returns room for a summary."""
    st.header(answer(case.comparison), anchor=False)
    st.caption(circumstances(case))
    summary = st.empty()
    summary.markdown("Working out what limits this plan.")
    cards(metrics(case.comparison))
    return summary


def limit_of(case: Case) -> str:
    """What holds the plan up and what would help; asked last, because the LP is solved for it."""
    if case.restores:
        return busy_lanes(case)
    try:
        return f"**{case_plan(case).bottleneck}.**"
    except KvOverlapError as error:
        return f"What limits this plan is not known: {error}"


def accuracy_of(picked: Picked) -> list[str]:
    """How far off all cases of the run are, unless it cannot be said."""
    if picked.run is None:
        return []
    try:
        found = stored_accuracy(picked.run.folder, run_stamp(picked.run))
    except KvOverlapError:
        return []
    return [run_accuracy(found)] if found.cases else []


def ask_view(case: Case) -> tuple[View, bool, bool]:
    """Controls of what the lanes show."""
    graph = case.graph
    steps = [ALL_STEPS, *(str(step) for step in range(graph.workload.gen_tokens))]
    last = graph.model.n_layers - 1
    step_menu, layer_slider, path_switch, error_switch = st.columns(
        [1, 2, 1.2, 1.2], vertical_alignment="bottom"
    )
    n_devices = 1 + max(task.device for task in graph.tasks)
    device = 0
    if n_devices > 1:
        device = st.selectbox("GPU", range(n_devices), key="device", bind="query-params")
    step = step_menu.selectbox("Step", steps, key="step", bind="query-params")
    layers = (0, last)
    if last > 0:
        layers = layer_slider.slider(
            "Layers", 0, last, (0, last), key="layers", bind="query-params"
        )
    critical = path_switch.toggle(
        "Critical path",
        key="path",
        bind="query-params",
        help="Fade every task that does not decide the makespan.",
    )
    errors = error_switch.toggle(
        "Outline errors",
        value=True,
        key="errors",
        bind="query-params",
        help="Outline measured tasks that are off by over 5 % of their time and 0.1 % of what is "
        "shown: red took longer than predicted, green was shorter.",
    )
    view = View(
        None if step == ALL_STEPS else int(step),
        None if layers == (0, last) else layers,
        device,
    )
    return view, critical, errors


def show_lanes(case: Case) -> None:
    """The paired lanes of one step or of all."""
    st.subheader("Every task, predicted above measured", anchor=False)
    view, critical, errors = ask_view(case)
    figure = paired_lanes(
        case.predicted.typical, case.measured.typical, view, case.estimates, critical, errors
    )
    chart(figure, "Tasks of each lane over time, both runs", "lanes")
    st.caption(
        "Drag to zoom, double-click to see all again; a click in the legend hides an operation. "
        "Measured is the repeat whose makespan is nearest to the median."
    )


def show_parts(case: Case) -> None:
    """Where the time went, and what each lane waited for."""
    runs = case.predicted.typical, case.measured.typical
    left, right = pair("parts")
    with left:
        st.subheader("Where the time goes", anchor=False)
        alt = "Compute, exposed copy and idle time of both runs"
        chart(breakdown_bars(*runs), alt, "breakdown", bare=True)
    with right:
        st.subheader("What each lane waits for", anchor=False)
        alt = "Work and waiting of each lane in both runs"
        chart(lane_use_bars(*runs), alt, "lane_use", bare=True)


def show_worst_tasks(case: Case, picked: Picked) -> None:
    """The tasks that were predicted worst, and all of them as a file."""
    st.subheader("Tasks predicted worst", anchor=False)
    number = st.column_config.NumberColumn
    st.dataframe(
        task_errors(case).head(WORST_TASKS),
        hide_index=True,
        height=320,
        column_config={
            "predicted (ms)": number(format="%.3f"),
            "measured (ms)": number(format="%.3f"),
            "error (ms)": number(format="%+.3f", help="predicted - measured"),
            "error (%)": number(format="%+.1f"),
        },
    )
    table_downloads(lambda: task_errors(case), f"{file_stem(picked)}-tasks")


def file_stem(picked: Picked) -> str:
    place = picked.run.folder.name if picked.run is not None else "uploaded"
    return re.sub(r"[^\w.-]+", "-", f"{place}-{picked.name}")


def show_ways_out(case: Case, picked: Picked) -> None:
    """The same answer on the command line, and both timelines for another viewer."""
    st.subheader("The same without this page", anchor=False)
    if picked.run is not None:
        st.code(compare_command(picked.run.case_folder(picked.name)), language="bash")
    row = st.container(horizontal=True)
    stem = file_stem(picked)
    for recording in (case.predicted, case.measured):
        row.download_button(
            f"Trace, {recording.source}",
            lambda recording=recording: trace_bytes(recording.typical, recording.source),
            file_name=f"{stem}-{recording.source}.trace.json.gz",
            mime="application/gzip",
            on_click="ignore",
            key=f"trace_{recording.source}",
            help="Chrome trace with every task: open it at ui.perfetto.dev",
        )
    with row:
        perfetto_button(
            joint_trace(case.predicted.typical, case.measured.typical), f"kvoverlap {stem}"
        )


show_page()
