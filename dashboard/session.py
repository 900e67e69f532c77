"""State that pages share: plans and cases, uploads, and the running measurement.

Plans, sweeps and simulations are answers of `dashboard.asking`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import streamlit as st

from dashboard.asking import Asked, answer
from dashboard.data import runs as run_folders
from dashboard.data.jobs import Jobs
from dashboard.data.machines import Machine, find_machines, profile_key
from dashboard.data.runs import (
    Case,
    Run,
    assess_from,
    case_of,
    case_stamp,
    find_runs,
    is_restore,
    load_case,
    plan_of,
)
from dashboard.data.upload_store import STORE
from dashboard.data.uploads import PREDICTION_SOURCE, Upload
from dashboard.figures import LaneChart, View, paired_lanes
from dashboard.perfetto import joint_trace
from dashboard.questions.decode import ENGINE, PlanFacts, Question, plan_facts
from dashboard.questions.points import even_split_s, grid_points, kvpr_count, split_points
from dashboard.questions.restore import AUTO, RateSweep, RestorePlans, RestoreQuestion
from dashboard.questions.traffic import MAX_WORK, TrafficAnswers, TrafficQuestion
from planner import DecodePlan, RestorePlan
from planner.advice import Advice, RuntimeGap
from sim.errors import KvOverlapError
from sim.graph.jobs import RestoreRequest
from sim.graph.timeline import Timeline
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec
from sim.results.accuracy import Accuracy
from sim.results.recording import Recording
from sim.service import RequestTrace, ServiceTimeline
from sim.traces.measured import MeasuredTrace

Content = TypeVar(
    "Content",
    HardwareProfile,
    DecodePlan,
    RestorePlan,
    Recording,
    MeasuredTrace,
    ModelSpec,
    RequestTrace,
)
F = TypeVar("F", bound=Callable[..., Any])

UPLOADS, UPLOAD_IDS, FILES = "uploads", "upload_ids", "files"
MAX_UPLOADS = 8


def typed(decorator: Any, **options: Any) -> Callable[[F], F]:
    """A decorator of Streamlit that preserves the type of the function."""
    same_type: Callable[[F], F] = decorator(**options)
    return same_type


def uploads() -> dict[str, Upload]:
    """Accepted files of this visitor by name, newest last."""
    st.session_state.setdefault(UPLOAD_IDS, {})
    found: dict[str, Upload] = st.session_state.setdefault(UPLOADS, {})
    return found


def keep_upload(upload: Upload, size: int) -> None:
    """Store an accepted file of `size` bytes; beyond `MAX_UPLOADS` the oldest is dropped."""
    if upload.name in uploads():
        remove_upload(upload.name)
    uploads()[upload.name] = upload
    st.session_state[UPLOAD_IDS][upload.name] = STORE.add(upload, size)
    while len(uploads()) > MAX_UPLOADS:
        remove_upload(next(iter(uploads())))


def remove_upload(name: str) -> None:
    """Forget a file, on the server too."""
    uploads().pop(name, None)
    STORE.remove(st.session_state[UPLOAD_IDS].pop(name, ""))


def restore_uploads() -> None:
    """Take the files that the address names from the server; says how many it has lost."""
    if UPLOADS in st.session_state:
        return
    found = uploads()
    asked = list(filter(None, st.query_params.get(FILES, "").split(",")))[:MAX_UPLOADS]
    for key in asked:
        upload = STORE.get(key)
        if upload is not None:
            found[upload.name] = upload
            st.session_state[UPLOAD_IDS][upload.name] = key
    if lost := len(asked) - len(found):
        st.warning(
            f"{lost} uploaded {'file' if lost == 1 else 'files'} of this link are no longer on "
            "this server; upload them again on the page Your machine."
        )


def write_uploads() -> None:
    """Write the ids of this visitor's files into the address."""
    ids = ",".join(st.session_state.get(UPLOAD_IDS, {}).values())
    if not ids:
        st.query_params.pop(FILES, None)
    elif st.query_params.get(FILES) != ids:
        st.query_params[FILES] = ids


def uploaded(kind: type[Content]) -> dict[str, Content]:
    """The contents of one kind that this visitor uploaded, newest first."""
    return {
        name: upload.content
        for name, upload in reversed(uploads().items())
        if isinstance(upload.content, kind)
    }


def uploaded_recordings(restores: bool | None = None) -> dict[str, Recording]:
    """Uploaded recordings: all, those of restores, or those of decodes."""
    return {
        name: recording
        for name, recording in uploaded(Recording).items()
        if recording.source == "measured"
        and restores in (None, recording.graph.workload.kind == RestoreRequest.kind)
    }


