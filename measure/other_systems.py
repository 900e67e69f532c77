"""Other systems decode the same job, interleaved with our plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from math import inf
from statistics import median
from time import monotonic
from typing import TYPE_CHECKING, Any

from measure.decode_grid import shape_name
from measure.interleave import MIN_REPEATS
from measure.run import PreparedDecode, warm_ups
from planner import Job, PlanOptions, make_plan
from sim.errors import BadInput
from sim.graph.jobs import Workload
from sim.graph.memory import all_rows, check_fits, footprint
from sim.graph.tasks import TaskGraph
from sim.graph.timeline import Timeline
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec
from sim.progress import Part, Progress

if TYPE_CHECKING:
    from hw import HostCache
    from hw.backends import Backend, Memory
    from hw.cache.reference import ResidentDecode
    from hw.model.weights import Weights
    from hw.run.other_systems import Agreement, DecodeTime, DecodingSystem


def measure_other_systems(
    model: ModelSpec,
    hardware: HardwareProfile,
    backend: Backend,
    job: Workload,
    repeats: int,
    seed: int,
    progress: Progress,
    until_s: float = inf,
) -> dict[str, Any]:
    """Decode `job` by every system in interleaved repeats; returns the report.

    Args:
        until_s: moment on `time.monotonic()` after which no repeat begins but the first
            `MIN_REPEATS`.

    Raises:
        BadInput: no repeats, or a job that the model cannot run.
        DoesNotFit: our plans need more memory than the device has; nothing is allocated then.
        WrongNumbers: one of our plans differs from the resident decode.
    """
    from hw import HostCache, prefill, prompt_ids, random_weights, resident_decode

    if repeats < 1:
        raise BadInput(f"repeats(={repeats}) must be at least 1.")
    asked = Job(model, hardware, job)
    plans = {policy: make_plan(asked, PlanOptions(policy=policy)) for policy in PLANS}
    predicted = {policy: plan.simulate() for policy, plan in plans.items()}
    spare = spare_memory([timeline.graph for timeline in predicted.values()], backend)
    progress = Part(progress, f"{model.name} {shape_name(job)}, other systems")
    progress("making weights", 0.0)
    weights = random_weights(model, seed, backend.device)
    cache = HostCache.empty(model, job, backend)
    progress("prefilling prompts", 0.0)
    prefill(weights, prompt_ids(model, job, seed), cache)
    reference = resident_decode(weights, cache, job)
    prepared = PreparedDecode(backend, weights, [cache], [reference])
    systems = [
        *transformers_systems(weights, cache, backend, job, spare),
        flexgen_system(),
        *our_systems(predicted, prepared),
    ]
    first = warm_ups(backend.kind, plans["load-all"].makespan_s)
    for number in range(first + repeats):
        if number >= first + MIN_REPEATS and monotonic() > until_s:
            repeats = number - first
            break
        progress(f"round {number + 1}", number / (first + repeats))
        for system in systems:
            system.run(reference if number else None, counted=number >= first)
    load_all_s = next(one.median_s for one in systems if one.name == "load-all")
    lines = [system.to_dict(job.gen_tokens, load_all_s) for system in systems]
    for system in systems:
        if system.decoder is not None:
            system.decoder.close()
    return {
        "model": model.name,
        "dtype": model.dtype,
        "batch_size": job.batch_size,
        "prompt_tokens": job.prompt_tokens,
        "gen_tokens": job.gen_tokens,
        "repeats": repeats,
        "device": backend.environment()["device"],
        "head_start_s": backend.head_start_s(),
        "peers": lines,
    }


PLANS = {
    "load-all": "our plan that loads all K and V",
    "kvpr": "our plan with KVPR's split",
    "lp": "our plan with the LP's split",
}

FLEXGEN_NOT_RUN = (
    "flexllmgen makes random weights or reads its own file format, which kvoverlap does not write, "
    "so neither weights nor tokens would be the same"
)

STAGING_LAYERS = 4
"""Additional layers of K and V in a `DynamicCache` while it is filled or a layer grows."""

PINNED_ROUNDING = 2
"""torch rounds the pinned memory of an offloaded cache up to powers of two."""

MEASURES = (
    "median_step_s",
    "spread_frac",
    "ratio_to_load_all",
    "copied_bytes_per_step",
    "achieved_bytes_per_s",
    "max_copy_compute_s",
    "ratio_to_max_copy_compute",
    "tokens_equal",
    "tokens_compared",
)
"""Reported values of a system; None if it did not run or has no such value."""


@dataclass
class System:
    """One way of decoding, with its runs.

    Args:
        decoder: None if it cannot run; `not_run` has the reason.
        foreign: third-party code; its failure is reported, and the other systems go on.
        agreements: one for each run from the second on, because a race shows only then.
    """

    name: str
    what: str
    decoder: DecodingSystem | None = None
    not_run: str | None = None
    foreign: bool = False
    runs: list[DecodeTime] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)

    def run(self, reference: ResidentDecode | None, counted: bool) -> None:
        """Decode once.

        Args:
            reference: resident decode to compare with; None on the first run.

        Raises:
            WrongNumbers: one of our plans differs from the reference.
        """
        if self.decoder is None:
            return
        try:
            self.decoder.prepare()
            taken = self.decoder.decode()
            if reference is not None:
                self.agreements.append(self.decoder.check(reference))
            self.decoder.release()
        except Exception as error:
            if not self.foreign:
                raise
            self.decoder, self.not_run = None, _failed(error)
            return
        if counted:
            self.runs.append(taken)

    @property
    def median_s(self) -> float:
        return median(run.seconds for run in self.runs)

    def to_dict(self, n_steps: int, load_all_s: float) -> dict[str, Any]:
        """The system's line in the report."""
        line: dict[str, Any] = {"name": self.name, "what": self.what, **dict.fromkeys(MEASURES)}
        line["not_run"] = self.not_run
        if self.decoder is None:
            return line
        seconds = [run.seconds for run in self.runs]
        copied = self.decoder.copied_bytes
        typical = min(self.runs, key=lambda run: abs(run.seconds - self.median_s))
        line |= {
            "median_step_s": self.median_s / n_steps,
            "spread_frac": (max(seconds) - min(seconds)) / self.median_s,
            "ratio_to_load_all": self.median_s / load_all_s,
            "copied_bytes_per_step": copied / n_steps,
            "achieved_bytes_per_s": copied / self.median_s if copied else None,
            "tokens_equal": all(agreement.equal for agreement in self.agreements),
            "tokens_compared": min(agreement.compared for agreement in self.agreements),
        }
        if typical.longest_lane_s is not None:
            line["max_copy_compute_s"] = typical.longest_lane_s / n_steps
            line["ratio_to_max_copy_compute"] = typical.seconds / typical.longest_lane_s
        return line


