"""What is known about a machine, where it comes from, and how well it predicts what ran there."""

from collections.abc import Callable, Sequence

import pandas as pd
import streamlit as st

from dashboard.controls.widgets import chart, pair, table_downloads
from dashboard.data.calibration import checks_table, key_figures, subjects
from dashboard.data.machines import Machine
from dashboard.data.residuals import measured_tasks, residual_table, spread_table
from dashboard.data.runs import Run, case_stamp, run_stamp
from dashboard.figures import rate_curves, residual_dots, sample_residuals
from dashboard.session import all_machines, stored_case
from dashboard.text.comparison import plain
from sim.errors import KvOverlapError
from sim.machine.profile import HardwareProfile

NOTHING = "nothing"


def show_page() -> None:
    """Menus of one machine and of another to hold against it, then both."""
    machines = {machine.label: machine for machine in all_machines()}
    labels = list(machines)
    profiled = [at for at, machine in enumerate(machines.values()) if machine.run is not None]
    left, right, rest = st.columns([2, 2, 2], vertical_alignment="bottom")
    rest.caption("What is known about a machine, where it comes from, and how well it predicts.")
    label = left.selectbox(
        "Machine",
        labels,
        index=profiled[0] if profiled else 0,
        key="machine",
        bind="query-params",
    )
    others = [NOTHING, *(name for name in labels if name != label)]
    against = right.selectbox("Compare with", others, key="against", bind="query-params")
    try:
        chosen = machines[label]
        profile = chosen.load()
        other = None if against == NOTHING else (against, machines[against].load())
        show_profile(profile)
        show_curves(chosen, profile, other)
        show_checks(profile)
        show_spread([(label, profile), *([other] if other is not None else [])])
        show_figures(profile, None if other is None else other[1])
        if chosen.run is not None:
            show_residuals(run_tasks(chosen.run))
    except KvOverlapError as error:
        st.error(str(error))


def show_profile(profile: HardwareProfile) -> None:
    """What the machine is, and when and how it was measured."""
    st.header(plain(profile.name), anchor=False)
    environment = profile.environment or {}
    when = environment.get("measured_at")
    dated = f"Measured at {when}." if when else "Not measured: figures from papers and datasheets."
    if "package" in environment:
        dated = f"Operator timings of {environment['package']}."
    st.caption(f"{plain(profile.description)}, {profile.dtype}. {plain(dated)}")


def show_figures(profile: HardwareProfile, other: HardwareProfile | None) -> None:
    """The main values with their sources, next to those of another machine."""
    table = key_figures(profile)
    number = st.column_config.NumberColumn
    columns = {"value": number(format="%.4g"), "other": number(format="%.4g")}
    if other is not None:
        theirs = key_figures(other).set_index("figure")["value"]
        table.insert(2, "other", table["figure"].map(theirs))
        table.insert(3, "ratio", table["other"] / table["value"])
        columns["ratio"] = number(format="%.3g", help="other / this")
    if not table["note"].any():
        table = table.drop(columns="note")
    left, right = pair("figures", (2, 1))
    left.subheader("Figures and where they come from", anchor=False)
    left.dataframe(table, hide_index=True, column_config=columns, height="content")
    right.subheader("Measured in", anchor=False)
    if profile.environment:
        items = [(name, str(value)) for name, value in profile.environment.items()]
        right.dataframe(pd.DataFrame(items, columns=["what", "value"]), hide_index=True)
    else:
        right.write("No environment: nothing of this profile was measured here.")
    st.caption(
        "A figure is measured, fitted or from a datasheet; every estimate carries the weakest "
        "source among its terms."
    )


