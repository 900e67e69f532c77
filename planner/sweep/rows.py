"""Rows of a sweep: the outputs of one point."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from planner.decode.fast_planner import ShortcutPlanner
from planner.decode.make import LP, fitting_schedules, simulate_other_system
from planner.decode.other_systems import RUNTIME_SYSTEMS
from planner.decode.policies import check_policy
from planner.decode.problem import DecodeProblem
from planner.decode.sensitivity import MIN_SAVING_FRAC, MORE, NUDGE
from planner.decode.split import DecodeChoice
from planner.restore.plan import token_counts
from planner.restore.planner import RestorePlanner
from planner.runtime import decode_machine, resident_layers, restore_machine, restore_request
from planner.sweep.inputs import AS_ASKED, AUTO
from planner.sweep.machines import Machine, machine_of, model_of, runtime_of
from planner.sweep.traffic_rows import TRAFFIC_OUTPUTS, traffic_row
from sim.cost.model import CostKey, CostModel, cost_key
from sim.engine.api import fast_engine_installed
from sim.engine.sharing import machine_of_one_gpu
from sim.errors import BadInput
from sim.graph.jobs import UNCOMPRESSED, RestoreRequest, Workload
from sim.graph.tasks import Task
from sim.graph.timeline import Timeline
from sim.lanes import COMPUTE, COPY_LANES, D2H, H2D, HOST, NET, TIERS
from sim.machine.provenance import weakest
from sim.model.spec import ModelSpec

ENGINE = "fast" if fast_engine_installed() else "simpy"

Row = dict[str, Any]
Inputs = Mapping[str, Any]

COMMON_OUTPUTS = {
    "tokens_per_s": float,
    "overlap_frac": float,
    "exposed_copy_s": float,
    "bottleneck": str,
    "device_bytes": int,
    "out_of_range_tasks": int,
    "in_range": bool,
    "hardware_source": str,
}
DECODE_OUTPUTS: dict[str, type] = {
    "makespan_s": float,
    "lower_bound_s": float,
    "h2d_bytes_per_s": float,
    "recomputed_frac": float,
    "resident_frac": float,
    "recomputed_least": int,
    "recomputed_median": int,
    "recomputed_most": int,
    "bottleneck_saves_frac": float,
    "host_bytes": int,
    "schedule_taken": str,
    "solved_by": str,
    **COMMON_OUTPUTS,
}
RESTORE_OUTPUTS: dict[str, type] = {
    "ttft_s": float,
    "compute_only_s": float,
    "load_only_s": float,
    "computed_tokens": int,
    "projected_tokens": int,
    "loaded_tokens": int,
    "policy_taken": str,
    **COMMON_OUTPUTS,
}
OUTPUTS = {"decode": DECODE_OUTPUTS, "restore": RESTORE_OUTPUTS, "traffic": TRAFFIC_OUTPUTS}
"""Output columns of each scenario, described in docs/studies.md."""

LANES_OF_PART = {
    H2D: (H2D,),
    D2H: (D2H,),
    HOST: (HOST,),
    "flops": (COMPUTE,),
    "hbm": (COMPUTE,),
}
"""Lanes whose tasks get faster with a part of the machine; every copy lane for an uplink."""

GOAL = {"decode": "makespan_s", "restore": "ttft_s", "traffic": "ttft_p90_s"}
"""The time that a policy minimises."""


def decode_row(values: Inputs) -> Row:
    """The row of one decode job, planned and simulated.

    Raises:
        KvOverlapError: as `planner.make_plan`.
    """
    machine = machine_of(values)
    model = model_of(values, machine.hardware)
    bits = values["kv_bits"] if values["kv_bits"] != AS_ASKED else model.host_kv_bits
    job = Workload(
        values["batch"],
        values["prompt"],
        values["gen"],
        values["n_batches"],
        None if bits == UNCOMPRESSED else bits,
    )
    if values["schedule"] != AUTO:
        return _decode_row(values, machine, model, values["schedule"], job)
    rows, _ = fitting_schedules(job, partial(_decode_row, values, machine, model))
    return max(rows.values(), key=lambda row: row["tokens_per_s"])


def _decode_row(
    values: Inputs, machine: Machine, model: ModelSpec, schedule: str, job: Workload
) -> Row:
    policy, jobs, runtime = values["policy"], values["gpus"], runtime_of(values)
    if runtime is not None:
        machine = machine.changed(lambda one: decode_machine(runtime, one, model, job))
        policy = runtime.decode.value if policy == LP else policy
    hardware = machine.hardware
    gpus = jobs * model.tensor_parallel
    keep = values.get("keep", "gpu_memory" in values)
    problem = DecodeProblem(model, hardware, job, schedule, gpus, keep, ENGINE)
    planner = ShortcutPlanner(problem)
    check_policy(policy)
    choice = planner.best if policy == LP else problem.choice_of(policy)
    whole = resident_layers(runtime, values.get("resident_layers"), model, job)
    if whole is not None:
        choice = replace(choice, residency=replace(choice.residency, kv_tokens=whole))
    timeline = _timeline(problem, policy, choice)
    need = problem.check_fits(timeline.graph)
    counts = sorted(choice.split[0])
    past = sum(model.layer_context(layer, job.prompt_tokens) for layer in range(model.n_layers))
    kept = sum(choice.residency.kv_tokens)
    part, saves_frac = bottleneck_of(planner, machine, policy, timeline)
    return {
        "kv_bits": job.kv_bits or UNCOMPRESSED,
        "makespan_s": timeline.makespan_s,
        "lower_bound_s": planner.bound_s if policy == LP else None,
        "h2d_bytes_per_s": hardware.links.h2d.bytes_per_s,
        "recomputed_frac": sum(counts) / past,
        "resident_frac": kept / (job.prompt_tokens * model.n_layers),
        "recomputed_least": counts[0],
        "recomputed_median": counts[len(counts) // 2],
        "recomputed_most": counts[-1],
        "bottleneck": part,
        "bottleneck_saves_frac": saves_frac,
        "device_bytes": need.device_bytes,
        "host_bytes": need.host_bytes,
        "schedule_taken": schedule,
        "solved_by": planner.solved_by if policy == LP else "policy",
        **_timeline_row(timeline, problem.costs),
        "tokens_per_s": jobs
        * job.n_batches
        * job.batch_size
        * job.gen_tokens
        / timeline.makespan_s,
    }


def _timeline(problem: DecodeProblem, policy: str, choice: DecodeChoice) -> Timeline:
    if policy not in RUNTIME_SYSTEMS:
        return problem.simulate(choice.split, choice.residency)
    if problem.schedule != "row":
        raise BadInput(f"policy {policy!r} defines its own schedule; leave schedule at row.")
    return simulate_other_system(problem, policy, choice.residency)


def bottleneck_of(
    planner: ShortcutPlanner, machine: Machine, policy: str, timeline: Timeline
) -> tuple[str, float]:
    """The part of the machine whose 10 % increase saves most, and the saved fraction.

    The saved time is the change of each task's time, weighted by the LP's dual values for policy
    `lp`, whose split adapts to the change. For other policies, tasks of the critical path count.
    """
    problem = planner.problem
    if policy == LP and not problem.all_resident:
        found = planner.relaxation
        weights, total_s, byte_s = planner.task_weights, found.objective_s, found.memory_worth_s
    else:
        path = [timeline.graph.tasks[at].id for at in timeline.critical_path]
        weights, total_s, byte_s = dict.fromkeys(path, 1.0), timeline.makespan_s, 0.0
    examples: dict[CostKey, Task] = {}
    of_key: defaultdict[CostKey, float] = defaultdict(float)
    for task in timeline.graph.tasks:
        if weight := weights.get(task.id, 0.0):
            key = cost_key(task, problem.model)
            examples[key] = task
            of_key[key] += weight
    most = ("none", 0.0)
    for part, hardware in machine.nudged.items():
        if part == "memory":
            saved_s = byte_s * MORE * hardware.memory.device_bytes
        else:
            later = replace(problem, hardware=hardware).costs
            gained_s = sum(
                weight * (problem.costs.estimate(one).seconds - later.estimate(one).seconds)
                for one, weight in zip(examples.values(), of_key.values(), strict=True)
                if one.lane in LANES_OF_PART.get(part, COPY_LANES)
            )
            saved_s = gained_s / (1 - 1 / (1 + NUDGE)) * (1 - 1 / (1 + MORE))
        most = max(most, (part, saved_s / total_s), key=lambda one: one[1])
    return most if most[1] >= MIN_SAVING_FRAC else ("none", most[1])


def restore_row(values: Inputs) -> Row:
    """The row of one restore, planned and simulated.

    Raises:
        KvOverlapError: as `planner.make_plan`.
    """
    machine = machine_of(values).hardware
    model = model_of(values, machine)
    hardware = machine_of_one_gpu(machine, model)
    prompt, tier = values["prompt"], values["tier"]
    request = RestoreRequest(
        prompt_tokens=prompt,
        cached_tokens=values.get("cached", prompt - 1),
        tier=tier if tier in TIERS else NET,
        chunk_tokens=values["chunk"],
        io_chunk_tokens=values["io_chunk"],
        gpu_share=values["gpu_share"],
        tier_kv_bits=values["kv_bits"] or model.kv_bits or UNCOMPRESSED,
    )
    policy, by_layer, runtime = values["policy"], False, runtime_of(values)
    if runtime is not None:
        hardware = restore_machine(runtime, hardware, model)
        request, by_layer = restore_request(runtime, request), runtime.restore.value == "by-layer"
        if policy == AUTO and not runtime.plans_itself:
            policy = "load-only"
    planner = RestorePlanner(
        model,
        hardware,
        request,
        engine=ENGINE,
        cached_data=values["cached_data"],
        by_layer=by_layer,
    )
    planner.check_fits()
    taken = planner.fastest() if policy == AUTO else policy
    choice = planner.choice(taken)
    timeline = choice.timeline
    counts = token_counts(timeline, request)
    del counts["meeting_token"]
    return {
        "kv_bits": request.tier_kv_bits,
        "ttft_s": choice.ttft_s,
        "compute_only_s": planner.choice("compute-only").ttft_s,
        "load_only_s": planner.choice("load-only").ttft_s,
        **counts,
        "policy_taken": taken,
        "tokens_per_s": prompt / choice.ttft_s,
        "bottleneck": max(sorted({lane for _, lane in timeline.graph.lanes}), key=timeline.busy_s),
        "device_bytes": planner.device_bytes,
        **_timeline_row(timeline, CostModel(hardware, planner.model, request)),
    }


def _timeline_row(timeline: Timeline, costs: CostModel) -> Row:
    """Overlap, exposed copy, tasks out of the measured range, weakest source of the task times."""
    estimates = [costs.estimate(task) for task in timeline.graph.tasks]
    outside = sum(not one.in_range for one in estimates)
    return {
        "overlap_frac": timeline.overlap_frac,
        "exposed_copy_s": timeline.exposed_copy_s,
        "out_of_range_tasks": outside,
        "in_range": outside == 0,
        "hardware_source": weakest(*{one.source for one in estimates}),
    }


ROW_OF: dict[str, Callable[[Inputs], Row]] = {
    "decode": decode_row,
    "restore": restore_row,
    "traffic": traffic_row,
}
