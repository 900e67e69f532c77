"""What a serving runtime leaves on the table: its time next to the best schedule's."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from dashboard.controls.widgets import menu, show_table
from dashboard.questions.restore import RestoreQuestion
from dashboard.session import runtime_gap_for
from dashboard.text.comparison import escaped
from planner.advice import RuntimeGap
from sim.catalog import find_runtime, runtime_names
from sim.errors import KvOverlapError

NONE = "none"


def show_runtime_gap(question: RestoreQuestion) -> None:
    """A menu of runtimes; then the times of one, of its variants and of the best schedule."""
    st.subheader("What a serving runtime leaves on the table", anchor=False)
    serving = [name for name in runtime_names() if find_runtime(name).serves]
    name = menu(
        "Serving runtime",
        [NONE, *serving],
        key="runtime",
        help="K and V of the prefix are in host memory, whatever the tier above.",
    )
    if name == NONE:
        return
    try:
        gap = runtime_gap_for(question, name)
    except KvOverlapError as error:
        st.error(escaped(str(error)))
        return
    st.markdown(f"**{escaped(gap.sentence)}**")
    st.caption(escaped(f"{gap.how}."))
    show_table(gap_table(gap), {"time (ms)": "%.1f", "times as fast": "%.2f"})
    if gap.closest.launch:
        st.caption(escaped(f"Closest: {gap.closest.label}; documented at {gap.closest.page}"))
        st.code(gap.closest.launch, language="bash", wrap_lines=True)


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
