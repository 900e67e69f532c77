"""Planner that avoids the LP for row schedules whose split a bound proves to be optimal."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import inf
from typing import TYPE_CHECKING

from planner.decode.planner import DecodePlanner
from planner.decode.policies import BASELINES
from planner.decode.rounding import whole_tokens
from planner.decode.split import DecodeChoice, Residency
from planner.lp.costs import SIZED_OPS
from planner.lp.pipeline_bound import Bound, Cell, Pipeline, Shape, WholeShape
from planner.lp.schedule import Relaxation, certain_pause_s
from sim.cost.model import CostModel
from sim.engine.launch import launch_times
from sim.graph.tasks import LANE_OF_OP, Task

if TYPE_CHECKING:
    from sim.engine.fast.job import Resizable

PROVEN_WITHIN = 1e-3
"""Relative distance to the bound below which a split counts as the optimum."""


class ShortcutPlanner(DecodePlanner):
    """Finds the splits of row schedules by `planner.lp.pipeline_bound`.

    A split is used if its simulated makespan is within a thousandth of the bound for any split. If
    interference or non-convex costs prevent that, it replaces the LP's optimum if its value in the
    LP is within a thousandth of the bound, and is refined like that optimum. Otherwise the LP is
    solved.
    """

    @cached_property
    def best(self) -> DecodeChoice:
        """A split proven by the bound, without an LP; otherwise as `DecodePlanner.best`."""
        problem = self.problem
        if self._proven is not None:
            return self._proven
        if self._chain_of_whole is None:
            return super().best
        best = self._refined
        best_s = self._planned_makespan_s(best.split, best.residency)
        for name in BASELINES:
            other = problem.choice_of(name)
            if self._chain_of_whole.makespan_s(other.split[0]) < best_s:
                other_s = self._planned_makespan_s(other.split, other.residency)
                if other_s < best_s:
                    best, best_s = other, other_s
        return best

    @cached_property
    def relaxation(self) -> Relaxation:
        """The pipeline's optimum if it is the LP's, else the LP's."""
        if self._pipeline is None or not self._shortcut_holds:
            return super().relaxation
        rows, bound = self._pipeline
        cells = {(step, at): count for step, row in enumerate(rows) for at, count in enumerate(row)}
        return Relaxation(bound.seconds, cells, {}, {}, {}, (), 0.0, None)

    def _planned_makespan_s(
        self, split: Sequence[Sequence[int]], residency: Residency, below_s: float = inf
    ) -> float:
        """As in `DecodePlanner`; splits with the same tasks are simulated on the same graph."""
        problem = self.problem
        if self._chain_of_whole is None or problem.engine != "fast":
            return super()._planned_makespan_s(split, residency, below_s)
        past, (row,) = problem.contexts[0], split
        moved = [problem.model.layer_context(layer, past) - made for layer, made in enumerate(row)]
        there = tuple((made > 0, left > 0) for made, left in zip(row, moved, strict=True))
        if there not in self._resizable:
            from sim.engine.fast.job import Resizable

            graph = problem.shortened(split, residency)
            self._resizable[there] = Resizable(graph, problem.hardware, SIZED_OPS)
        graph_again = self._resizable[there]
        counts = [
            (moved if task.op in ("load_kv", "dequantise") else row)[task.layer]
            for task in graph_again.sized
        ]
        return graph_again.makespan_s(counts)

    @property
    def solved_by(self) -> str:
        """`shortcut`, `lp`, or `resident` if the whole cache is resident."""
        if self.problem.all_resident:
            return "resident"
        return "shortcut" if self._shortcut_holds else "lp"

    @property
    def pipeline_bound_s(self) -> float | None:
        """Lower bound on the makespan of any split, without an LP; None where there is none."""
        job = self.problem
        if self._pipeline is None or not job.covers_all_steps or job.gpus > 1:
            return None
        return self._pipeline[1].seconds

    @property
    def bound_s(self) -> float | None:
        """Lower bound on the makespan if the search found one, else None."""
        problem = self.problem
        if (
            not problem.covers_all_steps
            or problem.keep
            or problem.all_resident
            or problem.gpus > 1
            or problem.schedule != "row"
            or problem.model.layer_kinds
            or not problem.relaxes_every_split
        ):
            return None
        return self.relaxation.objective_s

    @property
    def task_weights(self) -> dict[str, float]:
        """Derivative of the makespan with respect to each task's seconds, by id in the whole job's
        graph."""
        if self._pipeline is not None and self._shortcut_holds:
            return self._pipeline_weights(self._pipeline[1])
        tasks = self.problem.program().graph.tasks
        weights = zip(tasks, self.relaxation.task_weights, strict=True)
        return {self._name(task.step, task.id.partition(".")[2]): one for task, one in weights}

    @cached_property
    def _resizable(self) -> dict[tuple[tuple[bool, bool], ...], Resizable]:
        """Graphs, by whether each layer recomputes and whether it loads."""
        return {}

    @cached_property
    def _chain_of_whole(self) -> Pipeline | None:
        """The pipeline over whole tokens, of one step of one GPU with memory enough for any split.

        It leaves out interference, stores and launches of sized tasks, so it is never slower than
        the simulation.
        """
        problem = self.problem
        if (
            self._pipeline is None
            or len(problem.contexts) > 1
            or not problem.covers_all_steps
            or problem.gpus > 1
        ):
            return None
        return self._chain(WholeShape) if problem.everything_fits else None

    @cached_property
    def _pipeline(self) -> tuple[list[list[float]], Bound] | None:
        """Fractional counts of the planned steps, and the bound; None for other schedules, or if
        some layer can only load or has tasks that some split leaves out."""
        problem = self.problem
        if problem.schedule != "row" or problem.keep or problem.all_resident:
            return None
        if not problem.all_layers_split or not problem.relaxes_every_split:
            return None
        found, bound = self._chain(Shape).best()
        n = problem.model.n_layers
        return [found[at : at + n] for at in range(0, len(found), n)], bound

    def _chain(self, shape: type[Shape]) -> Pipeline:
        pauses = self.problem.hardware.dispatch
        quantised = self.problem.workload.kv_bits is not None
        return Pipeline(self._cells(shape), pauses.gap_s, pauses.handover_s, quantised)

    @cached_property
    def _proven(self) -> DecodeChoice | None:
        """The pipeline's split in whole tokens if simulation proves it to be optimal."""
        problem = self.problem
        if self._pipeline is None or not problem.covers_all_steps or problem.gpus > 1:
            return None
        rows, bound = self._pipeline
        nothing = problem.least_resident
        limits = [self._limits(past, nothing) for past in problem.contexts]
        choice = DecodeChoice(whole_tokens(rows, limits, 0), nothing)
        timeline = problem.simulate(choice.split)
        if timeline.makespan_s > bound.seconds * (1 + PROVEN_WITHIN):
            return None
        return choice if problem.fits(timeline.graph) else None

    @cached_property
    def _shortcut_holds(self) -> bool:
        if self._pipeline is None:
            return False
        return self._proven is not None or self._lp_value_s() <= self._pipeline[1].seconds * (
            1 + PROVEN_WITHIN
        )

    def _lp_value_s(self) -> float:
        """The LP's objective at the pipeline's split: the longest path through its rows."""
        problem = self.problem
        rows = self._pipeline[0] if self._pipeline is not None else []
        graph = problem.shortened(
            [[1] * problem.model.n_layers for _ in rows], problem.least_resident
        )
        start_s = launch_times(graph, problem.costs, free_ops=SIZED_OPS)
        end_s: list[float] = []
        before: dict[str, int] = {}
        for at, task in enumerate(graph.tasks):
            waits = [dep for dep in graph.dep_indices[at] if graph.tasks[dep].lane != task.lane]
            for other in (*waits, *([before[task.lane]] if task.lane in before else [])):
                earlier = graph.tasks[other]
                pause_s = certain_pause_s(problem.hardware.dispatch, earlier, task, sized=True)
                start_s[at] = max(start_s[at], end_s[other] + pause_s)
            end_s.append(start_s[at] + self._lp_seconds(task, rows))
            before[task.lane] = at
        return max(end_s)

    def _lp_seconds(self, task: Task, rows: list[list[float]]) -> float:
        problem = self.problem
        if task.op not in SIZED_OPS:
            return problem.costs.estimate(task).seconds
        count = rows[task.step][task.layer]
        if task.op in ("load_kv", "dequantise"):
            past = problem.contexts[task.step]
            count = problem.model.layer_context(task.layer, past) - count
        return problem.lines.at(task.op, count, task.layer)

    def _cells(self, shape: type[Shape]) -> list[Cell]:
        """Every layer of every planned step."""
        problem = self.problem
        gap_s = problem.hardware.dispatch.gap_s
        kind_of = problem.model.kind_of
        shapes: dict[tuple[int, int], Shape] = {}

        def once_s(op: str, kind: int = -1, context: int = 0) -> float:
            return problem.costs.operations.compute(op, 1, context, kind).seconds

        quantised = problem.workload.kv_bits is not None
        embed_s, head_s = once_s("embed") + gap_s, gap_s + once_s("head")
        host = _Host(problem.costs)
        cells = []
        last = problem.model.n_layers - 1
        for step, past in enumerate(problem.contexts):
            for layer in range(problem.model.n_layers):
                context, kind = problem.model.layer_context(layer, past), kind_of[layer]
                if (context, kind) not in shapes:
                    shapes[context, kind] = shape(problem.lines, context, layer)
                quantise_s = once_s("quantise", kind) + gap_s if quantised else 0.0
                before_s, mlp_s = once_s("qkv", kind) + quantise_s, once_s("mlp", kind)
                is_end = step == len(problem.contexts) - 1 and layer == last
                pause_s = 0.0 if is_end else gap_s
                rest_s = mlp_s + (head_s if layer == last else 0.0) + pause_s
                after_s = once_s("attention", kind, context + 1) + gap_s + rest_s
                first_s = embed_s if layer == 0 else 0.0
                launched_s = host.launch("embed", layer) if layer == 0 else 0.0
                launched_s = max(launched_s, host.launch("qkv", layer) - first_s)
                host.launch("store_kv", layer)
                ends_s = host.launch("attention", layer) + after_s
                ends_s = max(ends_s, host.launch("mlp", layer) + rest_s)
                if layer == last:
                    ends_s = max(ends_s, host.launch("head", layer) + head_s - gap_s + pause_s)
                times = before_s + first_s, after_s, launched_s, ends_s
                cells.append(Cell(shapes[context, kind], *times))
        return cells

    def _pipeline_weights(self, bound: Bound) -> dict[str, float]:
        n_layers = self.problem.model.n_layers
        weights: dict[str, float] = {}
        for at in range(bound.first, len(bound.crossed)):
            before, at_recompute, after = bound.crossed[at]
            step, layer = divmod(at, n_layers)
            if layer == 0:
                weights[self._name(step, "embed")] = before
            if layer == n_layers - 1:
                weights[self._name(step, "head")] = after
            for op, weight in (
                ("load_x", 1 - before),
                ("load_kv", 1 - at_recompute),
                ("qkv", before),
                ("quantise", before),
                ("recompute", at_recompute),
                ("dequantise", after),
                ("attention", after),
                ("mlp", after),
            ):
                weights[self._name(step, f"L{layer}.{op}")] = weight
        return weights

    def _name(self, step: int, rest: str) -> str:
        """Id of a planned step's task in the whole job's graph."""
        return f"s{self.problem.planned_steps[step]}.{rest}"


class _Host:
    """The host thread that launches the tasks that every split has."""

    def __init__(self, costs: CostModel) -> None:
        self._costs = costs
        self._spent_s = -costs.hardware.dispatch.head_start_s

    def launch(self, op: str, layer: int) -> float:
        """Earliest time at which the next task, an `op`, is launched."""
        task = Task("", op, LANE_OF_OP[op], 0, layer, 0, 1, -1, 0, 0)
        self._spent_s += self._costs.launch_s(task)
        return max(0.0, self._spent_s)
