"""Predicted against measured, task by task, for one case of one run."""

import re
from collections.abc import Callable
from pathlib import Path

import streamlit as st

from dashboard.figures import breakdown_bars, paired_lanes
from dashboard.runs import (
    OWN_RUNS,
    SHIPPED_RUNS,
    Case,
    Run,
    case_stamp,
    find_runs,
    load_case,
    trace_bytes,
)
from dashboard.words import (
    answer,
    circumstances,
    compare_command,
    lane_times,
    metrics,
    worst_tasks,
)
from sim.errors import KvOverlapError

# A browser draws every bar as an element of its own; longer runs are shown step by step.
MAX_TASKS = 2_000

ALL_STEPS = "all"
CHART = {"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"]}


def load_stamped(folder: Path, stamp: tuple[int, ...]) -> Case:  # noqa: ARG001
    """The case in `folder`; `stamp` makes it be read again when its files change."""
    return load_case(folder)


cached_case: Callable[[Path, tuple[int, ...]], Case] = st.cache_resource(
    load_stamped, max_entries=8, show_spinner="Simulating the plan"
)


def show_page() -> None:
    """Menus, then the case that they choose."""
    runs = {run.label: run for run in find_runs(OWN_RUNS, SHIPPED_RUNS)}
    if not runs:
        show_invitation()
        return
    left, right, _ = st.columns([2, 2, 3])
    run = runs[left.selectbox("Run", list(runs), key="run", bind="query-params")]
    try:
        name = right.selectbox("Case", run.case_names(), key="case", bind="query-params")
        folder = run.case_folder(name)
        case = cached_case(folder, case_stamp(folder))
    except KvOverlapError as error:
        st.error(str(error))
        return
    if not run.finished:
        st.warning(f"{run.folder} has no report: its measurement is going on or was broken off.")
    show_answer(case)
    show_lanes(case)
    show_parts(case)
    show_ways_out(run, name, case)


def show_invitation() -> None:
    """What to do when nothing has been measured yet."""
    st.header("No run to show yet", anchor=False)
    st.write(
        "One command profiles this machine, plans a grid of cases, predicts each, runs it and "
        "keeps what it measured. It takes a few minutes and needs no GPU."
    )
    st.code("make run", language="bash")
    st.write("Outside a checkout:")
    st.code("kvoverlap validate --out runs/latest", language="bash")
    st.caption(f"Then reload this page. Runs are looked for in {OWN_RUNS.resolve()}.")


def show_answer(case: Case) -> None:
    """The answer line and the figures that explain it."""
    st.header(answer(case.comparison), anchor=False)
    st.caption(circumstances(case))
    shown = metrics(case.comparison)
    for column, metric in zip(st.columns(len(shown)), shown, strict=True):
        column.metric(
            metric.label,
            metric.value,
            delta=metric.below,
            delta_color="off",
            delta_arrow="off",
            help=metric.meaning,
            border=True,
        )


def show_lanes(case: Case) -> None:
    """The paired lanes of one step or of all."""
    graph = case.measured.graph
    steps = [str(step) for step in range(graph.workload.gen_tokens)]
    options = [ALL_STEPS, *steps] if len(graph.tasks) <= MAX_TASKS else steps
    heading, menu = st.columns([6, 1], vertical_alignment="bottom")
    heading.subheader("Every task, predicted above measured", anchor=False)
    chosen = menu.selectbox("Step", options, key="step", bind="query-params")
    figure = paired_lanes(
        case.predicted.typical,
        case.measured.typical,
        None if chosen == ALL_STEPS else int(chosen),
    )
    st.plotly_chart(figure, config=CHART, alt="Tasks of each lane over time, both runs")
    st.caption(
        "Drag to zoom, double-click to see all again; a click in the legend hides an operation. "
        "Measured is the repeat whose makespan is nearest to the median."
    )


def show_parts(case: Case) -> None:
    """Where the time went, what each lane waited for, and which tasks were predicted worst."""
    number = st.column_config.NumberColumn
    left, right = st.columns(2, gap="large")
    left.subheader("Where the time goes", anchor=False)
    left.plotly_chart(
        breakdown_bars(case.predicted.typical, case.measured.typical),
        config={"displayModeBar": False},
        alt="Compute, exposed copy and idle time of both runs",
    )
    left.dataframe(
        lane_times(case),
        hide_index=True,
        column_config={
            "predicted (ms)": number(format="localized"),
            "measured (ms)": number(format="localized"),
        },
    )
    right.subheader("Tasks predicted worst", anchor=False)
    right.dataframe(
        worst_tasks(case.comparison),
        hide_index=True,
        column_config={
            "predicted (ms)": number(format="localized"),
            "measured (ms)": number(format="localized"),
            "error (ms)": number(format="%+.3f", help="predicted - measured"),
            "error (%)": number(format="%+.1f"),
        },
    )


def show_ways_out(run: Run, name: str, case: Case) -> None:
    """The same answer on the command line, and both timelines for another viewer."""
    st.subheader("The same without a browser", anchor=False)
    st.code(compare_command(run.case_folder(name)), language="bash")
    row = st.container(horizontal=True)
    stem = re.sub(r"[^\w.-]+", "-", f"{run.folder.name}-{name}")
    for recording in (case.predicted, case.measured):
        row.download_button(
            f"Trace, {recording.source}",
            lambda recording=recording: trace_bytes(recording.typical, recording.source),
            file_name=f"{stem}-{recording.source}.trace.json.gz",
            mime="application/gzip",
            icon=":material/download:",
            on_click="ignore",
            help="Chrome trace: open it at ui.perfetto.dev",
        )


show_page()
