"""One decode job on one machine: its costs, its timelines, its memory and its linear programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf
from typing import TYPE_CHECKING, Any

from planner.decode.lower import SCHEDULES, Split, check_size, lower, replicate
from planner.decode.policies import baseline_split
from planner.decode.rounding import planned_steps, whole_part
from planner.decode.split import DecodeChoice, Residency, evenly_spaced, keeps_part
from planner.lp.costs import SIZED_OPS, PiecewiseLinearCosts, sized_tokens
from planner.lp.memory import MemoryBudget
from sim.cost.model import CostModel
from sim.engine.api import AUTO, simulate
from sim.engine.launch import launch_times
from sim.engine.sharing import representative_machine, streaming_share
from sim.errors import BadInput, UnknownName
from sim.graph.jobs import Workload
from sim.graph.memory import Footprint, check_fits, check_weights, footprint
from sim.graph.tasks import LANE_OF_OP, TaskGraph
from sim.graph.timeline import Timeline, earliest_schedule
from sim.lanes import COMPUTE, D2H, H2D
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec

if TYPE_CHECKING:
    from planner.lp.schedule import ScheduleLP

MIN_SPLIT_PROMPT = 5
"""Fewest prompt tokens of which only a part may stay resident."""


def check_workload(model: ModelSpec, workload: Workload) -> None:
    """Refuse contexts that the model has no positions for, and caches that are not quantised."""
    if workload.max_tokens > model.max_positions:
        raise BadInput(
            f"prompt_tokens + gen_tokens (={workload.max_tokens}) must be at most the "
            f"{model.max_positions} positions of {model.name}; lower --prompt or --gen."
        )
    if not model.quantises_kv and workload.kv_bits is not None:
        cache = "latent cache" if model.mla is not None else "cache of latents or chosen tokens"
        raise BadInput(
            f"kv_bits(={workload.kv_bits}): the {cache} of {model.name} is not modelled "
            "quantised; use kv_bits 16."
        )


@dataclass(frozen=True, eq=False)
class DecodeProblem:
    """A decode job on a machine: costs, timelines, memory and LPs, each computed once.

    The LP plans one GPU at a few steps. `dataclasses.replace` moves the job to another machine.

    Args:
        gpus: GPUs with the same work that share uplinks: one for each part of the model and job.
        keep: whether the LP may choose K, V, X and weights to stay in device memory.
        engine: which one simulates, as in `sim.simulate`.

    Raises:
        BadInput: the model has too few positions for the workload, or the schedule cannot run it.
        UnknownName: no such schedule.
    """

    model: ModelSpec
    hardware: HardwareProfile
    workload: Workload
    schedule: str = "row"
    gpus: int = 1
    keep: bool = False
    engine: str = AUTO
    _graphs: dict[Any, TaskGraph] = field(default_factory=dict, repr=False)
    """Lowered graphs of some steps, which are the same on every machine."""
    _budgets: dict[Any, MemoryBudget] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UnknownName("schedule", self.schedule, SCHEDULES)
        self.hardware.check_gpus(self.gpus)
        check_size(self.model, self.workload, self.gpus)
        if self.schedule == "column" and not self.model.moves_weights:
            has = "experts" if self.model.moe is not None else "layers of several kinds"
            raise BadInput(
                f"{self.model.name} has {has}, whose weights the column schedule cannot bring "
                "one layer at a time; use --schedule row."
            )
        check_workload(self.model, self.workload)
        bits = self.workload.kv_bits
        if self.hardware.memory.unified and bits is not None:
            if bits != self.model.host_kv_bits:
                raise BadInput(
                    f"kv_bits(={bits}): K and V are quantised in host memory, and CPU and GPU of "
                    f"{self.hardware.name} share one memory; use kv_bits 16."
                )
            # The checkpoint asks for it, but no K and V are outside GPU memory.
            object.__setattr__(self, "workload", replace(self.workload, kv_bits=None))

    @cached_property
    def costs(self) -> CostModel:
        """Task costs for the LP: the links have the rate of all GPUs copying at once."""
        streaming = self.hardware
        for lane in (H2D, D2H):
            share = streaming_share(self.hardware, lane, self.gpus)
            if share < 1.0:
                streaming = streaming.with_faster(lane, share)
        return CostModel(streaming, self.model, self.workload)

    @cached_property
    def lines(self) -> PiecewiseLinearCosts:
        """Costs of the operations that the LP sizes."""
        return PiecewiseLinearCosts(self.costs, self.workload.max_tokens)

    @cached_property
    def planned_steps(self) -> list[int]:
        """Steps that the LP plans."""
        cells = self.model.n_layers * self.workload.n_batches
        return planned_steps(self.workload.gen_tokens, cells)

    @property
    def covers_all_steps(self) -> bool:
        """Whether the LP plans every step of the job."""
        return len(self.planned_steps) == self.workload.gen_tokens

    @cached_property
    def contexts(self) -> list[int]:
        """Past tokens of each planned step."""
        return [self.workload.context_tokens(step) for step in self.planned_steps]

    @cached_property
    def all_layers_split(self) -> bool:
        """Whether every layer reads rows in every step, any number of which may be recomputed."""
        layers = range(self.model.n_layers)
        return all(
            self.model.splits(layer) and self.model.layer_context(layer, past) > 0
            for layer in (layers if self.model.layer_kinds else ())
            for past in self.contexts
        )

    @cached_property
    def relaxes_every_split(self) -> bool:
        """Whether the LP's graph has no task that some split leaves out.

        In its graph every layer that splits recomputes the first row that it reads. If that is its
        only row, nothing is left to load; if an earlier step generated it, its X has to be stored.
        """
        model, prompt = self.model, self.workload.prompt_tokens
        return not any(
            model.layer_context(layer, past) == 1
            or (model.layer_context(layer, past) and model.first_token(layer, past) >= prompt)
            for past in self.contexts
            for layer in range(model.n_layers)
            if model.splits(layer)
        )

    @cached_property
    def least_resident(self) -> Residency:
        """What stays on the device in any plan: nothing, or everything in unified memory."""
        return self._everything if self.hardware.memory.unified else Residency.nothing(self.model)

    @cached_property
    def _everything(self) -> Residency:
        """The whole cache, and the weights of a column schedule."""
        layers = range(self.model.n_layers) if self.schedule == "column" else ()
        cache = Residency.whole_cache(self.model, self.workload)
        return replace(cache, weight_layers=tuple(layers))

    # Timelines

    @cached_property
    def _timelines(self) -> dict[tuple[tuple[tuple[int, ...], ...], Residency], Timeline]:
        return {}

    @cached_property
    def seen(self) -> HardwareProfile | None:
        """The machine as seen by one of the GPUs; None if their uplinks differ."""
        alone = self.gpus == 1
        return self.hardware if alone else representative_machine(self.hardware, self.gpus)

    def timeline(self, choice: DecodeChoice) -> Timeline:
        """The timeline of one GPU if all do the same at the same times, else of all.

        Each choice is simulated once.
        """
        split, residency = choice.split, choice.residency
        key = (tuple(map(tuple, split)), residency)
        if key not in self._timelines:
            self._timelines[key] = self._simulated(self.graph_of(choice))
        return self._timelines[key]

    def graph_of(self, choice: DecodeChoice) -> TaskGraph:
        """The graph of the whole job on one GPU."""
        split, residency = choice.split, choice.residency
        if self.covers_all_steps:
            return self.shortened(split, residency)
        key = (tuple(map(tuple, split)), residency, None)
        if key not in self._graphs:
            made = lower(self.schedule, self.model, self.workload, split, None, residency)
            self._graphs[key] = made
        return self._graphs[key]

    def _simulated(self, graph: TaskGraph) -> Timeline:
        """The timeline of one GPU's graph, as `timeline`."""
        if self.seen is not None:
            known = self.costs if self.costs.hardware is self.seen else None
            return simulate(graph, self.seen, self.engine, costs=known)
        return simulate(replicate(graph, self.gpus), self.hardware, self.engine)

    def simulate(self, split: Split, residency: Residency | None = None) -> Timeline:
        """The predicted timeline of the whole job on all GPUs."""
        one = self.timeline(DecodeChoice([*map(list, split)], residency or self.least_resident))
        gpus = self.alike(one.graph)
        whole = replicate(one.graph, gpus)
        return one if gpus == 1 else Timeline(whole, one.start_s * gpus, one.end_s * gpus)

    def alike(self, graph: TaskGraph) -> int:
        """GPUs that a graph of one of them stands for; 1 if it is of all."""
        return self.gpus // graph.n_devices

    def planned_s(self, split: Split, residency: Residency) -> float:
        """Simulated makespan of the planned steps; infinite if they do not fit the memory."""
        if self.covers_all_steps:
            return self.makespan_s(DecodeChoice([*map(list, split)], residency))
        graph = self.shortened(split, residency)
        return self._simulated(graph).makespan_s if self.fits(graph) else inf

    def lane_work_s(self, split: Split, residency: Residency) -> float:
        """Lower bound on `planned_s` of one GPU: the work of the compute lane or the link, without
        waiting. Loads of weights are left out."""
        model, batches = self.model, self.workload.n_batches
        work_s = {COMPUTE: self._fixed_compute_s, H2D: 0.0}
        for past, row in zip(self.contexts, split, strict=True):
            for layer, count in enumerate(row):
                if not model.splits(layer) or residency.holds_whole(layer, self.workload):
                    continue
                kv, x = residency.kv_tokens[layer], residency.x_tokens[layer]
                attended = model.layer_context(layer, past)
                for op, tokens in sized_tokens(attended, kv, x, count).items():
                    work_s[LANE_OF_OP[op]] += batches * self.lines.seconds(op, tokens, layer)
        return max(work_s.values())

    @cached_property
    def _fixed_compute_s(self) -> float:
        """Seconds of the compute tasks that every split has, over the planned steps."""
        nothing = Residency.nothing(self.model)
        graph = self.shortened([[0] * self.model.n_layers] * len(self.contexts), nothing)
        return sum(
            self.costs.estimate(task).seconds
            for task in graph.tasks
            if task.lane == COMPUTE and task.op not in SIZED_OPS
        )

    def choice_of(self, policy: str) -> DecodeChoice:
        """The choice of a policy that needs no search; the same for all in unified memory."""
        if self.hardware.memory.unified:
            policy = "resident"
        split = baseline_split(policy, self.model, self.workload, self.hardware)
        residency = self.least_resident
        if policy == "resident" and not any(residency.kv_tokens):
            residency = Residency.whole_cache(self.model, self.workload)
        return DecodeChoice(split, residency)

    def makespan_s(self, choice: DecodeChoice) -> float:
        """Simulated makespan; infinite if the choice does not fit the memory."""
        fits = self.fits(self.graph_of(choice))
        return self.timeline(choice).makespan_s if fits else inf

    def shortened(
        self, split: Split, residency: Residency, contexts: Sequence[int] | None = None
    ) -> TaskGraph:
        """The graph of the planned steps on one GPU, or of steps with other `contexts`."""
        past = tuple(self.contexts if contexts is None else contexts)
        key = (tuple(map(tuple, split)), residency, past)
        if key not in self._graphs:
            made = lower(self.schedule, self.model, self.workload, split, past, residency)
            self._graphs[key] = made
        return self._graphs[key]

    def longest_path_s(self, graph: TaskGraph) -> float:
        """The LP's value at the graph's own token counts."""
        durations = [self.costs.estimate(task).seconds for task in graph.tasks]
        launched, pauses = launch_times(graph, self.costs), self.hardware.dispatch
        timeline = earliest_schedule(graph, durations, launched, pauses.gap_s, pauses.handover_s)
        return timeline.makespan_s

    # Memory

    def budget(self, residency: Residency) -> MemoryBudget:
        """Memory left after resident data, if nothing else is recomputed."""
        memory = self.hardware.memory
        memory = replace(memory, host_bytes=memory.host_bytes / self.gpus)
        key = residency, memory
        if key not in self._budgets:
            graph = self.shortened([residency.x_tokens], residency, self.contexts[:1])
            self._budgets[key] = MemoryBudget.left_by(graph, memory)
        return self._budgets[key]

    @cached_property
    def everything_fits(self) -> bool:
        """Whether memory holds the whole cache and the largest load of X."""
        budget, moved = self.budget(self.least_resident), self.schedule == "column"
        limited = budget.limits_host(self.model, self.workload, self.model.n_layers * moved)
        return not limited and budget.max_staged_tokens >= self.workload.max_tokens

    def fits(self, graph: TaskGraph) -> bool:
        """Whether the machine has the memory of a graph of this job, of one or of all GPUs."""
        usual = self.everything_fits and not self.keep and not self.all_resident
        return usual or self.holds(graph)

    def holds(self, graph: TaskGraph) -> bool:
        """Whether memory holds a graph, of one or of all GPUs, by its own footprint."""
        need, memory = footprint(graph), self.hardware.memory
        host_bytes = need.host_bytes * self.alike(graph)
        return need.device_bytes <= memory.job_device_bytes and host_bytes <= memory.host_bytes

    def check_fits(self, graph: TaskGraph) -> Footprint:
        """The memory footprint of a graph that fits the machine.

        Raises:
            DoesNotFit: the graph needs more memory; the message names what to change.
        """
        memory = self.hardware.memory
        if memory.unified:
            name, free_bytes = self.hardware.name, memory.job_device_bytes
            check_weights(self.model, free_bytes, name, unified=True)
        return check_fits(
            graph,
            memory.device_bytes,
            memory.host_bytes,
            self.hardware.name,
            reserve_bytes=memory.device_reserve_bytes,
        )

    # Linear programs over the planned steps

    @cached_property
    def residency_at_start(self) -> Residency:
        """Resident data before tokens are chosen.

        The whole cache and all weights if they fit, else resident weights of some layers.
        """
        if not self.keep:
            return self.least_resident
        weights, everything = self.least_resident, self._everything
        if self.schedule == "column":
            weights = replace(weights, weight_layers=everything.weight_layers)
            if self.budget(weights).free_bytes < 0:
                weights = self._some_weights()
        return everything if self.budget(everything).free_bytes >= 0 else weights

    @property
    def all_resident(self) -> bool:
        """Whether the whole cache is resident, so that nothing is left to choose."""
        return self.residency_at_start.kv_tokens[0] == self.workload.prompt_tokens

    def _some_weights(self) -> Residency:
        """Whole layers of resident weights, as many as a LP with parts of layers chooses or as fit
        next to staged X, the faster of both by the LP."""
        nothing, n_layers = self.least_resident, self.model.n_layers
        budget = self.budget(nothing)
        parts = self.program(nothing, weights_stay=True).solve().resident_weights
        staged_x_bytes = budget.staged_x_token_bytes * self.workload.max_tokens
        most = max(0.0, budget.free_bytes - staged_x_bytes) // budget.layer_weight_bytes
        counts = {whole_part(sum(parts.values())), int(most)}
        some = [
            replace(nothing, weight_layers=evenly_spaced(count, n_layers))
            for count in sorted(min(count, n_layers - 1) for count in counts)
        ]
        return min(some, key=lambda one: self.program(one).solve(choose=False).objective_s)

    def program(
        self,
        start: Residency | None = None,
        empty_load_waits: bool = True,
        weights_stay: bool = False,
        x_slot: int | None = None,
    ) -> ScheduleLP:
        """The LP with all counts free; with `keep` it also chooses resident K, V and X.

        Args:
            start: resident data, by default `residency_at_start`.
            empty_load_waits, weights_stay: as in `ScheduleLP`.
            x_slot: the only slot that stages X, so that it may be longer; None for all slots.
        """
        start = start or self.residency_at_start
        model, budget = self.model, self.budget(start)
        row = [int(model.splits(layer)) for layer in range(model.n_layers)]
        if start.kv_tokens[0] == self.workload.prompt_tokens:
            row = [0] * model.n_layers
        elif self.keep and self.workload.prompt_tokens >= MIN_SPLIT_PROMPT:
            some = tuple(
                int(keeps_part(model, self.workload, layer)) for layer in range(model.n_layers)
            )
            start = replace(start, kv_tokens=some, x_tokens=some)
            row = [count + one for count, one in zip(row, some, strict=True)]
        graph = self.shortened([self._at_most(row, past) for past in self.contexts], start)
        if x_slot is not None:
            one_slot_bytes = self.workload.batch_size * self.model.x_token_bytes
            budget = replace(budget, staged_x_token_bytes=one_slot_bytes)
        found = _schedule_lp()(
            graph, self.contexts, self.costs, self.lines, budget, empty_load_waits, weights_stay
        )
        for task in graph.tasks if x_slot is not None else ():
            if task.op == "load_x" and task.slot != x_slot:
                found.tokens[task.step, task.layer].upBound = 0
        return found

    def _at_most(self, row: list[int], past: int) -> list[int]:
        """Counts of each layer, of no more rows than it reads."""
        read = [self.model.layer_context(layer, past) for layer in range(self.model.n_layers)]
        return [min(pair) for pair in zip(row, read, strict=True)]

    def program_of(self, graph: TaskGraph) -> ScheduleLP:
        """The LP of a graph with all counts fixed."""
        return _schedule_lp()(graph, self.contexts, self.costs)

    def program_of_choice(self, choice: DecodeChoice) -> ScheduleLP:
        """The LP over the planned steps with all counts fixed."""
        planned = [choice.split[step] for step in self.planned_steps]
        return self.program_of(self.shortened(planned, choice.residency))


def _schedule_lp() -> type[ScheduleLP]:
    """The class of LPs, imported with the first one: it loads PuLP, HiGHS and numpy.

    A restore needs none of them, and they take 0.3 s.
    """
    from planner.lp.schedule import ScheduleLP

    return ScheduleLP
