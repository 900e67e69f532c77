"""Lower bound on the makespan: the work of each lane, without waiting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import highspy  # noqa: F401 - pulp takes an interrupt of this import for its absence
import pulp

from planner.lp.costs import SIZED_OPS, PiecewiseLinearCosts
from planner.lp.memory import MemoryBudget, Terms
from planner.lp.schedule import MAKESPAN_UNITS
from planner.lp.solver import solve_to_optimum
from sim.graph.tasks import STAGING_SLOTS
from sim.lanes import COMPUTE, H2D


class Course(NamedTuple):
    """Layers of one kind that read the same rows.

    Args:
        layer: one of them.
        contexts: rows that each step reads.
        splits: whether rows may be recomputed.
    """

    layer: int
    contexts: tuple[int, ...]
    splits: bool


LINK_OPS = ("load_x", "load_kv")
COMPUTE_OPS = ("recompute", "recompute_resident", "dequantise")
"""Placing resident K and V is left out: a layer whose whole cache is resident needs none."""


def lane_work_bound(
    lines: PiecewiseLinearCosts,
    layers: Mapping[Course, int],
    other_compute_s: float,
    other_link_s: float,
    n_batches: int = 1,
    budget: MemoryBudget | None = None,
) -> float:
    """Lower bound on the makespan of any split: neither lane can finish its own work faster.

    Layers of one kind that read equally many rows share their counts. The bound stays the same
    because the cost lines are convex.

    Args:
        layers: number of layers for each `Course`.
        other_compute_s: seconds of all compute tasks whose size is fixed.
        other_link_s: seconds of all loads whose size is fixed: weights.
        budget: device memory for resident K, V, X and weights of any layers. Resident weights
            free the slots through which they were loaded.
    """
    unit_s = max(other_compute_s, 1e-12) / MAKESPAN_UNITS
    problem = pulp.LpProblem("lane_work", pulp.LpMinimize)
    makespan = problem.add_variable("makespan", 0)
    problem.setObjective(makespan)
    work: dict[str, Terms] = {op: [] for op in SIZED_OPS}
    taken: Terms = []
    for group, ((layer, contexts, splits), n_layers) in enumerate(layers.items()):
        if budget is not None:
            resident_kv = problem.add_variable(f"kept_kv_{group}", 0, contexts[0])
            resident_x = problem.add_variable(f"kept_x_{group}", 0, contexts[0])
            row_bytes, unit = budget.kv_row_bytes[layer], budget.unit_bytes
            taken += [(resident_kv, n_layers * row_bytes / unit)]
            taken += [(resident_x, n_layers * budget.x_token_bytes / unit)]
        for step, past in enumerate(contexts):
            name = f"{group}_s{step}"
            count = problem.add_variable(f"recomputed_{name}", 0, past if splits else 0)
            from_host, loaded = [(count, 1.0)], [(count, -1.0)]
            counts: dict[str, tuple[float, Terms]] = {}
            if budget is not None:
                used_x = problem.add_variable(f"used_x_{name}", 0)
                resident_now = problem.add_variable(f"kept_kv_{name}", 0)
                grown = pulp.LpAffineExpression(
                    [(resident_kv, past / contexts[0]), (resident_now, -1.0)]
                )
                problem.addConstraint(grown >= 0, f"kept_{name}")
                problem.addConstraint(resident_x - used_x >= 0, f"x_kept_{name}")
                problem.addConstraint(count - used_x >= 0, f"x_used_{name}")
                problem.addConstraint(past - count - resident_now >= 0, f"range_{name}")
                from_host.append((used_x, -1.0))
                loaded.append((resident_now, -1.0))
                counts["recompute_resident"] = (0.0, [(used_x, 1.0)])
            counts["load_x"] = counts["recompute"] = (0.0, from_host)
            counts["load_kv"] = (float(past), loaded)
            if any(base or slope for base, slope in lines.of("dequantise", layer)):
                counts["dequantise"] = (float(past), loaded)
            for op, (constant, terms) in counts.items():
                time = problem.add_variable(f"time_{op}_{name}", 0)
                work[op].append((time, -float(n_layers * n_batches)))
                for number, (base, slope) in enumerate(lines.of(op, layer)):
                    scaled = [(variable, -factor * slope / unit_s) for variable, factor in terms]
                    row = pulp.LpAffineExpression([(time, 1.0), *scaled])
                    least = (base + slope * constant) / unit_s
                    problem.addConstraint(row >= least, f"cost_{op}_{name}_{number}")
    resident: dict[str, Terms] = {H2D: [], COMPUTE: []}
    if budget is not None:
        resident_weights = problem.add_variable("kept_weights", 0, 1)
        resident[H2D].append((resident_weights, other_link_s / unit_s))
        total = sum(layers.values())
        weight_bytes = (total - min(STAGING_SLOTS, total)) * budget.layer_weight_bytes
        taken.append((resident_weights, weight_bytes / budget.unit_bytes))
        free = max(0.0, budget.free_bytes) / budget.unit_bytes
        problem.addConstraint(pulp.LpAffineExpression(taken) <= free, "memory")
    for lane, ops, other_s in (
        (H2D, LINK_OPS, other_link_s),
        (COMPUTE, COMPUTE_OPS, other_compute_s),
    ):
        terms = [*resident[lane], *(term for op in ops for term in work[op])]
        row = pulp.LpAffineExpression([(makespan, 1.0), *terms])
        problem.addConstraint(row >= other_s / unit_s, f"{lane}_work")
    solve_to_optimum(problem)
    return float(makespan.value()) * unit_s
