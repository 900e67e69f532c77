"""What a comparison says in words, figures and a table; times in ms, fractions in per cent."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dashboard.runs import MEASURED, PLAN, Case
from sim.compare import Comparison
from sim.graph import LANES
from sim.quantities import ms, percent


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure with what stands below it and what it means."""

    label: str
    value: str
    below: str
    meaning: str


def answer(comparison: Comparison) -> str:
    """How far the prediction was off, in one line."""
    return (
        f"predicted {ms(comparison.predicted_makespan_s)}, "
        f"measured {ms(comparison.measured_makespan_s)}, "
        f"{percent(comparison.makespan_error_frac, signed=True)}, "
        f"repeat spread {percent(comparison.measured_spread_frac)}"
    )


def circumstances(case: Case) -> str:
    """What was planned, on what, and how often it ran."""
    plan, job = case.plan, case.plan.workload
    return (
        f"{plan.model.name} ({plan.model.dtype}), batch {job.batch_size}, "
        f"prompt {job.prompt_tokens}, {_count(job.gen_tokens, 'step')}, policy {plan.policy}, "
        f"on {plan.hardware.name} ({plan.hardware.source} figures), "
        f"measured {_count(len(case.measured.runs), 'time')}. {plan.bottleneck}"
    )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def metrics(comparison: Comparison) -> list[Metric]:
    """The four figures beside the makespan."""
    return [
        Metric(
            "Overlap, measured",
            percent(comparison.overlap_measured_frac),
            f"predicted {percent(comparison.overlap_predicted_frac)}",
            "Part of the copy time during which the compute lane works too.",
        ),
        Metric(
            "Exposed copy, measured",
            ms(comparison.exposed_copy_measured_s),
            f"predicted {ms(comparison.exposed_copy_predicted_s)}",
            "Copy time during which the compute lane waits.",
        ),
        Metric(
            "Error given measured task times",
            percent(comparison.teacher_forced_error_frac, signed=True),
            "what scheduling alone gets wrong",
            "Makespan error when the simulator is given every task's measured time: the rest of "
            "the error comes from the predicted task times.",
        ),
        Metric(
            "Error of max(copy, compute)",
            percent(comparison.naive_error_frac, signed=True),
            "what a formula would have said",
            "Makespan error of the busiest lane's predicted time alone, without any waiting.",
        ),
    ]


def worst_tasks(comparison: Comparison) -> pd.DataFrame:
    """The tasks whose times were predicted worst, largest error first."""
    return pd.DataFrame(
        [
            {
                "task": error.task_id,
                "lane": error.lane,
                "predicted (ms)": error.predicted_s * 1e3,
                "measured (ms)": error.measured_s * 1e3,
                "error (ms)": error.error_s * 1e3,
                "error (%)": error.error_frac * 100,
            }
            for error in comparison.worst_tasks
        ]
    )


def lane_times(case: Case) -> pd.DataFrame:
    """What each lane did with the makespan: worked, or waited, and for what."""
    shares: dict[tuple[str, str], dict[str, float]] = {}
    for recording in (case.predicted, case.measured):
        timeline = recording.typical
        for _, lane in timeline.graph.lanes:
            spent = {"works": timeline.busy_s(lane), **timeline.idle_by_cause(lane)}
            for what, seconds in spent.items():
                row = shares.setdefault((lane, what), {"predicted": 0.0, "measured": 0.0})
                row[recording.source] = seconds
    ordered = sorted(shares.items(), key=lambda share: LANES.index(share[0][0]))
    return pd.DataFrame(
        [
            {
                "lane": lane,
                "does": what,
                "predicted (ms)": row["predicted"] * 1e3,
                "measured (ms)": row["measured"] * 1e3,
            }
            for (lane, what), row in ordered
        ]
    )


def compare_command(folder: Path) -> str:
    """The commands that give the answer line of the case in `folder` without a browser."""
    plan, measured = (shlex.quote(str(folder / name)) for name in (PLAN, MEASURED))
    return (
        f"kvoverlap simulate {plan} --output predicted.json\n"
        f"kvoverlap compare predicted.json {measured}"
    )
