"""How each policy restores a cached prefix.

============ ===================================================================================
compute-only prefill of the whole prompt
load-only    K and V of every cached token that is still attended to, then the other tokens
two-ended    Cake: steps from the front, loads from the back, claims and no prediction
lp           the best number of tokens to compute, the same in all layers
layer-wise   HCache: whole layers are computed, projected from X, or loaded
joint        tokens, layers and modes together: never slower than the others
auto         the fastest of them for this request
============ ===================================================================================

Only where X is cached, which serving runtimes do not do, is anything projected from it.

Each search starts where a linear model of the machine balances compute and link. It is refined in
the simulator, under the expected availability.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter
from typing import Literal

from planner.restore.balance import Rates
from planner.restore.lower import TaskSizes, compute_only_graph, split_graph, two_ended_graph
from planner.restore.split import RestoreSplit
from sim.cost.model import CostModel
from sim.engine.api import AUTO, simulate
from sim.errors import BadInput, DoesNotFit, UnknownName
from sim.graph.claims import claimed
from sim.graph.jobs import CACHED_DATA, KV, KV_AND_X, RestoreRequest, check_tasks
from sim.graph.memory import check_weights
from sim.graph.tasks import TaskGraph
from sim.graph.timeline import Timeline
from sim.lanes import TIERS
from sim.machine.availability import ALWAYS, Availability
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec

TTFT_S = attrgetter("ttft_s")

Form = Literal["compute-only", "two-ended", "split"]
"""Kind of graph: the whole prompt, claims, or a split."""

FIXED = ("compute-only", "load-only", "two-ended")
PLANNED = ("lp", "layer-wise", "joint")
RESTORE_POLICIES = (*FIXED, *PLANNED, "auto")
SEARCH_DEPTH = 32
"""The first stride of a search is this fraction of the range; later strides are finer."""

MIN_STRIDE = 4
"""Smallest first stride, because counts that only shorten a step make plateaus."""


@dataclass(frozen=True)
class RestoreChoice:
    """A policy's choice with its predicted timeline.

    Args:
        split: of the form `split`, else None.
    """

    form: Form
    split: RestoreSplit | None
    timeline: Timeline = field(repr=False)

    @property
    def ttft_s(self) -> float:
        return self.timeline.makespan_s


def form_graph(
    form: Form, model: ModelSpec, request: RestoreRequest, split: RestoreSplit | None
) -> TaskGraph:
    """The graph of a choice."""
    if form == "compute-only":
        return compute_only_graph(model, request)
    if form == "two-ended" or split is None:
        return two_ended_graph(model, request)
    return split_graph(model, request, split)


class RestorePlanner:
    """Finds the choice of each policy for one request on one machine, and remembers it.

    Args:
        engine: which one simulates, as in `sim.simulate`.
        cached_data: `kv`, or `kv+x` where X can be projected.
        by_layer: policy `load-only` loads layer after layer, and the uncached tokens follow the
            loads through the layers; otherwise token after token, before anything is computed.

    Raises:
        UnknownName: other cached data.
    """

    def __init__(
        self,
        model: ModelSpec,
        hardware: HardwareProfile,
        request: RestoreRequest,
        availability: Availability = ALWAYS,
        engine: str = AUTO,
        cached_data: str = KV,
        by_layer: bool = False,
    ) -> None:
        if cached_data not in CACHED_DATA:
            raise UnknownName("cached data", cached_data, CACHED_DATA)
        self.model = model
        self.hardware = hardware
        self.request = request
        self.availability = availability
        self.engine = engine
        self.has_x = cached_data == KV_AND_X
        self.by_layer = by_layer
        self._choices: dict[str, RestoreChoice] = {}
        self._splits: dict[RestoreSplit, RestoreChoice] = {}
        self._graphs: dict[RestoreSplit, TaskGraph] = {}

    def choice(self, policy: str) -> RestoreChoice:
        """The choice of `policy`.

        Raises:
            UnknownName: no such policy.
            NotMeasured: the profile lacks the tier.
        """
        if policy not in RESTORE_POLICIES:
            raise UnknownName("policy", policy, RESTORE_POLICIES)
        if policy not in self._choices:
            self._choices[policy] = self._make(policy)
        return self._choices[policy]

    def fastest(self) -> str:
        """The policy with the shortest time to first token; the simplest if equal."""
        times = {policy: self.choice(policy).ttft_s for policy in (*FIXED, *PLANNED)}
        return min(times, key=lambda policy: float(f"{times[policy]:.9g}"))

    @property
    def device_bytes(self) -> int:
        """Device memory of the weights, and of what the layers hold of the prompt.

        These are K and V of the tokens that new ones attend to, index keys and states.
        """
        model, request = self.model, self.request
        prompt, n_bytes = request.prompt_tokens, model.weight_bytes + model.state_bytes
        for layer in range(model.n_layers):
            rows = prompt - model.first_token(layer, request.cached_tokens)
            if not model.splits(layer):
                rows = model.layers[layer].attention.held_rows(prompt)
            n_bytes += rows * model.row_bytes(layer)
        return n_bytes + model.index_bytes(prompt)

    @property
    def cached_bytes(self) -> int:
        """Bytes of the cached K and V, index keys, states, and X where it is cached, on the tier.

        Those of all GPUs.
        """
        one_gpu = self.request.kv_bytes(self.model) + self.request.index_bytes(self.model)
        one_gpu += self.model.state_bytes
        one_gpu += self.has_x * self.request.x_bytes(self.model)
        return self.model.tensor_parallel * one_gpu

    def check_fits(self) -> None:
        """Refuse a request that exceeds the model's positions or the device memory.

        Raises:
            BadInput: the model has too few positions for the prompt.
            DoesNotFit: weights and K and V of the prompt exceed device memory, or the cached data
                host memory.
        """
        if self.request.prompt_tokens > self.model.max_positions:
            raise BadInput(
                f"prompt_tokens(={self.request.prompt_tokens}) must be at most the "
                f"{self.model.max_positions} positions of {self.model.name}; lower --prompt."
            )
        asked = self.request
        chunks = asked.prompt_tokens // asked.step_tokens
        chunks += asked.cached_tokens // asked.io_chunk_tokens
        check_tasks(chunks * self.model.n_layers, "raise --chunk, --io-chunk or --gpu-share")
        memory, name = self.hardware.memory, self.hardware.name
        need, has = self.device_bytes, memory.job_device_bytes
        check_weights(self.model, has, name, unified=memory.unified)
        if need > has:
            raise DoesNotFit(
                f"{self.model.name} with {self.request.prompt_tokens} tokens needs "
                f"{need / 2**30:.1f} GiB of device memory and {self.hardware.name} has "
                f"{has / 2**30:.1f} GiB; lower --prompt or choose a smaller model."
            )
        need, has = self.cached_bytes, int(self.hardware.memory.host_bytes)
        if self.request.tier == TIERS[0] and need > has:
            raise DoesNotFit(
                f"{self.request.cached_tokens} cached tokens take {need / 2**30:.1f} GiB of host "
                f"memory and {self.hardware.name} has {has / 2**30:.1f} GiB; lower --cached."
            )

    def _make(self, policy: str) -> RestoreChoice:
        match policy:
            case "compute-only" | "two-ended":
                return self._simulated(policy, form_graph(policy, self.model, self.request, None))
            case "load-only":
                nothing = RestoreSplit.even(self.model, 0)
                return self._split(replace(nothing, by_layer=self.by_layer))
            case "lp":
                return self._best_tokens()
            case "layer-wise":
                return self._best_layers()
            case "joint":
                return self._best_cells()
        return self.choice(self.fastest())

    def graph(self, split: RestoreSplit) -> TaskGraph:
        """The graph of a split, built once."""
        if split not in self._graphs:
            self._graphs[split] = split_graph(self.model, self.request, split, self._sizes)
        return self._graphs[split]

    def _simulated(
        self, form: Form, graph: TaskGraph, split: RestoreSplit | None = None
    ) -> RestoreChoice:
        return RestoreChoice(
            form,
            split,
            simulate(graph, self.hardware, self.engine, self.availability, costs=self._costs),
        )

    def _split(self, split: RestoreSplit) -> RestoreChoice:
        if split not in self._splits:
            self._splits[split] = self._simulated("split", self.graph(split), split)
        return self._splits[split]

    @cached_property
    def _sizes(self) -> TaskSizes:
        """Sizes of tasks, which the graphs of all splits share."""
        return TaskSizes(self.model, self.request)

    @cached_property
    def _costs(self) -> CostModel:
        """Task costs, which all simulations share."""
        return CostModel(self.hardware, self.model, self.request)

    @cached_property
    def rates(self) -> Rates:
        """Rates of the linear model of this machine."""
        return Rates(self.model, self.hardware, self.request, self.has_x)

    def _best_tokens(self) -> RestoreChoice:
        """The best number of computed tokens, the same in all layers."""
        rates, cached = self.rates, self.request.cached_tokens
        even = range(0, rates.all_cells + 1, rates.layers)
        tokens = rates.stops[rates.best(even, by_layer=False).cells // rates.layers]
        unit = min(self.request.io_chunk_tokens, self.request.step_tokens)

        def made(counts: Sequence[int]) -> RestoreChoice:
            return self._split(RestoreSplit.even(self.model, min(counts[0] * unit, cached)))

        found = self._search(made, (-(-tokens // unit),), (-(-cached // unit),))
        return min((self.choice("load-only"), self.choice("compute-only"), found), key=TTFT_S)

    def _best_layers(self) -> RestoreChoice:
        """The first layers computed, the next projected, the last loaded."""
        rates, cached = self.rates, self.request.cached_tokens

        def made(counts: Sequence[int]) -> RestoreChoice:
            computed = counts[0]
            projected = min(counts[1], rates.layers - computed)
            loaded = rates.layers - computed - projected
            from_x = rates.from_x[computed : computed + projected]
            return self._split(
                RestoreSplit(
                    (cached,) * computed + (0,) * (projected + loaded),
                    (*(0,) * computed, *from_x, *(0,) * loaded),
                    True,
                )
            )

        top = (rates.layers, rates.layers if self.has_x else 0)
        found = self._search(made, rates.best_layers(), top)
        return min((self.choice("compute-only"), found), key=TTFT_S)

    def _best_cells(self) -> RestoreChoice:
        """A staircase of computed cells, X of some token-layers, K and V of the rest.

        The choices of the other policies are candidates too, so it is never slower than them.
        """
        rates = self.rates
        unit = self.request.io_chunk_tokens
        most = sum(rates.from_x) // unit if self.has_x else 0
        top = (rates.all_cells, most)

        def made(counts: Sequence[int]) -> RestoreChoice:
            return self._split(self._staircase(rates, counts[0], counts[1] * unit))

        best = rates.best(range(rates.all_cells + 1), by_layer=True)
        found = self._search(made, (best.cells, best.projected // unit), top)
        meeting = meeting_token(self.choice("two-ended").timeline, self.request)
        met = self._split(RestoreSplit.even(self.model, meeting))
        others = [self.choice(policy) for policy in ("compute-only", "load-only", "lp")]
        return min((*others, met, self.choice("layer-wise"), found), key=TTFT_S)

    def _search(
        self,
        made: Callable[[Sequence[int]], RestoreChoice],
        start: tuple[int, ...],
        top: tuple[int, ...],
    ) -> RestoreChoice:
        """The best choice near `start`, or near the best grid point if lane speeds change."""
        if self.availability.steps:
            grid = {start[0], *(top[0] * at // SEARCH_DEPTH for at in range(SEARCH_DEPTH + 1))}
            starts = [(count, *start[1:]) for count in sorted(grid)]
            start = min(starts, key=lambda counts: made(counts).ttft_s)
        return _improved(made, start, top)

    def _staircase(self, rates: Rates, cells: int, projected: int) -> RestoreSplit:
        steps, more = divmod(cells, rates.layers)
        low = rates.stops[steps]
        high = rates.stops[min(steps + 1, len(rates.step_s))]
        computed = [high] * more + [low] * (rates.layers - more)
        counts, cached = [], self.request.cached_tokens
        for count, needed in zip(computed, rates.from_x, strict=True):
            counts.append(min(projected, needed, cached - count))
            projected -= counts[-1]
        return RestoreSplit(tuple(computed), tuple(counts), True)


class UnforeseenPlanner(RestorePlanner):
    """Finds the choice of each policy for the whole machine, and its time under the trace."""

    @cached_property
    def _whole(self) -> RestorePlanner:
        data = KV_AND_X if self.has_x else KV
        return RestorePlanner(
            self.model,
            self.hardware,
            self.request,
            engine=self.engine,
            cached_data=data,
            by_layer=self.by_layer,
        )

    def fastest(self) -> str:
        return self._whole.fastest()

    def _make(self, policy: str) -> RestoreChoice:
        chosen = self._whole.choice(policy)
        return self._simulated(chosen.form, chosen.timeline.graph, chosen.split)


def _improved(
    made: Callable[[Sequence[int]], RestoreChoice], start: tuple[int, ...], top: tuple[int, ...]
) -> RestoreChoice:
    """The best choice of a coordinate search with halving strides."""
    at, best = start, made(start)
    strides = [max(MIN_STRIDE, most // SEARCH_DEPTH) for most in top]
    while any(strides):
        improved = False
        for axis, stride in enumerate(strides):
            for by in (-stride, stride) if stride else ():
                count = min(max(at[axis] + by, 0), top[axis])
                trial = made(moved := (*at[:axis], count, *at[axis + 1 :]))
                if trial.ttft_s < best.ttft_s:
                    at, best, improved = moved, trial, True
        if not improved:
            strides = [stride // 2 for stride in strides]
    return best


def meeting_token(timeline: Timeline, request: RestoreRequest) -> int:
    """The first cached token that is not computed through all layers."""
    graph = timeline.graph
    stops = [
        min(task.token_stop, request.cached_tokens)
        for task in claimed(graph, timeline.start_s)
        if task.op == "prefill"
        and task.layers == graph.model.n_layers
        and task.token_start < request.cached_tokens
        and task.n_tokens
    ]
    return max(stops, default=0)
