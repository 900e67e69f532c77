"""Measured samples and how to read between them.

Inside the sampled range times are interpolated linearly: kernels and copies are close to
`a + b * work`, and blending logarithms of a straight line is biased upwards. Above the range
the achieved rate of the last sample is held, below it the first sample is a floor. In both
cases the result is marked as out of the calibrated range.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import pairwise
from math import sqrt

from sim.errors import BadInput
from sim.files import STRICT_KEYS


def locate(axis: tuple[float, ...], value: float) -> tuple[int, float, float, bool]:
    """Position of `value` on `axis`: lower index, blend weight, rate-holding scale, in range."""
    if value <= axis[0]:
        return 0, 0.0, 1.0, value == axis[0]
    last = len(axis) - 1
    if value >= axis[last]:
        return max(last - 1, 0), 1.0 if last else 0.0, value / axis[last], value == axis[last]
    low = bisect_right(axis, value) - 1
    return low, (value - axis[low]) / (axis[low + 1] - axis[low]), 1.0, True


def _check_axis(name: str, axis: tuple[float, ...]) -> None:
    rising = all(a < b for a, b in pairwise((0.0, *axis, float("inf"))))
    if not axis or not rising:
        raise BadInput(f"{name}(={list(axis)}) must be positive and strictly increasing.")


def _check_seconds(seconds: tuple[float, ...], axis: str, n: int) -> None:
    if len(seconds) != n or not all(0 < value < float("inf") for value in seconds):
        raise BadInput(f"seconds must hold {n} positive finite values, one for each of {axis}.")


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds sampled along one axis of work (bytes, or rows of a matrix product)."""

    __pydantic_config__ = STRICT_KEYS

    work: tuple[float, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_axis("work", self.work)
        _check_seconds(self.seconds, "work", len(self.work))

    @classmethod
    def launched(cls, launch_s: float, rate: float) -> Curve:
        """A launch and then one rate, up to 2**40 of work."""
        work = (1.0, 2.0**40)
        return cls(work, tuple(launch_s + amount / rate for amount in work))

    def at(self, work: float) -> tuple[float, bool]:
        """Seconds for `work`, and whether it is in the sampled range."""
        low, weight, scale, inside = locate(self.work, work)
        high = min(low + 1, len(self.work) - 1)
        seconds = self.seconds[low] * (1.0 - weight) + self.seconds[high] * weight
        return seconds * scale, inside

    def scaled(self, factor: float) -> Curve:
        """The same work where everything takes `factor` times as long."""
        return replace(self, seconds=tuple(value * factor for value in self.seconds))

    def rooted(self) -> Curve:
        """Roots of seconds over the same work, to read between where time goes with its square."""
        return replace(self, seconds=tuple(map(sqrt, self.seconds)))


@dataclass(frozen=True, slots=True)
class Grid:
    """Seconds sampled over two axes, rows by columns."""

    __pydantic_config__ = STRICT_KEYS

    rows: tuple[float, ...]
    columns: tuple[float, ...]
    seconds: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        _check_axis("rows", self.rows)
        _check_axis("columns", self.columns)
        if len(self.seconds) != len(self.rows):
            raise BadInput(f"seconds must hold {len(self.rows)} rows.")
        for row in self.seconds:
            _check_seconds(row, "columns", len(self.columns))

    def at(self, row: float, column: float) -> tuple[float, bool]:
        """Seconds at (row, column), bilinear, and whether it is in the sampled range."""
        low, weight, scale, inside = locate(self.rows, row)
        high = min(low + 1, len(self.rows) - 1)
        below, inside_below = Curve(self.columns, self.seconds[low]).at(column)
        if weight == 0.0:
            return below * scale, inside and inside_below
        above, _ = Curve(self.columns, self.seconds[high]).at(column)
        return (below * (1.0 - weight) + above * weight) * scale, inside and inside_below

    def scaled(self, factor: float) -> Grid:
        """The same work where everything takes `factor` times as long."""
        seconds = tuple(tuple(value * factor for value in row) for row in self.seconds)
        return replace(self, seconds=seconds)


@dataclass(frozen=True, slots=True)
class RaggedGrid:
    """Seconds sampled over two axes, each row over columns of its own, as far as memory went."""

    __pydantic_config__ = STRICT_KEYS

    rows: tuple[float, ...]
    curves: tuple[Curve, ...]

    def __post_init__(self) -> None:
        _check_axis("rows", self.rows)
        if len(self.curves) != len(self.rows):
            raise BadInput(f"curves must hold {len(self.rows)} curves, one for each row.")

    def at(self, row: float, column: float) -> tuple[float, bool]:
        """Seconds at (row, column), linear along both, and whether it is in the sampled range."""
        low, weight, scale, inside = locate(self.rows, row)
        high = min(low + 1, len(self.rows) - 1)
        seconds = 0.0
        for at, share in ((low, 1.0 - weight), (high, weight)):
            if share > 0.0:
                value, within = self.curves[at].at(column)
                seconds += share * value
                inside = inside and within
        return seconds * scale, inside

    def scaled(self, factor: float) -> RaggedGrid:
        """The same work where everything takes `factor` times as long."""
        return replace(self, curves=tuple(curve.scaled(factor) for curve in self.curves))
