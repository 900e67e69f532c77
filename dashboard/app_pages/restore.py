"""A cached prefix restored: computed from the front, loaded from the back, or both at once."""

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from dashboard.asking import show_refusal, show_refused_view
from dashboard.controls.compare import compare_restores
from dashboard.controls.plan import plan_downloads, show_lanes, show_refused, show_restore_memory
from dashboard.controls.restore import ask_foresight, ask_restore, ask_trace
from dashboard.controls.traces import describe_trace, trace_csv
from dashboard.controls.widgets import (
    ASKED,
    MEASURED,
    cards,
    chart,
    choose_subject,
    choose_view,
    headline_place,
    menu,
    question_columns,
    show_table,
    table_downloads,
)
from dashboard.figures import (
    availability_steps,
    both_ends,
    sources_by_layer,
    ttft_bars,
    ttft_curves,
)
from dashboard.measured_restore import show_measured
from dashboard.questions.remedies import Asking
from dashboard.questions.restore import (
    AUTO,
    AVAILABILITY_FILE,
    RateSweep,
    RestorePlans,
    RestoreQuestion,
)
from dashboard.runtime_gap import ask_runtime, serving_runtimes, show_runtime_gap
from dashboard.session import fast_rates, restore_plans_for, slow_rates, uploaded
from dashboard.text.comparison import escaped, sentence
from dashboard.text.crossovers import describe_rates
from dashboard.text.restore import (
    STALE,
    adaptation_times,
    changes_table,
    describe_adaptation,
    describe_restore,
    policy_table,
    restore_metrics,
)
from planner.advice import beyond_calibration
from planner.restore import RestorePlan, restore_headline
from sim.errors import KvOverlapError
from sim.graph.timeline import Timeline
from sim.machine.availability import Availability
from sim.units import ms

ENDS, RATES, CHANGES = "Both ends", "Against bandwidth", "Availability"


KNOWN = {
    True: "below know the trace in advance.",
    False: "below were planned for the whole machine, and run under the trace.",
}


def show_page() -> None:
    """A choice of restores, then the restore."""
    st.caption("A prompt with a cached prefix: compute it, load it, or do both until they meet.")
    plans = uploaded(RestorePlan)
    kind = choose_subject("Restore of", plans)
    if kind == ASKED:
        show_question()
        return
    try:
        if kind == MEASURED:
            show_measured()
        else:
            show_uploaded(plans)
    except KvOverlapError as error:
        show_refusal(error)


def show_uploaded(plans: Mapping[str, RestorePlan]) -> None:
    """An uploaded plan, simulated again."""
    name = menu("Plan", list(plans), key="upload")
    plan = plans[name]
    st.header(restore_headline(plan), anchor=False)
    show_plan(plan)
    show_run(plan, plan.simulate(), plan.policy)
    st.subheader("Every policy", anchor=False)
    chart(ttft_bars(plan.baselines, "load-only"), "Time to first token of every policy", "times")


def show_question() -> None:
    """Controls on the left, the answer on the right."""
    headline = headline_place()
    controls, answer = question_columns()
    try:
        with controls:
            question, policy = ask_restore()
    except KvOverlapError as error:
        with headline:
            show_refusal(error)
        return
    with answer:
        try:
            show_asked(question, policy, headline)
        except KvOverlapError as error:
            with headline:
                show_refused(error, Asking(question, policy))


def show_asked(question: RestoreQuestion, policy: str, headline: DeltaGenerator) -> None:
    """The answer, then the chosen view."""
    head, progress = st.container(), st.container()
    view = choose_view([ENDS, RATES, CHANGES])
    with progress:
        answer = restore_plans_for(question)
    if view == CHANGES:
        st.subheader("Availability of the machine during the restore", anchor=False)
        trace = ask_trace(question, answer.plans["two-ended"].ttft_s)
        question = replace(question, availability=trace, foresight=ask_foresight())
        with progress:
            answer = restore_plans_for(question)
    headline.header(restore_headline(answer.plans[policy]), anchor=False)
    with head:
        show_plan(answer.plans[policy])
        compare_restores(question, policy, answer)
    if view == ENDS:
        show_ends(answer, policy)
    elif view == RATES:
        try:
            show_rates(question)
        except KvOverlapError as error:
            show_refused_view(error, ENDS)
    else:
        show_changes(question, answer)
        show_ends(answer, policy)
    show_policies(answer)
    st.subheader("What a serving runtime leaves on the table", anchor=False)
    where = "K and V of the prefix are in host memory, whatever the tier above."
    if (runtime := ask_runtime(serving_runtimes(), where)) is not None:
        show_runtime_gap(question, runtime)
    show_exports(question, policy)


def show_plan(plan: RestorePlan) -> None:
    """The request, the reason of the answer, and its cards."""
    st.caption(describe_restore(plan))
    st.markdown(f"**{escaped(plan.reason)}**")
    if (outside := beyond_calibration(plan)) is not None:
        st.warning(sentence(outside))
    for note in plan.notes:
        st.caption(escaped(note))
    cards(restore_metrics(plan))
    show_restore_memory(plan)


