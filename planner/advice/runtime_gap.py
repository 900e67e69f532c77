"""What a serving runtime leaves on the table: its time, that of its variants, and the best plan's.

A runtime that serves is asked for the first token of a later request with the same prompt, whose
K and V are in host memory. One that decodes from host memory is asked for a decode step.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from math import ceil
from string import Template
from typing import Any

from planner.job import Job, PlanOptions
from planner.make import make_plan
from planner.restore import RestorePlanner
from planner.runtime import restore_machine, restore_request
from sim.catalog import hub_id
from sim.engine.api import AUTO
from sim.engine.sharing import machine_of_one_gpu
from sim.errors import BadInput, DoesNotFit, NotMeasured
from sim.graph.jobs import RestoreRequest, Workload
from sim.machine.runtime import Amount, Runtime, Word
from sim.model.kv_format import host_row_bytes

DEFAULT_GPU_FRAC = 0.92
"""Default of vLLM's --gpu-memory-utilization; the docs of SGLang give about as much."""

MAX_GPU_FRAC = 0.95
"""Part of GPU memory that leaves room for the driver's context and for peaks."""

UNBOUND = "without its limits"


@dataclass(frozen=True, slots=True)
class Way:
    """One way to do the job.

    Args:
        launch: command line that starts the runtime so; empty where no setting does it.
        page: documents its options.
        sets_gpu_memory: whether the line says how much of GPU memory the runtime takes.
    """

    label: str
    seconds: float
    launch: str = ""
    page: str = ""
    sets_gpu_memory: bool = False


@dataclass(frozen=True, slots=True)
class RuntimeGap:
    """A runtime's own time, that of its variants, and that of the best plan.

    Args:
        runtime: its name.
        what: the time that is compared.
        how: how the runtime does it, in a clause.
        own, best: the runtime as it is started first, and the best plan on the machine as the
            runtime drives it.
        variants: with other settings, fastest first.
        host_bytes: host memory that the launch lines ask for, of all GPUs.
        gpu_frac: part of GPU memory that they ask for.
        pool_tokens: tokens of K and V that GPU memory then holds.
    """

    runtime: str
    what: str
    how: str
    own: Way
    variants: tuple[Way, ...]
    best: Way
    host_bytes: int
    gpu_frac: float
    pool_tokens: int

    @property
    def closest(self) -> Way:
        """The fastest way that a command line starts."""
        startable = [one for one in (self.own, *self.variants) if one.launch]
        return min(startable or [self.own], key=lambda one: one.seconds)

    def to_dict(self) -> dict[str, Any]:
        """The answer as `--json` prints it."""
        return {
            **asdict(self),
            "sentence": self.sentence,
            "closest": asdict(self.closest),
            "left_s": self.own.seconds - self.best.seconds,
        }

    @property
    def sentence(self) -> str:
        """All times, the runtime's own first."""
        parts = [f"{self.runtime}: {self.what} after {1e3 * self.own.seconds:.1f} ms"]
        parts += [f"with {one.label} {1e3 * one.seconds:.1f}" for one in self.variants]
        parts.append(f"{self.best.label} {1e3 * self.best.seconds:.1f}")
        return "; ".join(parts) + "."


def cache_bytes(job: Job[Workload]) -> int:
    """K and V of all tokens of a batch in host memory, of one GPU; windows are not applied."""
    work, model = job.workload, job.model
    rows = (host_row_bytes(model, work.kv_bits, layer) for layer in range(model.n_layers))
    return work.batch_size * work.max_tokens * sum(rows)


