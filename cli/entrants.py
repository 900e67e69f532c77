"""Who decodes beside whom in `kvoverlap peers`, and what becomes of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from statistics import median
from typing import TYPE_CHECKING, Any

from sim.engine import simulate
from sim.graph import TaskGraph
from sim.hardware import HardwareProfile
from sim.host_rows import all_rows
from sim.memory import check_fits, footprint
from sim.model_spec import ModelSpec
from sim.workload import Workload

if TYPE_CHECKING:
    from hw import HostCache
    from hw.backends import Backend, Memory
    from hw.cache import ResidentDecode
    from hw.peers import Agreement, Decode, Peer
    from hw.weights import Weights

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
class Entrant:
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


def our_entrants(
    graphs: dict[str, TaskGraph],
    hardware: HardwareProfile,
    weights: Weights,
    cache: HostCache,
    backend: Backend,
    reference: ResidentDecode,
) -> list[Entrant]:
    """Our plans; below 32 bit they are fed the reference's tokens, as in every measurement."""
    from hw import Executor
    from hw.peers import PlanPeer

    follow = None if weights.model.dtype == "float32" else [reference.tokens]
    entrants = []
    for policy, graph in graphs.items():
        predicted = simulate(graph, hardware).graph.sha256
        executor = Executor(graph, predicted, weights, [cache], backend, follow)
        entrants.append(Entrant(policy, PLANS[policy], PlanPeer(executor)))
    return entrants


def transformers_entrants(
    weights: Weights, cache: HostCache, backend: Backend, job: Workload, spare: Memory
) -> list[Entrant]:
    """`transformers` with its cache on the device and offloaded, as far as they can run."""
    from hw.peers import TransformersPeer, transformers_model, transformers_problem

    problem = transformers_problem() or _window_problem(weights.model, job)
    name = "transformers" if problem else f"transformers {version('transformers')}"
    entrants = [
        Entrant("transformers resident", f"{name}, DynamicCache on the device", foreign=True),
        Entrant(
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
    for entrant, offloading in zip(entrants, (False, True), strict=True):
        entrant.not_run = problem
        if offloading and backend.kind != "cuda":
            entrant.not_run = "needs CUDA"
        entrant.not_run = entrant.not_run or no_room(weights.model, job, spare, offloading)
        if entrant.not_run is None:
            entrant.peer = TransformersPeer(built, weights.model, job, cache, backend, offloading)
    return entrants


def flexgen_entrant() -> Entrant:
    """FlexGen, which is listed so that nobody looks for it in vain."""
    return Entrant("flexgen", "FlexGen's OptLM, K and V in host memory", not_run=FLEXGEN_NOT_RUN)


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
