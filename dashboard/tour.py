"""A tour of five steps over the pages."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

STEP = "tour"
"""In the visitor's session: the step shown, from 0."""


@dataclass(frozen=True, slots=True)
class Stop:
    """One step: a page and what to look at there."""

    page: str
    title: str
    text: str


STOPS = (
    Stop(
        "app_pages/advise.py",
        "Advise: the answer",
        "Choose a model, a machine and a job. The first line says what to do with the KV cache and "
        "how long a step takes; the bar below shows what fills GPU and host memory.",
    ),
    Stop(
        "app_pages/plan.py",
        "Plan: how it is done",
        "The lanes show every copy and every kernel of a step. Hover over a gap to see what it "
        "waits for; click a bar to have it explained. Pin the answer as A, change a control, and "
        "compare it with B.",
    ),
    Stop(
        "app_pages/what_if.py",
        "What-if: another machine",
        "Move the rate of the link or the memory: the plan is made again at once. Crossover and "
        "map show where another policy wins.",
    ),
    Stop(
        "app_pages/timeline.py",
        "Timeline: is it true?",
        "The same plan, predicted and then measured, task by task. The flag at the right end "
        "says how far the prediction was off.",
    ),
    Stop(
        "app_pages/accuracy.py",
        "Accuracy: how sure",
        "The errors of every recorded case, and where the predictions lean. The page Machines "
        "says where each rate comes from.",
    ),
)


def offer_tour() -> None:
    """A button that starts the tour."""
    if STEP not in st.session_state:
        st.button("Tour in five steps", key="start_tour", on_click=_go, args=(0,), type="tertiary")


def show_tour(page: str) -> None:
    """The present step above the page, which is opened if another one is shown.

    Args:
        page: title of the page that is shown.
    """
    at: int | None = st.session_state.get(STEP)
    if at is None:
        return
    stop = STOPS[at]
    if st.session_state.pop("tour_moves", False) and not stop.title.startswith(page):
        st.switch_page(stop.page)
    with st.container(border=True, key="tour_box"):
        st.markdown(f"**{at + 1} of {len(STOPS)} · {stop.title}**  \n{stop.text}")
        row = st.container(horizontal=True)
        if at > 0:
            row.button("Back", key="tour_back", on_click=_go, args=(at - 1,))
        if at + 1 < len(STOPS):
            row.button("Next", key="tour_next", on_click=_go, args=(at + 1,), type="primary")
        row.button("End the tour", key="tour_end", on_click=_end)


def _go(at: int) -> None:
    st.session_state[STEP] = at
    st.session_state["tour_moves"] = True


def _end() -> None:
    st.session_state.pop(STEP, None)
