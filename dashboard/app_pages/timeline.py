"""Predicted against measured, task by task, for one case of one run; or a profiler's trace."""

import re

import streamlit as st

from dashboard.controls.compare import compare_cases
from dashboard.controls.lanes import draw_lanes
from dashboard.controls.plan import show_case_memory
from dashboard.controls.widgets import (
    Picked,
    cards,
    chart,
    choose_view,
    headline_place,
    menu,
    pair,
    pick_case,
    show_table,
    table_downloads,
)
from dashboard.data.exports import trace_bytes
from dashboard.data.runs import Case, run_stamp
from dashboard.figures import NamedRun, View, breakdown_bars, lane_use_bars, lanes_of
from dashboard.perfetto import perfetto_button
from dashboard.session import (
    accuracy_of,
    case_lanes,
    case_plan,
    case_trace,
    uploaded_predictions,
)
from dashboard.text.comparison import (
    busy_lanes,
    compare_command,
    comparison_summary,
    count_of,
    describe_case,
    describe_job,
    escaped,
    metrics,
    run_accuracy,
    sentence,
    task_errors,
)
from dashboard.trace_view import show_traces
from sim.cost.model import CostModel
from sim.errors import KvOverlapError
from sim.results.recording import Recording
from sim.units import ms

ABOUT = "One plan: predicted by the simulator, then run on a device, task by task."
RUNS, TRACES, PREDICTIONS = "a run", "a profiler's trace", "an uploaded prediction"
ALL_STEPS = "all"
WORST_TASKS = 100


def show_page() -> None:
    """A case of a run, a trace of any program, or an uploaded prediction."""
    predictions = uploaded_predictions()
    view = choose_view([RUNS, TRACES, *([PREDICTIONS] if predictions else [])])
    if view == TRACES:
        show_traces()
    elif view == PREDICTIONS:
        name = menu("Prediction", list(predictions), key="prediction")
        show_prediction(name, predictions[name])
    else:
        show_runs()


def show_prediction(name: str, recording: Recording) -> None:
    """The lanes of an uploaded prediction."""
    timeline, graph = recording.typical, recording.graph
    st.header(f"Predicted to take {ms(timeline.makespan_s)}", anchor=False)
    what = f"{graph.model.name}, {describe_job(graph.workload)}, on {recording.hardware.name}"
    st.caption(escaped(f"{what}: {count_of(len(graph.tasks), 'task')}."))
    costs = CostModel(recording.hardware, graph.model, graph.workload)
    draw_lanes(lanes_of([NamedRun("", timeline, list(map(costs.estimate, graph.tasks)))]))
    trace_download(recording, re.sub(r"[^\w.-]+", "-", name))


def show_runs() -> None:
    """Menus of runs and cases, then the chosen case."""
    headline = headline_place()
    try:
        picked = pick_case(ABOUT)
    except KvOverlapError as error:
        st.error(str(error))
        return
    if picked is None:
        return
    if picked.run is not None and not picked.run.finished:
        folder = picked.run.folder
        st.warning(f"{folder} has no report: its measurement is running or was interrupted.")
    case = picked.case
    answer = st.container()
    show_lanes(case)
    with answer:
        headline.header(comparison_summary(case), anchor=False)
        summary = show_answer(case)
        if picked.run is not None:
            compare_cases(picked.run.label, picked.name, case)
    show_time_breakdown(case)
    st.subheader("Memory", anchor=False)
    show_case_memory(case)
    show_worst_tasks(case, picked)
    show_exports(case, picked)
    summary.markdown(" ".join([describe_bottleneck(case), *describe_run_accuracy(picked)]))


def show_answer(case: Case) -> st.delta_generator.DeltaGenerator:
    """What ran, and the errors in cards; returns the place of a summary."""
    st.caption(describe_case(case))
    summary = st.empty()
    summary.markdown("Computing the bottleneck of this plan.")
    cards(metrics(case.comparison))
    return summary


def describe_bottleneck(case: Case) -> str:
    """The bottleneck of the plan; the last part of the page, because it solves the LP."""
    if case.restores:
        return busy_lanes(case)
    try:
        return f"**{sentence(case_plan(case).bottleneck)}**"
    except KvOverlapError as error:
        return f"The bottleneck of this plan is unknown: {error}"


def describe_run_accuracy(picked: Picked) -> list[str]:
    """The errors of all cases of the run, if they are known."""
    if picked.run is None:
        return []
    try:
        found = accuracy_of(picked.run.folder, run_stamp(picked.run))
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
        device = menu("GPU", range(n_devices), key="device")
    step = menu("Step", steps, key="step", column=step_menu)
    layers = (0, last)
    if last > 0:
        layers = layer_slider.slider(
            "Layers", 0, last, (0, last), key="layers", bind="query-params"
        )
    critical = path_switch.toggle(
        "Critical path",
        key="path",
        bind="query-params",
        help="Fade every task that is not on the critical path.",
    )
    errors = error_switch.toggle(
        "Outline errors",
        value=True,
        key="errors",
        bind="query-params",
        help="Outline measured tasks whose error is over 5 % of their time and 0.1 % of the shown "
        "time: \N{BLACK UP-POINTING TRIANGLE} took longer than predicted, "
        "\N{BLACK DOWN-POINTING TRIANGLE} less.",
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
    draw_lanes(case_lanes(case, view, critical, errors))
    st.caption(
        "Measured is the repeat whose makespan is nearest to the median. A task and its partner in "
        "the other run are outlined together; a gap says what the lane waits for."
    )


def show_time_breakdown(case: Case) -> None:
    """Compute, exposed copy and idle time, and the waits of each lane."""
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
    """The tasks with the largest errors, and all tasks as a file."""
    st.subheader("Tasks predicted worst", anchor=False)
    formats = {
        "predicted (ms)": "%.3f",
        "measured (ms)": "%.3f",
        "error (ms)": "%+.3f",
        "error (%)": "%+.1f",
    }
    meanings = {"error (ms)": "predicted - measured"}
    show_table(task_errors(case).head(WORST_TASKS), formats, meanings, height=320)
    table_downloads(lambda: task_errors(case), f"{file_stem(picked)}-tasks")


def file_stem(picked: Picked) -> str:
    place = picked.run.folder.name if picked.run is not None else "uploaded"
    return re.sub(r"[^\w.-]+", "-", f"{place}-{picked.name}")


def show_exports(case: Case, picked: Picked) -> None:
    """The commands of this comparison, and both timelines as trace files."""
    st.subheader("Command-line equivalent", anchor=False)
    if picked.run is not None:
        command = compare_command(picked.run.case_folder(picked.name))
        st.code(command, language="bash", wrap_lines=True)
    row = st.container(horizontal=True)
    stem = file_stem(picked)
    with row:
        for recording in (case.predicted, case.measured):
            trace_download(recording, f"{stem}-{recording.source}")
        perfetto_button(case_trace(case), f"kvoverlap {stem}")


def trace_download(recording: Recording, stem: str) -> None:
    """A button that gives the typical run of a recording as a trace."""
    st.download_button(
        f"Trace, {recording.source}",
        lambda: trace_bytes(recording.typical, recording.source),
        file_name=f"{stem}.trace.json.gz",
        mime="application/gzip",
        on_click="ignore",
        key=f"trace_{recording.source}",
        help="Chrome trace with every task: open it at ui.perfetto.dev",
    )


show_page()
