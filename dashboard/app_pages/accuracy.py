"""Prediction errors of every recorded case, and the environments of the recordings."""

from dataclasses import asdict

import pandas as pd
import streamlit as st

from dashboard.controls.widgets import (
    cards,
    chart,
    headline_place,
    menu,
    pair,
    show_invitation,
    show_table,
    table_downloads,
)
from dashboard.data import runs as run_folders
from dashboard.data.runs import Run, case_stamp, run_stamp
from dashboard.figures import errors_by_case, predicted_against_measured
from dashboard.session import accuracy_of, all_runs, stored_case
from dashboard.text.comparison import Metric, accuracy_command
from sim.errors import KvOverlapError
from sim.results.accuracy import Accuracy
from sim.units import percent

SHIPPED = "every shipped recording"


def show_page() -> None:
    """A menu of recordings, and their errors."""
    runs = all_runs()
    if not runs:
        show_invitation()
        return
    shipped = [run for run in runs if run.folder.parent == run_folders.SHIPPED_RUNS]
    groups: dict[str, list[Run]] = {run.label: [run] for run in runs}
    if shipped:
        groups = {SHIPPED: shipped, **groups}
    headline = headline_place()
    left, rest = st.columns([2, 4], vertical_alignment="bottom")
    rest.caption("Prediction errors of every recorded case.")
    label = menu("Recordings", list(groups), key="recordings", column=left)
    chosen = groups[label]
    root = run_folders.SHIPPED_RUNS if label == SHIPPED else chosen[0].folder
    stamp = tuple(part for run in chosen for part in run_stamp(run))
    try:
        found = accuracy_of(root, stamp)
    except KvOverlapError as error:
        st.error(str(error))
        return
    for sentence in found.unreadable:
        st.warning(sentence)
    if found.cases:
        headline.header(summary(found), anchor=False)
        show_summary(found)
        show_errors(found, {run.folder.name: run for run in chosen})
    show_environments(chosen)
    st.subheader("Command-line equivalent", anchor=False)
    st.code(accuracy_command(root), language="bash", wrap_lines=True)


def summary(found: Accuracy) -> str:
    """The errors of all cases in one line."""
    return (
        f"Median error {percent(found.median_abs_error_frac)}, nine of ten cases within "
        f"{percent(found.p90_abs_error_frac)}"
    )


def show_summary(found: Accuracy) -> None:
    """The lean of the errors, and four cards."""
    passed = sum(case.passed for case in found.cases)
    errors = pd.Series([case.makespan_error_frac for case in found.cases])
    st.caption(
        f"{(errors < 0).sum()} of {len(errors)} predictions are too short; the median signed error "
        f"is {percent(errors.median(), signed=True)}. Every recorded graph is simulated "
        "again by this version, on the machine it was recorded on. No prediction is stored."
    )
    agreement = found.rank_agreement_frac
    naive = found.median_naive_error_frac
    ratio = naive / found.median_abs_error_frac if found.median_abs_error_frac else float("inf")
    cards(
        [
            Metric(
                "Within tolerance",
                f"{passed} of {len(found.cases)}",
                "makespan, overlap and exposed copy",
                "Each case has its own tolerance, stored with its recording.",
            ),
            Metric(
                "Rank agreement",
                "no pair" if agreement is None else percent(agreement),
                "policies predicted in measured order",
                "Of all pairs of policies measured on one shape and over 1 % apart.",
            ),
            Metric(
                "Error of the formula max(copy, compute)",
                percent(naive),
                f"{ratio:.1f} x ours",
                "Median error of the busiest lane's predicted time alone.",
            ),
            Metric(
                "Error of the scheduling model alone",
                percent(_median_forced(found)),
                "with measured task times",
                "Median error when the simulator is given every task's measured time.",
            ),
        ]
    )


def _median_forced(found: Accuracy) -> float:
    errors = pd.Series([abs(case.teacher_forced_error_frac) for case in found.cases])
    return float(errors.median())


def show_errors(found: Accuracy, runs: dict[str, Run]) -> None:
    """Predicted against measured and every case in a table, next to the error of each case."""
    left, right = pair("figures")
    with left:
        st.subheader("Predicted against measured", anchor=False)
        alt = "Predicted over measured makespan of every case"
        chart(predicted_against_measured(found.cases), alt, "scatter")
        show_cases(found, runs)
    with right:
        st.subheader("Error of each case", anchor=False)
        chart(errors_by_case(found.cases), "Signed error of every case", "errors")


def show_cases(found: Accuracy, runs: dict[str, Run]) -> None:
    """Every case in a table; a chosen row links to its timeline."""
    st.subheader("Every case", anchor=False)
    table = pd.DataFrame([asdict(case) for case in found.cases])
    shown = pd.DataFrame(
        {
            "case": table["name"],
            "passed": table["passed"],
            "policy": table["policy"],
            "predicted (ms)": 1e3 * table["predicted_makespan_s"],
            "measured (ms)": 1e3 * table["measured_makespan_s"],
            "error (%)": 100 * table["makespan_error_frac"],
            "spread (%)": 100 * table["spread_frac"],
            "tolerance (%)": 100 * table["tolerance_frac"],
            "overlap error (pts)": table["overlap_error_points"],
            "max() error (%)": 100 * table["naive_error_frac"],
        }
    )
    formats = {
        name: "%+.1f" if "error (" in name else "%.1f" for name in shown.columns if "(" in name
    }
    picked = show_table(shown, formats, on_select="rerun", selection_mode="single-row", key="cases")
    rows = picked["selection"]["rows"]
    if rows:
        show_link(found.cases[rows[0]].name, runs)
    else:
        st.caption("Choose a row to open its timeline.")
    for case in found.cases:
        if case.reason:
            st.warning(case.reason)
    table_downloads(lambda: table, "accuracy")


def show_link(name: str, runs: dict[str, Run]) -> None:
    """A link to the timeline of a case named `<recording>/<case>`."""
    folder, _, case = name.partition("/")
    if folder in runs:
        query = {"run": runs[folder].label, "case": case}
        st.page_link("app_pages/timeline.py", label=f"Timeline of {name}", query_params=query)


def show_environments(runs: list[Run]) -> None:
    """The environment of each recording."""
    rows = []
    for run in runs:
        try:
            folder = run.case_folder(run.case_names()[0])
            environment = stored_case(folder, case_stamp(folder)).measured.environment
        except KvOverlapError:
            continue
        rows.append({"recording": run.label, **{k: str(v) for k, v in environment.items()}})
    if rows:
        st.subheader("Recorded in", anchor=False)
        show_table(pd.DataFrame(rows))


show_page()
