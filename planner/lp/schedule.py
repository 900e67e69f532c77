"""The decode schedule as a linear program whose optimum is the makespan of the graph.

Variables: the start of every task that waits for several others and, per step and layer, how many
tokens are recomputed; if device memory allows it, also how many tokens of each layer keep K and V,
or X, on the device. Rows: resident data fits the memory; a task starts after each of its deps and
after its lane's previous task; the time of a task whose size is being chosen is at least every line
of its convex cost hull. Where costs are straight lines the hull is the cost, and the optimum is the
simulated makespan; elsewhere the hull is below the cost and the optimum is a lower bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, TypeVar

import highspy  # noqa: F401 - pulp takes an interrupt of this import for its absence
import pulp

from planner.lp.costs import SIZED_OPS, PiecewiseLinearCosts, sized_tokens
from planner.lp.memory import (
    DEVICE_ROW,
    Cell,
    MemoryBudget,
    MemoryRows,
    ResidentVariables,
    Terms,
)
from planner.lp.solver import Basis, Start, lower_limits, solve_to_optimum
from sim.cost.model import CostModel
from sim.engine.launch import launch_times
from sim.graph.tasks import Task, TaskGraph
from sim.machine.links import Dispatch

MAKESPAN_UNITS = 1e3
"""Times are rescaled to about this many units, far above the solver's absolute tolerances."""

_MAY_VANISH = ("load_x", "place_kv", "recompute_resident")
_VANISH_BEHIND_PAUSE = ("load_kv", "place_kv", "recompute_resident", "recompute", "dequantise")
"""No pause is guaranteed after the first and before the second."""

_WEIGHT_LOADS = ("load_kv_weights", "load_weights")

Lane = tuple[int, str]
"""(device, lane)."""

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

    def counts(self, cell: Cell, past: int) -> dict[str, float]:
        """Tokens of each sized operation of a cell at the optimum, of `past` that it reads."""
        _, layer = cell
        kv, x = self.resident_kv.get(layer, 0.0), self.resident_x.get(layer, 0.0)
        return sized_tokens(float(past), kv, x, self.tokens[cell])


