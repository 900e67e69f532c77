"""Restores during which the link or the device slows down: three ways to adapt, measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from measure.interleave import present_machine
from measure.restore_grid import PROBE_SAMPLES, at_balance
from measure.run import PreparedRestore, prepare_restore, tier_paces, warm_ups
from planner import Job, PlanOptions, RestorePlan, make_plan
from planner.restore import Replanner, RestorePlanner, adapt
from planner.restore.lower import split_graph
from planner.restore.split import RestoreSplit
from sim.lanes import COMPUTE, H2D
from sim.machine.availability import Availability, Step
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec
from sim.progress import Part, Progress

if TYPE_CHECKING:
    from hw import RestoreExecutor

DROPS = {"bandwidth drop": (H2D, 0.3), "GPU-share drop": (COMPUTE, 0.4)}
"""Lane, and the fraction of its pace that is left after `DROP_AT_FRAC` of the planned time."""

DROP_AT_FRAC = 0.25

WAYS = ("stale", "replanned", "two-ended")


@dataclass(frozen=True)
class Way:
    """One way to restore under a trace that the plan does not know.

    Args:
        predicted_s, measured_s: time to the first token; measured: median of `repeats_s`.
    """

    name: str
    predicted_s: float
    measured_s: float
    repeats_s: tuple[float, ...]


def measure_adaptation(
    spec: ModelSpec,
    hardware: HardwareProfile,
    kind: str,
    prompt: int,
    repeats: int,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """The report: under each drop, the unchanged split, the split planned again, and claims.

    Raises:
        WrongNumbers: a run differs from the resident prefill.
    """
    from hw import SpeedProbe, open_backend

    machine, request = at_balance(spec, hardware, prompt)
    pace = machine.links.h2d.paced_bytes_per_s
    with open_backend(kind, pace, tier_paces(machine, request.tier)) as backend:
        progress("planning", 0.0)
        probe = SpeedProbe(backend, spec, machine, request.chunk_tokens)
        machine, _ = present_machine(machine, probe, kind, PROBE_SAMPLES)
        job = Job(spec, machine, request)
        split = make_plan(job, PlanOptions(policy="lp"))
        claims = make_plan(job, PlanOptions(policy="two-ended"))
        prepared = prepare_restore(split, backend, seed, progress)
        drops = {
            name: _measure_drop(
                prepared, split, claims, name, repeats, Part(progress, name, at / len(DROPS))
            )
            for at, name in enumerate(DROPS)
        }
        environment = backend.environment()
    return {
        "scenario": "adapt",
        "device": environment["device"],
        "model": spec.name,
        "dtype": spec.dtype,
        "prompt_tokens": prompt,
        "link_bytes_per_s": machine.links.h2d.bytes_per_s,
        "planned_s": split.ttft_s,
        "repeats": repeats,
        "max_abs_error_frac": max(
            abs(way["predicted_s"] / way["measured_s"] - 1)
            for drop in drops.values()
            for way in drop["ways"]
        ),
        "drops": drops,
        "environment": environment,
    }


def _measure_drop(
    prepared: PreparedRestore,
    split: RestorePlan,
    claims: RestorePlan,
    drop: str,
    repeats: int,
    progress: Progress,
) -> dict[str, Any]:
    """Interleaved runs of all ways under one drop."""
    lane, frac = DROPS[drop]
    trace = Availability((Step(DROP_AT_FRAC * split.ttft_s, ((lane, frac),)),))
    predicted = adapt(RestorePlanner(split.model, split.hardware, split.workload, trace))
    expected_s = (predicted.stale_s, predicted.replanned_s, predicted.two_ended_s)
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    moves: list[dict[str, Any]] = []
    split_run, claims_run = split.simulate(), claims.simulate()
    with prepared.executor(split_run) as static, prepared.executor(claims_run) as free:
        for _ in range(warm_ups(prepared.backend.kind, split_run.makespan_s)):
            static.run()
            free.run()
        for number in range(repeats):
            progress(f"round {number + 1} of {repeats}", number / repeats / len(DROPS))
            taken["stale"].append(static.run(trace).makespan_s)
            shares = static.shares(trace)
            static.check()
            seconds, moves = _replanned(free, split, trace)
            taken["replanned"].append(seconds)
            taken["two-ended"].append(free.run(trace).makespan_s)
            free.check()
    ways = [
        Way(way, guess_s, median(taken[way]), tuple(taken[way]))
        for way, guess_s in zip(WAYS, expected_s, strict=True)
    ]
    return {
        "lane": lane,
        "frac": frac,
        "start_s": trace.steps[0].start_s,
        "ways": [asdict(way) for way in ways],
        "moves": moves,
        "compute_shares": [asdict(share) for share in shares],
        "adapting_beats_stale": all(way.measured_s < ways[0].measured_s for way in ways[1:]),
    }


def _replanned(
    executor: RestoreExecutor, plan: RestorePlan, trace: Availability
) -> tuple[float, list[dict[str, Any]]]:
    """Seconds and split changes of a restore that plans again when a lane's pace changes."""
    from hw import AdaptiveSplit

    replanner = Replanner(plan.model, plan.hardware, plan.workload)
    planned = plan.workload.cached_tokens if plan.split is None else plan.split.computed_tokens[0]
    moving = AdaptiveSplit(executor.graph, planned, replanner.after)
    ran = executor.run(trace, moving)
    executor.check()
    last = RestoreSplit.even(plan.model, moving.meeting)
    timeline = moving.on_final_graph(ran, split_graph(plan.model, plan.workload, last))
    return timeline.makespan_s, [asdict(move) for move in moving.changes]
