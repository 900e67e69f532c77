"""Planner of one decode job on one machine: LP, splits, simulations and lower bound."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import floor, inf

from planner.decode.lower import SCHEDULES, lower, replicate
from planner.decode.policies import BASELINES, baseline_split
from planner.decode.rounding import Limits, between_steps, planned_steps, whole_tokens
from planner.decode.split import Residency, evenly_spaced, slides
from planner.lp.costs import SIZED_OPS, PiecewiseLinearCosts
from planner.lp.lane_bound import lane_work_bound
from planner.lp.memory import MemoryBudget, check_any_fits
from planner.lp.schedule import Relaxation, ScheduleLP
from sim.cost.model import CostModel
from sim.engine.api import simulate
from sim.engine.launch import launch_times
from sim.engine.sharing import representative_machine, streaming_share
from sim.errors import BadInput, DoesNotFit, Infeasible, UnknownName
from sim.graph.jobs import Workload
from sim.graph.memory import Footprint, check_fits, footprint
from sim.graph.tasks import TaskGraph
from sim.graph.timeline import Timeline, earliest_schedule
from sim.lanes import COMPUTE, D2H, H2D
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec

MIN_KEPT_PROMPT = 5
"""Shorter prompts stay resident as a whole or not at all."""

GAP_WORTH_POLISHING = 1e-3
"""Relative distance between simulated makespan and lower bound below which search stops."""


def check_workload(model: ModelSpec, workload: Workload) -> None:
    """Refuse contexts that the model has no positions for."""
    if workload.max_tokens > model.max_positions:
        raise BadInput(
            f"prompt_tokens + gen_tokens (={workload.max_tokens}) must be at most the "
            f"{model.max_positions} positions of {model.name}; lower --prompt or --gen."
        )
    if model.mla is not None and workload.kv_bits is not None:
        raise BadInput(
            f"kv_bits(={workload.kv_bits}): the latent cache of {model.name} is not modelled "
            "quantised; leave it out."
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """Recomputed tokens of every step and layer, and resident data; the rest is loaded."""

    split: list[list[int]]
    residency: Residency


class DecodePlanner:
    """Finds the best split of one decode job.

    Args:
        gpus: identical jobs, one to a GPU, that share uplinks.
        keep: whether the LP may keep K, V, X and weights resident in device memory.
        engine: which one simulates, as in `sim.simulate`.

    Raises:
        BadInput: the model has too few positions for the workload.
        UnknownName: no such schedule.
    """

    def __init__(
        self,
        model: ModelSpec,
        hardware: HardwareProfile,
        workload: Workload,
        schedule: str = "row",
        gpus: int = 1,
        keep: bool = False,
        engine: str = "simpy",
    ) -> None:
        if schedule not in SCHEDULES:
            raise UnknownName("schedule", schedule, SCHEDULES)
        if gpus < 1:
            raise BadInput(f"gpus(={gpus}) must be at least 1.")
        if schedule == "column" and model.moe is not None:
            raise BadInput(
                f"{model.name} has experts, whose weights the column schedule cannot bring one "
                "layer at a time; use --schedule row."
            )
        self.gpus = gpus
        self.keep = keep
        self.engine = engine
        check_workload(model, workload)
        self.schedule = schedule
        self.model = model
        self.hardware = hardware
        self.workload = workload
        self.costs = self.costs_on(hardware)
        self.lines = PiecewiseLinearCosts(self.costs, workload.max_tokens)
        self.planned_steps = planned_steps(workload.gen_tokens, model.n_layers * workload.n_batches)
        self._contexts = [workload.context_tokens(step) for step in self.planned_steps]
        self.nothing_kept = Residency.nothing(model)
        self._timelines: dict[tuple[tuple[tuple[int, ...], ...], Residency], Timeline] = {}

    def costs_on(self, hardware: HardwareProfile) -> CostModel:
        """Task costs for the LP on a machine.

        The LP models one GPU. Its links have the rate of all GPUs copying at once.
        """
        streaming = hardware
        for lane in (H2D, D2H):
            share = streaming_share(hardware, lane, self.gpus)
            if share < 1.0:
                streaming = streaming.with_faster(lane, share)
        return CostModel(streaming, self.model, self.workload)

    @property
    def covers_all_steps(self) -> bool:
        """Whether the LP plans every step of the job."""
        return len(self.planned_steps) == self.workload.gen_tokens

    @cached_property
    def relaxation(self) -> Relaxation:
        """Optimum of the LP over the planned steps.

        Raises:
            DoesNotFit: no split fits the memory.
        """
        past = self._contexts[0]
        attended = [self.model.layer_context(at, past) for at in range(self.model.n_layers)]
        rows = ([0] * self.model.n_layers, attended)
        ends = [lower(self.schedule, self.model, self.workload, [row], [past]) for row in rows]
        loaded, recomputed = (replicate(graph, self.gpus) for graph in ends)
        check_any_fits(loaded, recomputed, self.hardware)
        try:
            return self.program().solve()
        except Infeasible:  # only memory can be in the way of a schedule
            raise DoesNotFit(
                f"{self.model.name} has no split for which {self.hardware.name} has both host and "
                "device memory: the host holds less the more is recomputed, the device stages "
                "more; lower --batch or --prompt."
            ) from None

    def lower_bound_s(self) -> float:
        """Lower bound on the makespan: the LP's if it covers every step, else by lane work."""
        if self.gpus > 1:
            return self._alone.lower_bound_s()
        if self.covers_all_steps and not self.keep:
            if self.schedule == "row":
                return self.relaxation.objective_s
            return self.program(empty_load_waits=False).solve(choose=False).objective_s
        if self._keeps_everything:
            return self._makespan_s(self.best)
        pasts = [self.workload.context_tokens(t) for t in range(self.workload.gen_tokens)]
        graph = self.lower([[0] * self.model.n_layers] * len(pasts))
        courses = Counter(
            tuple(self.model.layer_context(layer, past) for past in pasts)
            for layer in range(self.model.n_layers)
        )
        fixed_s = {COMPUTE: 0.0, H2D: 0.0}
        for task in graph.tasks:
            if task.lane in fixed_s and task.op not in SIZED_OPS:
                fixed_s[task.lane] += self.costs.estimate(task).seconds
        return lane_work_bound(
            self.lines,
            courses,
            fixed_s[COMPUTE],
            fixed_s[H2D],
            self.workload.n_batches,
            max_budget(self) if self.keep else None,
        )

    @cached_property
    def best(self) -> Choice:
        """The fastest choice in simulation: the LP's in whole tokens, a baseline, or one without
        resident data."""
        choices = [self._refined]
        if self.keep:
            choices.append(self._like(self.hardware, self.gpus, keep=False)._refined)
        choices += [Choice(split, self.nothing_kept) for split, _ in self.baselines.values()]
        return min(choices, key=self._makespan_s)

    def _makespan_s(self, choice: Choice) -> float:
        """Simulated makespan; infinite if the choice does not fit the memory."""
        timeline = self.simulate(choice.split, choice.residency)
        return timeline.makespan_s if self._fits(timeline.graph) else inf

    @cached_property
    def _start(self) -> Residency:
        """Resident data before tokens are chosen."""
        return kept_from_start(self) if self.keep else self.nothing_kept

    @property
    def _keeps_everything(self) -> bool:
        return self._start.kv_tokens[0] == self.workload.prompt_tokens

    def budget(self, kept: Residency) -> MemoryBudget:
        """Device memory left after resident data `kept`, if nothing is recomputed."""
        split = [[0] * self.model.n_layers]
        graph = lower(self.schedule, self.model, self.workload, split, self._contexts[:1], kept)
        memory = self.hardware.memory
        return MemoryBudget.beside(graph, replace(memory, host_bytes=memory.host_bytes / self.gpus))

    @cached_property
    def _refined(self) -> Choice:
        """The LP's counts in whole tokens.

        The LP leaves out interference between lanes and bends of the cost curves that are not
        convex. Where that costs more than a thousandth, whole-job shifts are tried in the
        simulator.
        """
        if self._keeps_everything:
            return Choice([[0] * self.model.n_layers] * self.workload.gen_tokens, self._start)
        relaxed, bound_s = self.relaxation, self._alone.relaxation.objective_s
        rows = [
            [relaxed.tokens.get((step, layer), 0.0) for layer in range(self.model.n_layers)]
            for step in range(len(self._contexts))
        ]
        kept = self._whole_kept(relaxed)
        limits = [self._limits(past, kept) for past in self._contexts]

        def makespan(shift: int) -> float:
            return self._planned_makespan_s(whole_tokens(rows, limits, shift), kept)

        best, best_s = 0, makespan(0)
        stride = max(1, self.workload.max_tokens // 8)
        while stride and best_s > bound_s * (1 + GAP_WORTH_POLISHING):
            trials = {best + sign * stride: makespan(best + sign * stride) for sign in (-1, 1)}
            nearest = min(trials, key=trials.__getitem__)
            if trials[nearest] < best_s:
                best, best_s = nearest, trials[nearest]
            else:
                stride //= 2
        split = between_steps(
            whole_tokens(rows, limits, best),
            self.planned_steps,
            lambda step: self._limits(self.workload.context_tokens(step), kept),
        )
        return Choice(split, kept)

    def _planned_makespan_s(self, split: Sequence[Sequence[int]], kept: Residency) -> float:
        """Simulated makespan of the planned steps; infinite if they do not fit the memory."""
        graph, seen = self._shortened(split, kept), representative_machine(self.hardware, self.gpus)
        together = replicate(graph, self.gpus)
        if not self._fits(together):
            return inf
        if seen is not None:
            return simulate(graph, seen, self.engine).makespan_s
        return simulate(together, self.hardware, self.engine).makespan_s

    def _whole_kept(self, relaxed: Relaxation) -> Residency:
        """The LP's resident data in whole tokens, rounded down; X only of recomputed tokens."""
        prompt = self.workload.prompt_tokens
        kv = list(self._start.kv_tokens)
        for layer, value in relaxed.kept_kv.items():
            kv[layer] = min(_whole(value), prompt - 1)
        x = [0] * self.model.n_layers
        for layer, value in relaxed.kept_x.items():
            x[layer] = min(_whole(value), prompt - kv[layer])
        return replace(self._start, kv_tokens=tuple(kv), x_tokens=tuple(x))

    def _limits(self, past: int, kept: Residency) -> list[Limits]:
        limits = []
        for layer, (kv, x) in enumerate(zip(kept.kv_tokens, kept.x_tokens, strict=True)):
            whole = kept.keeps_whole(layer, self.workload)
            limits.append(Limits(x, 0 if whole else self.model.layer_context(layer, past) - kv))
        return limits

    @cached_property
    def baselines(self) -> dict[str, tuple[list[list[int]], float]]:
        """Split and simulated makespan of each baseline policy."""
        splits = {
            name: baseline_split(name, self.model, self.workload, self.hardware)
            for name in BASELINES
        }
        return {name: (split, self.simulate(split).makespan_s) for name, split in splits.items()}

    def lower(self, split: Sequence[Sequence[int]], kept: Residency | None = None) -> TaskGraph:
        return self.simulate(split, kept).graph

    def simulate(self, split: Sequence[Sequence[int]], kept: Residency | None = None) -> Timeline:
        """The predicted timeline of the whole job; each choice is simulated once."""
        kept = kept or self.nothing_kept
        key = (tuple(map(tuple, split)), kept)
        if key not in self._timelines:
            graph = lower(self.schedule, self.model, self.workload, split, None, kept)
            together = replicate(graph, self.gpus)
            self._timelines[key] = simulate(together, self.hardware, self.engine)
        return self._timelines[key]

    def program(self, empty_load_waits: bool = True) -> ScheduleLP:
        """The LP over the planned steps with all counts free.

        Args:
            empty_load_waits: as in `ScheduleLP`.

        If data may stay resident, the LP chooses K, V and X of each layer; whole layers of weights
        are chosen before.
        """
        return self.program_beside(self._start, empty_load_waits)

    def program_beside(
        self, start: Residency, empty_load_waits: bool = True, keep_weights: bool = False
    ) -> ScheduleLP:
        """The LP with `start` resident; `keep_weights` as in `ScheduleLP`."""
        n_layers, budget = self.model.n_layers, self.budget(start)
        row = [1] * n_layers
        if start.kv_tokens[0] == self.workload.prompt_tokens:
            row = [0] * n_layers
        elif self.keep and self.workload.prompt_tokens >= MIN_KEPT_PROMPT:
            cut = [slides(self.model, self.workload, layer) for layer in range(n_layers)]
            some = tuple(0 if one else 1 for one in cut)
            start = replace(start, kv_tokens=some, x_tokens=some)
            row = [1 + one for one in some]
        graph = self._shortened([row for _ in self._contexts], start)
        durations = [self.costs.estimate(task).seconds for task in graph.tasks]
        launched = launch_times(graph, self.costs, free_ops=SIZED_OPS)
        pauses = self.hardware.dispatch
        return ScheduleLP(
            graph,
            self._contexts,
            self.lines,
            durations,
            launched,
            pauses,
            budget,
            empty_load_waits,
            keep_weights,
        )

    def given_program(self, choice: Choice) -> ScheduleLP:
        """The LP over the planned steps with all counts fixed by `choice`."""
        split = [choice.split[step] for step in self.planned_steps]
        return self.fixed_program(self._shortened(split, choice.residency))

    def fixed_program(self, graph: TaskGraph) -> ScheduleLP:
        """The LP of a graph with all counts fixed."""
        durations = [self.costs.estimate(task).seconds for task in graph.tasks]
        launched, pauses = launch_times(graph, self.costs), self.hardware.dispatch
        return ScheduleLP(graph, self._contexts, None, durations, launched, pauses)

    def longest_path_s(self, graph: TaskGraph) -> float:
        """The LP's value at the graph's own token counts."""
        durations = [self.costs.estimate(task).seconds for task in graph.tasks]
        launched, pauses = launch_times(graph, self.costs), self.hardware.dispatch
        timeline = earliest_schedule(graph, durations, launched, pauses.gap_s, pauses.handover_s)
        return timeline.makespan_s

    @cached_property
    def _everything_fits(self) -> bool:
        """Whether memory holds the whole cache and the largest load of X."""
        budget, moved = self.budget(self.nothing_kept), self.schedule == "column"
        limited = budget.limits_host(self.model, self.workload, self.model.n_layers * moved)
        return not limited and not budget.limits_device(self.workload.max_tokens)

    def _fits(self, graph: TaskGraph) -> bool:
        if self._everything_fits and not self.keep:
            return True
        need, memory = footprint(graph), self.hardware.memory
        return need.device_bytes <= memory.job_device_bytes and need.host_bytes <= memory.host_bytes

    def check_fits(self, graph: TaskGraph) -> Footprint:
        """The memory footprint of a graph that fits the machine.

        Raises:
            DoesNotFit: the graph needs more memory; the message names what to change.
        """
        memory = self.hardware.memory
        return check_fits(
            graph,
            memory.device_bytes,
            memory.host_bytes,
            self.hardware.name,
            reserve_bytes=memory.device_reserve_bytes,
        )

    def on(self, hardware: HardwareProfile) -> DecodePlanner:
        """The same job on another machine."""
        return self._like(hardware, self.gpus, self.keep)

    @cached_property
    def _alone(self) -> DecodePlanner:
        """The same job on one GPU, with the other GPUs idle."""
        return self if self.gpus == 1 else self._like(self.hardware, 1, self.keep)

    def _like(self, hardware: HardwareProfile, gpus: int, keep: bool) -> DecodePlanner:
        return DecodePlanner(
            self.model, hardware, self.workload, self.schedule, gpus, keep, self.engine
        )

    def _shortened(self, split: Sequence[Sequence[int]], kept: Residency) -> TaskGraph:
        return lower(self.schedule, self.model, self.workload, split, self._contexts, kept)


LP_TOLERANCE = 1e-6
"""How far below a whole number the solver may return it."""


def _whole(value: float) -> int:
    """Whole part of a value of the LP, in which 511.9999999 is 512."""
    return floor(value + LP_TOLERANCE)


def kept_from_start(planner: DecodePlanner) -> Residency:
    """The whole cache and all weights if they fit, else resident weights of some layers."""
    n_layers = planner.model.n_layers
    everything = Residency.whole_cache(planner.model, planner.workload)
    weights = planner.nothing_kept
    if planner.schedule == "column":
        weights = replace(weights, weight_layers=tuple(range(n_layers)))
        everything = replace(everything, weight_layers=weights.weight_layers)
        if planner.budget(weights).free_bytes < 0:
            weights = _some_weights(planner)
    return everything if planner.budget(everything).free_bytes >= 0 else weights


def _some_weights(planner: DecodePlanner) -> Residency:
    """Whole layers of resident weights: the LP's count if parts of layers may stay, or the most
    that fit next to staged X. The better of the two by the LP."""
    budget, n_layers = planner.budget(planner.nothing_kept), planner.model.n_layers
    parts = planner.program_beside(planner.nothing_kept, keep_weights=True).solve().kept_weights
    staged_x_bytes = budget.staged_x_token_bytes * planner.workload.max_tokens
    most = max(0.0, budget.free_bytes - staged_x_bytes) // budget.layer_weight_bytes
    counts = {_whole(sum(parts.values())), int(most)}
    some = [
        replace(planner.nothing_kept, weight_layers=evenly_spaced(count, n_layers))
        for count in sorted(min(count, n_layers - 1) for count in counts)
    ]
    return min(some, key=lambda kept: planner.program_beside(kept).solve(choose=False).objective_s)


def max_budget(planner: DecodePlanner) -> MemoryBudget:
    """Upper bound on the free device memory of any plan that offloads at least one layer.

    A plan that moves the cache of one layer has one staging slot; any other has two.
    """
    last, job = planner.model.n_layers - 1, planner.workload
    but_one = replace(planner.nothing_kept, kv_tokens=(job.prompt_tokens,) * last + (0,))
    budget = planner.budget(planner.nothing_kept)
    if planner.budget(but_one).free_bytes < 0:
        return budget
    slot_bytes = job.max_tokens * budget.kv_token_bytes
    return replace(budget, free_bytes=budget.free_bytes + slot_bytes)
