"""An answer pinned as A, next to the present one, B; the address of the page holds both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qsl, urlencode

import streamlit as st

from dashboard.asking import Cancelled, show_cancelled
from dashboard.controls.lanes import draw_lanes
from dashboard.controls.plan import predicted_run, show_plan_memory
from dashboard.controls.widgets import pair, show_table
from dashboard.data.runs import Case, case_stamp
from dashboard.figures import NamedRun, lanes_of
from dashboard.questions.decode import Question
from dashboard.questions.pinned import (
    differences,
    question_text,
    read_question,
    read_restore,
    restore_text,
)
from dashboard.questions.restore import RestorePlans, RestoreQuestion
from dashboard.session import (
    all_machines,
    all_runs,
    facts_of,
    plan_for,
    restore_plans_for,
    stored_case,
    timeline_of,
    uploaded,
)
from dashboard.text.compare import (
    A,
    B,
    case_rows,
    plan_rows,
    restore_rows,
    side_by_side,
    step_s,
    verdict,
)
from dashboard.text.comparison import comparison_summary, escaped
from dashboard.text.refusal import describe_refusal, in_page_terms
from planner import DecodePlan
from planner.advice import headline
from planner.restore import restore_headline
from sim.catalog import find_hardware, find_model, link_names, model_names
from sim.errors import BadInput, KvOverlapError
from sim.machine.components import JOIN, split_name
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec

T = TypeVar("T")

PINNED = "a"
"""In the address of the page; in the session one for each kind of answer."""

DECODE, RESTORE, CASE = "decode", "restore", "case"

NO_A = "A has no answer: "


def pin_row(kind: str, present: str) -> str | None:
    """Buttons that pin the present answer as A, exchange A, or unpin it; returns the pinned one.

    Args:
        kind: kind of the answer: pages of one kind share what is pinned.
        present: the question of the present answer as text.
    """
    stored: dict[str, str] = st.session_state.setdefault("pinned", {})
    if PINNED in st.query_params:
        stored[kind] = st.query_params[PINNED]
    elif kind in stored:
        st.query_params[PINNED] = stored[kind]
    row = st.container(horizontal=True, vertical_alignment="center")
    row.button(
        "Pin as A" if kind not in stored else "Pin this as A instead",
        key="pin",
        on_click=_pin,
        args=(kind, present),
        help="Keeps this answer. Then change anything: A and the new answer, B, are shown side by "
        "side, and the address of the page holds both.",
    )
    if kind not in stored:
        return None
    row.button("Unpin A", key="unpin", on_click=_unpin, args=(kind,))
    if stored[kind] == present:
        row.caption("A is this answer. Change a control to see B next to it.", width="content")
        return None
    return stored[kind]


def _pin(kind: str, present: str) -> None:
    st.session_state["pinned"][kind] = present
    st.query_params[PINNED] = present


def _unpin(kind: str) -> None:
    st.session_state["pinned"].pop(kind, None)
    if PINNED in st.query_params:
        del st.query_params[PINNED]


def show_unanswered(error: KvOverlapError) -> None:
    """Why the pinned answer cannot be shown; the button that unpins it is above."""
    if isinstance(error, Cancelled):
        show_cancelled()
        return
    st.error(f"{NO_A}{escaped(describe_refusal(error))}")


def compare_plans(question: Question, policy: str, plan: DecodePlan) -> None:
    """The pin, and the pinned decode plan next to the present one."""
    present = question_text(question, policy)
    text = pin_row(DECODE, present)
    if text is None:
        return
    try:
        asked, chosen = read_question(text, _model, _machine)
        other = plan_for(asked, chosen)
    except KvOverlapError as error:
        show_unanswered(error)
        return
    with st.container(border=True):
        heads = {name: in_page_terms(headline(one)) for name, one in _named(other, plan)}
        _head(text, present, heads)
        st.markdown(f"**{verdict(step_s(other), step_s(plan), 'a step')}**")
        table = st.container()
        a_price, b_price = _prices()
        needs = facts_of(other).memory, facts_of(plan).memory
        rows = plan_rows(other, needs[0], a_price), plan_rows(plan, needs[1], b_price)
        with table:
            show_table(side_by_side(*rows))
        runs = [predicted_run(one, timeline_of(one), name) for name, one in _named(other, plan)]
        draw_lanes(lanes_of(runs), "compared")
        show_plan_memory({A: other, B: plan}, "memories")


def compare_restores(question: RestoreQuestion, policy: str, answer: RestorePlans) -> None:
    """The pin, and the pinned restore next to the present one."""
    present = restore_text(question, policy)
    text = pin_row(RESTORE, present)
    if text is None:
        return
    try:
        asked, chosen = read_restore(text, _model, _machine)
        if chosen not in answer.plans:
            raise BadInput(f"policy {chosen!r} is not one of the menu; unpin it.")
        other = restore_plans_for(asked)
        a, b = other.plans[chosen], answer.plans[policy]
    except KvOverlapError as error:
        show_unanswered(error)
        return
    with st.container(border=True):
        _head(text, present, {A: restore_headline(a), B: restore_headline(b)})
        st.markdown(f"**{verdict(a.ttft_s, b.ttft_s, 'to the first token')}**")
        show_table(side_by_side(restore_rows(a), restore_rows(b)))
        timelines = other.timelines[chosen], answer.timelines[policy]
        runs = [
            predicted_run(plan, timeline, name)
            for (name, plan), timeline in zip(_named(a, b), timelines, strict=True)
        ]
        draw_lanes(lanes_of(runs), "compared")


def compare_cases(run: str, name: str, case: Case) -> None:
    """The pin, and the pinned measured case next to the present one."""
    present = urlencode({"run": run, "case": name})
    text = pin_row(CASE, present)
    if text is None:
        return
    try:
        other = _case(text)
    except KvOverlapError as error:
        show_unanswered(error)
        return
    with st.container(border=True):
        _head(text, present, {A: comparison_summary(other), B: comparison_summary(case)})
        times = other.comparison.measured_makespan_s, case.comparison.measured_makespan_s
        st.markdown(f"**{verdict(*times, 'measured')}**")
        show_table(side_by_side(case_rows(other), case_rows(case)))
        runs = [
            NamedRun(letter, one.measured.typical, one.estimates)
            for letter, one in ((A, other), (B, case))
        ]
        st.caption("Both as measured.")
        draw_lanes(lanes_of(runs), "compared")


def _named(a: T, b: T) -> tuple[tuple[str, T], tuple[str, T]]:
    return (A, a), (B, b)


def _head(a_text: str, b_text: str, sentences: Mapping[str, str]) -> None:
    """The sentence of each answer, and the inputs in which they differ."""
    for column, (name, text) in zip(pair("sentences"), sentences.items(), strict=True):
        column.markdown(f"**{name}** {escaped(text)}")
    parts = [f"{name}: {a} (A), {b} (B)" for name, a, b in differences(a_text, b_text)]
    st.caption(escaped("; ".join(parts)))


def _prices() -> tuple[float | None, float | None]:
    """Prices of an hour of a GPU of each machine, in any currency."""
    found = []
    for column, name in zip(st.columns(2), (A, B), strict=True):
        found.append(
            column.number_input(
                f"Price of a GPU hour of {name}",
                min_value=0.0,
                value=None,
                placeholder="none",
                key=f"price_{name.lower()}",
                bind="query-params",
                help="In any currency; then the price of a million tokens is compared too.",
            )
        )
    return found[0], found[1]


def _model(name: str) -> ModelSpec:
    own = {model.name: model for model in uploaded(ModelSpec).values()}
    if name in own:
        return own[name]
    if name not in model_names():
        raise BadInput(f"model {name!r} is not one of the menu; upload its config.json first.")
    return find_model(name)


def _machine(reference: str) -> HardwareProfile:
    """A machine of the menu by its reference, never a file of another name."""
    machines = {machine.reference: machine for machine in all_machines()}
    if reference in machines:
        return machines[reference].load()
    devices = {machine.parts[0] for machine in machines.values() if machine.parts}
    if JOIN in reference:
        device, link = split_name(reference)
        if device in devices and link in link_names():
            return find_hardware(reference)
    raise BadInput(f"machine {reference!r} is not one of the menu; upload its profile first.")


def _case(text: str) -> Case:
    values = dict(parse_qsl(text))
    runs = {run.label: run for run in all_runs()}
    run = runs.get(values.get("run", ""))
    name = values.get("case", "")
    if run is None or name not in run.case_names():
        raise BadInput(f"case {name!r} of run {values.get('run')!r} is not on this server.")
    folder: Path = run.case_folder(name)
    return stored_case(folder, case_stamp(folder))
