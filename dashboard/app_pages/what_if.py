"""What would another link, machine, batch or prompt change? Every view is a link."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import streamlit as st

from dashboard.asking import TooLarge, show_refusal, show_refused_view
from dashboard.controls.compare import compare_plans
from dashboard.controls.decode import ask_question
from dashboard.controls.plan import show_plan_memory, show_refused
from dashboard.controls.widgets import (
    cards,
    chart,
    choose_view,
    headline_place,
    menu,
    question_columns,
    show_command,
    show_split_curve,
    show_table,
    table_downloads,
)
from dashboard.figures import MEASURES, crossover_curves, heat_map
from dashboard.questions.decode import Question
from dashboard.questions.points import (
    AXES,
    Axis,
    recomputed_frac,
    without_axes,
)
from dashboard.questions.remedies import LP, Asking
from dashboard.session import even_splits, facts_of, plan_for, sweep_of
from dashboard.text.comparison import Metric, escaped, sentence
from planner import DecodePlan
from sim.errors import KvOverlapError
from sim.units import ms, percent

OFFLOADED = ", with all of the cache in host memory"
SPLIT, CROSSOVER, MAP = "Split", "Crossover", "Map of two inputs"
AXIS_NAMES = [axis.name for axis in AXES]


def show_page() -> None:
    """Controls on the left, the answer on the right."""
    st.caption("Change the job or the machine, and the plan is made again.")
    head = headline_place()
    controls, answer = question_columns()
    try:
        with controls:
            question = ask_question(changeable=True)
    except KvOverlapError as error:
        with head:
            show_refusal(error)
        return
    with head:
        try:
            plan = plan_for(question)
        except KvOverlapError as error:
            asking = Asking(question, LP)
            if isinstance(error, TooLarge):  # a sweep over it takes even longer
                asking = replace(asking, settings={"view": SPLIT})
            show_refused(error, asking)
            return
        show_headline(plan, question.keep)
    with answer:
        show_answer(plan)
        compare_plans(question, "lp", plan)
        show_plan_memory({"": plan})
        view = choose_view([SPLIT, CROSSOVER, MAP])
        try:
            show_view(view, question, plan)
        except KvOverlapError as error:
            if view == SPLIT:
                show_refused(error, Asking(question, LP))
            else:
                show_refused_view(error, SPLIT)
        st.subheader("Command-line equivalent", anchor=False)
        show_command(question)


def show_headline(plan: DecodePlan, keep: bool) -> None:
    """The LP's makespan, its rate, and how much it recomputes.

    Args:
        keep: whether the plan keeps in GPU memory what fits.
    """
    share = percent(recomputed_frac(plan.steps))
    rate = f"{plan.tokens_per_s:,.4g} tokens/s"
    st.header(
        f"{ms(plan.makespan_s)}, {rate}, {share} recomputed" + ("" if keep else OFFLOADED),
        anchor=False,
    )


def show_answer(plan: DecodePlan) -> None:
    """The makespan of every policy, and the limiting part of the machine."""
    base_s, facts = plan.baselines["load-all"], facts_of(plan)
    found = f"{escaped(plan.hardware.no_link_note)} {sentence(plan.bottleneck)}".strip()
    st.markdown(
        f"**{found}** {sentence(facts.sources)} The address of this page is a link to this view."
    )
    if facts.outside is not None:
        st.warning(sentence(facts.outside))
    meanings = {
        "lp": "The exact linear program, with its own split for every layer.",
        "kvpr": "KVPR's closed formula.",
        "load-all": "Load K and V of every token.",
        "recompute-all": "Recompute K and V of every token.",
    }
    cards(
        [
            Metric(
                name,
                ms(plan.baselines[name]),
                f"{base_s / plan.baselines[name]:.2f} times as fast as load-all",
                meaning,
            )
            for name, meaning in meanings.items()
        ]
    )


def show_view(view: str, question: Question, plan: DecodePlan) -> None:
    """The chosen figure with its table."""
    if view == SPLIT:
        points = show_split(plan)
    elif view == CROSSOVER:
        points = show_crossover(question)
    else:
        points = show_map(question)
    if points is None:
        return
    with st.expander(f"The {len(points)} points as a table"):
        show_table(without_axes(points))
        table_downloads(lambda: without_axes(points), f"what-if-{view.split()[0].lower()}")


def show_split(plan: DecodePlan) -> pd.DataFrame:
    """Makespan over an even split."""
    points = even_splits(plan)
    best = points.loc[points["makespan_s"].idxmin()]
    best_split = float(best["tokens"]), float(best["makespan_s"])
    show_split_curve(plan, points, {f"best of {len(points)} even splits": best_split})
    return points


def show_crossover(question: Question) -> pd.DataFrame | None:
    """Every policy over one input."""
    name = menu("Input to vary", AXIS_NAMES, key="over")
    axis = _axis(name)
    points = swept(question, [name])
    if points is None:
        return None
    chart(crossover_curves(points, axis.title, axis.shown(question)), "Makespan of policies", "x")
    st.caption(
        "Both axes are logarithmic. Where load-all meets recompute-all, both take equally long; "
        "the LP is never above either."
    )
    return points


def show_map(question: Question) -> pd.DataFrame | None:
    """One measure over two inputs."""
    columns = st.columns([1, 1, 1.4])
    across = menu("x axis", AXIS_NAMES, key="across", column=columns[0])
    rest = [name for name in AXIS_NAMES if name != across]
    up = menu("y axis", rest, index=len(rest) - 2, key="up", column=columns[1])
    labels = [measure.label for measure in MEASURES]
    label = menu("Colour", labels, key="show", column=columns[2])
    points = swept(question, [across, up])
    if points is None:
        return None
    measure = MEASURES[labels.index(label)]
    chart(
        heat_map(points, measure, _axis(across).title, _axis(up).title),
        "Map over two inputs",
        "map",
    )
    return points


def _axis(name: str) -> Axis:
    return AXES[AXIS_NAMES.index(name)]


def swept(question: Question, names: Sequence[str]) -> pd.DataFrame | None:
    """The points of a sweep over the named inputs; None if no point fits."""
    points = sweep_of(question, names)
    if points.empty:
        st.info("No point of this sweep fits the model and the machine.")
        return None
    return points


show_page()
