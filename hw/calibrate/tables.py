"""Samplers of points, and curves and grids from the medians of their samples.

A module of this package covers one block of the profile. It has two functions: `samplers` gives
the sampler of each point, and `block` makes the block from the median of each point. To sample
another kernel, add its points to the first and its table to the second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sim.machine.curves import Curve, Grid
from sim.machine.provenance import Point
from sim.model.spec import ModelSpec

Sampler = Callable[[], list[float]]
"""Measures one point a few times; returns the samples of one pass."""

Samplers = dict[Point, Sampler]

Medians = Mapping[Point, float]
"""The median of the samples of each point, mostly in seconds."""


def curve(medians: Medians, *name: str | int) -> Curve:
    """Seconds over the size of every point `(*name, size)`."""
    sizes = sorted(int(point[-1]) for point in medians if point[:-1] == name)
    return Curve(tuple(map(float, sizes)), tuple(medians[*name, size] for size in sizes))


def grid(
    medians: Medians, name: tuple[str | int, ...], rows: Sequence[int], columns: Sequence[int]
) -> Grid:
    """Seconds of the points `(*name, row, column)`."""
    return Grid(
        tuple(map(float, rows)),
        tuple(map(float, columns)),
        tuple(tuple(medians[*name, row, column] for column in columns) for row in rows),
    )


def named(medians: Medians, kind: str) -> list[Point]:
    """The distinct names, points without their size, of one kind of point."""
    return sorted({point[:-1] for point in medians if point[0] == kind})


def heads_of(model: ModelSpec) -> tuple[int, int, int]:
    """The head shape that names a table of attention."""
    return model.n_heads, model.n_kv_heads, model.head_dim
