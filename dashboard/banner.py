"""What every page says while a measurement runs on this server."""

from __future__ import annotations

import streamlit as st

from dashboard.data.jobs import Job
from dashboard.session import jobs, typed

REFRESH_S = 5.0


def time_left(job: Job) -> str:
    """The estimated time to the end of a measurement, as a part of a sentence."""
    left_s = job.left_s
    return "" if left_s is None else f", about {left_s:,.0f} s left"


def show_banner() -> None:
    """The running measurement, if there is one."""
    if jobs().running is not None:
        _follow()


@typed(st.fragment, run_every=REFRESH_S)
def _follow() -> None:
    job = jobs().running
    if job is None:
        st.empty()
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.info(
            f"The measurement {job.request.name} runs on this machine: "
            f"{job.status.fraction:.0%} done{time_left(job)}. Other work increases its error."
        )
        st.page_link("app_pages/your_machine.py", label="Show it")
