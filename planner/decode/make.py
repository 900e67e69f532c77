"""Make a plan: split by policy, lower, simulate, bound, explain."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from planner.decode.lower import replicate
from planner.decode.other_systems import OTHER_SYSTEMS, other_system_graph
from planner.decode.plan import Plan, Sensitivity
from planner.decode.planner import DecodePlanner
from planner.decode.policies import baseline_split, fixed_tokens
from planner.decode.problem import DecodeProblem
from planner.decode.rounding import MAX_LP_CELLS
from planner.decode.sensitivity import bottleneck, sensitivities
from planner.decode.split import DecodeChoice, Residency, step_splits
from sim.engine.api import simulate
from sim.errors import BadInput, DoesNotFit, NotMeasured
from sim.graph.jobs import Workload
from sim.graph.timeline import Timeline
from sim.machine.profile import HardwareProfile
from sim.machine.provenance import weakest
from sim.model.spec import ModelSpec


def make_plan(
    model: ModelSpec,
    hardware: HardwareProfile,
    workload: Workload,
    policy: str = "lp",
    schedule: str = "row",
    gpus: int = 1,
    keep: bool = False,
    engine: str = "simpy",
) -> Plan:
    """Plan a decode job and simulate it.

    Args:
        gpus: identical jobs, one to a GPU, that share the machine's uplinks.
        keep: whether policy `lp` may keep K, V, X and weights in device memory that is left.
        engine: which one simulates, as in `sim.simulate`.

    Raises:
        BadInput: unknown policy or schedule, or a workload the model cannot take.
        DoesNotFit: weights, staging slots or the host cache exceed the profile's memory.
        NotMeasured: the policy does something that the profile has no figure for.
        PlannerFailed: the LP has no optimum.
    """
    fixed_tokens(policy)
    problem = DecodeProblem(model, hardware, workload, schedule, gpus, keep, engine)
    planner = DecodePlanner(problem)
    if policy in OTHER_SYSTEMS:
        return _other_system_plan(planner, policy)
    if policy == "lp":
        return _choice_plan(planner, policy, planner.best)
    split = baseline_split(policy, model, workload, hardware)
    residency = problem.nothing_resident
    if policy == "resident":
        residency = Residency.whole_cache(model, workload)
    return _choice_plan(planner, policy, DecodeChoice(split, residency))


def choose_schedule(
    model: ModelSpec,
    hardware: HardwareProfile,
    workload: Workload,
    policy: str = "lp",
    gpus: int = 1,
    keep: bool = False,
    engine: str = "simpy",
) -> tuple[Plan, str]:
    """(plan, reason) of the schedule with more tokens a second.

    A row schedule decodes the batches one after another. If only one schedule fits the memory, it
    is chosen.

    Raises:
        DoesNotFit: neither fits.
    """
    one_batch = replace(workload, n_batches=1)
    plans: dict[str, Plan] = {}
    refused: dict[str, DoesNotFit] = {}
    for schedule, job in (("row", one_batch), ("column", workload)):
        try:
            plans[schedule] = make_plan(model, hardware, job, policy, schedule, gpus, keep, engine)
        except DoesNotFit as error:
            refused[schedule] = error
    if not plans:
        raise refused["column"]
    if refused:
        (left,), (gone,) = plans, refused
        return plans[left], f"{left} schedule: {gone} does not fit: {refused[gone]}"
    best = max(plans, key=lambda schedule: plans[schedule].tokens_per_s)
    rates = {schedule: f"{plan.tokens_per_s:,.1f} tokens/s" for schedule, plan in plans.items()}
    return plans[best], (
        f"{best} schedule: row makes {rates['row']} (batch after batch, weights resident), column "
        f"{rates['column']} ({workload.n_batches} batches to each loaded layer)."
    )


def plan_split(
    model: ModelSpec,
    hardware: HardwareProfile,
    workload: Workload,
    split: Sequence[Sequence[int]],
    schedule: str = "row",
    residency: Residency | None = None,
    gpus: int = 1,
) -> Plan:
    """The plan of a split chosen by hand, with policy name `edited`.

    Args:
        residency: resident data, by default none.
        gpus: as in `make_plan`.

    Raises:
        BadInput, DoesNotFit, PlannerFailed: as `make_plan`.
    """
    problem = DecodeProblem(model, hardware, workload, schedule, gpus)
    choice = DecodeChoice([list(row) for row in split], residency or problem.nothing_resident)
    return _choice_plan(DecodePlanner(problem), "edited", choice)


def _choice_plan(planner: DecodePlanner, policy: str, choice: DecodeChoice) -> Plan:
    """The plan of a split with its resident data."""
    problem = planner.problem
    timeline = problem.simulate(choice.split, choice.residency)
    problem.check_fits(timeline.graph)
    if policy == "lp":
        worth = sensitivities(problem, DecodeProblem.program, planner.relaxation)
    else:
        worth = sensitivities(problem, lambda other: other.program_of_choice(choice))
    if problem.covers_all_steps:
        objective_s = problem.program_of_choice(choice).solve().objective_s
    else:
        objective_s = problem.longest_path_s(timeline.graph)
    return _plan(planner, policy, choice, timeline, objective_s, worth)


def _other_system_plan(planner: DecodePlanner, policy: str) -> Plan:
    """The plan of another system, whose graph is not described by a split.

    Sensitivities come from its first steps."""
    problem = planner.problem
    if problem.schedule != "row":
        raise BadInput(f"policy {policy!r} has a schedule of its own; leave --schedule at row.")
    model, workload = problem.model, problem.workload
    timeline = simulate_other_system(problem, policy)
    problem.check_fits(timeline.graph)
    first = replace(workload, gen_tokens=min(2, workload.gen_tokens))
    start = other_system_graph(policy, model, first)
    worth = sensitivities(problem, lambda other: other.program_of(start))
    split = baseline_split(policy, model, workload, problem.hardware)
    objective_s = problem.longest_path_s(timeline.graph)
    choice = DecodeChoice(split, problem.nothing_resident)
    return _plan(planner, policy, choice, timeline, objective_s, worth)


def _plan(
    planner: DecodePlanner,
    policy: str,
    choice: DecodeChoice,
    timeline: Timeline,
    lp_objective_s: float,
    worth: tuple[Sensitivity, ...],
) -> Plan:
    """The plan with its bound and the makespan of every policy."""
    problem, graph = planner.problem, timeline.graph
    best = planner.best
    estimates = [problem.costs.estimate(task) for task in graph.tasks]
    return Plan(
        policy=policy,
        schedule=problem.schedule,
        model=problem.model,
        hardware=problem.hardware,
        workload=problem.workload,
        steps=step_splits(problem.model, problem.workload, choice.split, choice.residency),
        makespan_s=timeline.makespan_s,
        lp_objective_s=lp_objective_s,
        lower_bound_s=planner.lower_bound_s(),
        baselines={
            **{name: makespan_s for name, (_, makespan_s) in problem.baselines.items()},
            "lp": problem.simulate(best.split, best.residency).makespan_s,
            **_other_systems(problem),
        },
        sensitivities=worth,
        bottleneck=bottleneck(worth),
        source=weakest(*(estimate.source for estimate in estimates)),
        out_of_range_tasks=sum(not estimate.in_range for estimate in estimates),
        graph_sha256=graph.sha256,
        gpus=problem.gpus,
        resident_x_tokens=choice.residency.x_tokens if any(choice.residency.x_tokens) else (),
        resident_weight_layers=choice.residency.weight_layers,
    )


def _other_systems(problem: DecodeProblem) -> dict[str, float]:
    """Simulated makespan of a resident cache and of each other system that fits and has a cost.

    Empty for a long job, because their simulation is slow. Other systems hold K and V in the
    model's dtype, so they are left out for a quantised cache.
    """
    job, model = problem.workload, problem.model
    if job.gen_tokens * model.n_layers * job.n_batches > MAX_LP_CELLS:
        return {}
    quantised = job.kv_bits is not None
    other_systems = () if problem.schedule != "row" or quantised else OTHER_SYSTEMS
    found = {}
    for policy in ("resident", *other_systems):
        with suppress(DoesNotFit, NotMeasured):
            if policy == "resident":
                split = baseline_split(policy, model, job, problem.hardware)
                timeline = problem.simulate(split, Residency.whole_cache(model, job))
            else:
                timeline = simulate_other_system(problem, policy)
            problem.check_fits(timeline.graph)
            found[policy] = timeline.makespan_s
    return found


def simulate_other_system(problem: DecodeProblem, policy: str) -> Timeline:
    """The whole job as another system decodes it, on every GPU."""
    graph = other_system_graph(policy, problem.model, problem.workload)
    return simulate(replicate(graph, problem.gpus), problem.hardware, problem.engine)
