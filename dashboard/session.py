"""State that pages share: cached plans and cases, uploads, and the running measurement."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import streamlit as st

from dashboard.data import runs as run_folders
from dashboard.data.jobs import Jobs
from dashboard.data.machines import Machine, find_machines, profile_key
from dashboard.data.runs import (
    Case,
    Run,
    case_of,
    case_stamp,
    find_runs,
    is_restore,
    load_case,
    plan_of,
)
from dashboard.data.uploads import Upload
from dashboard.figures import LaneChart, View, paired_lanes
from dashboard.perfetto import joint_trace
from dashboard.questions.decode import Question
from dashboard.questions.points import kvpr_count, split_points
from dashboard.questions.restore import Report, RestorePlans, RestoreQuestion
from planner import DecodePlan, RestorePlan
from planner.advice import Advice, RuntimeGap
from sim.errors import KvOverlapError
from sim.graph.jobs import RestoreRequest
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec
from sim.results.accuracy import Accuracy, assess
from sim.results.recording import Recording
from sim.traces.measured import MeasuredTrace

Content = TypeVar(
    "Content", HardwareProfile, DecodePlan, RestorePlan, Recording, MeasuredTrace, ModelSpec
)
F = TypeVar("F", bound=Callable[..., Any])

UPLOADS = "uploads"
MAX_UPLOADS = 8
MAX_RESTORES = 16
"""Cached restore answers of each visitor."""


def typed(decorator: Any, **options: Any) -> Callable[[F], F]:
    """A decorator of Streamlit that preserves the type of the function."""
    same_type: Callable[[F], F] = decorator(**options)
    return same_type


def uploads() -> dict[str, Upload]:
    """Accepted files of this visitor by name, newest last."""
    found: dict[str, Upload] = st.session_state.setdefault(UPLOADS, {})
    return found


def keep_upload(upload: Upload) -> None:
    """Store an accepted file; beyond `MAX_UPLOADS` the oldest is dropped."""
    stored = uploads()
    stored.pop(upload.name, None)
    stored[upload.name] = upload
    while len(stored) > MAX_UPLOADS:
        del stored[next(iter(stored))]


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
        if restores in (None, recording.graph.workload.kind == RestoreRequest.kind)
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


@typed(st.cache_resource, max_entries=16, show_spinner=False)
def stored_accuracy(root: Path, stamp: tuple[int, ...]) -> Accuracy:  # noqa: ARG001
    """Errors of every case under a root, simulated once for each stamp of its files."""
    return assess(root)


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


@typed(st.cache_resource, max_entries=64, show_spinner="Planning the case again")
def _stored_plan(sha256: str, policy: str, _case: Case) -> DecodePlan:  # noqa: ARG001
    return plan_of(_case)


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
    """The cached plan of a case.

    Raises:
        KvOverlapError: this version cannot plan it.
    """
    machine = profile_key(case.measured.hardware)
    return _stored_plan(case.graph.sha256 + machine, case.policy, case)


@typed(
    st.cache_resource,
    max_entries=1024,
    show_spinner=False,
    hash_funcs={HardwareProfile: profile_key},
)
def plan_for(question: Question, policy: str = "lp") -> DecodePlan:
    """The cached plan of a question.

    Raises:
        KvOverlapError: the model or the machine does not support the job.
    """
    return question.plan(policy)


@typed(
    st.cache_resource,
    max_entries=256,
    show_spinner=False,
    hash_funcs={HardwareProfile: profile_key},
)
def advice_for(question: Question, slo_ms: float | None = None) -> Advice:
    """The cached recommendation for a question.

    Raises:
        KvOverlapError: the model or the machine does not support the job.
    """
    return question.advise(slo_ms)


@typed(st.cache_data, max_entries=64, show_spinner="Simulating splits")
def _stored_even_splits(machine: str, sha256: str, _plan: DecodePlan) -> pd.DataFrame:  # noqa: ARG001
    return split_points(_plan, [kvpr_count(_plan)])


def even_splits(plan: DecodePlan) -> pd.DataFrame:
    """The cached makespans of a plan's job over the tokens that every layer recomputes."""
    return _stored_even_splits(profile_key(plan.hardware), plan.graph_sha256, plan)


jobs: Callable[[], Jobs] = st.cache_resource(Jobs, show_spinner=False)
"""The measurements of this server, shared by all visitors."""


@typed(
    st.cache_resource,
    max_entries=64,
    show_spinner="Comparing with the runtime",
    hash_funcs={HardwareProfile: profile_key},
)
def runtime_gap_for(question: Question | RestoreQuestion, runtime: str) -> RuntimeGap:
    """What a runtime leaves on the table for a question, cached.

    Raises:
        KvOverlapError: the machine does not support the request or the runtime's copies.
    """
    return question.gap(runtime)


def restore_plans_for(question: RestoreQuestion, report: Report) -> RestorePlans:
    """Plans of every policy for a question, cached for this visitor.

    Raises:
        KvOverlapError: the model or the machine does not support the request.
    """
    cached: dict[tuple[str, str], RestorePlans] = st.session_state.setdefault("restores", {})
    key = (repr(question), profile_key(question.hardware))
    if key not in cached:
        cached[key] = question.answer(report)
        while len(cached) > MAX_RESTORES:
            del cached[next(iter(cached))]
    return cached[key]
