"""A measured restore: where its ends met, and the errors of its prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from dashboard.controls.lanes import draw_lanes
from dashboard.controls.plan import show_case_memory
from dashboard.controls.widgets import (
    Picked,
    cards,
    chart,
    headline_place,
    pair,
    pick_case,
    show_table,
)
from dashboard.data.runs import Case, run_stamp
from dashboard.figures import (
    Meeting,
    both_ends_compared,
    errors_by_case,
    paired_lanes,
    predicted_against_measured,
)
from dashboard.questions.restore import request_of
from dashboard.session import accuracy_of, cases_of
from dashboard.text.comparison import (
    busy_lanes,
    compare_command,
    comparison_summary,
    count_of,
    describe_case,
    escaped,
    metrics,
)
from planner.restore.plan import token_counts
from planner.restore.planner import meeting_token
from sim.errors import KvOverlapError
from sim.graph.tasks import TaskGraph
from sim.graph.timeline import Timeline
from sim.results.accuracy import CaseAccuracy


def show_measured() -> None:
    """Menus of runs and cases, then the chosen restore."""
    headline = headline_place()
    picked = pick_case("A restore: predicted by the simulator, then run on a device.", True)
    if picked is None:
        return
    case = picked.case
    headline.header(comparison_summary(case), anchor=False)
    st.caption(describe_case(case))
    st.markdown(f"**{describe_meeting(case)}** {busy_lanes(case)}")
    for sentence in check_warnings(case):
        st.warning(escaped(sentence))
    cards(metrics(case.comparison))
    show_both_ends(case)
    st.subheader("Tokens by source", anchor=False)
    show_table(token_table(case), {"TTFT (ms)": "%.1f"})
    st.subheader("Memory", anchor=False)
    show_case_memory(case)
    show_others(picked)
    show_exports(picked)


def describe_meeting(case: Case) -> str:
    """The token at which the ends met, or the computed tokens if there were no two ends."""
    request = request_of(case.graph)
    guess, truth = (meeting_token(run.typical, request) for run in (case.predicted, case.measured))
    text = f"The ends met at token {truth:,}"
    if not covers_all_layers(case.graph) or Meeting.of(case.measured.typical) is None:
        text = f"All layers of {count_of(truth, 'cached token')} were computed"
    return f"{text}, as predicted." if guess == truth else f"{text}, predicted {guess:,}."


def covers_all_layers(graph: TaskGraph) -> bool:
    """Whether every task handles all layers, so that the run has two ends."""
    layers = graph.model.n_layers
    return all(task.layers == layers for task in graph.tasks if task.op != "head")


def check_warnings(case: Case) -> list[str]:
    """Deviations from the plan that the recording reports."""
    checks: Mapping[str, Any] = case.measured.checks
    lines = []
    for one in checks.get("recomputed_instead") or ():
        start, stop = one["tokens"]
        layers = count_of(len(one["layers"]), "layer")
        lines.append(
            f"Tokens {start:,} to {stop:,} were computed instead of loaded in {layers}: "
            f"{one['why']}"
        )
    if checks.get("compute_shares") and not case.availability.steps:
        lines.append(
            "This was measured under a trace that its file does not contain: the prediction is "
            "for the whole machine."
        )
    return lines


def show_both_ends(case: Case) -> None:
    """Both runs: tokens over time, or lanes over time if tasks handle some of the layers."""
    runs = case.predicted.typical, case.measured.typical
    if covers_all_layers(case.graph):
        st.subheader("Both ends, measured and predicted", anchor=False)
        chart(both_ends_compared(*runs), "Tokens over time in both runs", "ends")
        return
    st.subheader("Every task, predicted above measured", anchor=False)
    draw_lanes(paired_lanes(*runs, estimates=case.estimates))


def token_table(case: Case) -> pd.DataFrame:
    """Tokens by the source of their K and V, in both runs."""

    def row(source: str, run: Timeline, ttft_s: float) -> dict[str, object]:
        counts = token_counts(run, request_of(case.graph))
        columns = {name.replace("_tokens", "").replace("_", " "): n for name, n in counts.items()}
        return {"run": source, "TTFT (ms)": 1e3 * ttft_s, **columns}

    return pd.DataFrame(
        [row(one.source, one.typical, one.makespan_s) for one in (case.predicted, case.measured)]
    )


def show_others(picked: Picked) -> None:
    """Every restore of the run, predicted against measured."""
    found = restores_of(picked)
    if len(found) < 2:
        return
    st.subheader(f"All {count_of(len(found), 'restore')} of this run", anchor=False)
    left, right = pair("restores")
    with left:
        alt = "Predicted over measured time to first token of every restore"
        chart(predicted_against_measured(found), alt, "scatter")
    with right:
        chart(errors_by_case(found), "Signed error of every restore", "errors")


def restores_of(picked: Picked) -> list[CaseAccuracy]:
    """The errors of every restore of the run of a case."""
    if picked.run is None:
        return []
    try:
        found = accuracy_of(picked.run.folder, run_stamp(picked.run))
        names = set(cases_of(picked.run, restores=True))
    except KvOverlapError:
        return []
    return [case for case in found.cases if case.name.rpartition("/")[2] in names]


def show_exports(picked: Picked) -> None:
    """The commands of this comparison, and a link to the page Timeline."""
    st.subheader("Command-line equivalent", anchor=False)
    if picked.run is None:
        st.page_link("app_pages/timeline.py", label="Task by task")
        return
    command = compare_command(picked.run.case_folder(picked.name))
    st.code(command, language="bash", wrap_lines=True)
    query = {"run": picked.run.label, "case": picked.name}
    st.page_link("app_pages/timeline.py", label="Task by task", query_params=query)
