"""The one way to plan: a job and its options give a plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

from planner.decode.make import plan_decode
from planner.decode.plan import DecodePlan
from planner.job import DEFAULTS, Job, PlanOptions
from planner.plan_file import Plan
from planner.restore.plan import RestorePlan, plan_restore
from sim.graph.jobs import RestoreRequest, Workload

PLANNERS: dict[str, Callable[[Job[Any], PlanOptions], Plan]] = {
    Workload.kind: plan_decode,
    RestoreRequest.kind: plan_restore,
}
"""What plans each kind of workload."""


@overload
def make_plan(  # type: ignore[overload-overlap]  # a restore request is a workload too
    job: Job[RestoreRequest], options: PlanOptions = ...
) -> RestorePlan: ...
@overload
def make_plan(job: Job[Workload], options: PlanOptions = ...) -> DecodePlan: ...
def make_plan(job: Job[Any], options: PlanOptions = DEFAULTS) -> Plan:
    """Choose what to load and what to recompute by a policy, and simulate the choice.

    Raises:
        BadInput: a workload the model cannot take, or an option that does not apply to it.
        UnknownName: no such policy, schedule or engine.
        DoesNotFit: the job exceeds the profile's memory.
        NotMeasured: the policy does something that the profile has no figure for.
        PlannerFailed: the LP has no optimum.
    """
    return PLANNERS[job.workload.kind](job, options)
