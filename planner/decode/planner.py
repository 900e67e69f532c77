"""Search for the best split of one decode job: relaxation, rounding, refinement and bounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from math import ceil, inf
from operator import itemgetter
from typing import TYPE_CHECKING

from planner.decode.lower import replicate
from planner.decode.policies import BASELINES
from planner.decode.problem import DecodeProblem
from planner.decode.rounding import (
    LP_TOLERANCE,
    Limits,
    between_steps,
    shifts,
    whole_part,
    whole_tokens,
)
from planner.decode.split import DecodeChoice, Residency
from planner.lp.costs import SIZED_OPS
from planner.lp.memory import MemoryBudget, check_any_fits
from sim.errors import DoesNotFit, Infeasible
from sim.graph.tasks import STAGING_SLOTS
from sim.lanes import COMPUTE, H2D

if TYPE_CHECKING:
    from planner.lp.schedule import Relaxation, ScheduleLP

REFINED_ABOVE = 1e-3
"""Relative distance between simulated makespan and lower bound above which shifts are tried."""

ROUNDING = 1e-9
"""Relative difference of two sums of the same seconds."""


class DecodePlanner:
    """Finds the best split of a problem."""

    def __init__(self, problem: DecodeProblem) -> None:
        self.problem = problem

    @cached_property
    def program(self) -> ScheduleLP:
        """The LP over the planned steps."""
        return self.problem.program()

    @cached_property
    def relaxation(self) -> Relaxation:
        """Optimum of the LP over the planned steps.

        Raises:
            DoesNotFit: no split fits the memory.
        """
        problem = self.problem
        model, past = problem.model, problem.contexts[0]
        attended = [
            model.layer_context(at, past) if model.splits(at) else 0 for at in range(model.n_layers)
        ]
        nothing = Residency.nothing(model)
        ends = [
            problem.shortened([row], nothing, [past]) for row in ([0] * model.n_layers, attended)
        ]
        if not all(map(problem.holds, ends)):
            loaded, recomputed = (replicate(graph, problem.gpus) for graph in ends)
            check_any_fits(loaded, recomputed, problem.hardware)
        try:
            return self.program.solve()
        except Infeasible:  # only memory can be in the way of a schedule
            raise DoesNotFit(
                f"{model.name} has no split for which {problem.hardware.name} has both host and "
                "device memory: the host holds less the more is recomputed, the device stages "
                "more; lower --batch or --prompt."
            ) from None

    @cached_property
    def best(self) -> DecodeChoice:
        """The fastest choice in simulation; with `keep` the LP's in whole tokens, the whole cache
        in GPU memory, or nothing resident."""
        problem = self.problem
        if not problem.keep or problem.hardware.memory.unified:
            return self.best_offloaded
        loaded = problem.choice_of("load-all").split
        whole = DecodeChoice(loaded, Residency.whole_cache(problem.model, problem.workload))
        return min(self._refined, whole, self.best_offloaded, key=problem.makespan_s)

    @cached_property
    def best_offloaded(self) -> DecodeChoice:
        """The fastest choice with nothing resident: the LP's in whole tokens, or a baseline.

        In unified memory the whole cache is where it is needed.
        """
        problem = self.problem
        if problem.hardware.memory.unified:
            return problem.choice_of("resident")
        if problem.keep:
            return type(self)(replace(problem, keep=False)).best
        choices = [problem.choice_of(name) for name in BASELINES]
        return min(self._refined, *choices, key=problem.makespan_s)

    @cached_property
    def _refined(self) -> DecodeChoice:
        """The LP's counts in whole tokens that fit the memory."""
        problem = self.problem
        layers, start = range(problem.model.n_layers), problem.residency_at_start
        if problem.all_resident:
            return DecodeChoice([[0] * len(layers)] * problem.workload.gen_tokens, start)
        relaxed = self.relaxation
        rows = [
            [relaxed.tokens.get((step, layer), 0.0) for layer in layers]
            for step in range(len(problem.contexts))
        ]
        residency = self._whole_residency(relaxed)
        limits = [self._limits(past, residency) for past in problem.contexts]
        planned, planned_s = self._shifted(rows, limits, residency)
        if planned_s == inf:  # round up within the X that can be staged, or recompute all of that
            staged = problem.budget(residency).max_staged_tokens
            limits = [
                [replace(one, most=int(min(one.most, one.least + staged))) for one in row]
                for row in limits
            ]
            more = [[float(ceil(count - LP_TOLERANCE)) for count in row] for row in rows]
            most = [[float(bound.most) for bound in row] for row in limits]
            tries = [self._shifted(rows, limits, residency) for rows in (more, most)]
            planned, _ = min(tries, key=itemgetter(1))
        split = between_steps(
            planned,
            problem.planned_steps,
            lambda step: self._limits(problem.workload.context_tokens(step), residency),
        )
        return DecodeChoice(split, residency)

    def _shifted(
        self, rows: list[list[float]], limits: list[list[Limits]], residency: Residency
    ) -> tuple[list[list[int]], float]:
        """The counts in whole tokens, and their makespan (infinite if no shift fits the memory).

        The LP leaves out interference between lanes and bends of the cost curves that are not
        convex. Where that costs more than a thousandth, whole-job shifts are tried in the
        simulator.
        """
        bound_s = self._uncontended.relaxation.objective_s
        found: dict[tuple[tuple[int, ...], ...], float] = {}
        best, best_s = 0, inf

        def makespan(shift: int) -> float:
            split = whole_tokens(rows, limits, shift)
            key = tuple(map(tuple, split))
            if key not in found:
                found[key] = self._planned_makespan_s(split, residency, best_s)
            return found[key]

        best_s = makespan(best)
        stride = max(1, self.problem.workload.max_tokens // 8)
        if not any(shifts(count) for row in rows for count in row):
            stride = 0
        while stride and best_s > bound_s * (1 + REFINED_ABOVE):
            trials = {best + sign * stride: makespan(best + sign * stride) for sign in (-1, 1)}
            nearest = min(trials, key=trials.__getitem__)
            if trials[nearest] < best_s:
                best, best_s = nearest, trials[nearest]
            else:
                stride //= 2
        return whole_tokens(rows, limits, best), best_s

    def _planned_makespan_s(
        self, split: Sequence[Sequence[int]], residency: Residency, below_s: float = inf
    ) -> float:
        """Simulated makespan of the planned steps; infinite if they do not fit the memory.

        Args:
            below_s: a makespan that a bound shows to be longer may be infinite too.
        """
        if self._uncontended.problem.lane_work_s(split, residency) * (1 - ROUNDING) > below_s:
            return inf
        return self.problem.planned_s(split, residency)

    def _whole_residency(self, relaxed: Relaxation) -> Residency:
        """The LP's resident data in whole tokens, rounded down; X only of recomputed tokens."""
        start, prompt = self.problem.residency_at_start, self.problem.workload.prompt_tokens
        kv = list(start.kv_tokens)
        for layer, value in relaxed.resident_kv.items():
            kv[layer] = min(whole_part(value), prompt - 1)
        x = [0] * len(kv)
        for layer, value in relaxed.resident_x.items():
            x[layer] = min(whole_part(value), prompt - kv[layer])
        return replace(start, kv_tokens=tuple(kv), x_tokens=tuple(x))

    def _limits(self, past: int, residency: Residency) -> list[Limits]:
        limits = []
        for layer, (kv, x) in enumerate(zip(residency.kv_tokens, residency.x_tokens, strict=True)):
            model = self.problem.model
            whole = residency.holds_whole(layer, self.problem.workload)
            fixed = whole or not model.splits(layer)
            most = 0 if fixed else model.layer_context(layer, past) - kv
            limits.append(Limits(x, most))
        return limits

    @cached_property
    def _uncontended(self) -> DecodePlanner:
        """The planner of the same job on one GPU, with the other GPUs idle."""
        return self if self.problem.gpus == 1 else DecodePlanner(replace(self.problem, gpus=1))

    def lower_bound_s(self) -> float:
        """Lower bound on the makespan: the LP's if it covers every step, else by lane work."""
        problem = self.problem
        if problem.gpus > 1:
            return self._uncontended.lower_bound_s()
        if problem.all_resident:
            return problem.makespan_s(self.best)
        if problem.covers_all_steps and not problem.keep and problem.relaxes_every_split:
            return self._lp_bound_s()
        from planner.lp.lane_bound import Course, lane_work_bound

        model, job = problem.model, problem.workload
        pasts = [job.context_tokens(step) for step in range(job.gen_tokens)]
        courses = Counter(
            Course(
                model.kind_of.index(model.kind_of[layer]),
                tuple(model.layer_context(layer, past) for past in pasts),
                model.splits(layer),
            )
            for layer in range(model.n_layers)
            if model.loads_rows(layer)
        )
        fixed_s = {COMPUTE: 0.0, H2D: 0.0}
        nothing = DecodeChoice([[0] * model.n_layers] * len(pasts), problem.least_resident)
        for task in problem.graph_of(nothing).tasks:
            if task.lane in fixed_s and task.op not in SIZED_OPS:
                fixed_s[task.lane] += problem.costs.estimate(task).seconds
        return lane_work_bound(
            problem.lines,
            courses,
            fixed_s[COMPUTE],
            fixed_s[H2D],
            job.n_batches,
            max_budget(problem) if problem.keep else None,
        )

    def _lp_bound_s(self) -> float:
        """The LP's lower bound over plans that stage X in all slots, or in one that is longer."""
        problem = self.problem
        waits = problem.schedule == "row" and not problem.model.layer_kinds
        bound_s = self.relaxation.objective_s
        if not waits:
            bound_s = problem.program(empty_load_waits=False).solve(choose=False).objective_s
        if problem.budget(problem.least_resident).max_staged_tokens < max(problem.contexts):
            for slot in range(STAGING_SLOTS):
                with suppress(Infeasible):
                    lp = problem.program(empty_load_waits=waits, x_slot=slot)
                    bound_s = min(bound_s, lp.solve(choose=False).objective_s)
        return bound_s


def max_budget(problem: DecodeProblem) -> MemoryBudget:
    """Upper bound on the free device memory of any plan that offloads at least one layer.

    A plan that moves the cache of one layer has one staging slot; any other has two.
    """
    last, job = problem.model.n_layers - 1, problem.workload
    but_one = replace(problem.least_resident, kv_tokens=(job.prompt_tokens,) * last + (0,))
    budget = problem.budget(problem.least_resident)
    if problem.budget(but_one).free_bytes < 0:
        return budget
    slot_bytes = job.max_tokens * budget.unit_bytes
    return replace(budget, free_bytes=budget.free_bytes + slot_bytes)
