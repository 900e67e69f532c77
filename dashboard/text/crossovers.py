"""Crossovers of curves over an input, and the rates at which one restore policy beats another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd

from planner.crossovers import crossings
from sim.units import percent

ONE_RESOURCE = "one resource alone"
"""The faster of `compute-only` and `load-only`."""

SAME_FRAC = 1e-6
"""Relative difference below which two times are equal."""

FEW = 2
"""Largest number of intervals that are listed one by one."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Interval:
    """Rates between which one policy beats another.

    Args:
        low, high: first and last rate in GiB/s.
        max_gain_frac: largest gain over the other policy.
        from_start, to_end: whether it contains the lowest and the highest rate of the sweep.
    """

    low: float
    high: float
    max_gain_frac: float
    from_start: bool
    to_end: bool

    def __str__(self) -> str:
        if self.from_start and self.to_end:
            return "at every rate"
        if self.from_start:
            return f"below {self.high:.3g} GiB/s"
        if self.to_end:
            return f"above {self.low:.3g} GiB/s"
        return f"from {self.low:.3g} to {self.high:.3g} GiB/s"


def times_of(points: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Columns `x`, `first` and `second` at the rates at which both policies were planned.

    Args:
        points: `gib_per_s` rising, and `<policy>_s`, empty where a policy was not planned.
    """
    one = points[["compute-only_s", "load-only_s"]].min(axis=1)
    found = {
        column: one if name == ONE_RESOURCE else points[f"{name}_s"]
        for column, name in (("first", first), ("second", second))
    }
    return pd.DataFrame({"x": points["gib_per_s"], **found}).dropna()


def policy_crossings(points: pd.DataFrame, first: str, second: str) -> list[Point]:
    """Rates and times at which two policies take equally long."""
    times = times_of(points, first, second)
    return crossings(times["x"].tolist(), times["first"].tolist(), times["second"].tolist())


def intervals(points: pd.DataFrame, first: str, second: str) -> list[Interval]:
    """Where `first` is faster than `second`, from crossing to crossing."""
    times = times_of(points, first, second)
    x, gains = times["x"].tolist(), (times["second"] / times["first"] - 1).tolist()
    edges = [rate for rate, _ in policy_crossings(points, first, second)]
    bounds = sorted({x[0], *edges, x[-1]}) if x else []
    found: list[Interval] = []
    for low, high in pairwise(bounds):
        inside = [gain for rate, gain in zip(x, gains, strict=True) if low <= rate <= high]
        if not inside or max(inside) <= SAME_FRAC:
            continue
        found.append(Interval(low, high, max(inside), low == x[0], high == x[-1]))
    return found


def describe_intervals(found: Sequence[Interval]) -> str:
    """Intervals as text."""
    if len(found) <= FEW:
        return " and ".join(map(str, found))
    return f"in {len(found)} intervals between {found[0].low:.3g} and {found[-1].high:.3g} GiB/s"


def describe_rates(points: pd.DataFrame) -> list[str]:
    """One sentence for each comparison of two policies."""
    lines = []
    loading = intervals(points, "load-only", "compute-only")
    lines.append(
        f"load-only is faster than compute-only {describe_intervals(loading)}."
        if loading
        else "compute-only is faster than load-only at every rate."
    )
    lost = intervals(points, ONE_RESOURCE, "two-ended")
    lines.append(
        f"two-ended takes up to {percent(max(one.max_gain_frac for one in lost))} longer than the "
        f"faster of these two {describe_intervals(lost)}."
        if lost
        else "two-ended is never slower than the faster of these two."
    )
    if "joint_s" not in points:
        return lines
    won = intervals(points, "layer-wise", "two-ended")
    lines.append(
        f"layer-wise is faster than two-ended {describe_intervals(won) if won else 'nowhere'}."
    )
    gained = times_of(points, "joint", "two-ended")
    gains = gained["second"] / gained["first"]
    best = gains.idxmax()
    lines.append(
        f"joint gains most over two-ended at {gained['x'][best]:.3g} GiB/s, where it is "
        f"{gains[best]:.2f} x as fast."
    )
    return lines
