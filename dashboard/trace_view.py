"""The Timeline page's view of a profiler's trace, alone or next to the prediction of a plan."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from dashboard.controls.lanes import draw_lanes
from dashboard.controls.widgets import cards, menu, pair, show_table, upload_box
from dashboard.figures import paired_trace_lanes, trace_lanes
from dashboard.session import uploaded
from dashboard.text.comparison import Metric, escaped
from planner import DecodePlan, Plan, RestorePlan
from sim.errors import KvOverlapError
from sim.traces.compare import compare_with_trace, work_of
from sim.traces.events import GpuWork
from sim.traces.measured import MeasuredTrace
from sim.traces.measures import NS, Measures
from sim.units import ms, percent

ALL_STEPS = "all"
NO_PLAN = "nothing"
MAX_SHORT_STEPS, STEPS_PX = 8, 320
"""Steps that are shown without scrolling, and the height of a table with more."""

CAUSES = {
    "host_s": "not launched yet",
    "host_sync_s": "not launched: the host waited for the GPU",
    "waiting_s": "launched, waiting",
    "unknown_s": "unknown",
}
"""Short names of the causes of idle time."""


def show_traces() -> None:
    """The uploader, and the chosen trace."""
    upload_box("Profiler's trace, or a plan to predict")
    traces = uploaded(MeasuredTrace)
    if not traces:
        st.header("No trace to show yet", anchor=False)
        st.write(
            "Upload a trace of torch.profiler, vLLM or SGLang (.json, .json.gz), an export of "
            "Nsight Systems (.sqlite, .csv), or what `kvoverlap trace -o` wrote of a large one."
        )
        return
    plans: dict[str, Plan] = {**uploaded(DecodePlan), **uploaded(RestorePlan)}
    left, middle, right = st.columns([2, 2, 1], vertical_alignment="bottom")
    trace = traces[menu("Trace", list(traces), key="trace", column=left)]
    plan = menu(
        "Next to the prediction of",
        [NO_PLAN, *plans],
        key="prediction",
        column=middle,
        help="Upload a plan (`kvoverlap plan -o`) to predict it here.",
    )
    steps = [ALL_STEPS, *(str(number) for number in range(len(trace.steps)))]
    chosen = menu("Step", steps, key="step", column=right)
    show_trace(trace, None if chosen == ALL_STEPS else int(chosen), plans.get(plan))


def show_trace(trace: MeasuredTrace, step: int | None, plan: Plan | None) -> None:
    """The sums of a trace or of one of its steps, its lanes, steps and copies."""
    measures = trace.measures if step is None else trace.steps[step].measures
    st.header(summary(measures), anchor=False)
    subject = "whole trace" if step is None else f"step {step}: {trace.steps[step].name}"
    st.caption(escaped(f"{trace.events.file}, {trace.events.format}, {subject}"))
    for sentence in trace.notes:
        st.warning(escaped(sentence))
    cards(metrics(measures))
    show_lanes(trace, step, plan)
    if plan is not None:
        show_sums(trace, step, plan)
    left, right = pair("sums")
    with left:
        st.subheader("Copies", anchor=False)
        show_table(copy_table(trace), {"MB": "%.2f", "time (ms)": "%.3f", "GB/s": "%.2f"})
    with right:
        st.subheader("Idle time by cause", anchor=False)
        show_table(idle_table(trace), {"idle (ms)": "%.3f"})
    if trace.steps:
        st.subheader("Steps", anchor=False)
        height = STEPS_PX if len(trace.steps) > MAX_SHORT_STEPS else "auto"
        show_table(step_table(trace), dict.fromkeys(STEP_TIMES, "%.3f"), height=height)


def summary(measures: Measures) -> str:
    """The span and its parts in one line."""
    return (
        f"{ms(measures.span_s)}: kernels {ms(measures.kernel_s)}, exposed copy "
        f"{ms(measures.exposed_copy_s)}, idle {ms(measures.idle_s)}"
    )


def metrics(measures: Measures) -> list[Metric]:
    """Overlap of each direction, exposed copy and idle time as cards."""
    cards_of = []
    for lane, copy_s, hidden_s, overlap in (
        ("h2d", measures.h2d_copy_s, measures.h2d_hidden_s, measures.h2d_overlap_frac),
        ("d2h", measures.d2h_copy_s, measures.d2h_hidden_s, measures.d2h_overlap_frac),
    ):
        value = "no copies" if overlap is None else percent(overlap)
        below = f"{ms(hidden_s)} of {ms(copy_s)}"
        meaning = f"Part of the {lane} copy time in which a kernel runs too"
        cards_of.append(Metric(f"overlap, {lane}", value, below, meaning))
    for label, seconds, meaning in (
        ("exposed copy", measures.exposed_copy_s, "A copy runs, and no kernel"),
        ("idle", measures.idle_s, "Neither a kernel nor a copy runs"),
    ):
        share = percent(seconds / measures.span_s) if measures.span_s else "-"
        cards_of.append(Metric(label, ms(seconds), f"{share} of the span", meaning))
    return cards_of


def show_lanes(trace: MeasuredTrace, step: int | None, plan: Plan | None) -> None:
    """The work of one GPU over time."""
    device = 0
    devices = list(trace.devices) or [0]
    device = menu("GPU", devices, key="device") if len(devices) > 1 else devices[0]
    work = [one for one in trace.events.work if one.device == device]
    window = trace.span_ns
    if step is not None:
        start_ns = trace.events.steps[step].start_ns
        window = start_ns, start_ns + round(trace.steps[step].measures.span_s * NS)
    if plan is None:
        st.subheader("Kernels and copies by stream", anchor=False)
        draw_lanes(trace_lanes(work, window))
    else:
        st.subheader("Predicted above measured", anchor=False)
        draw_lanes(paired_trace_lanes(work, window, predicted_work(plan)))


def predicted_work(plan: Plan) -> Sequence[GpuWork]:
    """The predicted work of the first GPU of a plan."""
    return [one for one in work_of(plan.simulate()) if one.device == 0]


def show_sums(trace: MeasuredTrace, step: int | None, plan: Plan) -> None:
    """Predicted and measured sums, and the error of the span."""
    try:
        found = compare_with_trace(plan.simulate(), trace, step)
    except KvOverlapError as error:
        st.error(escaped(str(error)))
        return
    st.markdown(
        f"predicted {ms(found.predicted_makespan_s)}, measured {ms(found.measured_makespan_s)}, "
        f"**{percent(found.makespan_error_frac, signed=True)}**. The trace has other tasks than "
        "the plan: sums are compared."
    )
    rows = [
        (name, guess * 1e3, truth * 1e3, (guess - truth) * 1e3)
        for name, (guess, truth) in found.seconds.items()
    ]
    columns = ["", "predicted (ms)", "measured (ms)", "error (ms)"]
    show_table(pd.DataFrame(rows, columns=columns), dict.fromkeys(columns[1:], "%.3f"))


def copy_table(trace: MeasuredTrace) -> pd.DataFrame:
    """Copies by direction, host memory and stream."""
    rows = [
        (
            row.direction,
            row.memory or "-",
            row.stream,
            row.copies,
            row.bytes / 1e6,
            row.seconds * 1e3,
            None if row.bytes_per_s is None else row.bytes_per_s / 1e9,
        )
        for row in trace.copies
    ]
    names = ["direction", "host memory", "stream", "copies", "MB", "time (ms)", "GB/s"]
    return pd.DataFrame(rows, columns=names)


def idle_table(trace: MeasuredTrace) -> pd.DataFrame:
    """Idle time by what the next work waited for."""
    rows = [(text, getattr(trace.idle, key) * 1e3) for key, text in CAUSES.items()]
    return pd.DataFrame(rows, columns=["the next work", "idle (ms)"])


STEP_TIMES = {
    "span (ms)": "span_s",
    "kernels (ms)": "kernel_s",
    "h2d (ms)": "h2d_copy_s",
    "d2h (ms)": "d2h_copy_s",
    "exposed (ms)": "exposed_copy_s",
    "idle (ms)": "idle_s",
}
"""Times of a step by column, and the field of `Measures` that holds each."""


def step_table(trace: MeasuredTrace) -> pd.DataFrame:
    """Times of every marked step."""
    rows = [
        (number, step.name, *(getattr(step.measures, key) * 1e3 for key in STEP_TIMES.values()))
        for number, step in enumerate(trace.steps)
    ]
    return pd.DataFrame(rows, columns=["step", "annotation", *STEP_TIMES])
