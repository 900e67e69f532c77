"""Plan a decode: split by policy, lower, simulate, bound, explain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from planner.decode.lower import replicate
from planner.decode.other_systems import (
    OTHER_SYSTEMS,
    RUNTIME_SYSTEMS,
    other_system_graph,
)
from planner.decode.plan import DecodePlan, Offloaded, Sensitivity
from planner.decode.planner import DecodePlanner
from planner.decode.policies import BASELINES, check_policy
from planner.decode.problem import DecodeProblem
from planner.decode.rounding import MAX_LP_CELLS
from planner.decode.sensitivity import bottleneck, sensitivities
from planner.decode.split import DecodeChoice, Residency, step_splits
from planner.decode.ways import Ways
from planner.job import DEFAULTS, Job, PlanOptions
from planner.runtime import decode_machine, resident_layers
from sim.engine.api import simulate
from sim.errors import BadInput, DoesNotFit, NotMeasured
from sim.graph.jobs import Workload
from sim.graph.memory import Footprint, footprint
from sim.graph.timeline import Timeline
from sim.machine.provenance import weakest
from sim.machine.runtime import Runtime

AUTO, LP = "auto", "lp"

T = TypeVar("T")


def plan_decode(job: Job[Workload], options: PlanOptions) -> DecodePlan:
    """Plan a decode job, as `planner.make_plan`."""
    if options.schedule == AUTO:
        return choose_schedule(job, options)[0]
    policy, runtime = LP if options.policy is None else options.policy, options.runtime
    if runtime is not None:
        hardware = decode_machine(runtime, job.hardware, job.model, job.workload)
        job = replace(job, hardware=hardware)
        policy = runtime.decode.value if policy == LP else policy
    check_policy(policy)
    planner = DecodePlanner(_problem(job, options))
    kept = resident_layers(runtime, options.resident_layers, job.model, job.workload)
    if policy in RUNTIME_SYSTEMS:
        return _done_by(runtime, _other_system_plan(planner, policy, kept))
    if kept is not None:
        raise BadInput(f"resident_layers does not apply to policy {policy!r}; leave it out.")
    choice = planner.best if policy == LP else planner.problem.choice_of(policy)
    return _done_by(runtime, _choice_plan(planner, policy, choice))


def check_decode(job: Job[Workload], options: PlanOptions) -> None:
    """Refuse a job that `plan_decode` refuses, without bounds, baselines and sensitivities."""
    policy = LP if options.policy is None else options.policy
    if options.schedule == AUTO:
        fitting_schedules(
            job.workload,
            lambda schedule, workload: check_decode(
                replace(job, workload=workload), replace(options, schedule=schedule)
            ),
        )
    elif policy in RUNTIME_SYSTEMS:
        plan_decode(job, options)
    else:
        check_policy(policy)
        planner = DecodePlanner(_problem(job, options))
        problem = planner.problem
        choice = planner.best if policy == LP else problem.choice_of(policy)
        problem.check_fits(problem.simulate(choice.split, choice.residency).graph)


def memory_needed(job: Job[Workload], options: PlanOptions) -> Footprint:
    """Memory of the first steps of a job that loads its whole cache, whether or not it fits."""
    problem = _problem(job, replace(options, keep=False))
    choice = problem.choice_of("load-all")
    return footprint(replicate(problem.shortened(choice.split, choice.residency), problem.gpus))


def _done_by(runtime: Runtime | None, plan: DecodePlan) -> DecodePlan:
    """The plan as a runtime's, which offers no other way than its own."""
    if runtime is None or runtime.plans_itself:
        return replace(plan, runtime=runtime)
    return replace(plan, runtime=runtime, offloaded=None)


