"""What a finished sweep says in short: the best point, the worst, and where the answer turns."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log
from typing import Any

import pyarrow as pa

from planner.restore.reproduce import link_rate
from planner.sweep.inputs import AUTO
from planner.sweep.rows import GOAL
from planner.sweep.study import Study
from planner.sweep.table import ERROR, POINT
from sim.lanes import TIERS
from sim.machine.components import JOIN

LINK_AXES = ("link.bandwidth", "link.h2d.bandwidth", "tier")
CHOOSERS = ("lp", "kvpr", "two-ended", "layer-wise", "joint", AUTO)
"""Policies that do some of both. The others compete: where does loading win over computing?"""


@dataclass(frozen=True)
class Crossover:
    """Between two bandwidths of the link something else becomes best, or limits.

    Args:
        where: the other axes.
        what: `policy`, the faster of those that do not split, or `bottleneck`.
        below, above: its value on either side.
        low_bytes_per_s, high_bytes_per_s: bandwidths on either side.
        at_bytes_per_s: where the two policies are equally fast, on a straight line between
            logarithms; None where that is not known.
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
    errors: points without an answer, by their error.
    best, worst: rows with the most and the fewest tokens a second, inputs that vary and outputs.
    """

    points: int
    errors: dict[str, int]
    best: dict[str, Any] | None
    worst: dict[str, Any] | None
    crossovers: tuple[Crossover, ...]


def findings(study: Study, table: pa.Table) -> Summary:
    """Look through a sweep's table."""
    errors = table.column(ERROR).to_pylist()
    rates = table.column("tokens_per_s").to_pylist()
    answered = [at for at, error in enumerate(errors) if not error]
    best = max(answered, key=rates.__getitem__, default=None)
    worst = min(answered, key=rates.__getitem__, default=None)
    return Summary(
        table.num_rows,
        dict(Counter(filter(None, errors)).most_common()),
        None if best is None else _row(study, table, best),
        None if worst is None else _row(study, table, worst),
        tuple(_crossovers(study, table, answered)),
    )


def _row(study: Study, table: pa.Table, at: int) -> dict[str, Any]:
    row: dict[str, Any] = table.slice(at, 1).to_pylist()[0]
    hidden = {*study.fixed, ERROR, "kvoverlap_version", "study_sha256"} - {POINT}
    return {key: value for key, value in row.items() if key not in hidden}


def _crossovers(study: Study, table: pa.Table, answered: Sequence[int]) -> list[Crossover]:
    link = next((axis for axis in study.axes if _varies_link(study, axis)), None)
    if link is None:
        return []
    contest = "policy" in study.axes
    goal = GOAL[study.scenario]
    others = [axis for axis in study.axes if axis not in (link, "policy")]
    rate_column = "tier" if link == "tier" else "h2d_bytes_per_s"
    needed = {*study.axes, goal, "bottleneck", rate_column}
    columns = {key: table.column(key).to_pylist() for key in needed}
    groups: defaultdict[tuple[Any, ...], dict[float, dict[str, tuple[float, str]]]]
    groups = defaultdict(lambda: defaultdict(dict))
    for at in answered:
        rate = _link_rate(columns[rate_column][at])
        policy = columns["policy"][at] if contest else ""
        if rate is not None and policy not in CHOOSERS:
            place = [columns[axis][at] for axis in others]
            if link == "hardware":
                place.append(columns[link][at].rpartition(JOIN)[0])
            groups[tuple(place)][rate][policy] = columns[goal][at], columns["bottleneck"][at]
    names = [*others, "device"] if link == "hardware" else others
    return [
        turn
        for values, by_rate in groups.items()
        for turn in _turns(dict(zip(names, values, strict=True)), by_rate, contest)
    ]


def _varies_link(study: Study, axis: str) -> bool:
    """Whether points along an axis differ by their link: its rate, or a device behind several."""
    values = {**study.grid, **study.zipped}[axis]
    if axis == "hardware":
        devices = [str(value).rpartition(JOIN)[0] for value in values]
        return study.scenario == "decode" and all(devices) and len(set(devices)) < len(devices)
    return axis in LINK_AXES


def _link_rate(value: Any) -> float | None:
    if isinstance(value, str):
        return None if value in TIERS else link_rate("tier", value)
    return float(value)


def _turns(
    where: dict[str, Any], by_rate: Mapping[float, Mapping[str, tuple[float, str]]], contest: bool
) -> Iterator[Crossover]:
    for low, high in pairwise(sorted(by_rate)):
        turn = _turn(by_rate[low], by_rate[high], contest)
        if turn is not None:
            at_rate = _meeting(low, high, by_rate[low], by_rate[high], turn) if contest else None
            what = "policy" if contest else "bottleneck"
            yield Crossover(where, what, *turn, low, high, at_rate)


def _turn(
    low: Mapping[str, tuple[float, str]], high: Mapping[str, tuple[float, str]], contest: bool
) -> tuple[str, str] | None:
    """What is best, or limits, at two bandwidths, where that differs."""
    if contest:
        below, above = (min(side, key=lambda one: side[one][0]) for side in (low, high))
    else:
        below, above = low[""][1], high[""][1]
    return None if below == above else (below, above)


def _meeting(
    low_rate: float,
    high_rate: float,
    low: Mapping[str, tuple[float, str]],
    high: Mapping[str, tuple[float, str]],
    turn: tuple[str, str],
) -> float | None:
    """Where two policies are equally fast, by straight lines between logarithms."""
    below, above = turn
    if not {below, above} <= {*low} & {*high}:
        return None
    ahead = log(low[above][0] / low[below][0])
    behind = log(high[below][0] / high[above][0])
    share = ahead / (ahead + behind) if ahead + behind > 0 else 0.0
    return exp(log(low_rate) + share * log(high_rate / low_rate))
