"""Summary of a finished sweep: the best point, the worst, and crossovers over the link's rate."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa

from planner.crossovers import crossings
from planner.restore.reproduce import link_rate
from planner.sweep.inputs import AUTO
from planner.sweep.rows import GOAL
from planner.sweep.study import Study
from planner.sweep.table import ERROR, POINT, PROVENANCE
from sim.lanes import TIERS
from sim.machine.components import JOIN

LINK_AXES = ("link.bandwidth", "link.h2d.bandwidth", "tier")
SPLITTING = ("lp", "kvpr", "two-ended", "layer-wise", "joint", AUTO)
"""Policies that may load and recompute. Crossovers are those of the other policies."""

FASTEST = "tokens_per_s", (max, min)
"""A column, and which of its values are the best and the worst."""

Sides = Mapping[str, tuple[float, str]]
"""Seconds and bottleneck of each policy at one rate; without an axis `policy` under one name."""


@dataclass(frozen=True)
class Crossover:
    """Two neighbouring rates of the link with another best policy or another bottleneck.

    Args:
        where: values of the other axes.
        what: `policy`, the fastest that does not split, or `bottleneck`.
        below, above: its value at the lower and at the higher rate.
        low_bytes_per_s, high_bytes_per_s: the two rates.
        at_bytes_per_s: rate at which both policies are equally fast, by log-log interpolation; None
            where it is unknown.
    """

    where: dict[str, Any]
    what: str
    below: str
    above: str
    low_bytes_per_s: float
    high_bytes_per_s: float
    at_bytes_per_s: float | None


@dataclass(frozen=True)
class Summary:
    """Args:
    errors: number of failed points by error.
    best, worst: varied inputs and outputs of the rows with the most and fewest tokens a second; of
        a traffic study, with the lowest and highest p90 of TTFT.
    """

    points: int
    errors: dict[str, int]
    best: dict[str, Any] | None
    worst: dict[str, Any] | None
    crossovers: tuple[Crossover, ...]


def summarize(study: Study, table: pa.Table) -> Summary:
    """The summary of a sweep's table."""
    errors = table.column(ERROR).to_pylist()
    valid = [at for at, error in enumerate(errors) if not error]
    column, picks = (GOAL["traffic"], (min, max)) if study.scenario == "traffic" else FASTEST
    ranks = table.column(column).to_pylist()
    best, worst = (pick(valid, key=ranks.__getitem__, default=None) for pick in picks)
    return Summary(
        table.num_rows,
        dict(Counter(filter(None, errors)).most_common()),
        _row(study, table, best),
        _row(study, table, worst),
        tuple(_crossovers(study, table, valid)),
    )


def _row(study: Study, table: pa.Table, at: int | None) -> dict[str, Any] | None:
    if at is None:
        return None
    row: dict[str, Any] = table.slice(at, 1).to_pylist()[0]
    hidden = {*study.fixed, ERROR, *PROVENANCE} - {POINT}
    return {key: value for key, value in row.items() if key not in hidden}


def _crossovers(study: Study, table: pa.Table, valid: Sequence[int]) -> Iterator[Crossover]:
    link = next((axis for axis in study.axes if _varies_link(study, axis)), None)
    if link is None:
        return
    what = "policy" if "policy" in study.axes else "bottleneck"
    goal = GOAL[study.scenario]
    others = [axis for axis in study.axes if axis not in (link, "policy")]
    rate_column = "tier" if link == "tier" else "h2d_bytes_per_s"
    needed = {*study.axes, goal, "bottleneck", rate_column}
    columns = {key: table.column(key).to_pylist() for key in needed}
    groups: defaultdict[tuple[Any, ...], dict[float, dict[str, tuple[float, str]]]]
    groups = defaultdict(lambda: defaultdict(dict))
    for at in valid:
        rate = _link_rate(columns[rate_column][at])
        policy = columns["policy"][at] if what == "policy" else ""
        if rate is not None and policy not in SPLITTING:
            place = [columns[axis][at] for axis in others]
            if link == "hardware":
                place.append(columns[link][at].rpartition(JOIN)[0])
            groups[tuple(place)][rate][policy] = columns[goal][at], columns["bottleneck"][at]
    names = [*others, "device"] if link == "hardware" else others
    for values, by_rate in groups.items():
        where = dict(zip(names, values, strict=True))
        for low, high in pairwise(sorted(by_rate)):
            sides = by_rate[low], by_rate[high]
            below, above = (_winner(side, what) for side in sides)
            if below != above:
                at_rate = _equal_at((low, high), sides, below, above) if what == "policy" else None
                yield Crossover(where, what, below, above, low, high, at_rate)


def _varies_link(study: Study, axis: str) -> bool:
    """Whether points along an axis differ by the link's rate, or by the link of one device."""
    if axis == "hardware":
        devices = [str(value).rpartition(JOIN)[0] for value in study.varied[axis]]
        return study.scenario == "decode" and all(devices) and len(set(devices)) < len(devices)
    return axis in LINK_AXES


def _link_rate(value: Any) -> float | None:
    if isinstance(value, str):
        return None if value in TIERS else link_rate("tier", value)
    return float(value)


def _winner(side: Sides, what: str) -> str:
    """The fastest policy or the bottleneck at one rate."""
    return min(side, key=lambda one: side[one][0]) if what == "policy" else side[""][1]


def _equal_at(
    rates: tuple[float, float], sides: tuple[Sides, Sides], below: str, above: str
) -> float | None:
    if not all({below, above} <= {*side} for side in sides):
        return None
    slower, faster = ([side[policy][0] for side in sides] for policy in (above, below))
    return crossings(rates, slower, faster)[0][0]