def choose_schedule(job: Job[Workload], options: PlanOptions) -> tuple[DecodePlan, str]:
    """(plan, reason) of the schedule with more tokens a second.

    Raises:
        DoesNotFit: neither fits.
    """
    plans, refused = fitting_schedules(
        job.workload,
        lambda schedule, workload: plan_decode(
            replace(job, workload=workload), replace(options, schedule=schedule)
        ),
    )
    if refused:
        (left,), (gone,) = plans, refused
        return plans[left], f"{left} schedule: {gone} does not fit: {refused[gone]}"
    best = max(plans, key=lambda schedule: plans[schedule].tokens_per_s)
    rates = {schedule: f"{plan.tokens_per_s:,.1f} tokens/s" for schedule, plan in plans.items()}
    return plans[best], (
        f"{best} schedule: row makes {rates['row']} (batch after batch, weights resident), column "
        f"{rates['column']} ({job.workload.n_batches} batches to each loaded layer)."
    )


def fitting_schedules(
    workload: Workload, make: Callable[[str, Workload], T]
) -> tuple[dict[str, T], dict[str, DoesNotFit]]:
    """What `make` returns for each schedule and its workload, and why the others do not fit.

    A row schedule decodes the batches one after another.

    Raises:
        DoesNotFit: neither fits.
    """
    made: dict[str, T] = {}
    refused: dict[str, DoesNotFit] = {}
    for schedule, one in (("row", replace(workload, n_batches=1)), ("column", workload)):
        try:
            made[schedule] = make(schedule, one)
        except DoesNotFit as error:
            refused[schedule] = error
    if not made:
        raise refused["column"]
    return made, refused


def plan_split(
    job: Job[Workload],
    split: Sequence[Sequence[int]],
    residency: Residency | None = None,
    options: PlanOptions = DEFAULTS,
) -> DecodePlan:
    """The plan of a split chosen by hand, with policy name `edited`.

    Args:
        residency: resident data, by default none.
        options: schedule, gpus and engine; no policy.

    Raises:
        BadInput, DoesNotFit, PlannerFailed: as `planner.make_plan`.
    """
    options.refuse("policy", "keep")
    problem = _problem(job, options)
    choice = DecodeChoice([list(row) for row in split], residency or problem.least_resident)
    return _choice_plan(DecodePlanner(problem), "edited", choice)


def _problem(job: Job[Workload], options: PlanOptions) -> DecodeProblem:
    options.refuse("availability", "foresight", "cached_data")
    return DecodeProblem(
        job.model,
        job.hardware,
        job.workload,
        options.schedule,
        options.gpus * job.model.tensor_parallel,
        options.keep,
        options.engine,
    )


def _choice_plan(planner: DecodePlanner, policy: str, choice: DecodeChoice) -> DecodePlan:
    """The plan of a split with its resident data."""
    problem = planner.problem
    timeline = problem.timeline(choice)
    if not problem.holds(timeline.graph):
        problem.check_fits(replicate(timeline.graph, problem.alike(timeline.graph)))
    if policy == "lp":
        worth = sensitivities(problem, DecodeProblem.program, (planner.program, planner.relaxation))
    else:
        worth = sensitivities(problem, lambda other: other.program_of_choice(choice))
    return _plan(planner, policy, choice, timeline, worth)


def _other_system_plan(
    planner: DecodePlanner, policy: str, kept: tuple[int, ...] | None = None
) -> DecodePlan:
    """The plan of another system, whose graph is not described by a split.

    Args:
        kept: resident tokens of each layer, where the system keeps whole layers.

    Sensitivities come from its first steps."""
    problem = planner.problem
    if problem.hardware.memory.unified:
        raise BadInput(
            f"policy {policy!r} copies K and V over a link, and CPU and GPU of "
            f"{problem.hardware.name} share one memory; use policy resident."
        )
    if problem.schedule != "row":
        raise BadInput(f"policy {policy!r} has a schedule of its own; leave --schedule at row.")
    model, workload = problem.model, problem.workload
    choice = problem.choice_of(policy)
    if kept is not None:
        choice = replace(choice, residency=replace(choice.residency, kv_tokens=kept))
    timeline = simulate_other_system(problem, policy, choice.residency)
    problem.check_fits(timeline.graph)
    first = replace(workload, gen_tokens=min(2, workload.gen_tokens))
    start = other_system_graph(policy, model, first, choice.residency)
    worth = sensitivities(problem, lambda other: other.program_of(start))
    return _plan(planner, policy, choice, timeline, worth)