def show_curves(
    machine: Machine, profile: HardwareProfile, other: tuple[str, HardwareProfile] | None
) -> None:
    """One kind of work: its rate over size, the samples behind it, and the tasks that ran."""
    known = {subject.name: subject for subject in subjects(profile)}
    st.subheader("Rates over size", anchor=False)
    name = st.selectbox("Of", list(known), key="of_work", bind="query-params")
    subject = known[name]
    curves = [subject.curve(profile, machine.label)]
    if other is not None:
        curves.append(subject.curve(other[1], other[0]))
    tasks = run_tasks(machine.run) if machine.run is not None else None
    of_subject = tasks[tasks["subject"] == subject.lane_or_op] if tasks is not None else None
    figure = rate_curves(subject, curves, of_subject)
    chart(figure, f"Rate of {subject.name} over size", "rates")
    without = [curve.name for curve in curves if curve.samples.empty]
    if len(without) < len(curves):
        chart(sample_residuals(subject, curves), "Samples against the curve", "sample_residuals")
        st.caption(
            "Each faint dot is one timing made while profiling. The curve goes through the median "
            "of each size, so that what is left is how much repeats of the same work vary."
        )
    if without:
        names = plain(" and ".join(without))
        st.caption(f"No samples of this work are kept in {names}: its spread is not known.")
    if tasks is None:
        st.caption("No run was measured with this profile, so there are no residuals of tasks.")
        return
    if of_subject is not None and len(of_subject):
        chart(residual_dots(subject, of_subject, curves), "Residuals over size", "residuals")
        st.caption(
            "Each dot is a task that ran after the profile was made, against its estimate alone on "
            "its lane. A copy that another lane slowed down is below zero."
        )


def show_checks(profile: HardwareProfile) -> None:
    """How well tables of published timings predict their own points."""
    table = checks_table(profile)
    if table.empty:
        return
    st.subheader("How well the tables predict their own points", anchor=False)
    number = st.column_config.NumberColumn
    formats = {name: number(format="%.1f") for name in table.columns if "(%)" in name}
    formats["worst (%)"] = number(format="%+.1f")
    st.dataframe(table, hide_index=True, column_config=formats, height="content")
    st.caption("Each inner point left out in turn and read from its neighbours.")


def show_spread(profiles: Sequence[tuple[str, HardwareProfile]]) -> None:
    """How much the samples of every table vary, for each profile that keeps samples."""
    tables = {label: spread_table(profile) for label, profile in profiles}
    tables = {label: table for label, table in tables.items() if len(table)}
    if not tables:
        return
    table = pd.concat(tables, names=["machine", "row"]).reset_index("machine")
    if len(profiles) == 1:
        table = table.drop(columns="machine")
    st.subheader("How much repeated samples vary, by table", anchor=False)
    number = st.column_config.NumberColumn(format="%+.1f")
    formats = {name: number for name in table.columns if "(%)" in name}
    st.dataframe(table, hide_index=True, column_config=formats, height="content")


def show_residuals(tasks: pd.DataFrame) -> None:
    """Errors of the estimates by operation, and those of every task as a file."""
    st.subheader("How well tasks were predicted, by operation", anchor=False)
    table = residual_table(tasks)
    number = st.column_config.NumberColumn
    formats = {name: number(format="%+.1f") for name in table.columns if "(%)" in name}
    formats["part of all task time (%)"] = number(format="%.1f")
    st.dataframe(table, hide_index=True, column_config=formats, height="content")
    table_downloads(lambda: tasks, "residuals")


def run_tasks(run: Run) -> pd.DataFrame:
    """Every task of a run with its residual, worked out once."""
    return _stored_tasks(run, run_stamp(run))


def _tasks(run: Run, stamp: tuple[int, ...]) -> pd.DataFrame:  # noqa: ARG001
    folders = [run.case_folder(name) for name in run.case_names()]
    return measured_tasks([stored_case(folder, case_stamp(folder)) for folder in folders])


_stored_tasks: Callable[[Run, tuple[int, ...]], pd.DataFrame] = st.cache_data(
    _tasks, max_entries=4, show_spinner="Reading every case of the run"
)

show_page()
