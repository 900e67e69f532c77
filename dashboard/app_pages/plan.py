"""One plan: its split by layer, its makespan against other policies, and its bottleneck."""

import pandas as pd
import streamlit as st

from dashboard.asking import show_refusal
from dashboard.controls.compare import compare_plans
from dashboard.controls.decode import ask_question
from dashboard.controls.plan import (
    plan_downloads,
    show_lanes,
    show_plan_memory,
    show_refused,
)
from dashboard.controls.widgets import (
    ASKED,
    MEASURED,
    chart,
    choose_subject,
    headline_place,
    menu,
    pick_case,
    question_columns,
    show_command,
    show_split_curve,
)
from dashboard.figures import policy_bars, sensitivity_bars, split_by_layer, split_map
from dashboard.questions.remedies import Asking
from dashboard.session import (
    case_plan,
    even_split_time,
    even_splits,
    facts_of,
    plan_for,
    timeline_of,
    typed,
    uploaded,
)
from dashboard.text.comparison import describe_plan, sentence
from dashboard.text.refusal import in_page_terms
from planner import POLICIES, DecodePlan
from planner.advice import headline
from sim.errors import KvOverlapError
from sim.units import ms, percent


def show_page() -> None:
    """A choice of plans, then the plan."""
    st.caption("How much of the KV cache each layer loads and recomputes, and the time this takes.")
    plans = uploaded(DecodePlan)
    kind = choose_subject("Plan of", plans)
    try:
        if kind == ASKED:
            show_asked()
        elif kind == MEASURED:
            head = headline_place()
            picked = pick_case(restores=False)
            if picked is not None:
                plan = case_plan(picked.case)
                with head:
                    show_headline(plan)
                show_plan(plan)
        else:
            head = headline_place()
            name = menu("Plan", list(plans), key="upload")
            with head:
                show_headline(plans[name])
            show_plan(plans[name])
    except KvOverlapError as error:
        show_refusal(error)


def show_asked() -> None:
    """Controls, and the plan for them."""
    head = headline_place()
    controls, answer = question_columns()
    with controls:
        question = ask_question(changeable=False)
        policy = menu("Policy", POLICIES, key="policy")
    with head:
        try:
            plan = plan_for(question, policy)
        except KvOverlapError as error:
            show_refused(error, Asking(question, policy))
            return
        show_headline(plan)
    with answer:
        compare_plans(question, policy, plan)
        show_plan(plan)
        st.subheader("Command-line equivalent", anchor=False)
        show_command(question, policy)


def show_headline(plan: DecodePlan) -> None:
    """What to do and how long a step takes."""
    st.header(in_page_terms(headline(plan)), anchor=False)


def show_plan(plan: DecodePlan) -> None:
    """The plan as text, against other policies, as a map, and against even splits."""
    facts = facts_of(plan)
    st.caption(describe_plan(plan, facts.sources))
    st.markdown(f"**{sentence(plan.bottleneck)}**")
    if facts.outside is not None:
        st.warning(sentence(facts.outside))
    st.subheader("Against every other policy", anchor=False)
    makespans = {**plan.baselines, plan.policy: plan.makespan_s}
    bound_s = plan.lower_bound_s if plan.gpus == 1 else None
    figure = policy_bars(makespans, bound_s, plan.policy)
    chart(figure, "Predicted makespan of every policy", "policies", bare=True)
    if "resident" in makespans:
        st.caption(
            "resident has the whole cache in GPU memory, if it fits. It copies nothing, so that "
            "the lower bound does not apply to it."
        )
    show_run(plan)
    show_sensitivities(plan)
    show_split(plan)
    show_curve(plan)


def show_run(plan: DecodePlan) -> None:
    """Memory, lanes over time, and both as files."""
    st.subheader("Memory", anchor=False)
    show_plan_memory({"": plan})
    st.subheader("Predicted timeline", anchor=False)
    timeline = timeline_of(plan)
    show_lanes(plan, timeline)
    plan_downloads(plan, timeline)


def show_sensitivities(plan: DecodePlan) -> None:
    """What 10 % more of each part of the machine would save."""
    st.subheader("What 10 % more would save", anchor=False)
    chart(
        sensitivity_bars(plan.sensitivities), "Savings by part of the machine", "worth", bare=True
    )


def show_split(plan: DecodePlan) -> None:
    """Recomputed, loaded and resident tokens of each layer and step."""
    st.subheader("What each layer loads and recomputes", anchor=False)
    if len(plan.steps) > 1:
        chart(split_map(plan.steps), "Recomputed share of every layer and step", "ways", bare=True)
    step = 0
    if len(plan.steps) > 1:
        step = st.slider("Step", 0, len(plan.steps) - 1, 0, key="step_of_plan", bind="query-params")
    figure = split_by_layer(plan.steps[step])
    chart(figure, "Recomputed, loaded and resident tokens of every layer", "layers", bare=True)


def show_curve(plan: DecodePlan) -> None:
    """Makespan of even splits, and of the split that the slider sets."""
    st.subheader("Makespan of other splits", anchor=False)
    show_chosen_split(plan, even_splits(plan))


@typed(st.fragment)
def show_chosen_split(plan: DecodePlan, points: pd.DataFrame) -> None:
    """The slider and the curve; moving the slider reruns nothing else."""
    best = points.loc[points["makespan_s"].idxmin()]
    longest = plan.workload.prompt_tokens
    tokens = st.slider(
        "Tokens recomputed in every layer",
        0,
        longest,
        min(int(best["tokens"]), longest),
        key="tokens",
        bind="query-params",
    )
    chosen_s = even_split_time(plan, tokens)
    lp_s = plan.baselines["lp"]
    st.markdown(
        f"**{tokens:,} tokens: {ms(chosen_s)}**, {percent(chosen_s / lp_s - 1, signed=True)} "
        f"against the LP's split, which may differ from layer to layer. "
        f"Best of {len(points)} even splits tried: {best['tokens']:,.0f} tokens, "
        f"{ms(best['makespan_s'])}."
    )
    show_split_curve(plan, points, {"this split": (float(tokens), chosen_s)})


show_page()
