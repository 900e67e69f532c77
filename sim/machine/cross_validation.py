"""Leave-one-out errors of a profile's tables: each point predicted from the others.

Only inner points are checked: beyond the ends of a table nothing is interpolated. The gap that a
dropped point leaves is wider than any that the cost model reads across, so on smooth curves these
errors are larger than those of its predictions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, log
from statistics import median

from sim.machine.curves import Curve, RaggedGrid
from sim.machine.profile import HardwareProfile
from sim.machine.provenance import TableErrors
from sim.machine.utilisation import UNIT, UtilisationTable

KINDS = ("gemm", "gemm_8bit", "attention", "prefill", "h2d", "d2h", "host", "elementwise")

Miss = tuple[str, float]
"""Name of a point and (predicted - measured) / measured."""


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
            yield from _utilisation_misses(hardware, 16)
        case "gemm_8bit":
            yield from _utilisation_misses(hardware, 8)
        case "attention":
            yield from _attention_misses(hardware)
            for heads in hardware.attention.heads:
                yield from _grid_misses(heads.fan, f"KV heads of {heads.head_dim}")
        case "prefill":
            prefill = hardware.restore.prefill if hardware.restore else None
            for queries in prefill.heads if prefill else ():
                name = f"heads of {queries.head_dim}, {queries.queries_per_kv} to a KV head"
                yield from _grid_misses(queries.fan, name, squared=True)
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


def _utilisation_misses(hardware: HardwareProfile, weight_bits: int) -> Iterator[Miss]:
    """Each inner point of the utilisation over m, n and k, from its neighbours along each."""
    for table in hardware.gemm.utilisation:
        if table.weight_bits == weight_bits:
            lines = [[table.shares(n, k) for k in range(len(table.k))] for n in range(len(table.n))]
            yield from _rows_misses(table, lines)
            for n, row in zip(table.n, lines, strict=True):
                yield from _shape_misses(table.m, table.k, row, f"n={n} k={{}} m={{}}, along k")
            for k, column in zip(table.k, zip(*lines, strict=True), strict=True):
                yield from _shape_misses(table.m, table.n, column, f"n={{}} k={k} m={{}}, along n")


def _rows_misses(table: UtilisationTable, lines: Sequence[Sequence[list[int]]]) -> Iterator[Miss]:
    for n, row in zip(table.n, lines, strict=True):
        for k, shares in zip(table.k, row, strict=True):
            measured = [(m, share) for m, share in zip(table.m, shares, strict=False) if share]
            if measured:
                work = tuple(float(m) for m, _ in measured)
                seconds = tuple(table.best_s(m, n, k) * UNIT / share for m, share in measured)
                yield from _curve_misses(Curve(work, seconds), f"n={n} k={k} m={{:g}}, along m")


def _shape_misses(
    rows: Sequence[int], sizes: Sequence[int], lines: Sequence[list[int]], name: str
) -> Iterator[Miss]:
    """Shapes along one axis, each from its two neighbours; `name` has places for size and m."""
    for at in range(1, len(sizes) - 1):
        weight = log(sizes[at] / sizes[at - 1]) / log(sizes[at + 1] / sizes[at - 1])
        for m, low, share, high in zip(rows, *lines[at - 1 : at + 2], strict=False):
            if low and share and high:
                yield name.format(sizes[at], m), share / (low + (high - low) * weight) - 1.0


def _grid_misses(fan: RaggedGrid, name: str, squared: bool = False) -> Iterator[Miss]:
    """Each inner point of a fan along its columns, by roots where `squared`, and along its rows."""
    for row, curve in zip(fan.rows, fan.curves, strict=True):
        along = f"{name}: {row:g} at {{:g}}, along tokens"
        for point, error in _curve_misses(curve.rooted() if squared else curve, along):
            yield point, (1.0 + error) ** 2 - 1.0 if squared else error
    points = [dict(zip(curve.work, curve.seconds, strict=True)) for curve in fan.curves]
    for column in sorted({work for known in points for work in known}):
        sampled = [
            (row, known[column])
            for row, known in zip(fan.rows, points, strict=True)
            if column in known
        ]
        along = f"{name}: {{:g}} at {column:g}, along heads"
        yield from _curve_misses(Curve(*zip(*sampled, strict=True)), along)


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
