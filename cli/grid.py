"""A grid of plans, measured shape by shape: the work behind `kvoverlap validate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import TYPE_CHECKING, Any

from cli.output import Steps
from planner import Plan, make_plan
from sim.compare import Comparison, compare
from sim.engine import simulate
from sim.hardware import HardwareProfile
from sim.memory import check_fits
from sim.model_spec import ModelSpec
from sim.recording import Recording
from sim.timeline import Timeline
from sim.workload import Workload

if TYPE_CHECKING:
    from hw import HostCache, Pulse
    from hw.backends import Backend
    from hw.weights import Weights

POLICIES = ("lp", "kvpr", "load-all", "recompute-all")
FIXED_PARTS = (0.25, 0.75)
"""Fixed splits of the grid, as parts of the prompt."""

STEADY_FRAC = 0.04
"""A run counts as disturbed when the machine's speed beside it is off by more from the plan's."""

WARM_UPS = {"cpu": 1, "cuda": 3}
"""Runs of each case that do not count."""

EXTRA_ROUNDS = 1
"""Rounds of runs in which disturbed ones get another chance."""

PlanGroup = dict[str, Plan]
"""Plans of one workload by case name."""


@dataclass(frozen=True)
class Case:
    """One plan of the grid with its measurement."""

    name: str
    plan: Plan
    measured: Recording
    comparison: Comparison

    def to_dict(self) -> dict[str, Any]:
        job = self.plan.workload
        return {
            "name": self.name,
            "policy": self.plan.policy,
            "batch_size": job.batch_size,
            "prompt_tokens": job.prompt_tokens,
            "gen_tokens": job.gen_tokens,
            "recomputed_tokens": list(self.plan.steps[0].recomputed_tokens),
            "lower_bound_s": self.plan.lower_bound_s,
            "lp_objective_s": self.plan.lp_objective_s,
            **self.comparison.to_dict(),
        }


@dataclass
class GridResult:
    """What measuring a grid gave.

    Args:
        checks: result of the numerical checks, by case.
        deviations_frac: for each run, how far the machine's speed beside it was off the plan's.
        drifts: for each shape, how long products bound by `flops` and by `hbm` took before its
            plans were made, against the profile; the plans are for a machine of that speed.
    """

    cases: list[Case] = field(default_factory=list)
    checks: dict[str, dict[str, float | bool]] = field(default_factory=dict)
    deviations_frac: list[float] = field(default_factory=list)
    drifts: dict[str, dict[str, float]] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)


def shape_name(job: Workload) -> str:
    return f"b{job.batch_size}-s{job.prompt_tokens}"


def plan_shape(model: ModelSpec, hardware: HardwareProfile, job: Workload) -> PlanGroup:
    """One plan per policy and fixed split."""
    fixed = [f"fixed:{round(part * job.prompt_tokens)}" for part in FIXED_PARTS]
    return {
        f"{shape_name(job)}-{policy.replace(':', '')}": make_plan(model, hardware, job, policy)
        for policy in (*POLICIES, *fixed)
    }


class GridRun:
    """Plans and runs every case of a grid on one backend, shape by shape.

    A machine's speed drifts: just before a shape is planned, reference products tell how fast the
    machine is against its profile, and the plans are for a machine of that speed. The cases of a
    shape then take turns, with the products before and after each run. Runs beside which they were
    off are repeated in up to `EXTRA_ROUNDS` more rounds, and the steadiest are kept.
    """

    def __init__(
        self,
        model: ModelSpec,
        hardware: HardwareProfile,
        backend: Backend,
        repeats: int,
        seed: int,
        steps: Steps,
    ) -> None:
        self.model = model
        self.hardware = hardware
        self.backend = backend
        self.repeats = repeats
        self.seed = seed
        self.steps = steps
        self.result = GridResult()

    def measure(self, jobs: Sequence[Workload]) -> GridResult:
        """Plan, measure and compare every case.

        Raises:
            DoesNotFit: a case needs more memory than there is; nothing has run then.
            WrongNumbers: a run computed something else than the resident decode.
        """
        from hw import HostCache, Pulse, prefill, prompt_ids, random_weights

        self._check_memory(jobs)
        longest = Workload(
            max(job.batch_size for job in jobs), max(job.prompt_tokens for job in jobs), 1
        )
        self.steps("making weights", 0.0)
        weights = random_weights(self.model, self.seed, self.backend.device)
        source = HostCache.empty(self.model, longest, self.backend)
        self.steps("prefilling prompts", 0.0)
        prefill(weights, prompt_ids(self.model, longest, self.seed), source)
        pulse = Pulse(self.backend, self.model, self.hardware)
        for number, job in enumerate(jobs):
            self._measure_shape(job, weights, source, pulse, number / len(jobs))
        self.result.environment = self.backend.environment()
        return self.result

    def _check_memory(self, jobs: Sequence[Workload]) -> None:
        """Every shape fits beside the prompts' cache and the reference's copy of it."""
        memory = self.backend.memory()
        where = f"this {self.backend.kind} device"
        for job in jobs:
            largest = make_plan(self.model, self.hardware, job, "recompute-all")
            check_fits(largest.lower(), memory.device_bytes, memory.host_bytes / 3, where)

    def _measure_shape(
        self,
        job: Workload,
        weights: Weights,
        source: HostCache,
        pulse: Pulse,
        done: float,
    ) -> None:
        from hw import Executor, HostCache, resident_decode

        cache = HostCache.empty(self.model, job, self.backend)
        cache.take_prefix(source, job.prompt_tokens)
        reference = resident_decode(weights, cache, job)
        follow = None if self.model.dtype == "float32" else reference.tokens
        self.steps(f"{shape_name(job)}, planning", done)
        drift = self.result.drifts[shape_name(job)] = pulse.drift()
        hardware = self.hardware
        for part, ratio in drift.items():
            hardware = hardware.with_faster(part, 1 / ratio)
        group = plan_shape(self.model, hardware, job)
        graphs = {name: plan.simulated_graph() for name, plan in group.items()}
        predicted = {name: simulate(graph, hardware) for name, graph in graphs.items()}
        executors = {
            name: Executor(
                graph, predicted[name].graph.sha256, weights, cache, self.backend, follow
            )
            for name, graph in graphs.items()
        }
        for executor in executors.values():
            for _ in range(WARM_UPS[self.backend.kind]):
                executor.run()
        runs: dict[str, list[tuple[float, Timeline]]] = {name: [] for name in group}
        for number in range(self.repeats + EXTRA_ROUNDS):
            self.steps(f"{shape_name(job)}, round {number + 1}", done)
            before = _off_frac(pulse.beat(), drift)
            for name, executor in executors.items():
                if sum(off <= STEADY_FRAC for off, _ in runs[name]) < self.repeats:
                    timeline = executor.run()
                    self.result.checks[name] = executor.check(reference)
                    after = _off_frac(pulse.beat(), drift)
                    runs[name].append((max(before, after), timeline))
                    before = after
        for name, plan in group.items():
            self.result.deviations_frac += [off for off, _ in runs[name]]
            steadiest = sorted(runs[name], key=lambda run: run[0])[: self.repeats]
            measured = Recording(
                "measured",
                hardware,
                tuple(timeline for _, timeline in steadiest),
                self.backend.environment(),
                self.result.checks[name],
            )
            guess = Recording("predicted", hardware, (predicted[name],))
            self.result.cases.append(Case(name, plan, measured, compare(guess, measured)))


def _off_frac(beat: dict[str, float], drift: dict[str, float]) -> float:
    """How far the machine's speed is off the one that was planned for."""
    return abs(mean(beat[part] / drift[part] for part in drift) - 1.0)