def show_ends(answer: RestorePlans, policy: str) -> None:
    """The run of the chosen policy; also that of two-ended if the policy splits by layer."""
    plan = answer.plans[policy]
    show_run(plan, answer.timelines[policy], answer.fastest if policy == AUTO else policy)
    if by_layer(plan):
        show_both_ends(answer.timelines["two-ended"], "two-ended")


def by_layer(plan: RestorePlan) -> bool:
    """Whether tasks handle some of the layers, so that a run has no two ends."""
    return plan.split is not None and plan.split.by_layer


def show_run(plan: RestorePlan, timeline: Timeline, name: str) -> None:
    """The two ends of a run or the tokens of each layer, its lanes over time, and its files."""
    if by_layer(plan):
        show_sources(plan, name)
    else:
        show_both_ends(timeline, name)
    st.subheader("Predicted timeline", anchor=False)
    show_lanes(plan, timeline)
    plan_downloads(plan, timeline)


def show_sources(plan: RestorePlan, name: str) -> None:
    """Computed, projected and loaded tokens of each layer."""
    if plan.split is None:
        return
    st.subheader(f"Where each token's K and V come from in each layer: {name}", anchor=False)
    figure = sources_by_layer(plan.split, plan.model, plan.workload)
    chart(figure, "Token by layer: computed, projected or loaded", "layers")


def show_both_ends(timeline: Timeline, name: str) -> None:
    """Tokens over time, computed from the front and loaded from the back."""
    st.subheader(f"Compute from the front, loads from the back: {name}", anchor=False)
    chart(both_ends(timeline), "Tokens over time, computed and loaded", "ends")
    st.caption(
        "A box is one task: its height is its tokens, its width its time. Compute starts at the "
        "first token, and its steps take longer as the context grows. Loads start at the last "
        f"cached token. {ms(timeline.makespan_s)} to the first token."
    )


def show_policies(answer: RestorePlans) -> None:
    """Every policy with its ratios."""
    st.subheader("Every policy", anchor=False)
    table = policy_table(answer)
    formats = {name: "%.2f" for name in table if name.startswith("x ")}
    formats |= dict.fromkeys(table.select_dtypes("int"), "localized")
    meanings = {
        "TTFT (ms)": "Predicted time to the first token.",
        "meeting token": "First cached token that is not computed through all layers.",
    }
    show_table(table, {**formats, "TTFT (ms)": "%.1f"}, meanings)
    table_downloads(lambda: policy_table(answer), "restore-policies")


def show_rates(question: RestoreQuestion) -> None:
    """Every policy over the rate of the tier; the policies that plan fast are drawn first."""
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
        show_table(points)
        table_downloads(lambda: points, "restore-bandwidth")


def show_curves(sweep: RateSweep, points: pd.DataFrame, key: str) -> None:
    """Every policy that is planned so far."""
    title = f"rate of lane {sweep.question.slow_lane}, which loads the prefix (GiB/s)"
    chart(ttft_curves(points, title, sweep.here), "Time of every policy over bandwidth", key)


def swept(sweep: RateSweep, place: DeltaGenerator) -> pd.DataFrame:
    """The points of a sweep; the first curves are drawn while the others are planned."""
    fast = fast_rates(sweep)
    with place:
        show_curves(sweep, fast, "first_rates")
    return fast.merge(slow_rates(sweep), on="gib_per_s", how="left")


def show_changes(question: RestoreQuestion, answer: RestorePlans) -> None:
    """Time to first token of policies that do not know the trace."""
    trace, plan = question.availability, answer.plans["lp"]
    if plan.adaptation is None:
        st.info("The trace is empty: the whole machine is available all the time.")
        return
    what = describe_trace(trace).capitalize()
    st.markdown(
        f"{what}: **{describe_adaptation(plan.adaptation)}** The answer above and the policies "
        + KNOWN[question.foresight]
    )
    figure = availability_steps(trace, question.lanes, plan.adaptation.stale_s)
    chart(figure, "Available part of each lane over time", "available", bare=True)
    figure = ttft_bars(adaptation_times(plan.adaptation), STALE)
    chart(figure, "Time to first token of each adaptation", "adapting", bare=True)
    st.caption("`kvoverlap validate --scenario adapt` measures the first three on a device.")
    if plan.adaptation.changes:
        formats = {
            "at (ms)": "%.1f",
            "found at (% of its rate)": "%.1f",
            "tokens to compute from then on": "localized",
        }
        show_table(changes_table(plan.adaptation), formats)


def show_exports(question: RestoreQuestion, policy: str) -> None:
    """The command that gives the same answer, and its trace as a file."""
    st.subheader("Command-line equivalent", anchor=False)
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
