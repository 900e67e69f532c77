"""The first page: what to do with a KV cache, for a model, a machine and a batch."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import streamlit as st

from dashboard.asking import show_refusal
from dashboard.controls.compare import compare_plans
from dashboard.controls.decode import ask_advice
from dashboard.controls.plan import (
    plan_downloads,
    show_lanes,
    show_plan_memory,
    show_refused,
)
from dashboard.controls.restore import OWN_LINK
from dashboard.controls.widgets import (
    chart,
    headline_place,
    on_phone,
    question_columns,
    show_table,
)
from dashboard.figures import policy_bars
from dashboard.questions.decode import Question
from dashboard.questions.remedies import LP, Asking
from dashboard.runtime_gap import ask_runtime, other_runtimes, show_runtime_gap
from dashboard.session import advice_for, facts_of, timeline_of
from dashboard.text.comparison import escaped, sentence
from dashboard.text.refusal import in_page_terms
from dashboard.tour import offer_tour
from planner import DecodePlan
from planner.advice import Advice, reasons
from planner.advice.text import ABOUT_RUNTIMES
from sim.errors import KvOverlapError

ABOUT = (
    "**kvoverlap** is for KV caches that do not fit the GPU: what to keep in GPU memory, what to "
    "load over the link, and what to compute again. It predicts the timeline and can run the same "
    "plan on real hardware."
)

KEPT, OFFLOADED = "What fits is kept in GPU memory", "All of the cache is in host memory"

PRESETS = {
    "Llama-3.1-8B, 128K, H100": (
        "advise",
        {
            "model": "llama-3.1-8b",
            "hardware": "h100-sxm+pcie5-x16",
            "batch": "8",
            "prompt": "131,070",
        },
    ),
    "KVPR's A100": (
        "advise",
        {"model": "opt-13b", "hardware": "kvpr-a100", "batch": "32", "prompt": "1,024"},
    ),
    "16K restore over 25 GbE": (
        "restore",
        {"model": "llama-3.1-8b", "hardware": "h100-sxm+pcie5-x16", "tier": OWN_LINK}
        | {"prompt": "16,384", "rate": "2.9 GiB/s", "policy": "two-ended"},
    ),
    "Qwen3-8B on an RTX 4090": (
        "advise",
        {"model": "qwen3-8b", "hardware": "rtx-4090+pcie4-x16", "batch": "8", "prompt": "8,192"},
    ),
}
"""Pages and settings to begin with, as in their addresses."""


def show_page() -> None:
    """Presets, controls on the left, the answer on the right."""
    st.markdown(ABOUT)
    if not on_phone():
        show_presets()
    headline = headline_place()
    if on_phone():
        show_presets()
    controls, answer = question_columns()
    try:
        with controls:
            question, slo_ms = ask_advice()
            runtime = ask_runtime(
                other_runtimes(),
                "What it leaves on the table compared with the best schedule on this machine, "
                "and the launch line that comes closest.",
            )
            st.page_link("app_pages/your_machine.py", label="Use your own config.json or profile")
    except KvOverlapError as error:
        with headline:
            show_refusal(error)
        return
    with headline:
        try:
            found = advice_for(question, slo_ms)
        except KvOverlapError as error:
            show_refused(error, Asking(question, LP, schedules=False))
            return
    headline.header(in_page_terms(found.headline), anchor=False)
    with answer:
        show_advice(question, found)
        if runtime is None:
            show_settings(found)
        else:
            st.subheader(f"What {runtime} leaves on the table", anchor=False)
            show_runtime_gap(question, runtime)
        show_confidence(found.plan)
        st.subheader("Command-line equivalent", anchor=False)
        st.code(question.advise_command(slo_ms, runtime), language="bash", wrap_lines=True)
        st.caption("The address of this page is a link to this answer.")


def show_presets() -> None:
    """Links that set the controls."""
    row = st.container(horizontal=True, vertical_alignment="center", key="presets")
    with row:
        offer_tour()
    row.caption("Try", width="content")
    for name, (page, query) in PRESETS.items():
        row.page_link(f"app_pages/{page}.py", label=name, query_params=query)


def show_advice(question: Question, found: Advice) -> None:
    """The recommendation, its memory and lanes, and its reasons."""
    plan = found.resident
    if found.plan.makespan_s > found.resident.makespan_s:
        chosen = st.segmented_control(
            "Plan shown",
            [KEPT, OFFLOADED],
            default=KEPT,
            required=True,
            key="shown",
            bind="query-params",
            label_visibility="collapsed",
        )
        plan = found.plan if chosen == OFFLOADED else found.resident
    kept = plan is found.resident
    compare_plans(replace(question, keep=kept), "lp", plan)
    show_plan_memory({"": plan})
    st.subheader("Predicted timeline of a step", anchor=False)
    timeline = timeline_of(plan)
    show_lanes(plan, timeline)
    plan_downloads(plan, timeline)
    st.subheader("Why, and what would help", anchor=False)
    st.markdown("\n".join(f"- {escaped(one)}" for one in reasons(found)))
    times = {
        name.replace(" --no-keep", ", offloaded"): seconds
        for name, seconds in found.step_s_by_policy.items()
    }
    chart(policy_bars(times, None, "lp"), "Predicted step time of every policy", "policies", True)


def show_settings(found: Advice) -> None:
    """Settings of serving runtimes that match the recommendation."""
    if not found.settings:
        return
    st.subheader("Settings of serving runtimes", anchor=False)
    st.caption(ABOUT_RUNTIMES)
    rows = [
        {
            "runtime": one.runtime,
            "setting": f"{one.setting} {one.value}",
            "why": one.why,
            "documentation": one.page,
        }
        for one in found.settings
    ]
    show_table(pd.DataFrame(rows))


def show_confidence(plan: DecodePlan) -> None:
    """Where the times come from, and what is outside the measured range."""
    st.subheader("How sure", anchor=False)
    facts = facts_of(plan)
    st.markdown(sentence(facts.sources))
    if facts.outside is not None:
        st.markdown(sentence(facts.outside))
    st.page_link("app_pages/accuracy.py", label="Predicted against measured, case by case")


show_page()
