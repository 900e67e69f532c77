"""A restore that was measured: where its ends met, and how far the prediction was off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from dashboard.controls.widgets import Picked, cards, chart, pair, pick_case
from dashboard.data.runs import Case, run_stamp
from dashboard.figures import (
    Meeting,
    both_ends_compared,
    errors_by_case,
    paired_lanes,
    predicted_against_measured,
)
from dashboard.questions.restore import request_of
from dashboard.session import cases_of, stored_accuracy
from dashboard.text.comparison import (
    answer,
    busy_lanes,
    circumstances,
    compare_command,
    count_of,
    metrics,
    plain,
)
from planner.restore.plan import token_counts
from planner.restore.planner import meeting_token
from sim.errors import KvOverlapError
from sim.graph.tasks import TaskGraph
from sim.graph.timeline import Timeline
from sim.results.accuracy import CaseAccuracy


def show_measured() -> None:
    """Menus, then the restore that they choose."""
    picked = pick_case("A restore: predicted by the simulator, then run on a device.", True)
    if picked is None:
        return
    case = picked.case
    st.header(answer(case.comparison), anchor=False)
    st.caption(circumstances(case))
    st.markdown(f"**{met(case)}** {busy_lanes(case)}")
    for sentence in check_warnings(case):
        st.warning(plain(sentence))
    cards(metrics(case.comparison))
    show_walk(case)
    st.subheader("Who made which tokens", anchor=False)
    number = st.column_config.NumberColumn(format="%.1f")
    st.dataframe(token_table(case), hide_index=True, column_config={"TTFT (ms)": number})
    show_others(picked)
    show_ways_out(picked)


def met(case: Case) -> str:
    """Where the ends met, or how far compute came where there were no two, in one sentence."""
    request = request_of(case.graph)
    guess, truth = (meeting_token(run.typical, request) for run in (case.predicted, case.measured))
    told = f"The ends met at token {truth:,}"
    if not walks(case.graph) or Meeting.of(case.measured.typical) is None:
        told = f"All layers of {count_of(truth, 'cached token')} were computed"
    return f"{told}, as predicted." if guess == truth else f"{told}, predicted {guess:,}."


def walks(graph: TaskGraph) -> bool:
    """Whether every task works on all layers, so that the run is one of ends that walk."""
    layers = graph.model.n_layers
    return all(task.layers == layers for task in graph.tasks if task.op != "head")


def check_warnings(case: Case) -> list[str]:
    """What went otherwise than planned, as the recording says."""
    checks: Mapping[str, Any] = case.measured.checks
    told = []
    for one in checks.get("recomputed_instead") or ():
        start, stop = one["tokens"]
        layers = count_of(len(one["layers"]), "layer")
        told.append(
            f"Tokens {start:,} to {stop:,} were computed instead of loaded in {layers}: "
            f"{one['why']}"
        )
    if checks.get("compute_shares") and not case.availability.steps:
        told.append(
            "This was measured under a trace that its file does not hold: the prediction is for "
            "the whole machine."
        )
    return told


def show_walk(case: Case) -> None:
    """Both runs: as ends that walk, or lane by lane where tasks work on some layers only."""
    runs = case.predicted.typical, case.measured.typical
    if walks(case.graph):
        st.subheader("Both ends, measured, and where they were predicted", anchor=False)
        chart(both_ends_compared(*runs), "Tokens over time in both runs", "ends")
        return
    st.subheader("Every task, predicted above measured", anchor=False)
    chart(paired_lanes(*runs, estimates=case.estimates), "Tasks of each lane, both runs", "lanes")


def token_table(case: Case) -> pd.DataFrame:
    """Tokens by where their K and V came from, in both runs."""

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
    """How far off every restore of the run of a case is."""
    if picked.run is None:
        return []
    try:
        found = stored_accuracy(picked.run.folder, run_stamp(picked.run))
        names = set(cases_of(picked.run, restores=True))
    except KvOverlapError:
        return []
    return [case for case in found.cases if case.name.rpartition("/")[2] in names]


def show_ways_out(picked: Picked) -> None:
    """The same on the command line, and task by task on the page Timeline."""
    st.subheader("The same without this page", anchor=False)
    if picked.run is None:
        st.page_link("app_pages/timeline.py", label="Task by task")
        return
    st.code(compare_command(picked.run.case_folder(picked.name)), language="bash")
    query = {"run": picked.run.label, "case": picked.name}
    st.page_link("app_pages/timeline.py", label="Task by task", query_params=query)
