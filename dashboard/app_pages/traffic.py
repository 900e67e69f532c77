"""A service under a request trace: how large a cache pays, and what its users see."""

from __future__ import annotations

import streamlit as st

from dashboard.asking import show_buttons, show_reason, show_refusal
from dashboard.controls.decode import steps
from dashboard.controls.plan import show_memory
from dashboard.controls.traffic import FIRST_SIZES, SIZES, ask_traffic
from dashboard.controls.widgets import (
    cards,
    chart,
    headline_place,
    menu,
    pair,
    question_columns,
    show_table,
    table_downloads,
)
from dashboard.figures import MemoryUse, hit_rate_curves, service_lanes, ttft_by_size
from dashboard.questions.remedies import Asking, Remedy
from dashboard.questions.traffic import (
    MAX_WORK,
    TrafficAnswers,
    TrafficQuestion,
    size_list,
    size_text,
)
from dashboard.session import service_minute, traffic_answers
from dashboard.text.comparison import escaped
from dashboard.text.traffic import (
    FORMATS,
    MEANINGS,
    describe_service,
    metrics,
    overload,
    rejections,
    run_table,
    summary,
)
from sim.errors import KvOverlapError

ABOUT = (
    "Requests of a trace run through a service with a host cache of K and V. Which size of the "
    "cache pays, and how should a hit be restored?"
)


def show_page() -> None:
    """Controls on the left, the answer on the right."""
    st.caption(ABOUT)
    headline = headline_place()
    controls, answer = question_columns()
    try:
        with controls:
            question = ask_traffic()
    except KvOverlapError as error:
        with headline:
            show_reason(error)
            show_buttons([Remedy("The usual sizes", {SIZES: size_list(FIRST_SIZES)})])
        return
    with headline:
        try:
            found = traffic_answers(question)
        except KvOverlapError as error:
            show_refusal(error, Asking(question, question.policies[0], max_tasks=MAX_WORK))
            return
    with answer:
        headline.header(summary(found), anchor=False)
        show_answers(question, found)
        show_service_memory(question, found)
        show_minute(question, found)
        show_runs(found)
        show_commands(question)


def show_answers(question: TrafficQuestion, found: TrafficAnswers) -> None:
    """Overload first, then cards and curves."""
    if (warning := overload(found)) is not None:
        st.warning(escaped(warning))
    if (warning := rejections(found)) is not None:
        st.warning(escaped(warning))
    st.caption(describe_service(question, found))
    cards(metrics(question, found))
    names = [size_text(size) for size in found.sizes]
    rates = {
        policy: [sum(found.runs[policy, size].hit_rate.values()) for size in found.sizes]
        for policy in found.policies
    }
    times = {policy: found.p90_s(policy) for policy in found.policies}
    knees = {policy: found.sizes.index(found.knee(policy)) for policy in found.policies}
    left, right = pair("curves")
    with left:
        st.subheader("TTFT over the size of the cache", anchor=False)
        chart(ttft_by_size(names, times, knees), "p90 of TTFT over the size of the cache", "ttft")
    with right:
        st.subheader("Hit rate over the size of the cache", anchor=False)
        chart(hit_rate_curves(names, rates), "Hit rate over the size of the cache", "hits")
    st.caption(
        "A ring marks the size from which more lowers the p90 of TTFT by less than 5 %. Without a "
        "cache, hits are those of GPU memory, and all policies are the same."
    )


def show_service_memory(question: TrafficQuestion, found: TrafficAnswers) -> None:
    """What an instance puts in the memory of each GPU, and its cache in host memory."""
    st.subheader("Memory of an instance", anchor=False)
    _, size = found.best
    use = MemoryUse(found.gpu_bytes, {"KV": size})
    show_memory({"": (use, question.hardware.memory)})
    st.caption(
        f"Each GPU, and the host with {size_text(size)}. Blocks of K and V fill what weights and "
        "the activations of a step leave of GPU memory."
    )


def show_minute(question: TrafficQuestion, found: TrafficAnswers) -> None:
    """What requests and lanes do in a minute of one run."""
    st.subheader("A minute of the service", anchor=False)
    best, knee = found.best
    columns = st.columns([1, 1, 1.6], vertical_alignment="bottom")
    policies = found.policies
    policy = menu(
        "Policy shown", policies, index=policies.index(best), key="shown", column=columns[0]
    )
    sizes = found.sizes
    size = menu(
        "Host cache shown",
        sizes,
        index=sizes.index(knee),
        key="cache",
        column=columns[1],
        format_func=size_text,
    )
    minutes = [float(at) for at in range(int(found.span_s // 60) + 1)]
    with columns[2]:
        start = 0.0
        if len(minutes) > 1:
            busy = float(found.busiest_minute)
            start = steps("Minute", minutes, busy, "minute", "{:.0f}")
    timeline = service_minute(question, policy, size, 60 * start)
    if not timeline.requests:
        st.info("No request is in the service in this minute. Choose another one.")
        return
    zero_s = timeline.start_s - 60 * start
    alt = "Requests and lanes of the service over a minute"
    chart(service_lanes(timeline, zero_s), alt, "service")
    st.caption(
        f"{len(timeline.requests):,} requests. One bar is one request: it waits in the queue, its "
        "cached prefix is restored, the rest of its prompt is computed (prefill), and it decodes. "
        "Below: what the GPU and the link of every instance do. Drag to zoom."
    )


def show_runs(found: TrafficAnswers) -> None:
    """Every run as a table."""
    st.subheader("Every run", anchor=False)
    show_table(run_table(found), FORMATS, MEANINGS)
    table_downloads(lambda: run_table(found), "traffic")


def show_commands(question: TrafficQuestion) -> None:
    """The commands that give the same numbers."""
    st.subheader("Command-line equivalent", anchor=False)
    st.code("\n".join(question.commands), language="bash", wrap_lines=True)
    st.caption("The address of this page is a link to this view.")


show_page()
