"""Restores whose link or device is taken away half-way: three ways to cope, measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from measure.decode_grid import WARM_UPS
from measure.restore_grid import PROBE_SAMPLES, at_balance
from measure.run import Prepared, prepare, tier_paces
from planner.restore import Replanner, RestorePlan, RestorePlanner, adapt, make_restore_plan
from planner.restore.lower import split_graph
from planner.restore.split import RestoreSplit
from sim.lanes import COMPUTE, H2D
from sim.machine.availability import Availability, Step
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec
from sim.progress import Progress

if TYPE_CHECKING:
    from hw import RestoreExecutor

DROPS = {"bandwidth drop": (H2D, 0.3), "GPU-share drop": (COMPUTE, 0.4)}
"""Which lane has how much of its pace left from a quarter of the planned time on."""

DROP_AT_FRAC = 0.25

WAYS = ("stale", "replanned", "two-ended")


@dataclass(frozen=True)
class Way:
    """One way to restore under a trace that nobody foresaw.

    Args:
        predicted_s, measured_s: time to the first token; measured, the median of the repeats.
        repeats_s: all of them.
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
    steps: Progress,
) -> dict[str, Any]:
    """The report: under each drop, the split that is kept, the one planned again, and claims.

    Raises:
        WrongNumbers: a run came to something else than computing the whole prompt.
    """
    from hw import SpeedProbe, open_backend

    machine, request = at_balance(spec, hardware, prompt)
    pace = machine.links.h2d.paced_bytes_per_s
    with open_backend(kind, pace, tier_paces(machine, request.tier)) as backend:
        steps("planning", 0.0)
        drift = SpeedProbe(backend, spec, machine, request.chunk_tokens).drift(PROBE_SAMPLES)
        for part, ratio in drift.items():
            machine = machine.with_faster(part, 1 / ratio)
        split = make_restore_plan(spec, machine, request, "lp")
        claims = make_restore_plan(spec, machine, request, "two-ended")
        ready = prepare(split, backend, seed, steps)
        drops = {
            name: _measure_drop(ready, split, claims, _trace(split, name), repeats, steps, name)
            for name in DROPS
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


def _trace(plan: RestorePlan, drop: str) -> Availability:
    lane, frac = DROPS[drop]
    return Availability((Step(DROP_AT_FRAC * plan.ttft_s, ((lane, frac),)),))


def _measure_drop(
    ready: Prepared,
    split: RestorePlan,
    claims: RestorePlan,
    trace: Availability,
    repeats: int,
    steps: Progress,
    name: str,
) -> dict[str, Any]:
    """All ways in turn under one trace."""
    predicted = adapt(RestorePlanner(split.model, split.hardware, split.workload, trace))
    expected_s = (predicted.stale_s, predicted.replanned_s, predicted.two_ended_s)
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    moves: list[dict[str, Any]] = []
    with ready.executor(split) as static, ready.executor(claims) as free:
        for _ in range(WARM_UPS[ready.backend.kind]):
            static.run()
            free.run()
        for number in range(repeats):
            steps(f"{name}, round {number + 1} of {repeats}", number / repeats)
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
    lane, frac = DROPS[name]
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
    """Restore by a split that is planned again when a lane leaves what is assumed of it."""
    from hw import AdaptiveSplit

    replanner = Replanner(plan.model, plan.hardware, plan.workload)
    planned = plan.workload.cached_tokens if plan.split is None else plan.split.computed_tokens[0]
    moving = AdaptiveSplit(executor.graph, planned, replanner.after)
    ran = executor.run(trace, moving)
    executor.check()
    last = RestoreSplit.even(plan.model, moving.meeting)
    timeline = moving.retold(ran, split_graph(plan.model, plan.workload, last))
    return timeline.makespan_s, [asdict(move) for move in moving.moves]