def _plan(
    planner: DecodePlanner,
    policy: str,
    choice: DecodeChoice,
    timeline: Timeline,
    worth: tuple[Sensitivity, ...],
) -> DecodePlan:
    """The plan with its bound and the makespan of every policy.

    Args:
        timeline: of all GPUs, or of one if all do the same.
    """
    problem, best = planner.problem, planner.best
    gpus = problem.alike(timeline.graph)
    estimates = [problem.costs.estimate(task) for task in timeline.graph.tasks]
    return DecodePlan(
        policy=policy,
        schedule=problem.schedule,
        model=problem.model,
        hardware=problem.hardware,
        workload=problem.workload,
        steps=step_splits(problem.model, problem.workload, choice.split, choice.residency),
        makespan_s=timeline.makespan_s,
        lp_objective_s=problem.longest_path_s(timeline.graph),
        lower_bound_s=planner.lower_bound_s(),
        baselines={
            **{name: _simulated_s(problem, problem.choice_of(name)) for name in BASELINES},
            "lp": _simulated_s(problem, best),
            **_other_systems(problem),
        },
        sensitivities=worth,
        bottleneck=bottleneck(worth),
        source=weakest(*(estimate.source for estimate in estimates)),
        out_of_range_tasks=gpus * sum(not estimate.in_range for estimate in estimates),
        graph_sha256=replicate(timeline.graph, gpus).sha256,
        gpus=problem.gpus,
        resident_x_tokens=choice.residency.x_tokens if any(choice.residency.x_tokens) else (),
        resident_weight_layers=choice.residency.weight_layers,
        offloaded=None if problem.hardware.memory.unified else _offloaded(planner),
    )


def _simulated_s(problem: DecodeProblem, choice: DecodeChoice) -> float:
    return problem.timeline(choice).makespan_s


def _offloaded(planner: DecodePlanner) -> Offloaded:
    problem, choice = planner.problem, planner.best_offloaded
    makespan_s = _simulated_s(problem, choice)
    first, *_ = step_splits(problem.model, problem.workload, choice.split, choice.residency)
    way = Ways.of(planner, makespan_s).verdict
    return Offloaded(way, makespan_s, *first.median_layer)


def _other_systems(problem: DecodeProblem) -> dict[str, float]:
    """Simulated makespan of a resident cache and of each other system that fits and has a cost.

    Other systems are left out of a long job, because their simulation is slow, for a quantised
    cache, because they hold K and V in the model's dtype, and for layers of several kinds.
    """
    job, model = problem.workload, problem.model
    long = job.gen_tokens * model.n_layers * job.n_batches > MAX_LP_CELLS
    quantised = job.kv_bits is not None
    unmoved = problem.hardware.memory.unified or bool(model.layer_kinds)
    skip = problem.schedule != "row" or quantised or long or unmoved
    other_systems = () if skip else OTHER_SYSTEMS
    found = {}
    for policy in ("resident", *other_systems):
        with suppress(DoesNotFit, NotMeasured):
            if policy == "resident":
                timeline = problem.timeline(problem.choice_of(policy))
            else:
                timeline = simulate_other_system(problem, policy)
            if problem.holds(timeline.graph):
                found[policy] = timeline.makespan_s
    return found


def simulate_other_system(
    problem: DecodeProblem, policy: str, residency: Residency | None = None
) -> Timeline:
    """The whole job as another system decodes it, on every GPU."""
    graph = other_system_graph(policy, problem.model, problem.workload, residency)
    return simulate(replicate(graph, problem.gpus), problem.hardware, problem.engine)
