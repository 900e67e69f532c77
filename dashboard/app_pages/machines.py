"""A machine: its rates, their sources, and how well they predict measured tasks."""

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from dashboard.controls.widgets import chart, menu, pair, show_table, table_downloads
from dashboard.data.calibration import checks_table, key_figures, subjects
from dashboard.data.machines import Machine
from dashboard.data.residuals import measured_tasks, residual_table, spread_table
from dashboard.data.runs import Run, case_stamp, run_stamp
from dashboard.figures import rate_curves, residual_dots, sample_residuals
from dashboard.session import all_machines, stored_case, typed
from dashboard.text.comparison import escaped
from dashboard.text.machine import machine_table
from sim.errors import KvOverlapError
from sim.machine.profile import HardwareProfile

NOTHING = "nothing"
GALLERY_PX = 320


def show_page() -> None:
    """Menus of a machine and of another to compare it with, then both."""
    machines = {machine.label: machine for machine in all_machines()}
    show_gallery(list(machines.values()))
    labels = list(machines)
    profiled = [at for at, machine in enumerate(machines.values()) if machine.run is not None]
    left, right, rest = st.columns([2, 2, 2], vertical_alignment="bottom")
    rest.caption("A machine's rates, their sources, and how well they predict measured tasks.")
    label = menu(
        "Machine", labels, index=profiled[0] if profiled else 0, key="machine", column=left
    )
    others = [NOTHING, *(name for name in labels if name != label)]
    against = menu("Compare with", others, key="against", column=right)
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


def show_gallery(machines: Sequence[Machine]) -> None:
    """Every machine with its rates, memory, link, source, and whether it was measured."""
    st.subheader(f"All {len(machines)} machines", anchor=False)
    formats = dict.fromkeys(("TFLOP/s", "memory GB/s", "memory GiB", "link GB/s"), "%.4g")
    meanings = {
        "TFLOP/s": "Rate of large matrix products, as the profile has it.",
        "link GB/s": "From host memory to GPU memory; empty where both share one memory.",
    }
    show_table(machine_table(machines), formats, meanings, height=GALLERY_PX)


def show_profile(profile: HardwareProfile) -> None:
    """Name and description of the machine, and the date of its measurements."""
    st.header(escaped(profile.name), anchor=False)
    environment = profile.environment or {}
    when = environment.get("measured_at")
    dated = f"Measured at {when}." if when else "Not measured: figures from papers and datasheets."
    if "package" in environment:
        dated = f"Operator timings of {environment['package']}."
    st.caption(f"{escaped(profile.description)}, {profile.dtype}. {escaped(dated)}")


def show_figures(profile: HardwareProfile, other: HardwareProfile | None) -> None:
    """The main values with their sources, next to those of another machine."""
    table = key_figures(profile)
    if other is not None:
        theirs = key_figures(other).set_index("figure")["value"]
        table.insert(2, "other", table["figure"].map(theirs))
        table.insert(3, "ratio", table["other"] / table["value"])
    if not table["note"].any():
        table = table.drop(columns="note")
    left, right = pair("figures", (2, 1))
    left.subheader("Figures and where they come from", anchor=False)
    formats = {"value": "%.4g", "other": "%.4g", "ratio": "%.3g"}
    with left:
        show_table(table, formats, {"ratio": "other / this"}, height="content")
    right.subheader("Measured in", anchor=False)
    if profile.environment:
        items = [(name, str(value)) for name, value in profile.environment.items()]
        with right:
            show_table(pd.DataFrame(items, columns=["what", "value"]))
    else:
        right.write("No environment: this profile has no measurements.")
    st.caption(
        "A figure is measured, fitted or from a datasheet; every estimate carries the weakest "
        "source among its terms."
    )


def show_curves(
    machine: Machine, profile: HardwareProfile, other: tuple[str, HardwareProfile] | None
) -> None:
    """One kind of work: its rate over size, its samples, and the measured tasks."""
    known = {subject.name: subject for subject in subjects(profile)}
    st.subheader("Rates over size", anchor=False)
    name = menu("Kind of work", list(known), key="of_work")
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
            "Each faint dot is one timing of the profile. The curve goes through the median of "
            "each size, so that the distance to it shows how much repeats vary."
        )
    if without:
        names = escaped(" and ".join(without))
        st.caption(f"There are no samples of this work in {names}: its spread is unknown.")
    if tasks is None:
        st.caption("No run was measured with this profile, so there are no residuals of tasks.")
        return
    if of_subject is not None and len(of_subject):
        chart(residual_dots(subject, of_subject, curves), "Residuals over size", "residuals")
        st.caption(
            "Each dot is a task measured after profiling, against its estimate without other "
            "lanes. A copy that another lane slowed down is below zero."
        )


def show_checks(profile: HardwareProfile) -> None:
    """How well tables of published timings predict their own points."""
    table = checks_table(profile)
    if table.empty:
        return
    st.subheader("How well the tables predict their own points", anchor=False)
    show_table(table, {**percents(table, "%.1f"), "worst (%)": "%+.1f"}, height="content")
    st.caption("Each inner point is left out in turn and predicted from its neighbours.")


def show_spread(profiles: Sequence[tuple[str, HardwareProfile]]) -> None:
    """How much the samples of every table vary, for each profile that has samples."""
    tables = {label: spread_table(profile) for label, profile in profiles}
    tables = {label: table for label, table in tables.items() if len(table)}
    if not tables:
        return
    table = pd.concat(tables, names=["machine", "row"]).reset_index("machine")
    if len(profiles) == 1:
        table = table.drop(columns="machine")
    st.subheader("How much repeated samples vary, by table", anchor=False)
    show_table(table, percents(table), height="content")


def show_residuals(tasks: pd.DataFrame) -> None:
    """Errors of the estimates by operation, and those of every task as a file."""
    st.subheader("How well tasks were predicted, by operation", anchor=False)
    table = residual_table(tasks)
    formats = {**percents(table), "part of all task time (%)": "%.1f"}
    show_table(table, formats, height="content")
    table_downloads(lambda: tasks, "residuals")


def percents(table: pd.DataFrame, text: str = "%+.1f") -> dict[str, str]:
    """The format of every column in per cent."""
    return {name: text for name in table.columns if "(%)" in name}


def run_tasks(run: Run) -> pd.DataFrame:
    """Every task of a run with its residual, cached."""
    return _stored_tasks(run, run_stamp(run))


@typed(st.cache_data, max_entries=4, show_spinner="Reading every case of the run")
def _stored_tasks(run: Run, stamp: tuple[int, ...]) -> pd.DataFrame:  # noqa: ARG001
    folders = [run.case_folder(name) for name in run.case_names()]
    return measured_tasks([stored_case(folder, case_stamp(folder)) for folder in folders])


show_page()
