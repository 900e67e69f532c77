"""How far a table's points lie from what the rest of it says of them."""

from __future__ import annotations

from dataclasses import dataclass

from sim.files import STRICT_KEYS


@dataclass(frozen=True, slots=True)
class TableErrors:
    """Leave-one-out errors of all tables of one kind.

    Args:
        kind: one of `sim.leave_one_out.KINDS`.
        points: predictions made; an inner point of an attention grid is predicted twice, from
            its neighbours along context and from those along batch.
        p90_abs_error_frac: nine tenths of the points are at most so far off.
        worst: the point that is farthest off.
        worst_error_frac: its error with sign, predicted - measured.
    """

    __pydantic_config__ = STRICT_KEYS

    kind: str
    points: int
    median_abs_error_frac: float
    p90_abs_error_frac: float
    max_abs_error_frac: float
    worst: str
    worst_error_frac: float
