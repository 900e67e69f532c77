"""In which order restores get link and GPU: forecasts of a few orders, and the best of them.

The link serves one restore after another, and the GPU those that have arrived, in steps with a
budget of tokens. Loads in the order of their lengths and steps in the order of what is left to
compute bring most first tokens early, but may leave a long tail for the end. So an order counts
only if its forecast delays neither the mean nor the 90th percentile against first come, first
served.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import NamedTuple

MOST = 16
"""Requests whose orders are forecast; more are served by what they have left."""

LATE = 3
"""Restores with the least to compute that are tried as the last one to load."""


class Waiting(NamedTuple):
    """A request that waits for its first token.

    Args:
        place: in the order of admission.
        load_s: of its loads that have not begun.
        ready_s: seconds from now until those that have begun end.
        n_tokens: tokens to compute.
        compute_s: time for that.
    """

    place: int
    load_s: float
    ready_s: float
    n_tokens: int
    compute_s: float


class Forecast(NamedTuple):
    """Places of requests in the order of their loads, and whether the GPU goes by what is left."""

    order: tuple[int, ...]
    by_gain: bool


class Lanes(NamedTuple):
    """What serves them.

    Args:
        link_free_s: seconds until the link is free.
        budget: tokens of a step.
        step_s: least time of one.
    """

    link_free_s: float
    budget: int
    step_s: float


def best_order(waiting: Sequence[Waiting], lanes: Lanes) -> Forecast:
    """The order of loads with the smallest mean forecast, late for nobody on balance."""
    ranked = [sorted(waiting, key=key) for key in _KEYS]
    if len(waiting) > MOST:
        return Forecast(tuple(one.place for one in ranked[0]), True)
    first_come = sorted(waiting, key=lambda one: one.place)
    loading = [one for one in waiting if one.load_s]
    last = sorted(loading, key=lambda one: one.compute_s)[:LATE]
    orders = [first_come, *ranked]
    orders += [[*(one for one in row if one is not end), end] for row in ranked for end in last]
    distinct = list({tuple(one.place for one in row if one.load_s): row for row in orders}.values())
    limit = _times(first_come, lanes, by_gain=False)
    bounds = [(1 + ROUNDING) * seconds for seconds in limit[1:]]
    best, result = Forecast(tuple(one.place for one in first_come), False), limit
    for row in distinct:
        found = _times(row, lanes, by_gain=True)
        if found[0] < result[0] and found[1] <= bounds[0] and found[2] <= bounds[1]:
            best, result = Forecast(tuple(one.place for one in row), True), found
    return best


ROUNDING = 1e-6
"""Relative difference of times that adding in another order may make."""

_KEYS: tuple[Callable[[Waiting], tuple[float, int]], ...] = (
    lambda one: (one.load_s + one.ready_s + one.compute_s, one.place),
    lambda one: (one.load_s, one.place),
    lambda one: (one.compute_s, one.place),
)


def _times(order: Sequence[Waiting], lanes: Lanes, by_gain: bool) -> tuple[float, float, float]:
    """Sum, 90th percentile and largest of the times to the first tokens."""
    coming, link_s = [], lanes.link_free_s
    for one in order:
        ready_s = one.ready_s
        if one.load_s:
            link_s += one.load_s
            ready_s = link_s
        coming.append((ready_s, one))
    coming.sort(key=lambda pair: pair[0], reverse=True)
    left: list[list[float]] = []
    now_s, ends = 0.0, []
    while coming or left:
        if not left:
            now_s = max(now_s, coming[-1][0])
        while coming and coming[-1][0] <= now_s:
            one = coming.pop()[1]
            left.append([one.n_tokens, one.place, one.compute_s / max(1, one.n_tokens)])
        left.sort(key=lambda job: job[:2] if by_gain else job[1:2])
        room, step_s = float(lanes.budget), 0.0
        taken = []
        for job in left:
            count = min(room, job[0])
            step_s += count * job[2]
            taken.append(count)
            room -= count
            if room <= 0:
                break
        now_s += max(lanes.step_s, step_s)
        for job, count in zip(left, taken, strict=False):
            job[0] -= count
        ends += [now_s] * sum(job[0] <= 0 for job in left)
        left = [job for job in left if job[0] > 0]
    ends.sort()
    return sum(ends), ends[ceil(0.9 * len(ends)) - 1], ends[-1]
