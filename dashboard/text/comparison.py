"""Text, cards and tables of comparisons and plans: times in ms, fractions in per cent."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dashboard.data.runs import PLAN, SHIPPED_RUNS, Case
from planner import DecodePlan
from sim.graph.jobs import RestoreRequest, Workload
from sim.results.accuracy import MEASURED, Accuracy
from sim.results.compare import Comparison
from sim.units import ms, percent

OPTIMAL_FRAC = 5e-4
"""A plan is as fast as its lower bound if the difference is shown as 0.0 %."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One value of a card, with the text below it and its help."""

    label: str
    value: str
    below: str
    meaning: str


def escaped(text: str) -> str:
    """Text with Markdown characters escaped, so that links of a file are inert."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>$~:])", r"\\\1", text)


def sentence(text: str) -> str:
    """A text with a capital letter and a full stop, with no markup."""
    return escaped(f"{text[0].upper()}{text[1:]}.")


def comparison_summary(case: Case) -> str:
    """Predicted and measured makespan, error and spread of the repeats, in one line."""
    found = case.comparison
    length = "long" if found.makespan_error_frac > 0 else "short"
    spread = f"repeats differ by {percent(found.measured_spread_frac)}"
    if len(case.measured.runs) == 1:
        spread = "one run, so that its spread is unknown"
    return (
        f"Predicted {ms(found.predicted_makespan_s)}, took {ms(found.measured_makespan_s)}: "
        f"{percent(abs(found.makespan_error_frac))} too {length} ({spread})"
    )


def describe_case(case: Case) -> str:
    """Model, job, policy, machine and number of repeats of a case."""
    model, hardware = case.graph.model, case.measured.hardware
    return (
        f"{escaped(model.name)} ({model.dtype}), {describe_job(case.graph.workload)}, "
        f"policy {case.policy}, on {escaped(hardware.name)} ({hardware.source} figures), "
        f"measured {count_of(len(case.measured.runs), 'time')}, "
        f"{count_of(len(case.graph.tasks), 'task')}."
    )


def describe_job(job: Workload) -> str:
    """Batch, prompt and steps of a decode, or cached tokens and tier of a restore."""
    return DESCRIBE[job.kind](job)


def describe_decode(job: Workload) -> str:
    """Batch, prompt, steps and cache format of a decode."""
    bits = f", KV cache in {job.kv_bits} bits" if job.kv_bits else ""
    steps = count_of(job.gen_tokens, "step")
    return f"batch {job.batch_size}, prompt {job.prompt_tokens:,}, {steps}{bits}"


def describe_request(request: RestoreRequest) -> str:
    """Cached tokens, tier and GPU share of a restore."""
    bits = "" if request.tier_kv_bits == 16 else f" in {request.tier_kv_bits} bits"
    return (
        f"{request.cached_tokens:,} of {request.prompt_tokens:,} tokens cached{bits} "
        f"({request.tier}), {100 * request.gpu_share:g} % of the GPU"
    )


DESCRIBE: dict[str, Callable[[Any], str]] = {
    Workload.kind: describe_decode,
    RestoreRequest.kind: describe_request,
}
"""Text about a job of each kind."""


def busy_lanes(case: Case) -> str:
    """The busiest lane of a measured restore, with the busy share of every lane."""
    run = case.measured.typical
    busy = {lane: run.busy_s(lane) / run.makespan_s for _, lane in run.graph.lanes}
    ranked = sorted(busy.items(), key=lambda one: -one[1])
    parts = [f"{lane} {percent(part)}" for lane, part in ranked]
    first = f"**{ranked[0][0].capitalize()} works longest.**"
    return f"{first} Busy share of the time to first token: {', '.join(parts)}."


def count_of(number: int, thing: str) -> str:
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def metrics(comparison: Comparison) -> list[Metric]:
    """Overlap, exposed copy, and the errors with measured task times and of `max()`."""
    return [
        Metric(
            "Overlap, measured",
            percent(comparison.overlap_measured_frac),
            f"predicted {percent(comparison.overlap_predicted_frac)}",
            "Share of the copy time that is hidden behind compute.",
        ),
        Metric(
            "Exposed copy, measured",
            ms(comparison.exposed_copy_measured_s),
            f"predicted {ms(comparison.exposed_copy_predicted_s)}",
            "Copy time during which the compute lane waits.",
        ),
        Metric(
            "Error of the scheduling model alone",
            percent(comparison.teacher_forced_error_frac, signed=True),
            "with measured task times",
            "Makespan error when the simulator is given the measured time of every task. The rest "
            "of the error comes from the predicted task times.",
        ),
        Metric(
            "Error of the formula max(copy, compute)",
            percent(comparison.naive_error_frac, signed=True),
            "which knows no waiting",
            "Makespan error of the predicted busy time of the busiest lane.",
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
    """The commands that print the comparison of the case in `folder`.

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
    """Median and 90th percentile error of all cases of a run, in one sentence."""
    return (
        f"All {count_of(len(found.cases), 'case')} of this run: median error "
        f"{percent(found.median_abs_error_frac)}, nine of ten within "
        f"{percent(found.p90_abs_error_frac)}."
    )


def accuracy_command(root: Path) -> str:
    """The command that assesses the recordings in `root`."""
    if root == SHIPPED_RUNS:
        return "kvoverlap accuracy"
    return f"kvoverlap accuracy --recordings {shlex.quote(str(root))}"


def describe_plan(plan: DecodePlan, sources: str) -> str:
    """Model, job, policy, machine and makespan of a plan, its gap to the bound, and the sources of
    its task times."""
    split = sorted(plan.steps[0].recomputed_tokens)
    bound = ""
    if plan.gpus == 1 and 0 < plan.lower_bound_s <= plan.makespan_s:
        gap = plan.makespan_s / plan.lower_bound_s - 1
        bound = (
            f"No split can be faster than {ms(plan.lower_bound_s)}: this is {percent(gap)} more."
        )
        if gap < OPTIMAL_FRAC:
            bound = f"This is optimal: no split can be faster than {ms(plan.lower_bound_s)}."
    spread = f"Layers recompute {split[0]:,} to {split[-1]:,} tokens."
    if split[0] == split[-1]:
        spread = f"Every layer recomputes {split[0]:,} tokens."
    kept = f" {sentence(words)}" if (words := plan.residency.describe()) else ""
    return (
        f"{escaped(plan.model.name)} ({plan.model.dtype}), {describe_job(plan.workload)}, schedule "
        f"{plan.schedule}, policy {plan.policy}, on "
        f"{escaped(plan.hardware.name)}, {ms(plan.makespan_s)}. {spread} {bound}"
        f"{kept} {sentence(sources)}"
    )
