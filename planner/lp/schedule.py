"""The decode schedule as a linear program whose optimum is the makespan of the graph.

Variables: the start of every task and, per step and layer, how many tokens are recomputed; if
device memory allows it, also how many tokens of each layer keep K and V, or X, on the device.
Rows: resident data fits the memory; a task starts after each of its deps and after its lane's
previous task; the time of a task whose size is being chosen is at least every line of its convex
cost hull. Where costs are straight lines the hull is the cost, and the optimum is the simulated
makespan; elsewhere the hull is below the cost and the optimum is a lower bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import highspy  # noqa: F401 - pulp takes an interrupt of this import for its absence
import pulp

from planner.lp.costs import SIZED_OPS, PiecewiseLinearCosts
from planner.lp.memory import DEVICE_ROW, Cell, MemoryBudget, MemoryRows, ResidentVariables
from planner.lp.solver import Basis, solve_to_optimum
from sim.cost.model import CostModel
from sim.engine.launch import launch_times
from sim.graph.tasks import Task, TaskGraph
from sim.machine.links import Dispatch

MAKESPAN_UNITS = 1e3
"""Times are rescaled to about this many units, far above the solver's absolute tolerances."""

_MAY_VANISH = ("load_x", "place_kv", "recompute_resident")
_VANISH_BEHIND_PAUSE = ("load_kv", "place_kv", "recompute_resident", "recompute", "dequantise")
"""No pause is guaranteed after the first and before the second."""

Key = TypeVar("Key")


@dataclass(frozen=True)
class Relaxation:
    """Optimum of the LP over fractional token counts.

    Args:
        objective_s: end of the last task.
        tokens: recomputed tokens of each (step, layer); empty where the counts were given.
        resident_kv, resident_x: tokens of each layer whose K and V, or X, stay on the device; empty
            if the LP had no such choice.
        resident_weights: part of each layer's weights that stays although the schedule moves them.
        task_weights: derivative of the makespan with respect to the seconds of each task of the
            LP's graph, from the duals: 1 on the critical path, 0 for a task with slack.
        memory_worth_s: seconds saved per further byte of device memory, from the dual of its row.
        basis: a start for the same LP on a similar machine; None if no LP was solved.
    """

    objective_s: float
    tokens: dict[Cell, float]
    resident_kv: dict[int, float]
    resident_x: dict[int, float]
    resident_weights: dict[int, float]
    task_weights: tuple[float, ...]
    memory_worth_s: float
    basis: Basis | None

    def count(self, task: Task, past: int) -> float:
        """Tokens of a sized task at the optimum."""
        kv, x = self.resident_kv.get(task.layer, 0.0), self.resident_x.get(task.layer, 0.0)
        recomputed = self.tokens[task.step, task.layer]
        return {
            "load_x": recomputed - x,
            "load_kv": past - kv - recomputed,
            "dequantise": past - kv - recomputed,
            "place_kv": kv,
            "recompute_resident": x,
            "recompute": recomputed - x,
        }[task.op]


