"""State that pages share: cached plans and cases, uploads, and the running measurement."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

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
from dashboard.questions.decode import Question
from dashboard.questions.restore import Report, RestoreAnswer, RestoreQuestion
from planner import DecodePlan, RestorePlan
from sim.errors import KvOverlapError
from sim.graph.jobs import RestoreRequest
from sim.machine.profile import HardwareProfile
from sim.results.accuracy import Accuracy, assess
from sim.results.recording import Recording

Content = TypeVar("Content", HardwareProfile, DecodePlan, RestorePlan, Recording)

UPLOADS = "uploads"
MAX_UPLOADS = 8
MAX_RESTORES = 16
"""Cached restore answers of each visitor."""


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


def _load_stamped(folder: Path, stamp: tuple[int, ...]) -> Case:  # noqa: ARG001
    """The case in `folder`, read again when `stamp` changes."""
    return load_case(folder)


stored_case: Callable[[Path, tuple[int, ...]], Case] = st.cache_resource(
    _load_stamped, max_entries=64, show_spinner="Simulating the recorded plan"
)


def _is_restore_stamped(folder: Path, stamp: tuple[int, ...]) -> bool:  # noqa: ARG001
    try:
        return is_restore(folder)
    except KvOverlapError:
        return False


_stored_kind: Callable[[Path, tuple[int, ...]], bool] = st.cache_data(
    _is_restore_stamped, max_entries=4096, show_spinner=False
)


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


def _assess_stamped(root: Path, stamp: tuple[int, ...]) -> Accuracy:  # noqa: ARG001
    return assess(root)


stored_accuracy: Callable[[Path, tuple[int, ...]], Accuracy] = st.cache_resource(
    _assess_stamped, max_entries=16, show_spinner=False
)
"""Errors of every case under a root, simulated once for each stamp of its files."""


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


def _plan_of_case(sha256: str, policy: str, _case: Case) -> DecodePlan:  # noqa: ARG001
    return plan_of(_case)


_stored_plan: Callable[[str, str, Case], DecodePlan] = st.cache_resource(
    _plan_of_case, max_entries=64, show_spinner="Planning the case again"
)


def case_plan(case: Case) -> DecodePlan:
    """The cached plan of a case.

    Raises:
        KvOverlapError: this version cannot plan it.
    """
    machine = profile_key(case.measured.hardware)
    return _stored_plan(case.graph.sha256 + machine, case.policy, case)


def _answer(question: Question, policy: str) -> DecodePlan:
    return question.plan(policy)


_stored_answer: Callable[[Question, str], DecodePlan] = st.cache_resource(
    _answer,
    max_entries=1024,
    show_spinner=False,
    hash_funcs={HardwareProfile: profile_key},
)


def answer_to(question: Question, policy: str = "lp") -> DecodePlan:
    """The cached plan of a question.

    Raises:
        KvOverlapError: the model or the machine does not support the job.
    """
    return _stored_answer(question, policy)


jobs: Callable[[], Jobs] = st.cache_resource(Jobs, show_spinner=False)
"""The measurement of this server, shared by all visitors."""


def restore_answer_to(question: RestoreQuestion, report: Report) -> RestoreAnswer:
    """Plans of every policy for a question, cached for this visitor.

    Raises:
        KvOverlapError: the model or the machine does not support the request.
    """
    cached: dict[tuple[str, str], RestoreAnswer] = st.session_state.setdefault("restores", {})
    key = (repr(question), profile_key(question.hardware))
    if key not in cached:
        cached[key] = question.answer(report)
        while len(cached) > MAX_RESTORES:
            del cached[next(iter(cached))]
    return cached[key]
