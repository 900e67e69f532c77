"""One decode job on one machine: its LP, its splits, its simulations and its bound."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from planner.lower import SCHEDULES, lower, replicate
from planner.lp import SIZED_OPS, CostLines, Relaxation, ScheduleLP, lane_work_bound
from planner.policies import BASELINES, baseline_split
from planner.rounding import between_steps, planned_steps, whole_tokens
from sim.cost import CostModel
from sim.engine import issue_times, simulate
from sim.errors import BadInput, UnknownName
from sim.graph import COMPUTE, D2H, H2D, TaskGraph
from sim.hardware import HardwareProfile
from sim.memory import check_fits
from sim.model_spec import ModelSpec
from sim.resources import streaming_share
from sim.timeline import Timeline, earliest_schedule
from sim.workload import Workload

GAP_WORTH_POLISHING = 1e-3
"""Relative distance between simulated makespan and lower bound below which search stops."""


def check_workload(model: ModelSpec, workload: Workload) -> None:
    """Refuse contexts the model has no positions for, or that its window would cut."""
    if workload.max_tokens > model.max_positions:
        raise BadInput(
            f"prompt_tokens + gen_tokens (={workload.max_tokens}) must be at most the "
            f"{model.max_positions} positions of {model.name}; lower --prompt or --gen."
        )
    if model.sliding_window is not None and workload.max_tokens > model.sliding_window:
        raise BadInput(
            f"prompt_tokens + gen_tokens (={workload.max_tokens}) exceeds the sliding window of "
            f"{model.sliding_window} tokens of {model.name}, which is not modelled; lower --prompt."
        )


class DecodePlanner:
    """Splits, lowers and prices one decode job.

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
    ) -> None:
        if schedule not in SCHEDULES:
            raise UnknownName("schedule", schedule, SCHEDULES)
        if gpus < 1:
            raise BadInput(f"gpus(={gpus}) must be at least 1.")
        self.gpus = gpus
        check_workload(model, workload)
        self.schedule = schedule
        self.model = model
        self.hardware = hardware
        self.workload = workload
        # The LP knows one GPU; its links are as fast as when all GPUs copy at once.
        streaming = hardware
        for lane in (H2D, D2H):
            share = streaming_share(hardware, lane, gpus)
            if share < 1.0:
                streaming = streaming.with_faster(lane, share)
        self.costs = CostModel(streaming, model, workload)
        self.lines = CostLines(self.costs, workload.max_tokens)
        self.planned_steps = planned_steps(workload.gen_tokens, model.n_layers * workload.n_batches)
        self._contexts = [workload.context_tokens(step) for step in self.planned_steps]
        self._timelines: dict[tuple[tuple[int, ...], ...], Timeline] = {}

    @property
    def sees_all(self) -> bool:
        """Whether the LP plans every step of the job."""
        return len(self.planned_steps) == self.workload.gen_tokens

    @cached_property
    def relaxation(self) -> Relaxation:
        """Optimum of the LP over the planned steps."""
        return self.program().solve()

    def lower_bound_s(self) -> float:
        """Makespan that no split can beat: the LP's if it saw every step, else by lane work."""
        if self.gpus > 1:
            return self._alone.lower_bound_s()
        if self.sees_all:
            return self.relaxation.objective_s
        contexts = [self.workload.context_tokens(t) for t in range(self.workload.gen_tokens)]
        graph = self.lower([[0] * self.model.n_layers] * len(contexts))
        fixed_s = {COMPUTE: 0.0, H2D: 0.0}
        for task in graph.tasks:
            if task.lane in fixed_s and task.op not in SIZED_OPS:
                fixed_s[task.lane] += self.costs.estimate(task).seconds
        cells = self.model.n_layers * self.workload.n_batches
        return lane_work_bound(self.lines, contexts, cells, fixed_s[COMPUTE], fixed_s[H2D])

    @cached_property
    def best_split(self) -> list[list[int]]:
        """The LP's split in whole tokens, or a better one found by simulation.

        The LP leaves out interference between lanes and bends of the cost curves that are not
        convex. Where that costs more than a thousandth, whole-job shifts are tried in the
        simulator; and a baseline that is no slower is taken instead.
        """
        n_layers = self.model.n_layers
        rows = [
            [self.relaxation.tokens[step, layer] for layer in range(n_layers)]
            for step in range(len(self._contexts))
        ]
        bound = self._alone.relaxation.objective_s

        def makespan(shift: int) -> float:
            graph = self._shortened(whole_tokens(rows, self._contexts, shift))
            return simulate(replicate(graph, self.gpus), self.hardware).makespan_s

        best, best_s = 0, makespan(0)
        stride = max(1, self.workload.max_tokens // 8)
        while stride and best_s > bound * (1 + GAP_WORTH_POLISHING):
            trials = {best + sign * stride: makespan(best + sign * stride) for sign in (-1, 1)}
            nearest = min(trials, key=trials.__getitem__)
            if trials[nearest] < best_s:
                best, best_s = nearest, trials[nearest]
            else:
                stride //= 2
        split = between_steps(
            whole_tokens(rows, self._contexts, best), self.planned_steps, self.workload
        )
        baseline, baseline_s = min(self.baselines.values(), key=lambda entry: entry[1])
        return split if self.simulate(split).makespan_s < baseline_s else baseline

    @cached_property
    def baselines(self) -> dict[str, tuple[list[list[int]], float]]:
        """Split and simulated makespan of each baseline policy."""
        splits = {
            name: baseline_split(name, self.model, self.workload, self.hardware)
            for name in BASELINES
        }
        return {name: (split, self.simulate(split).makespan_s) for name, split in splits.items()}

    def lower(self, split: Sequence[Sequence[int]]) -> TaskGraph:
        return self.simulate(split).graph

    def simulate(self, split: Sequence[Sequence[int]]) -> Timeline:
        """The whole job under `split`; the same split is lowered and simulated once."""
        key = tuple(map(tuple, split))
        if key not in self._timelines:
            graph = lower(self.schedule, self.model, self.workload, split)
            self._timelines[key] = simulate(replicate(graph, self.gpus), self.hardware)
        return self._timelines[key]

    def program(self, split: Sequence[Sequence[int]] | None = None) -> ScheduleLP:
        """The LP over the planned steps, with the counts of `split` given or all of them free."""
        if split is not None:
            return self.fixed_program(self._shortened([split[step] for step in self.planned_steps]))
        graph = self._shortened([[1] * self.model.n_layers for _ in self._contexts])
        durations = [self.costs.estimate(task).seconds for task in graph.tasks]
        issued = issue_times(graph, self.costs, free_ops=SIZED_OPS)
        pauses = self.hardware.dispatch
        return ScheduleLP(graph, self._contexts, self.lines, durations, issued, pauses)

    def fixed_program(self, graph: TaskGraph) -> ScheduleLP:
        """The LP of a graph in which nothing is to be chosen."""
        durations = [self.costs.estimate(task).seconds for task in graph.tasks]
        issued, pauses = issue_times(graph, self.costs), self.hardware.dispatch
        return ScheduleLP(graph, self._contexts, None, durations, issued, pauses)

    def longest_path_s(self, graph: TaskGraph) -> float:
        """The LP's value at the graph's own token counts."""
        durations = [self.costs.estimate(task).seconds for task in graph.tasks]
        issued, pauses = issue_times(graph, self.costs), self.hardware.dispatch
        timeline = earliest_schedule(graph, durations, issued, pauses.gap_s, pauses.handover_s)
        return timeline.makespan_s

    def check_fits(self, graph: TaskGraph) -> None:
        """Refuse a graph that the machine has no memory for.

        Raises:
            DoesNotFit: names what to change.
        """
        memory = self.hardware.memory
        check_fits(graph, memory.device_bytes, memory.host_bytes, self.hardware.name)

    def on(self, hardware: HardwareProfile) -> DecodePlanner:
        """The same job on another machine."""
        return DecodePlanner(self.model, hardware, self.workload, self.schedule, self.gpus)

    @cached_property
    def _alone(self) -> DecodePlanner:
        """The same job on one GPU whose neighbours are still."""
        if self.gpus == 1:
            return self
        return DecodePlanner(self.model, self.hardware, self.workload, self.schedule)

    def _shortened(self, split: Sequence[Sequence[int]]) -> TaskGraph:
        return lower(self.schedule, self.model, self.workload, split, self._contexts)
