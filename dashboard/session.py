"""What pages share: caches of answers, uploads of this visitor, and the measurement going on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
from planner import Plan
from planner.restore import RestorePlan
from sim.errors import KvOverlapError
from sim.graph.jobs import RestoreRequest
from sim.machine.profile import HardwareProfile
from sim.results.accuracy import Accuracy, assess
from sim.results.recording import Recording

UPLOADS = "uploads"
MAX_UPLOADS = 8
MAX_RESTORES = 16
"""Answers to restore questions that are kept of each visitor."""


def uploads() -> dict[str, Upload]:
    """Accepted files of this visitor by name, the newest last."""
    found: dict[str, Upload] = st.session_state.setdefault(UPLOADS, {})
    return found


def keep_upload(upload: Upload) -> None:
    """Remember an accepted file, forgetting the oldest of too many."""
    kept = uploads()
    kept.pop(upload.name, None)
    kept[upload.name] = upload
    while len(kept) > MAX_UPLOADS:
        del kept[next(iter(kept))]


def uploaded_profiles() -> dict[str, HardwareProfile]:
    return {
        name: upload.content
        for name, upload in reversed(uploads().items())
        if isinstance(upload.content, HardwareProfile)
    }


def uploaded_plans() -> dict[str, Plan]:
    return {
        name: upload.content
        for name, upload in reversed(uploads().items())
        if isinstance(upload.content, Plan)
    }


def uploaded_restore_plans() -> dict[str, RestorePlan]:
    return {
        name: upload.content
        for name, upload in reversed(uploads().items())
        if isinstance(upload.content, RestorePlan)
    }


def uploaded_recordings(restores: bool | None = None) -> dict[str, Recording]:
    """All of them, those of restores, or the others."""
    return {
        name: upload.content
        for name, upload in reversed(uploads().items())
        if isinstance(upload.content, Recording)
        and restores in (None, isinstance(upload.content.graph.workload, RestoreRequest))
    }


def all_runs() -> list[Run]:
    """Own runs and shipped ones."""
    return find_runs(run_folders.OWN_RUNS, run_folders.SHIPPED_RUNS)


def all_machines() -> list[Machine]:
    return find_machines(all_runs(), uploaded_profiles())


def _load_stamped(folder: Path, stamp: tuple[int, ...]) -> Case:  # noqa: ARG001
    """The case in `folder`; `stamp` makes it be read again when its files change."""
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
    """The cases of a run: all, those of restores, or the others, unreadable ones among them.

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
    """Runs that hold a restore, or a decode."""
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
"""Every case under a root predicted anew, once for each stamp of its files."""


def uploaded_case(name: str) -> Case:
    """The comparison of an uploaded recording, made once.

    Raises:
        KvOverlapError: it cannot be compared.
    """
    recording = uploaded_recordings()[name]
    made: dict[int, Case] = st.session_state.setdefault("uploaded_cases", {})
    if id(recording) not in made:
        made.clear()
        made[id(recording)] = case_of(recording)
    return made[id(recording)]


def _plan_of_case(sha256: str, policy: str, _case: Case) -> Plan:  # noqa: ARG001
    return plan_of(_case)


_stored_plan: Callable[[str, str, Case], Plan] = st.cache_resource(
    _plan_of_case, max_entries=64, show_spinner="Planning the case again"
)


def case_plan(case: Case) -> Plan:
    """The plan of a case, worked out once.

    Raises:
        KvOverlapError: this version cannot plan it.
    """
    machine = profile_key(case.measured.hardware)
    return _stored_plan(case.graph.sha256 + machine, case.policy, case)


def _answer(question: Question, policy: str) -> Plan:
    return question.plan(policy)


_stored_answer: Callable[[Question, str], Plan] = st.cache_resource(
    _answer,
    max_entries=1024,
    show_spinner=False,
    hash_funcs={HardwareProfile: profile_key},
)


def answer_to(question: Question, policy: str = "lp") -> Plan:
    """The plan that answers a question, worked out once.

    Raises:
        KvOverlapError: the model or the machine cannot take the job.
    """
    return _stored_answer(question, policy)


jobs: Callable[[], Jobs] = st.cache_resource(Jobs, show_spinner=False)
"""The measurement of this server, shared by all visitors."""


def restore_answer_to(question: RestoreQuestion, report: Report) -> RestoreAnswer:
    """Every policy's plan for a question, worked out once for this visitor.

    Raises:
        KvOverlapError: the model or the machine cannot take the request.
    """
    kept: dict[tuple[str, str], RestoreAnswer] = st.session_state.setdefault("restores", {})
    key = (repr(question), profile_key(question.hardware))
    if key not in kept:
        kept[key] = question.answer(report)
        while len(kept) > MAX_RESTORES:
            del kept[next(iter(kept))]
    return kept[key]
