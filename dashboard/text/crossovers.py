"""Where curves over an input meet, and which restore policy beats which at what rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log

import pandas as pd

from sim.units import percent

ONE_RESOURCE = "one resource alone"
"""Whichever of `compute-only` and `load-only` is faster."""

SAME_FRAC = 1e-6
"""Times that differ by less are the same."""

FEW = 2
"""Stretches up to which each is told."""

Point = tuple[float, float]


def crossings(x: Sequence[float], first: Sequence[float], second: Sequence[float]) -> list[Point]:
    """Where two curves sampled at the same points meet, on logarithmic axes."""
    gaps = [log(a / b) for a, b in zip(first, second, strict=True)]
    met = []
    for at, (left, right) in enumerate(pairwise(gaps)):
        if left == 0 or left * right < 0:
            weight = left / (left - right) if left else 0.0
            at_x = exp(log(x[at]) + weight * log(x[at + 1] / x[at]))
            met.append((at_x, exp(log(first[at]) + weight * log(first[at + 1] / first[at]))))
    if gaps and gaps[-1] == 0:
        met.append((x[-1], first[-1]))
    return met


@dataclass(frozen=True, slots=True)
class Stretch:
    """Rates between which one policy beats another.

    Args:
        low, high: in GiB/s, where it begins and ends, or the ends of what was swept.
        most_frac: how much longer the other takes, at most.
        from_start, to_end: whether it begins with the lowest rate, and ends with the highest.
    """

    low: float
    high: float
    most_frac: float
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


def stretches(points: pd.DataFrame, first: str, second: str) -> list[Stretch]:
    """Where `first` is faster than `second`, from crossing to crossing."""
    times = times_of(points, first, second)
    x, gains = times["x"].tolist(), (times["second"] / times["first"] - 1).tolist()
    edges = [rate for rate, _ in policy_crossings(points, first, second)]
    bounds = sorted({x[0], *edges, x[-1]}) if x else []
    found: list[Stretch] = []
    for low, high in pairwise(bounds):
        inside = [gain for rate, gain in zip(x, gains, strict=True) if low <= rate <= high]
        if not inside or max(inside) <= SAME_FRAC:
            continue
        found.append(Stretch(low, high, max(inside), low == x[0], high == x[-1]))
    return found


def where(found: Sequence[Stretch]) -> str:
    """Some stretches in words."""
    if len(found) <= FEW:
        return " and ".join(map(str, found))
    return f"in {len(found)} stretches between {found[0].low:.3g} and {found[-1].high:.3g} GiB/s"


def rates_in_words(points: pd.DataFrame) -> list[str]:
    """What the curves say, one sentence each."""
    told = []
    loading = stretches(points, "load-only", "compute-only")
    told.append(
        f"Loading alone is faster than computing alone {where(loading)}."
        if loading
        else "Computing alone is faster than loading alone at every rate."
    )
    lost = stretches(points, ONE_RESOURCE, "two-ended")
    told.append(
        f"two-ended loses to one of them alone {where(lost)}: it takes up to "
        f"{percent(max(one.most_frac for one in lost))} longer there."
        if lost
        else "two-ended loses to neither of them at any rate."
    )
    if "joint_s" not in points:
        return told
    won = stretches(points, "layer-wise", "two-ended")
    told.append(f"layer-wise is faster than two-ended {where(won) if won else 'nowhere'}.")
    gained = times_of(points, "joint", "two-ended")
    gains = gained["second"] / gained["first"]
    best = gains.idxmax()
    told.append(
        f"joint gains most over two-ended at {gained['x'][best]:.3g} GiB/s, where it is "
        f"{gains[best]:.2f} x as fast."
    )
    return told
