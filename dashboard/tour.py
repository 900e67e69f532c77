"""A tour of five steps over the pages."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

STEP = "tour"
"""In the address: the step shown, from 1, so that Back returns to the step before."""


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
    if step() is None:
        st.button("Tour in five steps", key="start_tour", on_click=_start, type="tertiary")


def step() -> int | None:
    """The step in the address; None outside the tour."""
    text = st.query_params.get(STEP, "")
    return int(text) if text in map(str, range(1, len(STOPS) + 1)) else None


def show_tour() -> None:
    """The present step above the page, with links to its neighbours."""
    at = step()
    if at is None:
        return
    stop = STOPS[at - 1]
    with st.container(border=True, key="tour_box"):
        st.markdown(f"**{at} of {len(STOPS)} · {stop.title}**  \n{stop.text}")
        row = st.container(horizontal=True, vertical_alignment="center")
        for label, other in (("Back", at - 1), ("Next", at + 1)):
            if 1 <= other <= len(STOPS):
                row.page_link(STOPS[other - 1].page, label=label, query_params={STEP: str(other)})
        row.button("End the tour", key="tour_end", on_click=_end)


def _start() -> None:
    st.query_params[STEP] = "1"


def _end() -> None:
    st.query_params.pop(STEP, None)
