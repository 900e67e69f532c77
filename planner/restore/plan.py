"""A restore plan with its prediction; saved as a file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from planner.job import Job, PlanOptions
from planner.plan_file import Plan
from planner.restore.planner import (
    FIXED,
    PLANNED,
    Form,
    RestoreChoice,
    RestorePlanner,
    UnforeseenPlanner,
    form_graph,
    meeting_token,
)
from planner.restore.replanning import Adaptation, adapt
from planner.restore.split import RestoreSplit
from planner.runtime import restore_machine, restore_request
from sim.cost.model import CostModel
from sim.engine.sharing import machine_of_one_gpu
from sim.errors import BadInput
from sim.graph.claims import claimed
from sim.graph.jobs import RestoreRequest
from sim.graph.tasks import TaskGraph
from sim.graph.timeline import Timeline
from sim.lanes import TIERS
from sim.machine.availability import Availability
from sim.machine.provenance import weakest
from sim.machine.runtime import Runtime
from sim.units import ms


@dataclass(frozen=True)
class RestorePlan(Plan, kind="restore-plan"):
    """A policy's choice for one request, its prediction, and all inputs of the simulation.

    Args:
        form: what the graph is made from, see `planner.restore.planner.Form`.
        ttft_s: simulated time to the first token.
        computed_tokens, projected_tokens, loaded_tokens: tokens computed, projected from X, and
            loaded as far as the windows of the layers need them. A token handled by only some
            layers counts fractionally. Rounded; they add up to the prompt.
        meeting_token: first cached token that is not computed through all layers.
        reason: why, in one sentence.
        adaptation: with a trace, the times of `lp` where it does not know it in advance.
        unforeseen_s, foreseen_s: with a trace, `ttft_s` where the policy plans for the whole
            machine, and where it knows the trace in advance.

    Raises:
        BadInput: a baseline is missing, or a time is not above 0.
    """

    remedy = "run `kvoverlap restore` again."

    workload: RestoreRequest
    form: Form
    split: RestoreSplit | None
    availability: Availability
    ttft_s: float
    computed_tokens: int
    projected_tokens: int
    loaded_tokens: int
    meeting_token: int
    reason: str
    adaptation: Adaptation | None = None
    unforeseen_s: float | None = None
    foreseen_s: float | None = None
    runtime: Runtime | None = None

    def __post_init__(self) -> None:
        missing = [name for name in FIXED if name not in self.baselines]
        if missing:
            raise BadInput(f"baselines must hold {', '.join(FIXED)}; {missing[0]} is missing.")
        for name, value in {"ttft_s": self.ttft_s, **self.baselines}.items():
            if not 0 < value < float("inf"):
                raise BadInput(f"{name}(={value}) must be above 0 and finite.")

    @property
    def makespan_s(self) -> float:
        return self.ttft_s

    @property
    def tier(self) -> str:
        return self.workload.tier

    @property
    def compute_only_s(self) -> float:
        return self.baselines["compute-only"]

    @property
    def load_only_s(self) -> float:
        return self.baselines["load-only"]

    @property
    def x_bytes(self) -> int:
        """Bytes of X on the tier that this plan needs, of all cached tokens; 0 without X."""
        return self.workload.x_bytes(self.model) if self.projected_tokens else 0

    @property
    def kv_bytes_by_window(self) -> dict[int | None, int]:
        """Bytes on the tier of the K and V that the restored prefix needs, by window of layer."""
        model, request = self.model, self.workload
        bits: Counter[int | None] = Counter()
        for layer in range(model.n_layers):
            first = request.first_loaded(model, layer)
            if model.loads_rows(layer):
                own = request.layer_kv_bits(model, layer, first, request.cached_tokens)
                bits[model.window(layer)] += own
        return {window: n // 8 for window, n in bits.items()}

    @property
    def notes(self) -> list[str]:
        """Sentences on what a reader may not expect of this request."""
        found = (self.lookup_note, self.window_savings, self.state_note)
        return [one for one in found if one is not None]

    @property
    def lookup_note(self) -> str | None:
        """A sentence on the time before the first byte moves; None where the machine has none."""
        rates = self.hardware.restore
        lookup = None if rates is None or self.runtime is not None else rates.lookup_s
        if lookup is None or self.policy == "compute-only":
            return None
        return (
            f"Loads begin after {ms(lookup.value)} on {self.hardware.name}, when the cached prefix "
            f"is found ({lookup.source})."
        )

    @property
    def window_savings(self) -> str | None:
        """A sentence on the K and V that sliding windows make needless; None if there are none."""
        model, request = self.model, self.workload
        layers = [one for one in range(model.n_layers) if model.loads_rows(one)]
        cut = [one for one in layers if request.first_loaded(model, one)]
        if not cut:
            return None
        all_bits = sum(
            request.layer_kv_bits(model, one, 0, request.cached_tokens) for one in layers
        )
        all_bytes, needed_bytes = all_bits // 8, request.kv_bytes(model)
        sizes = " or ".join(f"{size:,}" for size in sorted({model.window(one) or 0 for one in cut}))
        return (
            f"{len(cut)} of {model.n_layers} layers keep a window of {sizes} tokens: of "
            f"{all_bytes / 1e9:.2f} GB of cached K and V {needed_bytes / 1e9:.2f} GB are needed."
        )

    @property
    def state_note(self) -> str | None:
        """A sentence on the states that are restored as a whole; None if there are none."""
        model, cached = self.model, self.workload.cached_tokens
        if not model.state_bytes:
            return None
        size = model.element_bytes
        counted = sum(one.attention.state_bytes(size) > 0 for one in model.layers)
        return (
            f"{counted} of {model.n_layers} layers hold a state of {model.state_bytes / 1e6:,.1f} "
            f"MB in all: its snapshot after {cached:,} tokens is loaded as a whole, unless a layer "
            "computes all of them."
        )

    def lower(self) -> TaskGraph:
        return form_graph(self.form, self.model, self.workload, self.split)

    def token_counts(self, timeline: Timeline) -> dict[str, int]:
        return token_counts(timeline, self.workload)

    def answer(self) -> dict[str, Any]:
        return {
            **super().answer(),
            "compute_only_s": self.compute_only_s,
            "load_only_s": self.load_only_s,
            "cached_kv_bytes": self.workload.kv_bytes(self.model),
            "cached_kv_bytes_by_window": [
                {"window": window, "bytes": n_bytes}
                for window, n_bytes in self.kv_bytes_by_window.items()
            ],
            "cached_index_bytes": self.workload.index_bytes(self.model),
            "cached_state_bytes": self.model.state_bytes,
            "cached_x_bytes": self.x_bytes,
            "speedup_vs_compute": self.compute_only_s / self.ttft_s,
            "speedup_vs_load": self.load_only_s / self.ttft_s,
        }


def plan_restore(job: Job[RestoreRequest], options: PlanOptions) -> RestorePlan:
    """Plan a restore, as `planner.make_plan`."""
    options.refuse("schedule", "gpus", "keep", "resident_layers")
    hardware, request = machine_of_one_gpu(job.hardware, job.model), job.workload
    policy = "auto" if options.policy is None else options.policy
    by_layer, runtime = False, options.runtime
    if runtime is not None:
        hardware = restore_machine(runtime, hardware, job.model)
        request, by_layer = restore_request(runtime, request), runtime.restore.value == "by-layer"
        if policy == "auto" and not runtime.plans_itself:
            policy = "load-only"
    asked = (job.model, hardware, request, options.availability, options.engine)
    planner = RestorePlanner(*asked, options.cached_data, by_layer)
    planner.check_fits()
    if not options.availability.steps:
        return plan_choice(planner, policy, runtime=runtime)
    unforeseen = UnforeseenPlanner(*asked, options.cached_data, by_layer)
    made = plan_choice(
        planner if options.foresight else unforeseen, policy, adapt(planner), runtime
    )
    return replace(
        made,
        unforeseen_s=unforeseen.choice(policy).ttft_s,
        foreseen_s=planner.choice(policy).ttft_s,
    )


def plan_choice(
    planner: RestorePlanner,
    policy: str,
    adaptation: Adaptation | None = None,
    runtime: Runtime | None = None,
) -> RestorePlan:
    """The plan of one policy. A planner can be reused for the plans of other policies.

    Raises:
        UnknownName: no such policy.
        NotMeasured: the profile has no figures for the tier.
    """
    choice = planner.choice(policy)
    graph, request = choice.timeline.graph, planner.request
    costs = CostModel(planner.hardware, planner.model, request)
    estimates = [costs.estimate(task) for task in graph.tasks]
    return RestorePlan(
        policy=policy,
        form=choice.form,
        model=planner.model,
        hardware=planner.hardware,
        workload=request,
        split=choice.split,
        availability=planner.availability,
        ttft_s=choice.ttft_s,
        **token_counts(choice.timeline, request),
        baselines={name: planner.choice(name).ttft_s for name in (*FIXED, *PLANNED)},
        reason=_reason(planner, policy, choice),
        source=weakest(*(estimate.source for estimate in estimates)),
        out_of_range_tasks=sum(not estimate.in_range for estimate in estimates),
        graph_sha256=graph.sha256,
        adaptation=adaptation,
        runtime=runtime,
    )


def token_counts(timeline: Timeline, request: RestoreRequest) -> dict[str, int]:
    """Tokens computed, projected and loaded, as in `RestorePlan`, and the token where ends met."""
    graph = timeline.graph
    cells = {"prefill": 0, "recompute": 0}
    for task in claimed(graph, timeline.start_s):
        if task.op in cells:
            cells[task.op] += task.n_tokens * task.layers
    layers = graph.model.n_layers
    others = layers * request.prompt_tokens - sum(cells.values())
    projected, loaded = round(cells["recompute"] / layers), round(others / layers)
    return {
        "computed_tokens": request.prompt_tokens - projected - loaded,
        "projected_tokens": projected,
        "loaded_tokens": loaded,
        "meeting_token": meeting_token(timeline, request),
    }


def _reason(planner: RestorePlanner, policy: str, choice: RestoreChoice) -> str:
    """One sentence on why the policy is fast or slow here."""
    compute, load = (planner.choice(name) for name in ("compute-only", "load-only"))
    note = f"{planner.hardware.no_link_note} ".lstrip()
    if note and planner.request.tier == TIERS[0] and choice is load:
        return (
            f"{note}The cached K and V are used where they are: {ms(choice.ttft_s)}, against "
            f"{ms(compute.ttft_s)} for computing them again."
        )
    if policy in ("compute-only", "load-only"):
        return f"computing alone takes {ms(compute.ttft_s)}, loading alone {ms(load.ttft_s)}."
    better = min(compute, load, key=lambda one: one.ttft_s)
    alone = "computing" if better is compute else "loading"
    name = note + (planner.fastest() if policy == "auto" else policy)
    if choice.ttft_s > better.ttft_s:
        why = "one step more costs longer than what it saves"
        if isinstance(planner, UnforeseenPlanner) and policy != "two-ended":
            why = "it was planned for the whole machine"
        return (
            f"{name} loses to {alone} alone, {ms(choice.ttft_s)} against {ms(better.ttft_s)}: "
            f"{why}."
        )
    if policy == "auto":
        name = f"{note}Fastest is {planner.fastest()}"
    if choice.ttft_s == better.ttft_s:
        return f"{name}: splitting saves nothing here, {alone} alone takes {ms(better.ttft_s)}."
    return (
        f"{name}: {ms(choice.ttft_s)} against {ms(compute.ttft_s)} for computing and "
        f"{ms(load.ttft_s)} for loading alone."
    )
