"""In which order restores get link and GPU: forecasts of a few orders, and the best of them.

The link serves one restore after another, and the GPU those that have arrived, in steps with a
budget of tokens. Loads in the order of their lengths and steps in the order of what is left to
compute bring most first tokens early, but may leave a long tail for the end. `sim/service/trial.py`
tries the orders that are named here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from typing import NamedTuple


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


class Lanes(NamedTuple):
    """What serves them.

    Args:
        link_free_s: seconds until the link is free.
        budget: tokens of a step.
        rows_s: time of a step of so many tokens without tokens before them.
    """

    link_free_s: float
    budget: int
    rows_s: Callable[[int], float]


class Order(NamedTuple):
    """Places of the requests that load, in their turns, and whether the GPU goes by what is left.

    Otherwise the GPU goes by admission, as the link does if there are no turns.
    """

    turns: tuple[int, ...]
    by_gain: bool


FIRST_COME = Order((), by_gain=False)


class Promising(NamedTuple):
    """Orders that may bring first tokens earlier than first come, first served.

    Args:
        orders: the smallest mean first.
        complete: there are no others.
    """

    orders: list[Order]
    complete: bool


def promising(waiting: Sequence[Waiting], lanes: Lanes) -> Promising:
    """All orders of a few restores; of more those that a forecast puts first."""
    loading = sorted((one for one in waiting if one.load_s), key=lambda one: one.place)
    others = [one for one in waiting if not one.load_s]
    if len(loading) <= FEW:
        rows = permutations(one.place for one in loading)
        orders = [Order(row, by_gain) for row in rows for by_gain in (True, False)]
        first = tuple(one.place for one in loading)
        return Promising([one for one in orders if one != Order(first, False)], complete=True)
    found = []
    for turns in _turns(loading):
        for by_gain in (True, False):
            mean_s = _sum_s([*turns, *others], lanes, by_gain)
            found.append((mean_s, Order(tuple(one.place for one in turns), by_gain)))
    return Promising([order for _, order in sorted(found)[:BEST]], complete=False)


def _turns(loading: Sequence[Waiting]) -> list[tuple[Waiting, ...]]:
    """Restores by admission, by a few keys, and with another one last."""
    ranked = [sorted(loading, key=key) for key in _KEYS]
    last = sorted(loading, key=lambda one: one.compute_s)[:LATE]
    rows = [loading, *ranked]
    rows += [[*(one for one in row if one is not end), end] for row in ranked for end in last]
    return [*dict.fromkeys(map(tuple, rows))]


LATE = 3
"""Restores with the least to compute that are tried as the last one to load."""

FEW = 4
"""Restores of which every order is tried."""

BEST = 6
"""Orders that are tried if not all of them are."""

_KEYS: tuple[Callable[[Waiting], tuple[float, int]], ...] = (
    lambda one: (one.load_s + one.ready_s + one.compute_s, one.place),
    lambda one: (one.load_s, one.place),
    lambda one: (one.compute_s, one.place),
)


def _sum_s(order: Sequence[Waiting], lanes: Lanes, by_gain: bool) -> float:
    """Sum of the times to the first tokens."""
    row_s = lanes.rows_s(lanes.budget) / lanes.budget
    coming, link_s = [], lanes.link_free_s
    for one in order:
        ready_s = one.ready_s
        if one.load_s:
            link_s += one.load_s
            ready_s = link_s
        coming.append((ready_s, one))
    coming.sort(key=lambda pair: pair[0], reverse=True)
    left: list[list[float]] = []
    now_s = sum_s = 0.0
    while coming or left:
        if not left:
            now_s = max(now_s, coming[-1][0])
        while coming and coming[-1][0] <= now_s:
            one = coming.pop()[1]
            token_s = max(0.0, one.compute_s / max(1, one.n_tokens) - row_s)
            left.append([one.n_tokens, one.place, token_s])
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
        now_s += lanes.rows_s(lanes.budget - int(room)) + step_s
        for job, count in zip(left, taken, strict=False):
            job[0] -= count
        waiting = [job for job in left if job[0] > 0]
        sum_s += now_s * (len(left) - len(waiting))
        left = waiting
    return sum_s
