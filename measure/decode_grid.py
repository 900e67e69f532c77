"""A grid of decode jobs, each by several policies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from measure.grid import Case, PreparedSetting
from measure.run import PreparedDecode, ReadyPlan
from planner import DecodePlan, Job, PlanOptions, baseline_split, lower, make_plan
from sim.graph.jobs import Workload
from sim.graph.memory import all_rows, footprint
from sim.graph.timeline import Timeline
from sim.machine.profile import HardwareProfile
from sim.machine.what_if import with_memory
from sim.model.spec import ModelSpec
from sim.progress import Progress

if TYPE_CHECKING:
    from hw import HostCache, OffloadedLayers
    from hw.backends import Backend

POLICIES = ("lp", "kvpr", "load-all", "recompute-all")
FIXED_FRACS = (0.25, 0.75)
"""Fixed splits of the grid: recomputed fractions of the prompt."""

PROBE_SAMPLES = 5
"""Samples of reference kernels before each shape is planned."""


@dataclass(frozen=True)
class DecodeCase(Case):
    """One decode plan with its measurement."""

    plan: DecodePlan

    def job_facts(self) -> dict[str, Any]:
        job = self.plan.workload
        return {
            "batch_size": job.batch_size,
            "prompt_tokens": job.prompt_tokens,
            "gen_tokens": job.gen_tokens,
            "recomputed_tokens": list(self.plan.steps[0].recomputed_tokens),
            "lower_bound_s": self.plan.lower_bound_s,
            "lp_objective_s": self.plan.lp_objective_s,
        }


def shape_name(job: Workload) -> str:
    """Batch, prompt and cache format of a job, such as `b4-s300`."""
    batches = f"{job.n_batches}x" if job.n_batches > 1 else ""
    bits = f"-kv{job.kv_bits}" if job.kv_bits is not None else ""
    return f"b{batches}{job.batch_size}-s{job.prompt_tokens}{bits}"


@dataclass(frozen=True)
class GridOptions:
    """How the plans of every shape of a grid are made.

    Args:
        schedule: `row` or `column`.
        gpu_memory_bytes: device memory of plans; policy `lp` uses it for resident K, V and X.
        fixed_fracs: fixed splits that are measured too, as fractions of the prompt.
    """

    schedule: str = "row"
    gpu_memory_bytes: float | None = None
    fixed_fracs: tuple[float, ...] = FIXED_FRACS

    def names(self, job: Workload) -> dict[str, str]:
        """Policy of every plan of a shape, by case name."""
        fixed = [f"fixed:{round(frac * job.prompt_tokens)}" for frac in self.fixed_fracs]
        shape = shape_name(job)
        if self.gpu_memory_bytes is not None:
            shape += f"-mem{self.gpu_memory_bytes / 2**30:g}"
        return {f"{shape}-{policy.replace(':', '')}": policy for policy in (*POLICIES, *fixed)}

    def plans(
        self,
        model: ModelSpec,
        hardware: HardwareProfile,
        job: Workload,
        without: Sequence[str] = (),
    ) -> dict[str, DecodePlan]:
        """One plan per policy and fixed split, by case name; none for the policies in `without`."""
        keep = self.gpu_memory_bytes is not None
        if self.gpu_memory_bytes is not None:
            hardware = with_memory(hardware, self.gpu_memory_bytes, None)
        return {
            name: make_plan(
                Job(model, hardware, job),
                PlanOptions(policy=policy, schedule=self.schedule, keep=keep),
            )
            for name, policy in self.names(job).items()
            if policy not in without
        }


class DecodeGrid:
    """Decode jobs of one model on one backend: their weights, prompts and speed probe."""

    def __init__(
        self,
        model: ModelSpec,
        hardware: HardwareProfile,
        backend: Backend,
        jobs: Sequence[Workload],
        seed: int,
        progress: Progress,
        options: GridOptions | None = None,
    ) -> None:
        """Make the weights and prefill the longest prompts; every job uses a part of their cache.

        Raises:
            DoesNotFit: a job needs more memory than the device has; nothing is allocated then.
        """
        from hw import HostCache, SpeedProbe, prefill, prompt_ids, random_weights

        self.model, self.hardware, self.backend = model, hardware, backend
        self.options = options or GridOptions()
        longest = Workload(
            max(job.batch_size * job.n_batches for job in jobs),
            max(job.prompt_tokens for job in jobs),
            jobs[0].gen_tokens,
            kv_bits=jobs[0].kv_bits,
        )
        self._check_memory(longest, jobs)
        progress(f"{model.name}, making weights", 0.0)
        self.weights = random_weights(model, seed, backend.device)
        self._longest, self._source = longest, HostCache.empty(model, longest, backend)
        progress(f"{model.name}, prefilling prompts", 0.0)
        self._prompts = prompt_ids(model, longest, seed)
        prefill(self.weights, self._prompts, self._source)
        self.probe = SpeedProbe(backend, model, hardware)
        self._offloaded: OffloadedLayers | None = None

    def _check_memory(self, longest: Workload, jobs: Sequence[Workload]) -> None:
        """Check that every job fits with the prompts' cache, the speed probe and the references.

        A job smaller than the prompts' cache copies its part.
        """
        from hw import SpeedProbe, check_graph_fits, reference_bytes

        source = lower("row", self.model, longest, self._recompute_all(longest))
        whole_cache_bytes = footprint(source, all_rows(self.model, longest)).host_bytes
        for job in jobs:
            largest = lower(self.options.schedule, self.model, job, self._recompute_all(job))
            held = 0 if job == longest else whole_cache_bytes
            probe_bytes = SpeedProbe.device_bytes(self.model, self.backend.kind)
            held_device = probe_bytes + reference_bytes(self.model, job)
            check_graph_fits(largest, self.backend, held, reserved_device_bytes=held_device)

    def _recompute_all(self, job: Workload) -> list[list[int]]:
        return baseline_split("recompute-all", self.model, job, self.hardware)

    @contextmanager
    def prepare(self, job: Workload, progress: Progress) -> Iterator[PreparedSetting]:
        """A job with its caches and reference decodes."""
        from hw import resident_decode

        title = f"{self.model.name} {shape_name(job)}"
        progress(f"{title}, decoding for reference", 0.0)
        caches = self._caches(job)
        references = [resident_decode(self.weights, cache, job) for cache in caches]
        prepared = PreparedDecode(self.backend, self.weights, caches, references)
        yield PreparedSetting(
            name=shape_name(job),
            title=title,
            hardware=self.hardware,
            backend=self.backend,
            probe=self.probe,
            probe_samples=PROBE_SAMPLES,
            case_type=DecodeCase,
            plans=lambda hardware: self.options.plans(self.model, hardware, job),
            ready=partial(self._ready, prepared),
        )

    @contextmanager
    def _ready(
        self, prepared: PreparedDecode, predicted: dict[str, Timeline]
    ) -> Iterator[dict[str, ReadyPlan]]:
        """The plans on the device; they share one arena, since one runs at a time."""
        from hw import DeviceArena, OffloadedLayers, buffer_bytes, executor_buffers

        row = prepared.caches[0].row
        needs = [executor_buffers(timeline.graph, row) for timeline in predicted.values()]
        arena_bytes = max(buffer_bytes(chain.from_iterable(need.values())) for need in needs)
        arena = DeviceArena(self.backend, arena_bytes)
        if self.options.schedule == "column" and self._offloaded is None:
            self._offloaded = OffloadedLayers(self.weights, self.backend)
        yield {
            name: prepared.ready(timeline, self._offloaded, arena)
            for name, timeline in predicted.items()
        }

    def _caches(self, job: Workload) -> list[HostCache]:
        """One cache for each batch of a job.

        With a sliding window, shorter prompts cache other tokens: those jobs are prefilled again.
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
                prefill(self.weights, prompts, cache)
        return caches
