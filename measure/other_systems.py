"""Other systems decode the same job in turn with our plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from statistics import median
from typing import TYPE_CHECKING, Any

from measure.decode_grid import shape_name, warm_ups
from planner import make_plan
from sim.engine.api import simulate
from sim.errors import BadInput
from sim.graph.jobs import Workload
from sim.graph.memory import all_rows, check_fits, footprint
from sim.graph.tasks import TaskGraph
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec
from sim.progress import Progress

if TYPE_CHECKING:
    from hw import HostCache
    from hw.backends import Backend, Memory
    from hw.cache.reference import ResidentDecode
    from hw.model.weights import Weights
    from hw.run.other_systems import Agreement, Decode, Peer


def measure_peers(
    model: ModelSpec,
    hardware: HardwareProfile,
    backend: Backend,
    job: Workload,
    repeats: int,
    seed: int,
    steps: Progress,
) -> dict[str, Any]:
    """Run every way of decoding `job` in turns; returns the report that `print_peers` prints.

    Raises:
        BadInput: no repeats, or a job that the model cannot take.
        DoesNotFit: our plans need more memory than there is; nothing has been allocated then.
        WrongNumbers: one of our plans computed something else than the resident decode.
    """
    from hw import HostCache, prefill, prompt_ids, random_weights, resident_decode

    check_repeats(repeats)
    plans = {policy: make_plan(model, hardware, job, policy) for policy in PLANS}
    graphs = {policy: plan.simulated_graph() for policy, plan in plans.items()}
    spare = spare_memory(list(graphs.values()), backend)
    title = f"{model.name} {shape_name(job)}"
    steps(f"{title}, peers: making weights", 0.0)
    weights = random_weights(model, seed, backend.device)
    cache = HostCache.empty(model, job, backend)
    steps(f"{title}, peers: prefilling prompts", 0.0)
    prefill(weights, prompt_ids(model, job, seed), cache)
    reference = resident_decode(weights, cache, job)
    systems = [
        *transformers_systems(weights, cache, backend, job, spare),
        flexgen_system(),
        *our_systems(graphs, hardware, weights, cache, backend, reference),
    ]
    first = warm_ups(backend.kind, plans["load-all"].makespan_s)
    for number in range(first + repeats):
        steps(f"{title}, peers: round {number + 1}", number / (first + repeats))
        for system in systems:
            system.take_turn(reference if number else None, counted=number >= first)
    load_all_s = next(one.median_s for one in systems if one.name == "load-all")
    lines = [system.to_dict(job.gen_tokens, load_all_s) for system in systems]
    for system in systems:
        if system.peer is not None:
            system.peer.close()
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


def check_repeats(repeats: int) -> None:
    if repeats < 1:
        raise BadInput(f"--repeats(={repeats}) must be at least 1.")


PLANS = {
    "load-all": "our plan that loads all K and V",
    "kvpr": "our plan with KVPR's split",
    "lp": "our plan with the LP's split",
}

FLEXGEN_NOT_RUN = (
    "flexllmgen makes weights up or reads files of its own kind, which kvoverlap does not write, "
    "so that neither weights nor tokens would be the same"
)

STAGING_LAYERS = 4
"""Layers of K and V that a `DynamicCache` holds on top while it is filled or a layer grows."""

PINNED_ROUNDING = 2
"""torch rounds the pinned memory of an offloaded cache up to powers of two."""

FIGURES = (
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
"""What is reported of an entrant; None where it did not run or has no such figure."""


@dataclass
class System:
    """One way of decoding with what became of it.

    Args:
        peer: None where it cannot run; `not_run` says why.
        foreign: other people's code, whose failure is a result and must not lose the rest.
        agreements: one for each run from the second on, since a race shows only then.
    """

    name: str
    what: str
    peer: Peer | None = None
    not_run: str | None = None
    foreign: bool = False
    runs: list[Decode] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)

    def take_turn(self, reference: ResidentDecode | None, counted: bool) -> None:
        """Decode once.

        Args:
            reference: what to compare with; None on the first turn.

        Raises:
            WrongNumbers: one of our plans computed something else.
        """
        if self.peer is None:
            return
        try:
            self.peer.prepare()
            taken = self.peer.decode()
            if reference is not None:
                self.agreements.append(self.peer.check(reference))
            self.peer.release()
        except Exception as error:
            if not self.foreign:
                raise
            self.peer, self.not_run = None, _failed(error)
            return
        if counted:
            self.runs.append(taken)

    @property
    def median_s(self) -> float:
        return median(run.seconds for run in self.runs)

    def to_dict(self, n_steps: int, load_all_s: float) -> dict[str, Any]:
        """Its line of the report."""
        line: dict[str, Any] = {"name": self.name, "what": self.what, **dict.fromkeys(FIGURES)}
        line["not_run"] = self.not_run
        if self.peer is None:
            return line
        seconds = [run.seconds for run in self.runs]
        copied = self.peer.copied_bytes
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
    """What weights, the prompts' cache and the slots of all our plans leave of the memory.

    Raises:
        DoesNotFit: they do not fit.
    """
    from hw.backends import Memory

    memory = backend.memory()
    beside = [need.device_bytes - need.weight_bytes for need in map(footprint, graphs)]
    largest = graphs[beside.index(max(beside))]
    others_bytes = sum(beside) - max(beside)
    where = f"this {backend.kind} device"
    cache = all_rows(largest.model, largest.workload)
    need = check_fits(largest, memory.device_bytes - others_bytes, memory.host_bytes, where, cache)
    return Memory(
        memory.device_bytes - need.device_bytes - others_bytes,
        memory.host_bytes - need.host_bytes,
    )


def our_systems(
    graphs: dict[str, TaskGraph],
    hardware: HardwareProfile,
    weights: Weights,
    cache: HostCache,
    backend: Backend,
    reference: ResidentDecode,
) -> list[System]:
    """Our plans; below 32 bit they are fed the reference's tokens, as in every measurement."""
    from hw import Executor
    from hw.run.other_systems import PlanPeer

    follow = None if weights.model.dtype == "float32" else [reference.tokens]
    systems = []
    for policy, graph in graphs.items():
        predicted = simulate(graph, hardware).graph.sha256
        executor = Executor(graph, predicted, weights, [cache], backend, follow)
        systems.append(System(policy, PLANS[policy], PlanPeer(executor)))
    return systems


