"""One plan: what every layer loads and recomputes, what that is worth, and what limits it."""

from collections.abc import Callable

import pandas as pd
import streamlit as st

from dashboard.controls.decode import ask_question
from dashboard.controls.widgets import chart, pick_case, show_command
from dashboard.data.machines import profile_key
from dashboard.figures import policy_bars, sensitivity_bars, split_curve, way_map, ways_by_layer
from dashboard.questions.decode import ENGINE
from dashboard.questions.points import even_split, kvpr_count, split_points
from dashboard.session import answer_to, case_plan, uploaded
from dashboard.text.comparison import beyond_calibration, plain, plan_answer, plan_circumstances
from planner import POLICIES, DecodePlan
from sim.engine.api import simulate
from sim.errors import KvOverlapError
from sim.units import ms, percent

ASKED, MEASURED, UPLOADED = "a question", "a measured case", "an uploaded plan"


def show_page() -> None:
    """Which plan, then the plan."""
    st.caption("Which part of the KV cache each layer loads, which it recomputes, and what for.")
    plans = uploaded(DecodePlan)
    kinds = [ASKED, MEASURED, *([UPLOADED] if plans else [])]
    kind = st.segmented_control(
        "Plan of", kinds, default=ASKED, required=True, key="of", bind="query-params"
    )
    try:
        if kind == ASKED:
            show_asked()
        elif kind == MEASURED:
            picked = pick_case(restores=False)
            if picked is not None:
                show_plan(case_plan(picked.case))
        else:
            name = st.selectbox("Plan", list(plans), key="upload")
            show_plan(plans[name])
    except KvOverlapError as error:
        st.error(str(error))


def show_asked() -> None:
    """Controls, and the plan for them."""
    controls, answer = st.columns([1, 2.8], gap="large")
    try:
        with controls:
            question = ask_question(changeable=False)
            policy = st.selectbox("Policy", POLICIES, key="policy", bind="query-params")
        with answer, st.spinner("Planning"):
            plan = answer_to(question, policy)
    except KvOverlapError as error:
        answer.error(plain(str(error)))
        return
    with answer:
        show_plan(plan)
        st.subheader("The same without this page", anchor=False)
        show_command(question, policy)


def show_plan(plan: DecodePlan) -> None:
    """The plan in words, against the others, as a map, and against every even split."""
    st.header(plan_answer(plan), anchor=False)
    st.caption(plan_circumstances(plan))
    st.markdown(f"**{plan.bottleneck}**")
    warning = beyond_calibration(plan)
    if warning is not None:
        st.warning(warning)
    st.subheader("Against every other policy", anchor=False)
    makespans = {**plan.baselines, plan.policy: plan.makespan_s}
    figure = policy_bars(makespans, plan.lower_bound_s, plan.policy)
    chart(figure, "Predicted makespan of every policy", "policies", bare=True)
    if "resident" in makespans:
        st.caption(
            "resident keeps the whole cache on the device, where it fits: nothing is copied, and "
            "the bound is no bound for it."
        )
    show_worth(plan)
    show_ways(plan)
    show_curve(plan)


def show_worth(plan: DecodePlan) -> None:
    """What 10 % more of each part of the machine would save."""
    st.subheader("What 10 % more would save", anchor=False)
    chart(
        sensitivity_bars(plan.sensitivities), "Savings by part of the machine", "worth", bare=True
    )


def show_ways(plan: DecodePlan) -> None:
    """What every layer does in every step."""
    st.subheader("What each layer loads and recomputes", anchor=False)
    if len(plan.steps) > 1:
        chart(way_map(plan.steps), "Recomputed share of every layer and step", "ways", bare=True)
    step = 0
    if len(plan.steps) > 1:
        step = st.slider("Step", 0, len(plan.steps) - 1, 0, key="step_of_plan", bind="query-params")
    figure = ways_by_layer(plan.steps[step])
    chart(figure, "Tokens of every layer by their way", "layers", bare=True)


def show_curve(plan: DecodePlan) -> None:
    """The same split in every layer, from none to all, and the split that the slider sets."""
    st.subheader("What another split would take", anchor=False)
    kvpr = kvpr_count(plan)
    points = stored_points(profile_key(plan.hardware), plan.graph_sha256, kvpr, plan)
    show_chosen_split(plan, points, kvpr)


def _points(machine: str, graph_sha256: str, kvpr: int, _plan: DecodePlan) -> pd.DataFrame:  # noqa: ARG001
    return split_points(_plan, [kvpr])


stored_points: Callable[[str, str, int, DecodePlan], pd.DataFrame] = st.cache_data(
    _points, show_spinner="Simulating splits", max_entries=64
)


def _show_chosen_split(plan: DecodePlan, points: pd.DataFrame, kvpr: int) -> None:
    """The slider and the curve; moving it runs nothing else again."""
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
    graph = even_split(plan, tokens)
    chosen_s = simulate(graph, plan.hardware, ENGINE).makespan_s
    lp_s = plan.baselines["lp"]
    st.markdown(
        f"**{tokens:,} tokens: {ms(chosen_s)}**, {percent(chosen_s / lp_s - 1, signed=True)} "
        f"against the LP's split, which may differ from layer to layer. "
        f"Best even split: {best['tokens']:,.0f} tokens, {ms(best['makespan_s'])}."
    )
    at_kvpr = points.loc[points["tokens"] == kvpr, "makespan_s"]
    marks = {"kvpr": (float(kvpr), float(at_kvpr.iloc[0]))} if len(at_kvpr) else {}
    marks["this split"] = (float(tokens), chosen_s)
    levels = {"lp": lp_s, "no split is faster": plan.lower_bound_s}
    chart(split_curve(points, marks, levels), "Makespan over recomputed tokens", "split")


show_chosen_split: Callable[[DecodePlan, pd.DataFrame, int], None] = st.fragment(_show_chosen_split)

show_page()
