"""Where the task times of a plan come from, by their share of the time."""

from __future__ import annotations

from collections.abc import Mapping

from planner.parts import PARTS
from planner.plan_file import Plan
from sim.cost.estimate import Estimate
from sim.cost.model import CostModel
from sim.graph.claims import claimed
from sim.graph.jobs import RestoreRequest
from sim.graph.tasks import Task
from sim.lanes import COMPUTE, DISK, NET
from sim.machine.provenance import Source
from sim.units import percent

TABLES: dict[Source, str] = {
    "measured": "measured tables",
    "fitted": "fitted values",
    "datasheet": "datasheet values",
}

TASKS = {
    "prefill": "prefill",
    "qkv": "projections",
    "recompute": "recomputation",
    "recompute_resident": "recomputation",
    "attention": "attention",
    "mlp": "MLP",
    "head": "output head",
}

COPIES = {lane: name for lane, (name, _) in PARTS.items()} | {DISK: "disk", NET: "network"}

MAX_NAMED = 3
"""Kinds of tasks that a sentence names."""


def describe_sources(plan: Plan) -> str:
    """Shares of the summed task times by source, with the longest tasks of all but the first, and
    the stated efficiency of a data sheet."""
    times: dict[Source, dict[str, float]] = {}
    for task, found in _estimates(plan):
        for source, seconds in found.seconds_by_source.items():
            _add(times.setdefault(source, {}), task, seconds)
    totals_s = {source: sum(tasks.values()) for source, tasks in times.items()}
    first, *rest = sorted(totals_s, key=lambda source: -totals_s[source])
    if not rest:
        return f"task times: all from {TABLES[first]}{plan.hardware.efficiency_note}"
    total_s = sum(totals_s.values())
    parts = [f"{percent(totals_s[first] / total_s)} from {TABLES[first]}"]
    for source in rest:
        longest = sorted(times[source], key=lambda name: -times[source][name])[:MAX_NAMED]
        share = percent(totals_s[source] / total_s)
        parts.append(f"{share} from {TABLES[source]} ({', '.join(longest)})")
    return f"task times: {', '.join(parts)}{plan.hardware.efficiency_note}"


def beyond_calibration(plan: Plan) -> str | None:
    """The tasks outside the measured range, with their share of the time; None without any."""
    if not plan.out_of_range_tasks:
        return None
    outside: dict[str, float] = {}
    total_s = 0.0
    for task, found in _estimates(plan):
        total_s += found.seconds
        if not found.in_range:
            _add(outside, task, found.seconds)
    used = "the rate of the nearest sample is used"
    restore = plan.hardware.restore
    if isinstance(plan.workload, RestoreRequest) and (restore is None or restore.prefill is None):
        used = "prefill attention was not measured and gets the rate of matrix products"
    return (
        f"outside the measured range of {plan.hardware.name}: {_shares(outside, total_s)}; {used}"
    )


def _estimates(plan: Plan) -> list[tuple[Task, Estimate]]:
    costs = CostModel(plan.hardware, plan.model, plan.workload)
    tasks = plan.lower().tasks
    if any(task.claim for task in tasks):
        timeline = plan.simulate()
        tasks = tuple(t for t in claimed(timeline.graph, timeline.start_s) if t.n_tokens)
    return [(task, costs.estimate(task)) for task in tasks]


def _add(times_s: dict[str, float], task: Task, seconds: float) -> None:
    name = TASKS.get(task.op, task.op) if task.lane == COMPUTE else COPIES[task.lane]
    times_s[name] = times_s.get(name, 0.0) + seconds


def _shares(times: Mapping[str, float], total_s: float) -> str:
    ordered = sorted(times, key=lambda name: -times[name])
    return ", ".join(f"{name} ({percent(times[name] / total_s)} of the time)" for name in ordered)
