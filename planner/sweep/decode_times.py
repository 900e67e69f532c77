"""Times of one decode job by every policy, without a plan: for tables of many jobs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from planner.decode.fast_planner import ShortcutPlanner
from planner.decode.make import LP, fitting_schedules
from planner.decode.policies import BASELINES
from planner.decode.problem import DecodeProblem
from planner.decode.split import StepSplit, step_splits
from planner.job import Job, PlanOptions
from planner.sweep.inputs import AUTO
from planner.sweep.machines import Machine
from planner.sweep.rows import bottleneck_of
from sim.errors import DoesNotFit
from sim.graph.jobs import Workload
from sim.graph.tasks import TaskGraph
from sim.model.spec import ModelSpec

RESIDENT = "resident"

MAX_JOBS = 16
"""Jobs whose graphs are kept for the next machine."""


@dataclass(frozen=True, slots=True)
class DecodeTimes:
    """Makespans of a job.

    Args:
        makespans_s: of the baselines, of `resident` if it fits, and of `lp`, whose split is within
            a thousandth of the optimum as in `kvoverlap sweep`.
        steps: the split of `lp`.
        bottleneck: the part of the machine whose increase saves most, or `none`.
    """

    makespans_s: dict[str, float]
    steps: tuple[StepSplit, ...]
    out_of_range_tasks: int
    bottleneck: str


def decode_times(job: Job[Workload], options: PlanOptions) -> DecodeTimes:
    """Simulate a job by every policy; an `auto` schedule takes the one with more tokens a second.

    Raises:
        KvOverlapError: as `planner.make_plan`.
    """
    if options.schedule != AUTO:
        return _times(job, options)
    found, _ = fitting_schedules(
        job.workload,
        lambda schedule, workload: _times(
            replace(job, workload=workload), replace(options, schedule=schedule)
        ),
    )
    batches = {"row": 1, "column": job.workload.n_batches}
    best = max(found, key=lambda name: batches[name] / found[name].makespans_s[LP])
    return found[best]


@lru_cache(maxsize=MAX_JOBS)
def _known_graphs(
    model: ModelSpec,  # noqa: ARG001
    workload: Workload,  # noqa: ARG001
    schedule: str,  # noqa: ARG001
) -> dict[Any, TaskGraph]:
    """Graphs that were lowered for a job on any machine."""
    return {}


def _times(job: Job[Workload], options: PlanOptions) -> DecodeTimes:
    model, workload = job.model, job.workload
    gpus = options.gpus * model.tensor_parallel
    asked = options.schedule, gpus, options.keep, options.engine
    problem = DecodeProblem(model, job.hardware, workload, *asked)
    # The problem's workload: on unified memory it may differ from the job's.
    graphs = _known_graphs(model, problem.workload, options.schedule)
    problem = replace(problem, _graphs=graphs)
    planner = ShortcutPlanner(problem)
    choices = {name: problem.choice_of(name) for name in BASELINES}
    runs = {name: problem.simulate(one.split, one.residency) for name, one in choices.items()}
    best = planner.best
    run = problem.simulate(best.split, best.residency)
    problem.check_fits(run.graph)
    for name, one in runs.items():
        if one.makespan_s < run.makespan_s:
            with suppress(DoesNotFit):
                problem.check_fits(one.graph)
                best, run = choices[name], one
    makespans = {name: one.makespan_s for name, one in runs.items()} | {LP: run.makespan_s}
    with suppress(DoesNotFit):
        kept = problem.choice_of(RESIDENT)
        resident = problem.simulate(kept.split, kept.residency)
        problem.check_fits(resident.graph)
        makespans[RESIDENT] = resident.makespan_s
    part, _ = bottleneck_of(planner, Machine.of(job.hardware), LP, run)
    return DecodeTimes(
        makespans,
        step_splits(model, workload, best.split, best.residency),
        sum(not problem.costs.estimate(task).in_range for task in run.graph.tasks),
        part,
    )
