"""Savings by a faster part of the machine, from the duals and by solving the LP again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from planner.decode.plan import Sensitivity
from planner.decode.problem import DecodeProblem
from planner.lp.costs import SIZED_OPS
from planner.parts import PART_NAMES, PARTS, SERIES, SPELLED_OUT
from sim.lanes import COPY_LANES, HOST

if TYPE_CHECKING:
    from planner.lp.schedule import Relaxation, ScheduleLP

MORE, NUDGE = 0.1, 1e-3
"""Relative increase of a part, and the step of its finite difference."""

MIN_SAVING_FRAC = 5e-4
"""If no part saves more, two in series limit the schedule, such as a link and its switch."""

Program: TypeAlias = "Callable[[DecodeProblem], ScheduleLP]"
"""Builds the LP in question for the job on one machine or another."""


def sensitivities(
    problem: DecodeProblem, program: Program, solved: tuple[ScheduleLP, Relaxation] | None = None
) -> tuple[Sensitivity, ...]:
    """Savings by 10 % more of each part of the machine, over the planned steps.

    Args:
        program: the LP, with free or fixed counts.
        solved: it on this machine and its optimum, if known.
    """
    if solved is None:
        lp = program(problem)
        now = lp.solve(choose=False)
    else:
        lp, now = solved
    seconds = lp.seconds(now, problem.costs, problem.lines)
    found: list[Sensitivity] = []
    for part in (*PARTS, SERIES):
        if part == SERIES and not _in_series(problem, found):
            continue
        if part == "uplink" and not problem.hardware.uplinks:
            continue
        if problem.hardware.memory.unified and part in COPY_LANES:
            continue
        if part == "memory" and not lp.chooses_residency:
            continue
        if part == HOST and (0, HOST) not in lp.graph.lanes:
            continue
        nudged = _faster(problem, part, 1 + NUDGE)
        later = lp.seconds(now, nudged.costs, nudged.lines)
        gained_s = sum(
            weight * (before - after)
            for weight, before, after in zip(now.task_weights, seconds, later, strict=True)
        )
        by_duals_s = gained_s / (1 - 1 / (1 + NUDGE)) * (1 - 1 / (1 + MORE))
        if part == "memory":
            by_duals_s = now.memory_worth_s * MORE * problem.hardware.memory.device_bytes
        if part != "memory" and gained_s == 0.0 and not _resized(lp, seconds, later):
            resolved_s = 0.0
        else:
            again = program(_faster(problem, part, 1 + MORE))
            resolved_s = now.objective_s - again.solve(choose=False, start=now).objective_s
        found.append(Sensitivity(part, by_duals_s / now.objective_s, resolved_s / now.objective_s))
    return tuple(found)


def _in_series(problem: DecodeProblem, found: Sequence[Sensitivity]) -> bool:
    """Whether a faster link alone saves nothing, nor a faster switch."""
    alone = [one.saved_frac for one in found if one.part in SERIES.split("+")]
    return bool(problem.hardware.uplinks) and max(alone, default=1.0) < MIN_SAVING_FRAC


def _faster(problem: DecodeProblem, part: str, factor: float) -> DecodeProblem:
    """The same job on a machine with a part, or with several joined by `+`, that is faster."""
    hardware = problem.hardware
    for name in part.split("+"):
        hardware = hardware.with_faster(name, factor)
    return replace(problem, hardware=hardware)


def _resized(lp: ScheduleLP, before_s: Sequence[float], after_s: Sequence[float]) -> bool:
    """Whether the time of a sized task differs.

    If none differs, a faster part changes only right-hand sides. The optimum is convex in those and
    never grows with a faster part, so a derivative of zero means that nothing can be saved.
    """
    return any(
        task.op in SIZED_OPS and before != after
        for task, before, after in zip(lp.graph.tasks, before_s, after_s, strict=True)
    )


def bottleneck(sensitivities: Sequence[Sensitivity]) -> str:
    """A sentence on the limiting part of the machine and the saving by 10 % more of it."""
    most = max(sensitivities, key=lambda one: one.saved_frac)
    if most.saved_frac < MIN_SAVING_FRAC:
        return "no single part limits: 10 % more of any one saves next to nothing"
    saves = f"saves {100 * most.saved_frac:.1f} %"
    name, what = PART_NAMES[most.part]
    subject = SPELLED_OUT.get(most.part, f"{name} is")
    return f"the {subject} the bottleneck: 10 % more {what} {saves}"