def uploaded_predictions() -> dict[str, Recording]:
    """Uploaded predicted timelines."""
    return {
        name: recording
        for name, recording in uploaded(Recording).items()
        if recording.source == PREDICTION_SOURCE
    }


def all_runs() -> list[Run]:
    """Own runs and shipped ones."""
    return find_runs(run_folders.OWN_RUNS, run_folders.SHIPPED_RUNS)


def all_machines() -> list[Machine]:
    return find_machines(all_runs(), uploaded(HardwareProfile))


@typed(st.cache_resource, max_entries=64, show_spinner="Simulating the recorded plan")
def stored_case(folder: Path, stamp: tuple[int, ...]) -> Case:  # noqa: ARG001
    """The case in `folder`, read again when `stamp` changes."""
    return load_case(folder)


@typed(st.cache_data, max_entries=4096, show_spinner=False)
def _stored_kind(folder: Path, stamp: tuple[int, ...]) -> bool:  # noqa: ARG001
    try:
        return is_restore(folder)
    except KvOverlapError:
        return False


def cases_of(run: Run, restores: bool | None = None) -> list[str]:
    """Names of the cases of a run: all, restores, or decodes and unreadable ones.

    Raises:
        BadFile: there are none, or the folder cannot be listed.
    """
    names = run.case_names()
    if restores is None:
        return names
    folders = {name: run.case_folder(name) for name in names}
    return [
        name for name in names if _stored_kind(folders[name], case_stamp(folders[name])) == restores
    ]


def runs_with(restores: bool) -> list[Run]:
    """Runs with at least one restore, or one decode."""
    found = []
    for run in all_runs():
        try:
            if cases_of(run, restores):
                found.append(run)
        except KvOverlapError:
            continue
    return found


def accuracy_of(root: Path, stamp: tuple[int, ...]) -> Accuracy:
    """Errors of every case under a root, predicted once for each stamp of its files.

    Raises:
        BadFile: there is no case.
    """
    key, text = f"{Path.cwd()} {root} {stamp}", "Predicting every recorded case"
    return answer(assess_from, Path.cwd(), root, key=key, text=text)


def uploaded_case(name: str) -> Case:
    """The cached comparison of an uploaded recording.

    Raises:
        KvOverlapError: it cannot be compared.
    """
    recording = uploaded_recordings()[name]
    made: dict[int, Case] = st.session_state.setdefault("uploaded_cases", {})
    if id(recording) not in made:
        made.clear()
        made[id(recording)] = case_of(recording)
    return made[id(recording)]


def case_key(case: Case) -> str:
    """A text that differs for cases with other tasks or other times."""
    times = [run.makespan_s for run in (case.predicted.typical, case.measured.typical)]
    return f"{case.graph.sha256} {times}"


@typed(st.cache_resource, max_entries=16, show_spinner=False)
def _stored_lanes(key: str, _draw: Callable[[], LaneChart]) -> LaneChart:  # noqa: ARG001
    return _draw()


def case_lanes(case: Case, view: View, critical: bool, errors: bool) -> LaneChart:
    """The cached lanes of a case: those off the critical path faded, errors outlined, or not."""
    runs = case.predicted.typical, case.measured.typical
    return _stored_lanes(
        f"{case_key(case)} {view!r} {critical} {errors}",
        lambda: paired_lanes(*runs, view, case.estimates, critical, errors),
    )


@typed(st.cache_resource, max_entries=4, show_spinner=False)
def _stored_trace(key: str, _case: Case) -> bytes:  # noqa: ARG001
    return joint_trace(_case.predicted.typical, _case.measured.typical)


def case_trace(case: Case) -> bytes:
    """The cached trace of both runs of a case."""
    return _stored_trace(case_key(case), case)


def case_plan(case: Case) -> DecodePlan:
    """The plan of a case.

    Raises:
        KvOverlapError: this version cannot plan it.
    """
    graph, machine = case.graph, case.measured.hardware
    key = f"{graph.sha256} {case.policy} {profile_key(machine)}"
    about = Asked(len(graph.tasks), "")
    return answer(plan_of, graph, machine, case.policy, key=key, about=about)


def plan_for(question: Question, policy: str = "lp") -> DecodePlan:
    """The plan of a question.

    Raises:
        KvOverlapError: the model or the machine does not support the job.
    """
    about = Asked(question.n_tasks, question.command(policy))
    return answer(question.plan, policy, key=f"{policy} {question.key}", about=about)


