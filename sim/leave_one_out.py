"""How well a profile's tables predict their own points: leave one out, read it from the rest.

Only inner points are checked: beyond the ends of a table nothing is interpolated. The gap that a
dropped point leaves is wider than any that the cost model reads across, so on smooth curves these
errors are larger than those of its predictions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from statistics import median

from sim.curves import Curve
from sim.hardware import HardwareProfile

KINDS = ("gemm", "attention", "h2d", "d2h", "host", "elementwise")

Miss = tuple[str, float]
"""Name of a point and (predicted - measured) / measured."""


@dataclass(frozen=True, slots=True)
class TableErrors:
    """Leave-one-out errors of all tables of one kind.

    Args:
        kind: one of `KINDS`.
        points: predictions made; an inner point of an attention grid is predicted twice, from
            its neighbours along context and from those along batch.
        p90_abs_error_frac: nine tenths of the points are at most so far off.
        worst: the point that is farthest off.
        worst_error_frac: its error with sign, predicted - measured.
    """

    kind: str
    points: int
    median_abs_error_frac: float
    p90_abs_error_frac: float
    max_abs_error_frac: float
    worst: str
    worst_error_frac: float


def leave_one_out(hardware: HardwareProfile) -> tuple[TableErrors, ...]:
    """Errors by kind, in the order of `KINDS`; kinds without an inner point are left out.

    A profile without tables, such as a datasheet's, gives an empty report.
    """
    found = ((kind, list(_misses(kind, hardware))) for kind in KINDS)
    return tuple(_summary(kind, misses) for kind, misses in found if misses)


def _misses(kind: str, hardware: HardwareProfile) -> Iterator[Miss]:
    match kind:
        case "gemm":
            for table in hardware.gemm.tables:
                yield from _curve_misses(table.curve, f"n={table.n} k={table.k} m={{:g}}")
        case "attention":
            yield from _attention_misses(hardware)
        case "elementwise":
            if hardware.elementwise.curve is not None:
                yield from _curve_misses(hardware.elementwise.curve, "{:.0f} bytes")
        case _:
            link = getattr(hardware.links, kind)
            if link is not None and link.curve is not None:
                yield from _curve_misses(link.curve, "{:.0f} bytes")


def _attention_misses(hardware: HardwareProfile) -> Iterator[Miss]:
    for table in hardware.attention.tables:
        grid = table.grid
        heads = f"heads={table.n_heads}/{table.n_kv_heads}x{table.head_dim}"
        for batch, seconds in zip(grid.rows, grid.seconds, strict=True):
            name = f"{heads} batch={batch:g} context={{:g}}, along context"
            yield from _curve_misses(Curve(grid.columns, seconds), name)
        for at, context in enumerate(grid.columns):
            name = f"{heads} batch={{:g}} context={context:g}, along batch"
            column = Curve(grid.rows, tuple(seconds[at] for seconds in grid.seconds))
            yield from _curve_misses(column, name)


def _curve_misses(curve: Curve, name: str) -> Iterator[Miss]:
    """Each inner point read from the curve without it; `name` has a place for its work."""
    for at in range(1, len(curve.work) - 1):
        rest = Curve(
            curve.work[:at] + curve.work[at + 1 :], curve.seconds[:at] + curve.seconds[at + 1 :]
        )
        work, measured_s = curve.work[at], curve.seconds[at]
        predicted_s, _ = rest.at(work)
        yield name.format(work), predicted_s / measured_s - 1.0


def _summary(kind: str, misses: list[Miss]) -> TableErrors:
    sizes = sorted(abs(error) for _, error in misses)
    worst, worst_error = max(misses, key=lambda miss: abs(miss[1]))
    return TableErrors(
        kind=kind,
        points=len(misses),
        median_abs_error_frac=median(sizes),
        p90_abs_error_frac=sizes[ceil(0.9 * len(sizes)) - 1],
        max_abs_error_frac=sizes[-1],
        worst=worst,
        worst_error_frac=worst_error,
    )
