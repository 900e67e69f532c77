"""A grid of plans, measured shape by shape: the work behind `kvoverlap validate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import ceil, inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure.interleave import EXTRA_ROUNDS, present_machine, run_interleaved
from planner import Plan, baseline_split, lower, make_plan
from sim.engine.api import simulate
from sim.graph.jobs import Workload
from sim.graph.memory import all_rows, footprint
from sim.graph.timeline import Timeline
from sim.machine.profile import HardwareProfile
from sim.machine.what_if import with_memory
from sim.model.spec import ModelSpec
from sim.progress import Progress
from sim.results.accuracy import MEASURED, RecordedCase, loosest_tolerance_frac
from sim.results.compare import Comparison, compare
from sim.results.recording import Recording

if TYPE_CHECKING:
    from hw import Executor, HostCache, OffloadedLayers
    from hw.backends import Backend
    from hw.cache.reference import ResidentDecode

POLICIES = ("lp", "kvpr", "load-all", "recompute-all")
FIXED_PARTS = (0.25, 0.75)
"""Fixed splits of the grid, as parts of the prompt."""

WARM_UPS = {"cpu": 1, "cuda": 3}
"""Runs of each case that do not count; fewer where they take longer than `WARM_UP_S` together."""

WARM_UP_S = 1.0

PROBE_SAMPLES = 30
"""Beats of reference products before each shape is planned: some seconds, because a machine that
has just worked hard on something else can be slow for one or two."""

MAX_REPLANS = 2
"""Times that a grid may plan a shape anew."""

PlanGroup = dict[str, Plan]
"""Plans of one workload by case name."""


@dataclass(frozen=True)
class Case:
    """One plan of the grid with its measurement."""

    name: str
    plan: Plan
    measured: Recording
    comparison: Comparison

    def save(self, folder: Path) -> None:
        """Write the measurement and, last, what says that it is whole."""
        self.measured.save(folder / MEASURED)
        tolerance_frac = loosest_tolerance_frac(self.measured)
        RecordedCase(self.plan.policy, tolerance_frac).save(folder)

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


@dataclass(frozen=True)
class ShapeResult:
    """What measuring the cases of one workload gave.

    Args:
        drift: how long products bound by `flops` and by `hbm` took just before the plans were
            made, against the profile; the plans are for a machine of that speed.
        beside: the same ratios, medians beside the runs.
        deviations_frac: for each run, how far the machine's speed around it was off the plan's.
    """

    cases: list[Case]
    drift: dict[str, float]
    beside: dict[str, float]
    deviations_frac: list[float]


def shape_name(job: Workload) -> str:
    batches = f"{job.n_batches}x" if job.n_batches > 1 else ""
    bits = f"-kv{job.kv_bits}" if job.kv_bits is not None else ""
    return f"b{batches}{job.batch_size}-s{job.prompt_tokens}{bits}"


@dataclass(frozen=True)
class GridOptions:
    """How the plans of every shape of a grid are made.

    Args:
        schedule: `row` or `column`.
        gpu_memory_bytes: device memory that plans may use; policy `lp` then keeps what fits.
        fixed_parts: fixed splits that are measured too, as parts of the prompt.
    """

    schedule: str = "row"
    gpu_memory_bytes: float | None = None
    fixed_parts: tuple[float, ...] = FIXED_PARTS

    def names(self, job: Workload) -> dict[str, str]:
        """Case name and policy of every plan of a shape."""
        fixed = [f"fixed:{round(part * job.prompt_tokens)}" for part in self.fixed_parts]
        shape = shape_name(job)
        if self.gpu_memory_bytes is not None:
            shape += f"-mem{self.gpu_memory_bytes / 2**30:g}"
        return {f"{shape}-{policy.replace(':', '')}": policy for policy in (*POLICIES, *fixed)}

    def plans(self, model: ModelSpec, hardware: HardwareProfile, job: Workload) -> PlanGroup:
        """One plan per policy and fixed split."""
        if self.gpu_memory_bytes is not None:
            hardware = with_memory(hardware, self.gpu_memory_bytes, None)
        keep = self.gpu_memory_bytes is not None
        return {
            name: make_plan(model, hardware, job, policy, self.schedule, keep=keep)
            for name, policy in self.names(job).items()
        }


def warm_ups(kind: str, makespan_s: float) -> int:
    """Runs that do not count, of a case that takes `makespan_s`."""
    return max(1, min(WARM_UPS[kind], ceil(WARM_UP_S / makespan_s)))


class GridRun:
    """Plans and runs every case of a grid on one backend, shape by shape.

    A machine's speed drifts: just before a shape is planned, reference products tell how fast the
    machine is against its profile, and the plans are for a machine of that speed. The cases of a
    shape then take turns, with the products before and after each run. Runs beside which they were
    off are repeated in up to `EXTRA_ROUNDS` more rounds, and the steadiest are kept. Where the
    products say half-way that the machine has left the plans behind, the shape starts again with
    new ones, whatever its runs have shown.
    """

    def __init__(
        self,
        model: ModelSpec,
        hardware: HardwareProfile,
        backend: Backend,
        jobs: Sequence[Workload],
        repeats: int,
        seed: int,
        steps: Progress,
        options: GridOptions | None = None,
        until_s: float = inf,
    ) -> None:
        """Make the weights, and the prompts' cache of which every job takes its part.

        Raises:
            DoesNotFit: a job needs more memory than there is; nothing has been allocated then.
        """
        from hw import HostCache, SpeedProbe, prefill, prompt_ids, random_weights

        self.model = model
        self.hardware = hardware
        self.backend = backend
        self.repeats = repeats
        self.steps = steps
        self.options = options or GridOptions()
        longest = Workload(
            max(job.batch_size * job.n_batches for job in jobs),
            max(job.prompt_tokens for job in jobs),
            jobs[0].gen_tokens,
            kv_bits=jobs[0].kv_bits,
        )
        self._check_memory(longest, jobs)
        steps(f"{model.name}, making weights", 0.0)
        self._weights = random_weights(model, seed, backend.device)
        self._longest, self._source = longest, HostCache.empty(model, longest, backend)
        steps(f"{model.name}, prefilling prompts", 0.0)
        self._prompts = prompt_ids(model, longest, seed)
        prefill(self._weights, self._prompts, self._source)
        self._probe = SpeedProbe(backend, model, hardware)
        self._offloaded: OffloadedLayers | None = None
        self._replans = 0
        self._until_s = until_s

    def _check_memory(self, longest: Workload, jobs: Sequence[Workload]) -> None:
        """Every job fits, with the prompts' cache, the speed probe and the reference decodes.

        A job smaller than the prompts' cache takes a copy of its part.
        """
        from hw import SpeedProbe, check_graph_fits, reference_bytes

        source = lower("row", self.model, longest, self._recompute_all(longest))
        whole_cache_bytes = footprint(source, all_rows(self.model, longest)).host_bytes
        for job in jobs:
            largest = lower(self.options.schedule, self.model, job, self._recompute_all(job))
            held = 0 if job == longest else whole_cache_bytes
            probe_bytes = SpeedProbe.device_bytes(self.model, self.backend.kind)
            held_device = probe_bytes + reference_bytes(self.model, job)
            check_graph_fits(largest, self.backend, held, held_device_bytes=held_device)

    def _recompute_all(self, job: Workload) -> list[list[int]]:
        return baseline_split("recompute-all", self.model, job, self.hardware)

    def measure(self, job: Workload, done: float) -> ShapeResult:
        """Plan, run and compare the cases of one job.

        Args:
            done: fraction of all jobs that is behind, for whom it may concern.

        Raises:
            WrongNumbers: a run computed something else than the resident decode.
        """
        from hw import resident_decode

        self.steps(f"{self.model.name} {shape_name(job)}, planning", done)
        caches = self._caches(job)
        references = [resident_decode(self._weights, cache, job) for cache in caches]
        result = None
        while result is None:
            result = self._measure_unless_left(job, caches, references, done)
        return result

    def _measure_unless_left(
        self, job: Workload, caches: list[HostCache], references: list[ResidentDecode], done: float
    ) -> ShapeResult | None:
        """Plan for the machine as fast as it is now, and run; None if it left the plans behind."""
        from hw import DeviceArena, Executor, OffloadedLayers, buffer_bytes, executor_buffers

        tokens = [reference.tokens for reference in references]
        follow = tokens if self.model.dtype != "float32" or job.kv_bits is not None else None
        hardware, drift = present_machine(
            self.hardware, self._probe, self.backend.kind, PROBE_SAMPLES
        )
        group = self.options.plans(self.model, hardware, job)
        graphs = {name: plan.simulated_graph() for name, plan in group.items()}
        predicted = {name: simulate(graph, hardware) for name, graph in graphs.items()}
        needs = [executor_buffers(graph, caches[0].row) for graph in graphs.values()]
        arena_bytes = max(buffer_bytes(chain.from_iterable(need.values())) for need in needs)
        arena = DeviceArena(self.backend, arena_bytes)
        if self.options.schedule == "column" and self._offloaded is None:
            self._offloaded = OffloadedLayers(self._weights, self.backend)
        executors = {
            name: Executor(
                graph,
                predicted[name].graph.sha256,
                self._weights,
                caches,
                self.backend,
                follow,
                self._offloaded,
                arena,
            )
            for name, graph in graphs.items()
        }
        for name, executor in executors.items():
            for _ in range(warm_ups(self.backend.kind, predicted[name].makespan_s)):
                executor.run()
        checks: dict[str, dict[str, float | bool]] = {}

        def runner(name: str, executor: Executor) -> Callable[[], Timeline]:
            def run() -> Timeline:
                timeline = executor.run()
                checks[name] = executor.check(references)
                return timeline

            return run

        rounds = run_interleaved(
            {name: runner(name, executor) for name, executor in executors.items()},
            self._probe,
            drift,
            self.repeats,
            lambda n: self.steps(f"{self.model.name} {shape_name(job)}, round {n}", done),
            may_leave=self._replans < MAX_REPLANS,
            extra_rounds=EXTRA_ROUNDS[self.backend.kind],
            until_s=self._until_s,
        )
        if rounds is None:
            self._replans += 1
            self.steps(f"{self.model.name} {shape_name(job)}, planning anew", done)
            return None
        environment = self.backend.environment()
        cases = []
        for name, plan in group.items():
            timelines = rounds.least_disturbed(name, self.repeats)
            measured = Recording("measured", hardware, timelines, environment, checks[name])
            guess = Recording("predicted", hardware, (predicted[name],))
            cases.append(Case(name, plan, measured, compare(guess, measured)))
        return ShapeResult(cases, drift, rounds.beside, rounds.deviations_frac)

    def _caches(self, job: Workload) -> list[HostCache]:
        """One cache for each batch of a job.

        A window leaves other tokens behind the longest prompts, so its jobs are prefilled anew.
        """
        from hw import HostCache, prefill

        if job == self._longest:
            return [self._source]
        caches = [HostCache.empty(self.model, job, self.backend) for _ in range(job.n_batches)]
        for number, cache in enumerate(caches):
            first = number * job.batch_size
            if cache.first_tokens == self._source.first_tokens:
                cache.take_prefix(self._source, job.prompt_tokens, first)
            else:
                prompts = self._prompts[first : first + job.batch_size, : job.prompt_tokens]
                prefill(self._weights, prompts, cache)
        return caches
