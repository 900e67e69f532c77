"""From the LP's fractional counts at a few steps to whole tokens at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import floor

MAX_LP_STEPS = 5
"""A longer job is planned at this many steps, with linear interpolation in between."""

MAX_LP_CELLS = 400
"""Maximum cells (layers of a batch in a step) of an LP; above, only the first and last step."""

LP_TOLERANCE = 1e-6
"""How far below a whole number the solver may return it."""


def whole_part(value: float) -> int:
    """Whole part of a value of the LP, in which 511.9999999 is 512."""
    return floor(value + LP_TOLERANCE)


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


@dataclass(frozen=True, slots=True)
class Limits:
    """Minimum and maximum of tokens that a layer recomputes in one step."""

    least: int
    most: int


def shifts(value: float) -> bool:
    """Whether a count is moved by a shift; a layer that recomputes nothing stays at 0."""
    return value >= 0.5


def whole_tokens(
    rows: list[list[float]], limits: Sequence[Sequence[Limits]], shift: int
) -> list[list[int]]:
    """Rows in whole tokens, moved by `shift`; rounding preserves the sum of each row.

    A layer that recomputes nothing stays at 0, because its first token costs a launch and a copy.

    Args:
        rows: fractional counts by planned step and layer.
        limits: of the same shape.
    """
    whole = []
    for row, bounds in zip(rows, limits, strict=True):
        debt = 0.0
        counts = []
        for value, bound in zip(row, bounds, strict=True):
            moved = value + shift if shifts(value) else 0.0
            wanted = min(max(moved, float(bound.least)), float(bound.most)) + debt
            count = min(max(floor(wanted + 0.5), bound.least), bound.most)
            debt = wanted - count
            counts.append(count)
        whole.append(counts)
    return whole


def between_steps(
    planned: list[list[int]], steps: Sequence[int], limits: Callable[[int], Sequence[Limits]]
) -> list[list[int]]:
    """The split of every step, linear between the planned steps.

    Past tokens enter the LP's right-hand side linearly, so its optimum is piecewise linear in them.

    Args:
        limits: of every layer in a step.
    """
    split = [planned[0]]
    for (early, row), (late, next_row) in pairwise(zip(steps, planned, strict=True)):
        for step in range(early + 1, late + 1):
            weight = (step - early) / (late - early)
            split.append(
                [
                    min(bound.most, round(a + (b - a) * weight))
                    for a, b, bound in zip(row, next_row, limits(step), strict=True)
                ]
            )
    return split
