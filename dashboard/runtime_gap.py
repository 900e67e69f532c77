"""What a serving runtime leaves on the table: its time next to the best schedule's."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from dashboard.asking import Cancelled, TooLarge, answer, show_buttons, show_reason
from dashboard.controls.widgets import menu, show_table
from dashboard.questions.decode import Question
from dashboard.questions.remedies import NO_RUNTIME, runtime_remedies
from dashboard.questions.restore import RestoreQuestion
from dashboard.session import runtime_gap_for
from dashboard.text.comparison import escaped
from planner.advice import RuntimeGap
from sim.catalog import find_runtime, runtime_names
from sim.errors import KvOverlapError


def ask_runtime(names: Sequence[str], help_text: str) -> str | None:
    """A menu of serving runtimes; None for none of them."""
    return menu(
        "Serving runtime",
        [None, *names],
        key="runtime",
        format_func=lambda name: "none" if name is None else name,
        help=help_text,
    )


def other_runtimes() -> list[str]:
    """The runtimes that plan in their own way."""
    return [name for name in runtime_names() if not find_runtime(name).plans_itself]


def serving_runtimes() -> list[str]:
    """The runtimes that load the prefix of a later request."""
    return [name for name in other_runtimes() if find_runtime(name).serves]


def show_runtime_gap(question: Question | RestoreQuestion, name: str) -> None:
    """The times of a runtime, of its variants and of the best schedule."""
    try:
        gap = runtime_gap_for(question, name)
    except KvOverlapError as error:
        show_reason(error)
        if not isinstance(error, Cancelled):
            show_other_runtimes(question, name)
        return
    st.markdown(f"**{escaped(gap.sentence)}**")
    st.caption(escaped(f"{gap.how}."))
    show_table(gap_table(gap), {"time (ms)": "%.1f", "times as fast": "%.2f"})
    if gap.closest.launch:
        st.caption(escaped(f"Closest: {gap.closest.label}; documented at {gap.closest.page}"))
        st.code(gap.closest.launch, language="bash", wrap_lines=True)


def show_other_runtimes(question: Question | RestoreQuestion, refused: str) -> None:
    """Buttons that set a runtime with an answer, or none."""
    restores = isinstance(question, RestoreQuestion)
    names = serving_runtimes() if restores else other_runtimes()
    serves = find_runtime(refused).serves
    rest = [name for name in names if name != refused]
    rest.sort(key=lambda name: find_runtime(name).serves != serves)
    key, text = f"{refused} {question.key}", "Looking for a runtime that has an answer"
    try:
        found = answer(runtime_remedies, question, rest, key=key, text=text, reports=True)
    except (TooLarge, Cancelled):
        found = [NO_RUNTIME]
    show_buttons(found, "runtimes")


def gap_table(gap: RuntimeGap) -> pd.DataFrame:
    """Every way with its time, the fastest first."""
    ways = sorted((gap.own, *gap.variants, gap.best), key=lambda one: one.seconds)
    return pd.DataFrame(
        {
            "way": [one.label for one in ways],
            "time (ms)": [1e3 * one.seconds for one in ways],
            "times as fast": [gap.own.seconds / one.seconds for one in ways],
        }
    )
