"""A cached prefix restored: computed from the front, loaded from the back, or both at once."""

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from dashboard.controls.restore import ask_restore, ask_trace
from dashboard.controls.traces import describe_trace, trace_csv
from dashboard.controls.widgets import cards, chart, choose_view, table_downloads
from dashboard.data.machines import profile_key
from dashboard.figures import (
    availability_steps,
    both_ends,
    predicted_lanes,
    ttft_bars,
    ttft_curves,
    ways_of_layers,
)
from dashboard.measured_restore import show_measured
from dashboard.questions.restore import (
    AUTO,
    AVAILABILITY_FILE,
    RateSweep,
    RestoreAnswer,
    RestoreQuestion,
)
from dashboard.session import restore_answer_to, uploaded
from dashboard.text.comparison import plain
from dashboard.text.crossovers import describe_rates
from dashboard.text.restore import (
    STALE,
    adaptation_answer,
    adaptation_times,
    changes_table,
    policy_table,
    restore_answer,
    restore_circumstances,
    restore_metrics,
)
from planner.restore import RestorePlan
from sim.errors import KvOverlapError
from sim.graph.timeline import Timeline
from sim.machine.availability import Availability
from sim.units import ms

ASKED, MEASURED, UPLOADED = "a question", "a measured case", "an uploaded plan"
ENDS, RATES, CHANGES = "Both ends", "Against bandwidth", "Availability"


def show_page() -> None:
    """Which restore, then the restore."""
    st.caption("A prompt whose prefix is cached: compute it, load it, or both until they meet.")
    plans = uploaded(RestorePlan)
    kinds = [ASKED, MEASURED, *([UPLOADED] if plans else [])]
    kind = st.segmented_control(
        "Restore of",
        kinds,
        default=ASKED,
        required=True,
        key="of",
        bind="query-params",
        label_visibility="collapsed",
    )
    if kind == ASKED:
        show_question()
        return
    try:
        if kind == MEASURED:
            show_measured()
        else:
            show_uploaded(plans)
    except KvOverlapError as error:
        st.error(plain(str(error)))


def show_uploaded(plans: Mapping[str, RestorePlan]) -> None:
    """One plan that was brought along, simulated again."""
    name = st.selectbox("Plan", list(plans), key="upload")
    plan = plans[name]
    show_plan(plan)
    show_run(plan, plan.simulate(), plan.policy)
    st.subheader("Every policy", anchor=False)
    chart(ttft_bars(plan.baselines, "load-only"), "Time to first token of every policy", "times")


def show_question() -> None:
    """Controls on the left, the answer on the right."""
    controls, answer = st.columns([1, 2.8], gap="large")
    try:
        with controls:
            question, policy = ask_restore()
        with answer:
            show_asked(question, policy)
    except KvOverlapError as error:
        answer.error(plain(str(error)))


def show_asked(question: RestoreQuestion, policy: str) -> None:
    """The answer, then the chosen view."""
    head, progress = st.container(), st.container()
    view = choose_view([ENDS, RATES, CHANGES])
    answer = planned(question, progress)
    if view == CHANGES:
        st.subheader("What happens to the machine meanwhile", anchor=False)
        trace = ask_trace(question, answer.plans["two-ended"].ttft_s)
        question = replace(question, availability=trace)
        answer = planned(question, progress)
    with head:
        show_plan(answer.plans[policy])
    if view == ENDS:
        show_ends(answer, policy)
    elif view == RATES:
        show_rates(question)
    else:
        show_changes(question, answer)
        show_ends(answer, policy)
    show_policies(answer)
    show_ways_out(question, policy)


def planned(question: RestoreQuestion, place: DeltaGenerator) -> RestoreAnswer:
    """Every policy's plan, with a bar while they are worked out."""
    bar = place.empty()
    answer = restore_answer_to(question, bar.progress)
    bar.empty()
    return answer


def show_plan(plan: RestorePlan) -> None:
    """Its time against either resource alone, and why."""
    st.header(restore_answer(plan), anchor=False)
    st.caption(restore_circumstances(plan))
    st.markdown(f"**{plain(plan.reason)}**")
    if plan.beyond_figures is not None:
        st.warning(plain(plan.beyond_figures))
    cards(restore_metrics(plan))


def show_ends(answer: RestoreAnswer, policy: str) -> None:
    """The chosen policy's run, and where that one works layer by layer, the two ends besides."""
    plan = answer.plans[policy]
    show_run(plan, answer.timelines[policy], answer.fastest if policy == AUTO else policy)
    if by_layer(plan):
        show_walk(answer.timelines["two-ended"], "two-ended")


def by_layer(plan: RestorePlan) -> bool:
    """Whether tasks work on some layers only, so that there are no two ends."""
    return plan.split is not None and plan.split.by_layer


def show_run(plan: RestorePlan, timeline: Timeline, name: str) -> None:
    """The two ends of a run, or which layers do what, and when."""
    if plan.split is None or not by_layer(plan):
        show_walk(timeline, name)
        return
    st.subheader(f"Where each token's K and V come from in each layer: {name}", anchor=False)
    split = plan.split
    figure = ways_of_layers(split.computed_tokens, split.projected_tokens, plan.workload)
    chart(figure, "Token by layer: computed, projected or loaded", "layers")
    st.subheader("Its lanes over time", anchor=False)
    chart(predicted_lanes(timeline), "Tasks of each lane over time", "lanes")