class ScheduleLP:
    """The LP of one row-schedule graph.

    Args:
        graph: a lowering in which every sized task exists; its counts are ignored unless `lines`
            is None.
        contexts: past tokens of each step.
        costs: time of every task that is not sized, launches and pauses.
        lines: cost hulls of the sized operations, which are launched at no cost; None keeps the
            graph's own counts, so that the LP only schedules.
        budget: memory that the choices must fit; None if every choice fits.
        weights_stay: whether weights may stay on the device, part of a layer's as well.
        empty_load_waits: whether a load of 0 tokens still waits for its slot, and so delays what is
            behind it: the weights in the column schedule, the next layer's longer load where
            layers read different numbers of rows. False gives a bound for every split.
    """

    def __init__(
        self,
        graph: TaskGraph,
        contexts: Sequence[int],
        costs: CostModel,
        lines: PiecewiseLinearCosts | None = None,
        budget: MemoryBudget | None = None,
        empty_load_waits: bool = True,
        weights_stay: bool = False,
    ) -> None:
        self.graph = graph
        self._empty_load_waits = empty_load_waits
        self._sized = SIZED_OPS if lines is not None else ()
        self._dispatch = costs.hardware.dispatch
        self._contexts = {
            (step, layer): graph.model.layer_context(layer, past)
            for step, past in enumerate(contexts)
            for layer in range(graph.model.n_layers)
        }
        self._fixed_s = [costs.estimate(task).seconds for task in graph.tasks]
        self._unit_s = max(sum(self._fixed_s), 1e-12) / MAKESPAN_UNITS
        launched_s = launch_times(graph, costs, free_ops=self._sized)
        self.problem = pulp.LpProblem("decode", pulp.LpMinimize)
        self._timed: dict[str, int] = {}
        add = self.problem.add_variable
        sized = {(task.step, task.layer): task for task in graph.tasks if task.op in self._sized}
        self.tokens = {
            (step, layer): add(
                f"recomputed_s{step}_L{layer}",
                0,
                self._contexts[step, layer] if graph.model.splits(layer) else 0,
            )
            for step, layer in sized
        }
        self._budget = budget
        placed = {task.layer: None for task in graph.tasks if task.op == "place_kv"}
        moved = {task.layer: None for task in graph.tasks if task.op == "load_weights"}
        layers = placed if budget is not None else {}
        prompt = graph.workload.prompt_tokens
        self.resident = ResidentVariables(
            {layer: add(f"kept_kv_L{layer}", 0, prompt) for layer in layers},
            {layer: add(f"kept_x_L{layer}", 0, prompt) for layer in layers},
            {layer: add(f"kept_weights_L{layer}", 0, 1) for layer in moved if weights_stay},
        )
        self._start = [
            add(f"start_{_name(task)}", ready / self._unit_s)
            for task, ready in zip(graph.tasks, launched_s, strict=True)
        ]
        self._duration = {
            at: add(f"time_{_name(task)}", 0)
            for at, task in enumerate(graph.tasks)
            if task.op in self._sized
        }
        self.makespan = add("makespan", 0)
        self.problem.setObjective(self.makespan)
        if lines is not None:
            self._cost_rows(lines)
        if budget is not None and lines is not None:
            MemoryRows(self.problem, graph, contexts, self.tokens, self.resident, budget)
        self._order_rows()

    @property
    def chooses_residency(self) -> bool:
        """Whether the LP chooses resident data."""
        return bool(self.resident.kv)

    def solve(self, choose: bool = True, start: Relaxation | None = None) -> Relaxation:
        """Minimise the makespan, then choose among the optima.

        If weights may stay, the optimum with the most resident weights, which cost nothing to use.
        Otherwise the most even split.

        Args:
            choose: False skips the second choice, where only the makespan is wanted.
            start: optimum of the same LP on another machine.

        Raises:
            PlannerFailed: the solver stopped without an optimum.
        """
        basis = solve_to_optimum(self.problem, None if start is None else start.basis)
        objective_s = float(self.makespan.value()) * self._unit_s
        weights = self._task_weights()
        worth_s = self._memory_worth_s()
        if self.tokens and choose:
            self.makespan.upBound = self.makespan.value() * (1 + 1e-7)
            if self.resident.weights:
                self.problem.setObjective(-pulp.lpSum(self.resident.weights.values()))
            else:
                self._prefer_even()
            solve_to_optimum(self.problem, basis)
        return Relaxation(
            objective_s,
            _values(self.tokens),
            _values(self.resident.kv),
            _values(self.resident.x),
            _values(self.resident.weights),
            weights,
            worth_s,
            basis,
        )

    def seconds(self, at: Relaxation, costs: CostModel, lines: PiecewiseLinearCosts) -> list[float]:
        """Seconds of every task at an optimum's fractional counts, under other costs."""
        return [
            lines.at(task.op, at.count(task, self._contexts[task.step, task.layer]), task.layer)
            if task.op in self._sized
            else costs.estimate(task).seconds
            for task in self.graph.tasks
        ]

    def _row(self, name: str, terms: list[tuple[pulp.LpVariable, float]], least: float) -> None:
        expression = pulp.LpAffineExpression(terms)
        self.problem.addConstraint(expression >= least, name)

    def _time_row(
        self, name: str, terms: list[tuple[pulp.LpVariable, float]], least_s: float
    ) -> None:
        self._row(name, terms, least_s / self._unit_s)

    def _count(self, task: Task) -> tuple[float, list[tuple[pulp.LpVariable, float]]]:
        """Tokens of a sized task: a constant and variables with their factors."""
        recomputed = (self.tokens[task.step, task.layer], 1.0)
        chosen = task.layer in self.resident.kv
        kv = [(self.resident.kv[task.layer], 1.0)] if chosen else []
        x = [(self.resident.x[task.layer], 1.0)] if chosen else []
        match task.op:
            case "place_kv":
                return 0.0, kv
            case "recompute_resident":
                return 0.0, x
            case "load_kv" | "dequantise":
                others = [(variable, -1.0) for variable, _ in (recomputed, *kv)]
                return float(self._contexts[task.step, task.layer]), others
        return 0.0, [recomputed, *((variable, -1.0) for variable, _ in x)]

    def _cost_rows(self, lines: PiecewiseLinearCosts) -> None:
        """time >= seconds at zero + slope * tokens, for each line of the hull."""
        for at, duration in self._duration.items():
            task = self.graph.tasks[at]
            constant, counts = self._count(task)
            for number, (base, slope) in enumerate(lines.of(task.op, task.layer)):
                name = f"cost_{_name(task)}_{number}"
                scaled = [(count, -factor * slope / self._unit_s) for count, factor in counts]
                self._time_row(name, [(duration, 1.0), *scaled], base + slope * constant)
                self._timed[name] = at

    def _memory_worth_s(self) -> float:
        if self._budget is None or not self.chooses_residency:
            return 0.0
        dual = self.problem.get_constraint_by_name(DEVICE_ROW).pi or 0.0
        return float(dual) * self._unit_s / self._budget.unit_bytes

    def _order_rows(self) -> None:
        """start(task) >= end of each dep and of the task before it on its lane."""
        tasks = self.graph.tasks
        followed: set[int] = set()
        last_on_lane: dict[tuple[int, str], int] = {}
        for at, task in enumerate(tasks):
            lane = (task.device, task.lane)
            before = {
                dep
                for dep in self.graph.dep_indices[at]
                if (tasks[dep].device, tasks[dep].lane) != lane
                and (self._empty_load_waits or not self._may_be_empty(task))
            }
            if lane in last_on_lane:
                before.add(last_on_lane[lane])
            for earlier in sorted(before):
                pause_s = certain_pause_s(self._dispatch, tasks[earlier], task, bool(self._sized))
                self._after(earlier, self._start[at], _name(task), pause_s)
            followed |= before
            last_on_lane[lane] = at
        for at in range(len(tasks)):
            if at not in followed:
                self._after(at, self.makespan, "end", 0.0)

    def _may_be_empty(self, task: Task) -> bool:
        """Whether a load may have 0 tokens where other layers load: X, and rows of short layers."""
        model = self.graph.model
        if task.op != "load_kv" or not model.layer_kinds or not model.splits(task.layer):
            return task.op == "load_x"
        rows = [self._contexts[task.step, layer] for layer in range(model.n_layers)]
        return rows[task.layer] < max(rows)

    def _after(
        self, earlier: int, target: pulp.LpVariable, target_name: str, pause_s: float
    ) -> None:
        task = self.graph.tasks[earlier]
        name = f"after_{_name(task)}__{target_name}"
        terms = [(target, 1.0), (self._start[earlier], -1.0)]
        if earlier in self._duration:
            self._time_row(name, [*terms, (self._duration[earlier], -1.0)], pause_s)
            return
        seconds = self._fixed_s[earlier]
        if task.op in ("load_kv_weights", "load_weights") and task.layer in self.resident.weights:
            terms.append((self.resident.weights[task.layer], seconds / self._unit_s))
        self._time_row(name, terms, seconds + pause_s)
        self._timed[name] = earlier

    def _task_weights(self) -> tuple[float, ...]:
        """Weight of each task: the duals of the rows that carry its time."""
        weights = [0.0] * len(self.graph.tasks)
        for name, at in self._timed.items():
            weights[at] += self.problem.get_constraint_by_name(name).pi or 0.0
        return tuple(weights)

    def _prefer_even(self) -> None:
        """Among optimal splits, ask for the one that changes least from layer to layer.

        There are many optima, because only the total work of both lanes is tight. An even split
        needs the smallest staging slots and loses least when a real task is late.
        """
        changes = []
        resident = self.resident
        for kind, variables in (("", self.tokens), ("kv_", resident.kv), ("x_", resident.x)):
            for number, (before, after) in enumerate(pairwise(variables.values())):
                change = self.problem.add_variable(f"change_{kind}{number}", 0)
                for sign, side in ((1.0, "up"), (-1.0, "down")):
                    terms = [(change, 1.0), (after, -sign), (before, sign)]
                    self._row(f"{side}_{kind}{number}", terms, 0.0)
                changes.append(change)
        self.problem.setObjective(pulp.lpSum(changes))


def certain_pause_s(dispatch: Dispatch, earlier: Task, later: Task, sized: bool) -> float:
    """Pause between two tasks that exist in every split; 0 next to a task that may not exist.

    At least one of a layer's two loads exists, and so does one pause of the link lane.

    Args:
        sized: whether counts are free, so that a task may not exist.
    """
    if earlier.lane != later.lane:
        return 0.0 if sized and later.op in SIZED_OPS else dispatch.handover_s
    if sized and (earlier.op in _MAY_VANISH or later.op in _VANISH_BEHIND_PAUSE):
        return 0.0
    return dispatch.gap_s


def _values(variables: dict[Key, pulp.LpVariable]) -> dict[Key, float]:
    return {key: float(variable.value()) for key, variable in variables.items()}


def _name(task: Task) -> str:
    return task.id.replace(".", "_")
