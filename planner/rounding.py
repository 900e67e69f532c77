"""From the LP's fractional counts at a few steps to whole tokens at every step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import floor

from sim.workload import Workload

MAX_LP_STEPS = 5
"""A longer job is planned at this many steps, and in between by straight lines."""

MAX_LP_CELLS = 400
"""Cells (layers of a batch in a step) in one LP; beyond, only the first and last step are in it."""


def planned_steps(gen_tokens: int, cells: int) -> list[int]:
    """All steps of a short job; the first two, the middle and the last two of a long one.

    Args:
        cells: layers times batches of one step.
    """
    if gen_tokens > 1 and min(gen_tokens, MAX_LP_STEPS) * cells > MAX_LP_CELLS:
        return [0, gen_tokens - 1]
    if gen_tokens <= MAX_LP_STEPS:
        return list(range(gen_tokens))
    return [0, 1, gen_tokens // 2, gen_tokens - 2, gen_tokens - 1]


def whole_tokens(rows: list[list[float]], pasts: Sequence[int], shift: int) -> list[list[int]]:
    """Rows in whole tokens, moved by `shift`, rounding so that each row keeps its sum.

    A layer that recomputes nothing stays that way: its first token costs a launch and a copy.

    Args:
        rows: fractional counts by planned step and layer.
        pasts: past tokens of each planned step.
    """
    whole = []
    for past, row in zip(pasts, rows, strict=True):
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


def between_steps(
    planned: list[list[int]], steps: Sequence[int], workload: Workload
) -> list[list[int]]:
    """Fill the steps between planned ones along straight lines.

    Past tokens enter the LP's right-hand side linearly, so its optimum is piecewise linear in
    them.
    """
    split = [planned[0]]
    for (early, row), (late, next_row) in pairwise(zip(steps, planned, strict=True)):
        for step in range(early + 1, late + 1):
            weight = (step - early) / (late - early)
            past = workload.context_tokens(step)
            split.append(
                [min(past, round(a + (b - a) * weight)) for a, b in zip(row, next_row, strict=True)]
            )
    return split
