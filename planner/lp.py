"""The decode schedule as a linear program whose optimum is the makespan of the graph.

Variables: the start of every task and, per step and layer, how many tokens are recomputed.
Rows: a task starts after each of its deps and after its lane's previous task; the time of a task
whose size is being chosen is at least every line of its convex cost hull. Where costs are
straight lines the hull is the cost, and the optimum is the simulated makespan; elsewhere the hull
lies below the cost and the optimum is a lower bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import pulp

from sim.cost import CostModel
from sim.errors import PlannerFailed
from sim.graph import LANES, Task, TaskGraph
from sim.hardware import Dispatch

MAKESPAN_UNITS = 1e3
"""Times are rescaled to about this many units, far above the solver's absolute tolerances."""

SIZED_OPS = ("load_x", "load_kv", "recompute")
"""Operations whose token count is a variable."""

Cell = tuple[int, int]
"""(step, layer)."""

Line = tuple[float, float]
"""Seconds at zero tokens and seconds a token more costs."""


@dataclass(frozen=True)
class Relaxation:
    """Optimum of the LP over fractional token counts.

    Args:
        objective_s: end of the last task.
        tokens: recomputed tokens of each (step, layer); empty where the counts were given.
        task_weights: derivative of the makespan with respect to the seconds of each task of the
            LP's graph, from the duals; 1 where a task holds everything up, 0 where it has slack.
        lane_share_s: for each lane, the derivative of the makespan with respect to stretching all
            its tasks by the same factor; a lane that decides everything has the whole makespan,
            one that never holds anything up has zero.
    """

    objective_s: float
    tokens: dict[Cell, float]
    task_weights: tuple[float, ...]
    lane_share_s: dict[str, float]


class CostLines:
    """Convex piecewise-linear lower hulls of the cost of the operations sized by the LP."""

    def __init__(self, costs: CostModel, max_tokens: int) -> None:
        self._costs = costs
        self._max_tokens = max_tokens
        self._lines = {op: self._hull(op) for op in SIZED_OPS}

    def __getitem__(self, op: str) -> list[Line]:
        return self._lines[op]

    def at(self, op: str, count: float) -> float:
        """Seconds of `op` on `count` tokens by the hull."""
        return max(base + slope * count for base, slope in self._lines[op])

    def _hull(self, op: str) -> list[Line]:
        points = [
            (count, self.seconds(op, count))
            for count in self._costs.token_knots(op, self._max_tokens)
        ]
        hull: list[tuple[float, float]] = []
        for point in points:
            while len(hull) > 1 and _turns_down(hull[-2], hull[-1], point):
                hull.pop()
            hull.append(point)
        lines = []
        for (x0, y0), (x1, y1) in pairwise(hull):
            slope = (y1 - y0) / (x1 - x0)
            lines.append((y0 - slope * x0, slope))
        return lines

    def seconds(self, op: str, count: int) -> float:
        """Exact cost of `op` on `count` tokens; no tokens, no task, no time."""
        if count == 0:
            return 0.0
        if op == "recompute":
            return self._costs.compute(op, count, count).seconds
        model = self._costs.model
        one = model.x_token_bytes if op == "load_x" else model.kv_token_bytes
        return self._costs.copy("h2d", self._costs.workload.batch_size * count * one).seconds


