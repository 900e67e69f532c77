"""What pages share: caches of answers, uploads of this visitor, and the measurement going on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import streamlit as st

from dashboard import runs as run_folders
from dashboard.jobs import Jobs
from dashboard.machines import Machine, find_machines, profile_key
from dashboard.question import Question
from dashboard.runs import Case, Run, case_of, find_runs, load_case, plan_of
from dashboard.uploads import Upload
from planner import Plan
from sim.accuracy import Accuracy, assess
from sim.hardware import HardwareProfile
from sim.recording import Recording

UPLOADS = "uploads"
MAX_UPLOADS = 8


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


def uploaded_recordings() -> dict[str, Recording]:
    return {
        name: upload.content
        for name, upload in reversed(uploads().items())
        if isinstance(upload.content, Recording)
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