def runtime_gap(runtime: Runtime, job: Job[Workload], engine: str = AUTO) -> RuntimeGap:
    """What `runtime` leaves on the table, with K and V of all sequences in host memory.

    Raises:
        BadInput: CPU and GPU share one memory.
        DoesNotFit: GPU memory has no room for the weights and one such request.
        NotMeasured: the link has no figures of the runtime's copies.
    """
    if job.hardware.memory.unified:
        raise BadInput(
            f"--runtime(={runtime.name}): CPU and GPU of {job.hardware.name} share one memory, so "
            "there is nothing to load; leave it out."
        )
    host_bytes = job.model.tensor_parallel * cache_bytes(job)
    timed = _Restores(job, engine) if runtime.serves else _Decodes(job, engine)
    model, memory = job.model, job.hardware.memory
    kv_bytes = model.all_rows_bytes
    needed = model.weight_bytes + job.workload.batch_size * job.workload.max_tokens * kv_bytes
    frac = ceil(100 * (needed + memory.device_reserve_bytes) / memory.device_bytes) / 100
    gpu_frac = min(MAX_GPU_FRAC, max(DEFAULT_GPU_FRAC, frac))
    room = gpu_frac * memory.device_bytes - memory.device_reserve_bytes - model.weight_bytes
    pool_tokens = max(0, int(room // kv_bytes))
    sizes = {
        "model": hub_id(model),
        "name": model.name,
        "host_gib": str(ceil(host_bytes / 2**30)),
        "host_gb": str(ceil(host_bytes / model.tensor_parallel / 1e9)),
        "gpu_frac": f"{gpu_frac:.2f}",
        "context": str(min(model.max_positions, max(pool_tokens, job.workload.max_tokens))),
    }

    def way(label: str, one: Runtime) -> Way:
        line = Template(one.launch).safe_substitute(sizes)
        if line and model.tensor_parallel > 1:
            option = "--tp-size" if "sglang" in line else "--tensor-parallel-size"
            line += f" {option} {model.tensor_parallel}"
        return Way(label, timed.seconds(one), line, one.page, "$gpu_frac" in one.launch)

    variants = []
    for one in runtime.variants:
        with suppress(NotMeasured):
            variants.append(way(one.label, runtime.variant(one)))
    return RuntimeGap(
        runtime=runtime.name,
        what=timed.what,
        how=runtime.restore_text(model) if runtime.serves else runtime.decode_text,
        own=way(runtime.name, runtime),
        variants=tuple(sorted(variants, key=lambda one: one.seconds)),
        best=Way("the best schedule on this machine", timed.best_s(runtime)),
        host_bytes=host_bytes,
        gpu_frac=gpu_frac,
        pool_tokens=pool_tokens,
    )


def _unlimited(runtime: Runtime) -> Runtime:
    """The runtime's kernels and host time, with one copy by the engine of what is loaded."""
    return replace(
        runtime, copies=Word("engine", UNBOUND), block_tokens=Amount(0, UNBOUND), variants=()
    )


class _Restores:
    """First token of a later request that appends one token to the same prompt."""

    what = "first token of a later request with this prompt"

    def __init__(self, job: Job[Workload], engine: str) -> None:
        self.model, self.engine = job.model, engine
        self.hardware = machine_of_one_gpu(job.hardware, job.model)
        tokens = job.workload.prompt_tokens
        bits = job.workload.kv_bits or 16
        self.request = RestoreRequest(
            prompt_tokens=tokens + 1, cached_tokens=tokens, tier_kv_bits=bits
        )

    def seconds(self, runtime: Runtime) -> float:
        request = restore_request(runtime, self.request)
        return self._planner(runtime, request).choice("load-only").ttft_s

    def best_s(self, runtime: Runtime) -> float:
        """Of all policies with small steps, by which compute and loads can share the work."""
        planner = self._planner(_unlimited(runtime), self.request)
        return planner.choice(planner.fastest()).ttft_s

    def _planner(self, runtime: Runtime, request: RestoreRequest) -> RestorePlanner:
        driven = restore_machine(runtime, self.hardware, self.model)
        by_layer = runtime.restore.value == "by-layer"
        planner = RestorePlanner(self.model, driven, request, engine=self.engine, by_layer=by_layer)
        planner.check_fits()
        return planner


class _Decodes:
    """A decode step of the batch."""

    what = "end of a decode step"

    def __init__(self, job: Job[Workload], engine: str) -> None:
        self.job = replace(job, workload=replace(job.workload, kv_bits=None))
        self.engine = engine

    def seconds(self, runtime: Runtime) -> float:
        return make_plan(self.job, PlanOptions(runtime=runtime, engine=self.engine)).makespan_s

    def best_s(self, runtime: Runtime) -> float:
        """Of the LP, with as much as fits in GPU memory, or with the whole cache there."""
        driven = _unlimited(runtime).drives(self.job.hardware, self.job.model, runtime.step_s.value)
        job: Job[Workload] = replace(self.job, hardware=driven)
        times = []
        for options in (PlanOptions(keep=True), PlanOptions(policy="resident")):
            with suppress(DoesNotFit):
                times.append(make_plan(job, replace(options, engine=self.engine)).makespan_s)
        if not times:
            raise DoesNotFit(f"{job.model.name} does not fit {job.hardware.name}; lower --batch.")
        return min(times)
