"""Make a plan: split by policy, lower, simulate, bound, explain."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from math import floor

from planner.lower import SCHEDULES, lower, replicate
from planner.lp import SIZED_OPS, CostLines, Relaxation, ScheduleLP, lane_work_bound
from planner.plan import Plan, Sensitivity, step_splits
from planner.policies import BASELINES, baseline_split, fixed_tokens
from planner.rivals import RIVALS, rival_graph
from sim.cost import CostModel
from sim.engine import issue_times, simulate
from sim.errors import BadInput, DoesNotFit, UnknownName
from sim.graph import COMPUTE, D2H, H2D, TaskGraph
from sim.hardware import HardwareProfile, weakest
from sim.memory import check_fits
from sim.model_spec import ModelSpec
from sim.resources import streaming_share
from sim.timeline import Timeline, earliest_schedule
from sim.workload import Workload

MAX_LP_STEPS = 5
"""A longer job is planned at this many steps, and in between by straight lines."""

MAX_LP_CELLS = 400
"""Cells (layers of a batch in a step) in one LP; beyond, only the first and last step are in it."""

LEAST_SAVING_FRAC = 5e-4
"""Where no part saves more, two in series hold the schedule up, such as a link and its switch."""

GAP_WORTH_POLISHING = 1e-3
"""Relative distance between simulated makespan and lower bound below which search stops."""

PARTS = {
    "h2d": ("h2d link", "bandwidth"),
    "d2h": ("d2h link", "bandwidth"),
    "flops": ("compute", "FLOP/s"),
    "hbm": ("device memory", "HBM bandwidth"),
    "uplink": ("shared uplink", "bandwidth"),
}
"""Parts of a machine that could be faster, and how to speak of them; uplinks where some share."""

MORE, NUDGE = 0.1, 1e-3
"""How much faster a part is imagined, and the step over which derivatives are taken."""


def make_plan(
    model: ModelSpec,
    hardware: HardwareProfile,
    workload: Workload,
    policy: str = "lp",
    schedule: str = "row",
    gpus: int = 1,
) -> Plan:
    """Plan a decode job and simulate it.

    Args:
        gpus: identical jobs, one to a GPU, that share the machine's uplinks.

    Raises:
        BadInput: unknown policy or schedule, or a workload the model cannot take.
        DoesNotFit: weights, staging slots or the host cache exceed the profile's memory.
        PlannerFailed: the LP has no optimum.
    """
    fixed_tokens(policy)
    planner = DecodePlanner(model, hardware, workload, schedule, gpus)
    if policy == "lp":
        return planner.plan(policy, planner.best_split)
    return planner.plan(policy, baseline_split(policy, model, workload, hardware))


def choose_schedule(
    model: ModelSpec,
    hardware: HardwareProfile,
    workload: Workload,
    policy: str = "lp",
    gpus: int = 1,
) -> tuple[Plan, str]:
    """The plan of the schedule that makes more tokens a second, and why, in one sentence.

    A row schedule decodes the batches one after another, each as long as one alone. Where only one
    schedule fits the memory, it is taken.

    Raises:
        DoesNotFit: neither fits.
    """
    one_batch = replace(workload, n_batches=1)
    plans: dict[str, Plan] = {}
    refused: dict[str, DoesNotFit] = {}
    for schedule, job in (("row", one_batch), ("column", workload)):
        try:
            plans[schedule] = make_plan(model, hardware, job, policy, schedule, gpus)
        except DoesNotFit as error:
            refused[schedule] = error
    if not plans:
        raise refused["column"]
    if refused:
        (left,), (gone,) = plans, refused
        return plans[left], f"{left} schedule: {gone} does not fit: {refused[gone]}"
    best = max(plans, key=lambda schedule: plans[schedule].tokens_per_s)
    rates = {schedule: f"{plan.tokens_per_s:,.1f} tokens/s" for schedule, plan in plans.items()}
    return plans[best], (
        f"{best} schedule: row makes {rates['row']} (batch after batch, weights resident), column "
        f"{rates['column']} ({workload.n_batches} batches to each loaded layer)."
    )


def plan_split(
    model: ModelSpec,
    hardware: HardwareProfile,
    workload: Workload,
    split: Sequence[Sequence[int]],
    schedule: str = "row",
) -> Plan:
    """The plan of a split that somebody chose by hand, with policy name `edited`.

    Raises:
        BadInput, DoesNotFit, PlannerFailed: as `make_plan`.
    """
    return DecodePlanner(model, hardware, workload, schedule).plan("edited", split)


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
        self.planned_steps = _planned_steps(
            workload.gen_tokens, model.n_layers * workload.n_batches
        )
        self._contexts = [workload.context_tokens(step) for step in self.planned_steps]
        self._timelines: dict[tuple[tuple[int, ...], ...], Timeline] = {}

    def plan(self, policy: str, split: Sequence[Sequence[int]]) -> Plan:
        """The plan of `split`, with its prediction beside the bound and every policy's."""
        rival = policy in RIVALS
        if rival and self.schedule != "row":
            raise BadInput(f"policy {policy!r} has a schedule of its own; leave --schedule at row.")
        timeline = self.simulate_rival(policy) if rival else self.simulate(split)
        graph = timeline.graph
        self._check_fits(graph)
        program = self.rival_program(policy) if rival else None
        worth = self.sensitivities(None if policy == "lp" else split, program)
        best = timeline if policy == "lp" else self.simulate(self.best_split)
        fixed = None if rival or not self._sees_all else self._at_counts(split)
        estimates = [self.costs.estimate(task) for task in graph.tasks]
        return Plan(
            policy=policy,
            schedule=self.schedule,
            model=self.model,
            hardware=self.hardware,
            workload=self.workload,
            steps=step_splits(self.workload, split, resident=policy == "resident"),
            makespan_s=timeline.makespan_s,
            lp_objective_s=fixed.objective_s if fixed else self.longest_path_s(graph),
            lower_bound_s=self.lower_bound_s(),
            baselines={name: s for name, (_, s) in self.baselines.items()}
            | {"lp": best.makespan_s}
            | self.rivals,
            sensitivities=worth,
            bottleneck=bottleneck(worth),
            source=weakest(*(estimate.source for estimate in estimates)),
            out_of_range_tasks=sum(not estimate.in_range for estimate in estimates),
            graph_sha256=graph.sha256,
            gpus=self.gpus,
        )

    @property
    def _sees_all(self) -> bool:
        """Whether the LP plans every step of the job."""
        return len(self.planned_steps) == self.workload.gen_tokens

    @cached_property
    def baselines(self) -> dict[str, tuple[list[list[int]], float]]:
        """Split and simulated makespan of each baseline policy."""
        splits = {
            name: baseline_split(name, self.model, self.workload, self.hardware)
            for name in BASELINES
        }
        return {name: (split, self.simulate(split).makespan_s) for name, split in splits.items()}

    @cached_property
    def rivals(self) -> dict[str, float]:
        """Simulated makespan of each rival that fits; of a long job none, they take their time."""
        cells = self.workload.gen_tokens * self.model.n_layers
        if self.schedule != "row" or cells > MAX_LP_CELLS:
            return {}
        found = {}
        for policy in RIVALS:
            with suppress(DoesNotFit):
                timeline = self.simulate_rival(policy)
                self._check_fits(timeline.graph)
                found[policy] = timeline.makespan_s
        return found

    def simulate_rival(self, policy: str) -> Timeline:
        """The whole job as a rival runs it."""
        graph = rival_graph(policy, self.model, self.workload)
        return simulate(replicate(graph, self.gpus), self.hardware)

    def rival_program(self, policy: str) -> ScheduleLP:
        """The LP of a rival's first two steps, in which nothing is to be chosen."""
        steps = min(2, self.workload.gen_tokens)
        return self._fixed(
            rival_graph(policy, self.model, replace(self.workload, gen_tokens=steps))
        )

    def _fixed(self, graph: TaskGraph) -> ScheduleLP:
        durations = [self.costs.estimate(task).seconds for task in graph.tasks]
        issued, pauses = issue_times(graph, self.costs), self.hardware.dispatch
        return ScheduleLP(graph, self._contexts, None, durations, issued, pauses)

    def _check_fits(self, graph: TaskGraph) -> None:
        memory = self.hardware.memory
        check_fits(graph, memory.device_bytes, memory.host_bytes, self.hardware.name)

    def program(self, split: Sequence[Sequence[int]] | None = None) -> ScheduleLP:
        """The LP over the planned steps, with the counts of `split` given or all of them free."""
        if split is not None:
            return self._fixed(self._shortened([split[step] for step in self.planned_steps]))
        graph = self._shortened([[1] * self.model.n_layers for _ in self._contexts])
        durations = [self.costs.estimate(task).seconds for task in graph.tasks]
        issued = issue_times(graph, self.costs, free_ops=SIZED_OPS)
        pauses = self.hardware.dispatch
        return ScheduleLP(graph, self._contexts, self.lines, durations, issued, pauses)

    def _at_counts(self, split: Sequence[Sequence[int]]) -> Relaxation:
        """The LP with the counts of `split` given, over the planned steps."""
        return self.program(split).solve()

    def sensitivities(
        self, split: Sequence[Sequence[int]] | None, rival: ScheduleLP | None = None
    ) -> tuple[Sensitivity, ...]:
        """What 10 % more of each part of the machine saves, over the planned steps.

        Args:
            split: counts that stay as they are; None lets the LP choose them anew.
            rival: the LP of a rival's graph, which no split describes.
        """
        lp = rival or self.program(split)
        now = self.relaxation if split is None else lp.solve(even=False)
        seconds = lp.seconds(now.tokens, self.costs, self.lines)
        found = []
        for part in PARTS:
            if part == "uplink" and not self.hardware.uplinks:
                continue
            nudged = self._on(self.hardware.with_faster(part, 1 + NUDGE))
            later = lp.seconds(now.tokens, nudged.costs, nudged.lines)
            gained_s = sum(
                weight * (before - after)
                for weight, before, after in zip(now.task_weights, seconds, later, strict=True)
            )
            by_duals_s = gained_s / (1 - 1 / (1 + NUDGE)) * (1 - 1 / (1 + MORE))
            more = self._on(self.hardware.with_faster(part, 1 + MORE))
            again = more._fixed(rival.graph) if rival else more.program(split)
            resolved_s = now.objective_s - again.solve(even=False).objective_s
            found.append(
                Sensitivity(part, by_duals_s / now.objective_s, resolved_s / now.objective_s)
            )
        return tuple(found)

    def _on(self, hardware: HardwareProfile) -> DecodePlanner:
        """The same job on another machine."""
        return DecodePlanner(self.model, hardware, self.workload, self.schedule, self.gpus)

    @cached_property
    def _alone(self) -> DecodePlanner:
        """The same job on one GPU whose neighbours are still."""
        if self.gpus == 1:
            return self
        return DecodePlanner(self.model, self.hardware, self.workload, self.schedule)

    def lower(self, split: Sequence[Sequence[int]]) -> TaskGraph:
        return self.simulate(split).graph

    def simulate(self, split: Sequence[Sequence[int]]) -> Timeline:
        """The whole job under `split`; the same split is lowered and simulated once."""
        key = tuple(map(tuple, split))
        if key not in self._timelines:
            graph = lower(self.schedule, self.model, self.workload, split)
            self._timelines[key] = simulate(replicate(graph, self.gpus), self.hardware)
        return self._timelines[key]

    def longest_path_s(self, graph: TaskGraph) -> float:
        """The LP's value at the graph's own token counts."""
        durations = [self.costs.estimate(task).seconds for task in graph.tasks]
        issued, pauses = issue_times(graph, self.costs), self.hardware.dispatch
        timeline = earliest_schedule(graph, durations, issued, pauses.gap_s, pauses.handover_s)
        return timeline.makespan_s

    @cached_property
    def relaxation(self) -> Relaxation:
        """Optimum of the LP over the planned steps."""
        return self.program().solve()

    def lower_bound_s(self) -> float:
        """Makespan that no split can beat: the LP's if it saw every step, else by lane work."""
        if self.gpus > 1:
            return self._alone.lower_bound_s()
        if self._sees_all:
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
            graph = self._shortened(self._whole(rows, shift))
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
        split = self._all_steps(self._whole(rows, best))
        baseline, baseline_s = min(self.baselines.values(), key=lambda entry: entry[1])
        return split if self.simulate(split).makespan_s < baseline_s else baseline

    def _shortened(self, split: Sequence[Sequence[int]]) -> TaskGraph:
        return lower(self.schedule, self.model, self.workload, split, self._contexts)

    def _whole(self, rows: list[list[float]], shift: int) -> list[list[int]]:
        """Rows in whole tokens, moved by `shift`, rounding so that each row keeps its sum.

        A layer that recomputes nothing stays that way: its first token costs a launch and a copy.
        """
        whole = []
        for past, row in zip(self._contexts, rows, strict=True):
            debt = 0.0
            counts = []
            for value in row:
                moved = value + shift if value >= 0.5 else 0.0
                wanted = min(max(moved, 0.0), float(past)) + debt
                count = min(max(floor(wanted + 0.5), 0), past)
                debt = wanted - count
                counts.append(count)
            whole.append(counts)
        return whole

    def _all_steps(self, planned: list[list[int]]) -> list[list[int]]:
        """Fill the steps between planned ones along straight lines.

        Past tokens enter the LP's right-hand side linearly, so its optimum is piecewise linear in
        them.
        """
        split = [planned[0]]
        for (early, row), (late, next_row) in pairwise(
            zip(self.planned_steps, planned, strict=True)
        ):
            for step in range(early + 1, late + 1):
                weight = (step - early) / (late - early)
                past = self.workload.context_tokens(step)
                split.append(
                    [
                        min(past, round(a + (b - a) * weight))
                        for a, b in zip(row, next_row, strict=True)
                    ]
                )
        return split


def bottleneck(sensitivities: Sequence[Sensitivity]) -> str:
    """Which part of the machine holds the schedule up and what 10 % more of it saves, by duals."""
    most = max(sensitivities, key=lambda one: one.saved_by_duals_frac)
    if most.saved_by_duals_frac < LEAST_SAVING_FRAC:
        return "no single part limits: 10 % more of any one saves next to nothing"
    name, what = PARTS[most.part]
    return f"{name} limits: 10 % more {what} saves {100 * most.saved_by_duals_frac:.1f} %"


def _planned_steps(gen_tokens: int, cells: int) -> list[int]:
    """All steps of a short job; the first two, the middle and the last two of a long one.

    Args:
        cells: layers times batches of one step.
    """
    if gen_tokens > 1 and min(gen_tokens, MAX_LP_STEPS) * cells > MAX_LP_CELLS:
        return [0, gen_tokens - 1]
    if gen_tokens <= MAX_LP_STEPS:
        return list(range(gen_tokens))
    return [0, 1, gen_tokens // 2, gen_tokens - 2, gen_tokens - 1]