class Moment(NamedTuple):
    """A time of the schedule: seconds, less what variables take off, in the unit of the LP."""

    seconds: float
    less: Terms

    def plus(self, seconds: float, less: Terms) -> Moment:
        """A later moment."""
        if self.less and less:
            sums = dict(self.less)
            for variable, factor in less:
                sums[variable] = sums.get(variable, 0.0) + factor
            less = list(sums.items())
        return Moment(self.seconds + seconds, less or self.less)


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
        self._lines = lines
        self.problem = pulp.LpProblem("decode", pulp.LpMinimize)
        self._rows: list[pulp.LpConstraint] = []
        self._end_rows: list[list[pulp.LpConstraint]] = [[] for _ in graph.tasks]
        self._cost_rows: dict[int, list[pulp.LpConstraint]] = {}
        self._begins_with_end_of: dict[int, int] = {}
        add = self.problem.add_variable
        sized = [task for task in graph.tasks if task.op in self._sized]
        self._straight = lines is not None and all(
            len(lines.of(task.op, task.layer)) == 1 for task in sized
        )
        self.tokens = {
            (step, layer): add(
                f"recomputed_s{step}_L{layer}",
                0,
                self._contexts[step, layer] if graph.model.splits(layer) else 0,
            )
            for step, layer in dict.fromkeys((task.step, task.layer) for task in sized)
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
        self.makespan = add("makespan", 0)
        self.problem.setObjective(self.makespan)
        durations = [self._duration(at) for at in range(len(graph.tasks))]
        if budget is not None and lines is not None:
            MemoryRows(self.problem, graph, contexts, self.tokens, self.resident, budget)
        self._order(durations, launch_times(graph, costs, free_ops=self._sized))

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
            start: optimum of the same LP on another machine; by default the solver starts from the
                schedule that recomputes and keeps nothing.

        Raises:
            PlannerFailed: the solver stopped without an optimum.
        """
        known = None if start is None else start.basis
        limits = lower_limits(self._rows, {}) if known is None else {}
        basis = solve_to_optimum(self.problem, Start(known, limits))
        objective_s = float(self.makespan.value()) * self._unit_s
        weights = self._task_weights()
        worth_s = self._memory_worth_s()
        if self.tokens and choose:
            self.makespan.upBound = self.makespan.value() * (1 + 1e-7)
            changes: list[pulp.LpConstraint] = []
            if self.resident.weights:
                self.problem.setObjective(-pulp.lpSum(self.resident.weights.values()))
            else:
                changes = self._prefer_even()
            chosen = (self.tokens, self.resident.kv, self.resident.x)
            found = {one: float(one.value()) for kind in chosen for one in kind.values()}
            solve_to_optimum(self.problem, Start(basis, lower_limits(changes, found)))
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
        counts = {cell: at.counts(cell, self._contexts[cell]) for cell in self.tokens}
        return [
            lines.at(task.op, counts[task.step, task.layer][task.op], task.layer)
            if task.op in self._sized
            else costs.estimate(task).seconds
            for task in self.graph.tasks
        ]

    def _row(self, name: str, terms: Terms, least: float) -> pulp.LpConstraint:
        expression = pulp.LpAffineExpression(terms)
        row = pulp.LpConstraint(expression, pulp.LpConstraintGE, name, least)
        self.problem.addConstraint(row)
        return row

    def _not_before(
        self, name: str, target: pulp.LpVariable, earlier: Moment, pause_s: float = 0.0
    ) -> pulp.LpConstraint:
        """target >= earlier + pause"""
        least = (earlier.seconds + pause_s) / self._unit_s
        row = self._row(name, [(target, 1.0), *earlier.less], least)
        self._rows.append(row)
        return row

    def _count(self, task: Task) -> tuple[float, Terms]:
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

    def _duration(self, at: int) -> Moment:
        """Time of a task; of a sized one at least every line of its cost, as a variable if any cost
        has several."""
        task, seconds = self.graph.tasks[at], self._fixed_s[at]
        if self._lines is None or task.op not in self._sized:
            stays = task.op in _WEIGHT_LOADS and task.layer in self.resident.weights
            saved = [(self.resident.weights[task.layer], seconds / self._unit_s)] if stays else []
            return Moment(seconds, saved)
        constant, counts = self._count(task)
        lines = []
        for base, slope in self._lines.of(task.op, task.layer):
            less = [(count, -factor * slope / self._unit_s) for count, factor in counts]
            lines.append(Moment(base + slope * constant, less))
        if self._straight:
            return lines[0]
        duration = self.problem.add_variable(f"time_{_name(task)}", 0)
        self._cost_rows[at] = [
            self._not_before(f"cost_{_name(task)}_{number}", duration, line)
            for number, line in enumerate(lines)
        ]
        return Moment(0.0, [(duration, -1.0)])

    def _memory_worth_s(self) -> float:
        if self._budget is None or not self.chooses_residency:
            return 0.0
        dual = self.problem.get_constraint_by_name(DEVICE_ROW).pi or 0.0
        return float(dual) * self._unit_s / self._budget.unit_bytes

    def _order(self, durations: Sequence[Moment], launched_s: Sequence[float]) -> None:
        """start(task) >= launch, and >= end of each task for which it waits.

        A task that waits for one only, and is launched before its end, starts with its end.
        """
        names, waits = list(map(_name, self.graph.tasks)), list(self._waits())
        ends: list[Moment] = []
        sure_s = list(launched_s)
        for at, (ready_s, pauses_s, duration) in enumerate(
            zip(launched_s, waits, durations, strict=True)
        ):
            earlier, pause_s = next(iter(pauses_s.items()), (-1, 0.0))
            if not pauses_s:
                ends.append(duration.plus(ready_s, []))
            elif len(pauses_s) == 1 and sure_s[earlier] + pause_s >= ready_s:
                ends.append(ends[earlier].plus(pause_s + duration.seconds, duration.less))
                self._begins_with_end_of[at] = earlier
            else:
                start = self.problem.add_variable(f"start_{names[at]}", ready_s / self._unit_s)
                for earlier, pause_s in sorted(pauses_s.items()):
                    name = f"after_{names[earlier]}__{names[at]}"
                    row = self._not_before(name, start, ends[earlier], pause_s)
                    self._end_rows[earlier].append(row)
                ends.append(Moment(duration.seconds, [(start, -1.0), *duration.less]))
            if not duration.less:
                sure_s[at] += duration.seconds
        for at in sorted(set(range(len(ends))).difference(*waits)):
            row = self._not_before(f"after_{names[at]}__end", self.makespan, ends[at])
            self._end_rows[at].append(row)

    def _waits(self) -> Iterator[dict[int, float]]:
        """For each task those for which it waits, with the pause in seconds after each.

        A dep is left out if the task's lane waits already for that one or a later one of its lane.
        """
        tasks, sized = self.graph.tasks, bool(self._sized)
        lanes = [(task.device, task.lane) for task in tasks]
        last_on_lane: dict[Lane, int] = {}
        waited: dict[tuple[Lane, Lane], tuple[int, float]] = {}
        for at, (task, lane) in enumerate(zip(tasks, lanes, strict=True)):
            pauses_s = {}
            deps = [dep for dep in self.graph.dep_indices[at] if lanes[dep] != lane]
            if not self._empty_load_waits and self._may_be_empty(task):
                deps = []
            for dep in sorted(deps, reverse=True):
                pause_s = certain_pause_s(self._dispatch, tasks[dep], task, sized)
                known, known_s = waited.get((lane, lanes[dep]), (-1, 0.0))
                if dep > known or pause_s > known_s:
                    waited[lane, lanes[dep]] = dep, pause_s
                    pauses_s[dep] = pause_s
            if (last := last_on_lane.get(lane)) is not None:
                pauses_s[last] = certain_pause_s(self._dispatch, tasks[last], task, sized)
            last_on_lane[lane] = at
            yield pauses_s

    def _may_be_empty(self, task: Task) -> bool:
        """Whether a load may have 0 tokens where other layers load: X, and rows of short layers."""
        model = self.graph.model
        if task.op != "load_kv" or not model.layer_kinds or not model.splits(task.layer):
            return task.op == "load_x"
        rows = [self._contexts[task.step, layer] for layer in range(model.n_layers)]
        return rows[task.layer] < max(rows)

    def _task_weights(self) -> tuple[float, ...]:
        """Weight of each task: the duals of the rows that carry its time."""

        def duals(rows: Sequence[pulp.LpConstraint]) -> float:
            return sum(row.pi or 0.0 for row in rows)

        weights = list(map(duals, self._end_rows))
        for at, earlier in reversed(self._begins_with_end_of.items()):
            weights[earlier] += weights[at]
        for at, rows in self._cost_rows.items():
            weights[at] = duals(rows)
        return tuple(weights)

    def _prefer_even(self) -> list[pulp.LpConstraint]:
        """Among optimal splits, ask for the one that changes least from layer to layer.

        There are many optima, because only the total work of both lanes is tight. An even split
        needs the smallest staging slots and loses least when a real task is late.

        Returns:
            The rows that were added.
        """
        changes, rows = [], []
        resident = self.resident
        for kind, variables in (("", self.tokens), ("kv_", resident.kv), ("x_", resident.x)):
            for number, (before, after) in enumerate(pairwise(variables.values())):
                change = self.problem.add_variable(f"change_{kind}{number}", 0)
                for sign, side in ((1.0, "up"), (-1.0, "down")):
                    terms = [(change, 1.0), (after, -sign), (before, sign)]
                    rows.append(self._row(f"{side}_{kind}{number}", terms, 0.0))
                changes.append(change)
        self.problem.setObjective(pulp.lpSum(changes))
        return rows


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