def show_walk(timeline: Timeline, name: str) -> None:
    """What is computed from the front and loaded from the back."""
    st.subheader(f"Both ends walking towards each other: {name}", anchor=False)
    chart(both_ends(timeline), "Tokens over time, computed and loaded", "ends")
    st.caption(
        "A box is one task: as high as its tokens, as long as it takes. Compute starts at the "
        "first token, and its steps grow longer with what they attend to; loads start at the last "
        f"cached one. {ms(timeline.makespan_s)} to the first token."
    )


def show_policies(answer: RestoreAnswer) -> None:
    """Every policy with its ratios."""
    st.subheader("Every policy", anchor=False)
    number = st.column_config.NumberColumn
    table = policy_table(answer)
    st.dataframe(
        table,
        hide_index=True,
        column_config={
            **{name: number(format="%.2f") for name in table if name.startswith("x ")},
            **{name: number(format="localized") for name in table.select_dtypes("int")},
            "TTFT (ms)": number(format="%.1f", help="Predicted time to the first token."),
            "meeting token": number(
                format="localized",
                help="First cached token that is not computed through all layers.",
            ),
        },
    )
    table_downloads(lambda: policy_table(answer), "restore-policies")


def show_rates(question: RestoreQuestion) -> None:
    """Every policy over the rate of the tier, drawn as soon as the quick policies are planned."""
    st.subheader("Time to first token against bandwidth", anchor=False)
    sweep = RateSweep(question)
    place = st.empty()
    points = swept(sweep, place)
    with place:
        show_curves(sweep, points, "rates")
    st.markdown(" ".join(describe_rates(points)))
    st.caption(
        "Both axes are logarithmic. layer-wise and joint are planned at every power of two, the "
        "others in between as well."
    )
    with st.expander(f"The {len(points)} points as a table"):
        st.dataframe(points, hide_index=True)
        table_downloads(lambda: points, "restore-bandwidth")


def show_curves(sweep: RateSweep, points: pd.DataFrame, key: str) -> None:
    """Every policy that is planned so far."""
    title = f"rate at which the prefix comes, lane {sweep.question.slow_lane} (GiB/s)"
    chart(ttft_curves(points, title, sweep.here), "Time of every policy over bandwidth", key)


def swept(sweep: RateSweep, place: DeltaGenerator) -> pd.DataFrame:
    """The points of a sweep, with a bar and the first curves while they are worked out."""
    key = (repr(sweep.question), profile_key(sweep.question.hardware))
    kept = st.session_state.setdefault("restore_sweeps", {})
    if key not in kept:
        bar = st.progress(0.0, "Planning every rate")
        points = pd.DataFrame()
        for done, points in sweep.points():
            bar.progress(done, f"Planned at {len(points)} rates")
            if done == sweep.quick_frac:
                with place:
                    show_curves(sweep, points, "first_rates")
        bar.empty()
        kept.clear()
        kept[key] = points
    found: pd.DataFrame = kept[key]
    return found


def show_changes(question: RestoreQuestion, answer: RestoreAnswer) -> None:
    """What a trace does to those who do not know it."""
    trace, plan = question.availability, answer.plans["lp"]
    if plan.adaptation is None:
        st.info("Nothing happens: all of the machine is there all the time.")
        return
    what = describe_trace(trace).capitalize()
    st.markdown(
        f"{what}: **{adaptation_answer(plan.adaptation)}** The answer above and the policies below "
        "know it beforehand."
    )
    figure = availability_steps(trace, question.lanes, plan.adaptation.stale_s)
    chart(figure, "Available part of each lane over time", "available", bare=True)
    figure = ttft_bars(adaptation_times(plan.adaptation), STALE)
    chart(figure, "Time to first token of each way of adapting", "adapting", bare=True)
    st.caption("`kvoverlap validate --scenario adapt` measures the first three on a device.")
    if plan.adaptation.changes:
        number = st.column_config.NumberColumn
        st.dataframe(
            changes_table(plan.adaptation),
            hide_index=True,
            column_config={
                "at (ms)": number(format="%.1f"),
                "found at (% of its rate)": number(format="%.1f"),
                "tokens to compute from then on": number(format="localized"),
            },
        )


def show_ways_out(question: RestoreQuestion, policy: str) -> None:
    """The same answer on the command line, with the trace that it needs."""
    st.subheader("The same without this page", anchor=False)
    st.code(question.command(policy), language="bash", wrap_lines=True)
    st.caption("The address of this page is a link to this view.")
    trace: Availability = question.availability
    if trace.steps:
        st.download_button(
            f"Download {AVAILABILITY_FILE}",
            lambda: trace_csv(trace, question.lanes),
            file_name=AVAILABILITY_FILE,
            mime="text/csv",
            on_click="ignore",
            key="availability_file",
        )


show_page()
