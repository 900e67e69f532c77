"""Which order of restores an instance takes: orders that promise a gain are tried on copies.

A forecast (`sim/service/forecast.py`) names the few orders worth a trial. The trial runs the
requests that are admitted through the real steps and loads, each until its first token. An order
counts only if its mean TTFT is smaller than that of first come, first served, and neither the 90th
percentile nor the largest is larger. So without later arrivals the order that is taken is never
slower.
"""

from __future__ import annotations

from copy import copy
from math import ceil, inf

from sim.service.batch import Batch
from sim.service.forecast import FIRST_COME, Order
from sim.service.loader import Active

MOST = 16
"""Requests whose orders are tried; more are served in the order of admission."""

TRIED_REQUESTS = 200
"""Requests of all trials of one choice, so that a choice among many takes no longer."""

GAIN_FRAC, DELAY_FRAC = 1e-6, 3e-3
"""Least relative gain in the mean, and largest relative delay of the tail, of an order to take."""


def choose_order(batch: Batch, now_s: float) -> Order:
    """The order in which the requests of a batch get link and GPU."""
    if not 1 < len(batch.prompts) <= MOST:
        return FIRST_COME
    found = batch.restorer.orders(batch.prompts, now_s)
    search = _Search(batch, now_s)
    for order in found.orders:
        search.try_one(order)
    if not found.complete:
        search.improve([one.order for one in batch.prompts if one.to_load])
    return search.order


class _Search:
    """The best order so far, `order`, and its times."""

    def __init__(self, batch: Batch, now_s: float) -> None:
        self._batch, self._now_s = batch, now_s
        self.order = FIRST_COME
        self._best = Trial(batch, FIRST_COME).ttft_s(now_s)
        self._limits = [(1 + DELAY_FRAC) * seconds for seconds in self._best]
        self._left = TRIED_REQUESTS

    def try_one(self, order: Order) -> bool:
        """Take an order if it gains and delays nobody on balance; returns whether it does."""
        self._left -= len(self._batch.prompts)
        found = Trial(self._batch, order).ttft_s(self._now_s, self._best[0])
        late = found[1] > self._limits[1] or found[2] > self._limits[2]
        if late or found[0] >= (1 - GAIN_FRAC) * self._best[0]:
            return False
        self._best, self.order = found, order
        return True

    def improve(self, loading: list[int]) -> None:
        """Move one restore at a time to another turn while that gains.

        Args:
            loading: restores by admission.
        """
        moves = [(place, to) for place in loading[::-1] for to in range(len(loading))]
        at = since = 0
        while since < len(moves) and self._left > 0:
            place, to = moves[at % len(moves)]
            at, since = at + 1, since + 1
            turns = [one for one in self.order.turns or loading if one != place]
            turns.insert(to, place)
            moved = Order(tuple(turns), self.order.by_gain)
            if moved.turns != self.order.turns and self.try_one(moved):
                since = 0


class Trial(Batch):
    """Copies of the requests that a batch holds; none comes, and none needs more memory."""

    def __init__(self, batch: Batch, order: Order) -> None:
        copies: dict[Active, Active] = {one: copy(one) for one in batch.prompts}
        super().__init__(batch.costs, batch.engine, batch.restorer.copy(copies))
        self.queue = batch.queue
        self.prompts = list(copies.values())
        self.decoding, self.ends = dict(batch.decoding), list(batch.ends)
        self.context_sum, self.decode_steps = batch.context_sum, batch.decode_steps
        self.stalled_s = batch.stalled_s
        self.follow(order)
        self._ttft_s: list[float] = []

    def ttft_s(self, now_s: float, limit_s: float = inf) -> tuple[float, float, float]:
        """Sum, 90th percentile and largest of the times to the first tokens.

        They are infinite if the sum is sure to exceed `limit_s`.
        """
        while self.prompts:
            self.loader.advance(now_s)
            seconds = self.compose(now_s)
            if seconds is None:
                now_s = self.wake_s(now_s)
            else:
                now_s += seconds
                self.end(now_s)
            at_least_s = sum(self._ttft_s) + sum(now_s - one.arrival_s for one in self.prompts)
            if at_least_s > limit_s:
                return inf, inf, inf
        times = sorted(self._ttft_s)
        return sum(times), times[ceil(0.9 * len(times)) - 1], times[-1]

    def _first_token(self, one: Active, now_s: float) -> None:
        self._ttft_s.append(now_s - one.arrival_s)
        super()._first_token(one, now_s)