def _turns_down(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether b lies on or above the straight line from a to c, up to rounding."""
    cross = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
    return cross <= 1e-12 * abs((c[0] - a[0]) * (c[1] - a[1]))


class ScheduleLP:
    """The LP of one row-schedule graph.

    Args:
        graph: a lowering in which every sized task exists; its counts are ignored unless `lines`
            is None.
        contexts: past tokens of each step.
        lines: cost hulls of the sized operations; None keeps the graph's own counts, so that the
            LP only schedules, with every task at its time in `fixed_s`.
        fixed_s: seconds of every task, in graph order; used for those that are not sized.
        issued_s: when the host has issued each task, the sized ones at no cost.
        dispatch: pauses between the tasks of a lane and between lanes.
    """

    def __init__(
        self,
        graph: TaskGraph,
        contexts: Sequence[int],
        lines: CostLines | None,
        fixed_s: Sequence[float],
        issued_s: Sequence[float],
        dispatch: Dispatch,
    ) -> None:
        self.graph = graph
        self._sized = SIZED_OPS if lines is not None else ()
        self._dispatch = dispatch
        self._contexts = contexts
        self._unit_s = max(sum(fixed_s), 1e-12) / MAKESPAN_UNITS
        self._fixed_s = fixed_s
        self.problem = pulp.LpProblem("decode", pulp.LpMinimize)
        self._timed: dict[str, tuple[int, float, pulp.LpVariable | None, float]] = {}
        add = self.problem.add_variable
        self.tokens = {
            (step, layer): add(f"recomputed_s{step}_L{layer}", 0, past)
            for step, past in enumerate(contexts)
            for layer in range(graph.model.n_layers)
            if lines is not None
        }
        self._start = [
            add(f"start_{_name(task)}", ready / self._unit_s)
            for task, ready in zip(graph.tasks, issued_s, strict=True)
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
        self._order_rows()

    def solve(self, even: bool = True) -> Relaxation:
        """Minimise the makespan, then choose the most even among the optimal splits.

        Args:
            even: False skips the second choice, where only the makespan is wanted.

        Raises:
            PlannerFailed: the solver stopped without an optimum.
        """
        self._run()
        objective_s = float(self.makespan.value()) * self._unit_s
        weights, shares = self._duals()
        if self.tokens and even:
            self._prefer_even()
            self._run()
        tokens = {cell: float(variable.value()) for cell, variable in self.tokens.items()}
        return Relaxation(objective_s, tokens, weights, shares)

    def seconds(self, tokens: dict[Cell, float], costs: CostModel, lines: CostLines) -> list[float]:
        """Seconds of every task at the given fractional counts, for other costs than its own."""
        return [
            self._sized_s(task, tokens, lines)
            if task.op in self._sized
            else costs.estimate(task).seconds
            for task in self.graph.tasks
        ]

    def _sized_s(self, task: Task, tokens: dict[Cell, float], lines: CostLines) -> float:
        count = tokens[task.step, task.layer]
        if task.op == "load_kv":
            count = self._contexts[task.step] - count
        return lines.at(task.op, count)

    def _run(self) -> None:
        status = self.problem.solve(pulp.HiGHS(msg=False))
        if status != pulp.LpStatusOptimal:
            raise PlannerFailed(
                f"the LP of {self.graph.model.name} ended {pulp.LpStatus[status]!r} instead of "
                "optimal; report the plan's inputs as a defect."
            )

    def _row(self, name: str, terms: list[tuple[pulp.LpVariable, float]], least: float) -> None:
        expression = pulp.LpAffineExpression(terms)
        self.problem.addConstraint(expression >= least, name)

    def _time_row(
        self, name: str, terms: list[tuple[pulp.LpVariable, float]], least_s: float
    ) -> None:
        self._row(name, terms, least_s / self._unit_s)

    def _cost_rows(self, lines: CostLines) -> None:
        """time >= seconds at zero + slope * tokens, for each line of the hull."""
        for at, duration in self._duration.items():
            task = self.graph.tasks[at]
            count = self.tokens[task.step, task.layer]
            past = self._contexts[task.step]
            for number, (base, slope) in enumerate(lines[task.op]):
                if task.op == "load_kv":
                    base, slope = base + slope * past, -slope
                name = f"cost_{_name(task)}_{number}"
                terms = [(duration, 1.0), (count, -slope / self._unit_s)]
                self._time_row(name, terms, base)
                self._timed[name] = (at, base, count, slope)

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
            }
            if lane in last_on_lane:
                before.add(last_on_lane[lane])
            for earlier in sorted(before):
                pause_s = self._pause_s(tasks[earlier], task)
                self._after(earlier, self._start[at], _name(task), pause_s)
            followed |= before
            last_on_lane[lane] = at
        for at in range(len(tasks)):
            if at not in followed:
                self._after(at, self.makespan, "end", 0.0)

    def _pause_s(self, earlier: Task, later: Task) -> float:
        """Pause between two tasks that exist in every split; none around one that may vanish.

        Of a layer's two loads at least one exists, and so does one pause of the link lane.
        """
        if earlier.lane != later.lane:
            return 0.0 if later.op in self._sized else self._dispatch.handover_s
        vanishes = earlier.op == "load_x" or later.op in ("load_kv", "recompute")
        if vanishes and self._sized:
            return 0.0
        return self._dispatch.gap_s

    def _after(
        self, earlier: int, target: pulp.LpVariable, target_name: str, pause_s: float
    ) -> None:
        task = self.graph.tasks[earlier]
        name = f"after_{_name(task)}__{target_name}"
        terms = [(target, 1.0), (self._start[earlier], -1.0)]
        if earlier in self._duration:
            self._time_row(name, [*terms, (self._duration[earlier], -1.0)], pause_s)
            return
        self._time_row(name, terms, self._fixed_s[earlier] + pause_s)
        self._timed[name] = (earlier, self._fixed_s[earlier], None, 0.0)

    def _duals(self) -> tuple[tuple[float, ...], dict[str, float]]:
        """Weight of each task and share of each lane: duals of the rows that carry task times."""
        weights, shares = [0.0] * len(self.graph.tasks), dict.fromkeys(LANES, 0.0)
        for name, (at, base, count, slope) in self._timed.items():
            dual = self.problem.get_constraint_by_name(name).pi or 0.0
            seconds = base + (slope * count.value() if count is not None else 0.0)
            weights[at] += dual
            shares[self.graph.tasks[at].lane] += dual * seconds
        return tuple(weights), shares

    def _prefer_even(self) -> None:
        """Among optimal splits, ask for the one that changes least from layer to layer.

        Optima are many: only the work of both lanes over all layers is tight. An even split
        needs the smallest staging slots and suffers least when a real task is late.
        """
        self.makespan.upBound = self.makespan.value() * (1 + 1e-7)
        changes = []
        for before, after in pairwise(self.tokens):
            change = self.problem.add_variable(f"change_s{after[0]}_L{after[1]}", 0)
            for sign, side in ((1.0, "up"), (-1.0, "down")):
                terms = [
                    (change, 1.0),
                    (self.tokens[after], -sign),
                    (self.tokens[before], sign),
                ]
                self._row(f"{side}_s{after[0]}_L{after[1]}", terms, 0.0)
            changes.append(change)
        self.problem.setObjective(pulp.lpSum(changes))


def lane_work_bound(
    lines: CostLines,
    contexts: Sequence[int],
    cells: int,
    other_compute_s: float,
    other_link_s: float,
) -> float:
    """A makespan that no split can beat: neither lane can do its own work faster.

    All layers of a step share one count, which loses nothing because the hulls are convex.

    Args:
        cells: layers times batches of one step.
        other_compute_s: seconds of all compute tasks whose size is fixed.
        other_link_s: seconds of all loads whose size is fixed: weights.
    """
    unit_s = max(other_compute_s, 1e-12) / MAKESPAN_UNITS
    problem = pulp.LpProblem("lane_work", pulp.LpMinimize)
    makespan = problem.add_variable("makespan", 0)
    problem.setObjective(makespan)
    work: dict[str, list[tuple[pulp.LpVariable, float]]] = {op: [] for op in SIZED_OPS}
    for step, past in enumerate(contexts):
        count = problem.add_variable(f"recomputed_s{step}", 0, past)
        for op in SIZED_OPS:
            time = problem.add_variable(f"time_{op}_s{step}", 0)
            work[op].append((time, -float(cells)))
            for number, (base, slope) in enumerate(lines[op]):
                if op == "load_kv":
                    base, slope = base + slope * past, -slope
                row = pulp.LpAffineExpression([(time, 1.0), (count, -slope / unit_s)])
                problem.addConstraint(row >= base / unit_s, f"cost_{op}_s{step}_{number}")
    link = pulp.LpAffineExpression([(makespan, 1.0), *work["load_x"], *work["load_kv"]])
    problem.addConstraint(link >= other_link_s / unit_s, "link_work")
    compute = pulp.LpAffineExpression([(makespan, 1.0), *work["recompute"]])
    problem.addConstraint(compute >= other_compute_s / unit_s, "compute_work")
    status = problem.solve(pulp.HiGHS(msg=False))
    if status != pulp.LpStatusOptimal:
        raise PlannerFailed(f"the lane-work bound ended {pulp.LpStatus[status]!r}.")
    return float(makespan.value()) * unit_s


def _name(task: Task) -> str:
    return task.id.replace(".", "_")