def transformers_systems(
    weights: Weights, cache: HostCache, backend: Backend, job: Workload, spare: Memory
) -> list[System]:
    """`transformers` with its cache on the device and offloaded, as far as they can run."""
    from hw.model.transformers_model import transformers_model, transformers_problem
    from hw.run.other_systems import TransformersPeer

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
        except Exception as error:  # other people's code; the reason becomes its result
            problem = _failed(error)
    for system, offloading in zip(systems, (False, True), strict=True):
        system.not_run = problem
        if offloading and backend.kind != "cuda":
            system.not_run = "needs CUDA"
        system.not_run = system.not_run or no_room(weights.model, job, spare, offloading)
        if system.not_run is None:
            system.peer = TransformersPeer(built, weights.model, job, cache, backend, offloading)
    return systems


def flexgen_system() -> System:
    """FlexGen, which is listed so that nobody looks for it in vain."""
    return System("flexgen", "FlexGen's OptLM, K and V in host memory", not_run=FLEXGEN_NOT_RUN)


def no_room(model: ModelSpec, job: Workload, spare: Memory, offloading: bool) -> str | None:
    """Why a `DynamicCache` of the whole job does not fit what is left, or None."""
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
    """Why `transformers` is not run where a window cuts the job: its peer has none."""
    past = job.max_tokens - 1
    if all(model.layer_context(layer, past) == past for layer in range(model.n_layers)):
        return None
    return f"the sliding window of {model.sliding_window} tokens cuts the job"


def _failed(error: Exception) -> str:
    """What other people's code raised, in one line."""
    return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