def spare_memory(graphs: Sequence[TaskGraph], backend: Backend) -> Memory:
    """Memory left by weights, the prompts' cache and the slots of all our plans.

    Raises:
        DoesNotFit: our plans do not fit.
    """
    from hw.backends import Memory

    memory = backend.memory()
    slots = [need.device_bytes - need.weight_bytes for need in map(footprint, graphs)]
    largest = graphs[slots.index(max(slots))]
    others_bytes = sum(slots) - max(slots)
    where = f"this {backend.kind} device"
    cache = all_rows(largest.model, largest.workload)
    need = check_fits(largest, memory.device_bytes - others_bytes, memory.host_bytes, where, cache)
    return Memory(
        memory.device_bytes - need.device_bytes - others_bytes,
        memory.host_bytes - need.host_bytes,
    )


def our_systems(predicted: dict[str, Timeline], prepared: PreparedDecode) -> list[System]:
    """Our plans, simulated, each ready to decode."""
    from hw.run.other_systems import PlanSystem

    return [
        System(policy, PLANS[policy], PlanSystem(prepared.executor(timeline)))
        for policy, timeline in predicted.items()
    ]


def transformers_systems(
    weights: Weights, cache: HostCache, backend: Backend, job: Workload, spare: Memory
) -> list[System]:
    """`transformers` with its cache on the device and offloaded, as far as they can run."""
    from hw.model.transformers_model import transformers_model, transformers_problem
    from hw.run.other_systems import TransformersSystem

    problem = transformers_problem() or _window_problem(weights.model, job)
    name = "transformers" if problem else f"transformers {version('transformers')}"
    systems = [
        System("transformers resident", f"{name}, DynamicCache on the device", foreign=True),
        System(
            "transformers offloaded",
            f"{name}, DynamicCache copied to the device and back, layer by layer",
            foreign=True,
        ),
    ]
    built: Any = None
    if problem is None:
        try:
            built = transformers_model(weights)
        except Exception as error:  # third-party code; the reason becomes its result
            problem = _failed(error)
    for system, offloading in zip(systems, (False, True), strict=True):
        system.not_run = problem
        if offloading and backend.kind != "cuda":
            system.not_run = "needs CUDA"
        system.not_run = system.not_run or why_not_fitting(weights.model, job, spare, offloading)
        if system.not_run is None:
            system.decoder = TransformersSystem(
                built, weights.model, job, cache, backend, offloading
            )
    return systems


def flexgen_system() -> System:
    """FlexGen, which is listed with the reason why it does not run."""
    return System("flexgen", "FlexGen's OptLM, K and V in host memory", not_run=FLEXGEN_NOT_RUN)


def why_not_fitting(model: ModelSpec, job: Workload, spare: Memory, offloading: bool) -> str | None:
    """Why a `DynamicCache` of the whole job does not fit the spare memory, or None if it fits."""
    layer_bytes = job.batch_size * job.max_tokens * model.kv_token_bytes
    device_bytes, host_bytes = STAGING_LAYERS * layer_bytes, 0
    if offloading:
        host_bytes = PINNED_ROUNDING * (model.n_layers + STAGING_LAYERS) * layer_bytes
    else:
        device_bytes += model.n_layers * layer_bytes
    for where, needed, left in (
        ("device", device_bytes, spare.device_bytes),
        ("host", host_bytes, spare.host_bytes),
    ):
        if needed > left:
            return (
                f"does not fit: its cache takes up to {needed / 2**30:.1f} GiB of {where} memory "
                f"and {max(0.0, left) / 2**30:.1f} GiB are left"
            )
    return None


def _window_problem(model: ModelSpec, job: Workload) -> str | None:
    """Why `transformers` cannot run a job that a sliding window cuts, or None if none cuts it."""
    past = job.max_tokens - 1
    if all(model.layer_context(layer, past) == past for layer in range(model.n_layers)):
        return None
    return f"the sliding window of {model.sliding_window} tokens cuts the job"


def _failed(error: Exception) -> str:
    """An exception of third-party code in one line."""
    return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
