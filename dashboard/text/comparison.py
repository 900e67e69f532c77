"""What a comparison says in words, figures and a table; times in ms, fractions in per cent."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dashboard.data.runs import PLAN, SHIPPED_RUNS, Case
from planner import Plan
from sim.graph.jobs import RestoreRequest
from sim.results.accuracy import MEASURED, Accuracy
from sim.results.compare import Comparison
from sim.units import ms, percent


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure with what stands below it and what it means."""

    label: str
    value: str
    below: str
    meaning: str


def plain(text: str) -> str:
    """Free text of a file, so that a page shows its characters and follows none of its links."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>$~:])", r"\\\1", text)


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
    model, job, hardware = case.graph.model, case.graph.workload, case.measured.hardware
    asked = (
        f"batch {job.batch_size}, prompt {job.prompt_tokens}, {count_of(job.gen_tokens, 'step')}"
    )
    if isinstance(job, RestoreRequest):
        asked = request_in_words(job)
    return (
        f"{plain(model.name)} ({model.dtype}), {asked}, policy {case.policy}, "
        f"on {plain(hardware.name)} ({hardware.source} figures), "
        f"measured {count_of(len(case.measured.runs), 'time')}, "
        f"{count_of(len(case.graph.tasks), 'task')}."
    )


def request_in_words(request: RestoreRequest) -> str:
    """What a restore is asked for, in one phrase."""
    bits = "" if request.tier_kv_bits == 16 else f" in {request.tier_kv_bits} bits"
    return (
        f"{request.cached_tokens:,} of {request.prompt_tokens:,} tokens cached{bits} "
        f"({request.tier}), {100 * request.gpu_share:g} % of the GPU"
    )


def busy_lanes(case: Case) -> str:
    """What limits a restore: how much of the measured time each of its lanes works."""
    run = case.measured.typical
    busy = {lane: run.busy_s(lane) / run.makespan_s for _, lane in run.graph.lanes}
    told = sorted(busy.items(), key=lambda one: -one[1])
    parts = [f"{lane} {percent(part)}" for lane, part in told]
    return f"**{told[0][0]} works longest.** Of the time to first token: {', '.join(parts)}."


def count_of(number: int, thing: str) -> str:
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


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
            "Error, task times given",
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


def task_errors(case: Case) -> pd.DataFrame:
    """Every task with its predicted and measured time, largest error first."""
    tasks = case.graph.tasks
    table = pd.DataFrame(
        {
            "task": [task.id for task in tasks],
            "lane": [task.lane for task in tasks],
            "predicted (ms)": [1e3 * value for value in case.predicted.typical.duration_s],
            "measured (ms)": [1e3 * value for value in case.measured.typical.duration_s],
        }
    )
    predicted, measured = table["predicted (ms)"], table["measured (ms)"]
    table["error (ms)"] = predicted - measured
    table["error (%)"] = 100 * (predicted / measured.where(measured > 0) - 1)
    table["op"] = [task.op for task in tasks]
    table["layer"] = [task.layer for task in tasks]
    table["step"] = [task.step for task in tasks]
    order = table["error (ms)"].abs().sort_values(ascending=False, kind="stable").index
    return table.loc[order].reset_index(drop=True)


def compare_command(folder: Path) -> str:
    """The commands that give the answer line of the case in `folder` without a browser.

    A recording holds no plan; its graph is simulated by `kvoverlap accuracy`.
    """
    if not (folder / PLAN).is_file():
        return accuracy_command(folder.parent.parent)
    plan, measured = (shlex.quote(str(folder / name)) for name in (PLAN, MEASURED))
    return (
        f"kvoverlap simulate {plan} --output predicted.json\n"
        f"kvoverlap compare predicted.json {measured}"
    )


def run_accuracy(found: Accuracy) -> str:
    """How far off the predictions of all cases of a run are, in one sentence."""
    return (
        f"All {count_of(len(found.cases), 'case')} of this run: median error "
        f"{percent(found.median_abs_error_frac)}, nine of ten within "
        f"{percent(found.p90_abs_error_frac)}."
    )


def accuracy_command(root: Path) -> str:
    """The command that assesses the recordings in `root` without a browser."""
    if root == SHIPPED_RUNS:
        return "kvoverlap accuracy"
    return f"kvoverlap accuracy --recordings {shlex.quote(str(root))}"


def plan_answer(plan: Plan) -> str:
    """How much a plan recomputes and how long it takes, in one line."""
    recomputed, attended = plan.steps[0].median_layer
    return (
        f"recompute {recomputed:,} of {attended:,} past tokens in the "
        f"median layer, {ms(plan.makespan_s)}"
    )


def plan_circumstances(plan: Plan) -> str:
    """What was planned, on what, and how good the answer is."""
    job = plan.workload
    split = sorted(plan.steps[0].recomputed_tokens)
    gap = max(0.0, plan.makespan_s / plan.lower_bound_s - 1) if plan.lower_bound_s > 0 else 0.0
    spread = f"From {split[0]:,} to {split[-1]:,} tokens a layer"
    if split[0] == split[-1]:
        spread = f"{split[0]:,} tokens in every layer"
    kept = f" {words[0].upper()}{words[1:]}." if (words := plan.residency.words()) else ""
    bits = f", KV cache in {job.kv_bits} bits" if job.kv_bits else ""
    return (
        f"{plain(plan.model.name)} ({plan.model.dtype}), batch {job.batch_size}, prompt "
        f"{job.prompt_tokens:,}, {count_of(job.gen_tokens, 'step')}{bits}, schedule "
        f"{plan.schedule}, policy {plan.policy}, on "
        f"{plain(plan.hardware.name)} ({plan.source} figures). {spread}; "
        f"{percent(gap)} above {ms(plan.lower_bound_s)}, "
        f"which no split can beat.{kept}"
    )


def beyond_calibration(plan: Plan) -> str | None:
    """A warning where tasks of a plan lie outside what its machine was measured for."""
    if not plan.out_of_range_tasks:
        return None
    return (
        f"{plan.out_of_range_tasks:,} of {count_of(len(plan.lower().tasks), 'task')} lie outside "
        f"the calibrated range of {plain(plan.hardware.name)}: their times hold the rate of "
        "the nearest sample."
    )