def advice_for(question: Question, slo_ms: float | None = None) -> Advice:
    """The recommendation for a question.

    Raises:
        KvOverlapError: the model or the machine does not support the job.
    """
    about = Asked(question.n_tasks, question.advise_command(slo_ms))
    return answer(question.advise, slo_ms, key=f"{slo_ms} {question.key}", about=about)


def facts_of(plan: DecodePlan) -> PlanFacts:
    """Sources of a plan's task times, and its memory."""
    return answer(plan_facts, plan, key=_plan_key(plan), text="Adding up memory and task times")


def timeline_of(plan: DecodePlan) -> Timeline:
    """The predicted timeline of a plan."""
    return answer(plan.simulate, ENGINE, key=_plan_key(plan), text="Simulating the plan")


def even_splits(plan: DecodePlan) -> pd.DataFrame:
    """The makespans of a plan's job over the tokens that every layer recomputes."""
    counts = [kvpr_count(plan)]
    return answer(split_points, plan, counts, key=_plan_key(plan), text="Simulating splits")


def even_split_time(plan: DecodePlan, tokens: int) -> float:
    """Makespan of a plan's job in which every layer recomputes `tokens`, in seconds.

    A fragment may call it.
    """
    key, text = f"{tokens} {_plan_key(plan)}", "Simulating the split"
    return answer(even_split_s, plan, tokens, key=key, text=text, place=st.empty())


def _plan_key(plan: DecodePlan) -> str:
    return f"{plan.graph_sha256} {profile_key(plan.hardware)}"


def sweep_of(question: Question, names: Sequence[str]) -> pd.DataFrame:
    """The plans over one input of a question or two, named as in `AXES`.

    Raises:
        TooLarge, Cancelled: as `dashboard.asking.answer`.
    """
    key = f"{[*names]} {question.key}"
    about = Asked(question.n_tasks, question.command())
    return answer(grid_points, question, names, key=key, about=about, reports=True)


def visitor() -> str:
    """A name of this visitor, for as long as the page is open."""
    name: str = st.session_state.setdefault("visitor", secrets.token_hex(8))
    return name


jobs: Callable[[], Jobs] = st.cache_resource(Jobs, show_spinner=False)
"""The measurements of this server, shared by all visitors."""


def runtime_gap_for(question: Question | RestoreQuestion, runtime: str) -> RuntimeGap:
    """What a runtime leaves on the table for a question.

    Raises:
        KvOverlapError: the machine does not support the request or the runtime's copies.
    """
    key, text = f"{runtime} {question.key}", "Comparing with the runtime"
    if isinstance(question, RestoreQuestion):
        about = _about(question)
    else:
        about = Asked(question.n_tasks, question.advise_command(runtime=runtime))
    return answer(question.gap, runtime, key=key, text=text, about=about)


def restore_plans_for(question: RestoreQuestion) -> RestorePlans:
    """Plans of every policy for a question.

    Raises:
        KvOverlapError: the model or the machine does not support the request.
    """
    return answer(question.answer, key=question.key, about=_about(question), reports=True)


def fast_rates(sweep: RateSweep) -> pd.DataFrame:
    """Time to first token over the rate of the tier, by the policies that plan fast."""
    question = sweep.question
    return answer(sweep.fast_points, key=question.key, about=_about(question), reports=True)


def slow_rates(sweep: RateSweep) -> pd.DataFrame:
    """As `fast_rates`, by the other policies and at fewer rates."""
    question = sweep.question
    return answer(sweep.slow_points, key=question.key, about=_about(question), reports=True)


def traffic_answers(question: TrafficQuestion) -> TrafficAnswers:
    """A service with every policy and size of its cache.

    Raises:
        TooLarge: too many requests to simulate here.
        KvOverlapError: the machine does not support the model.
    """
    command = "\n".join(question.commands)
    about = Asked(question.n_tasks, command, MAX_WORK, "requests to simulate over all runs")
    text = "Simulating the service"
    return answer(question.answers, key=question.key, text=text, about=about, reports=True)


def service_minute(
    question: TrafficQuestion, policy: str, size: float, start_s: float
) -> ServiceTimeline:
    """Requests and lanes of one run in the minute from `start_s` on."""
    asked = policy, size, start_s
    key, text = f"{asked} {question.key}", "Simulating up to this minute"
    return answer(question.minute, *asked, key=key, text=text, reports=True)


def _about(question: RestoreQuestion) -> Asked:
    return Asked(question.n_tasks, question.command(AUTO))
