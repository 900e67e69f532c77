"""Admitted requests of an instance: what each engine step works on.

A step has a budget of tokens: first a token for each decoding request, then prompts in the order of
admission (or by gain, the one with the fewest tokens to compute first), then the cached tokens that
restores compute (the order of Cake, arXiv 2410.03065).
"""

from __future__ import annotations

import heapq
from collections import deque

from sim.lanes import COMPUTE, D2H
from sim.service.costs import ServiceCosts
from sim.service.forecast import Order
from sim.service.loader import Active
from sim.service.plans import SoloRestore
from sim.service.restores import Others, Restorer
from sim.service.scheduling import Engine


class Batch:
    """Requests between admission and their last token."""

    def __init__(self, costs: ServiceCosts, engine: Engine, restorer: Restorer) -> None:
        self.costs, self.engine = costs, engine
        self.restorer, self.loader = restorer, restorer.loader
        self.queue: deque[Active] = deque()
        """Requests that wait for admission."""
        self.prompts: list[Active] = []
        self.decoding: dict[int, Active] = {}
        self.context_sum = 0
        self.decode_steps = 0
        self.ends: list[tuple[int, int, int, Active]] = []
        self.step: list[tuple[Active, int]] = []
        self.by_gain = 0
        """Of the first so many admitted, those with the fewest tokens to compute come first; the
        others follow in the order of admission."""
        self.stalled_s = 0.0
        """End of copies out of GPU memory that the next step waits for."""
        self.busy_s = {COMPUTE: 0.0, D2H: 0.0}

    @property
    def load(self) -> int:
        """Requests that wait or run."""
        return len(self.queue) + len(self.prompts) + len(self.decoding)

    @property
    def waiting(self) -> int:
        """Requests that wait for their first token."""
        return len(self.queue) + len(self.prompts)

    def follow(self, order: Order) -> None:
        """Take an order for the requests that are admitted."""
        ranks = {place: rank for rank, place in enumerate(order.turns)}
        for one in self.prompts:
            one.rank = ranks.get(one.order, 0)
        self.by_gain = 1 + self.prompts[-1].order if order.by_gain else 0

    def compose(self, now_s: float) -> float | None:
        """Fill the next step; returns its seconds, or None if there is nothing to compute."""
        self.step = []
        if self.prompts and (solo := self.prompts[0].solo) is not None:
            return self._solo(self.prompts[0], solo, now_s)
        left = self.costs.chunk_tokens - len(self.decoding)
        parts: list[tuple[int, int]] = []
        left, loaded_s = self._prompts(now_s, left, parts)
        count = len(self.decoding)
        if not parts and not count:
            self._load_the_rest()
            return None
        if parts:
            sampled = count + sum(one.front == one.total for one, _ in self.step)
            seconds = self.costs.step_s(parts, count, self._context(), sampled)
            last_s = seconds / self.costs.model.n_layers
            seconds = max(seconds, loaded_s - now_s + last_s)
            self.restorer.contention.computed(seconds)
        else:
            low, _, first_s, slope = self.costs.decode_line(count, self._context())
            seconds = first_s + slope * (self._context() - low)
        if count:
            seconds += self.engine.decode_s
        self.busy_s[COMPUTE] += seconds
        return max(0.0, self.stalled_s - now_s) + seconds

    def _prompts(self, now_s: float, left: int, parts: list[tuple[int, int]]) -> tuple[int, float]:
        """Fill a step with prompts, then restores.

        Returns:
            Tokens left of the budget, and the end of the loads that the step follows.
        """
        loaded_s, restores = 0.0, []
        prompts, by_gain = self.prompts, self.by_gain
        if len(prompts) > 1 and prompts[0].order < by_gain:
            gain = [one for one in prompts if one.order < by_gain]
            gain.sort(key=lambda one: one.to_compute)
            prompts = [*gain, *prompts[len(gain) :]]
        for one in prompts:
            if one.front < one.cached:
                if one.stop is not None and one.front < one.stop:
                    if left > 0:
                        left -= self._take(one, min(left, one.stop - one.front), parts)
                    continue
                if not one.claimed or one.load_end_s > now_s:
                    if not self.restorer.follows(one):
                        restores.append(one)
                        continue
                    loaded_s = max(loaded_s, self._await_loads(one, left))
                else:
                    one.front = one.cached
            if left > 0 and one.front >= one.cached:
                left -= self._take(one, min(left, one.total - one.front), parts)
        for one in sorted(restores, key=lambda one: one.order):
            if left <= 0:
                break
            if one.layered:
                only = not self.step and not self.decoding
                if only or self.restorer.in_time(one, left, now_s):
                    loaded_s = max(loaded_s, self._await_loads(one, left))
                    left -= self._take(one, min(left, one.total - one.front), parts)
            elif one.stop is None and not one.claimed:
                count = min(left, one.back - one.front)
                if self.restorer.computing_pays(one, count, self._others(), now_s):
                    left -= self._take(one, count, parts)
        return left, loaded_s

    def _others(self) -> Others:
        """Who waits for a step besides the restores whose loads have not all begun."""
        ends = [one.load_end_s for one in self.prompts if one.front < one.cached and one.claimed]
        return Others(self.load == 1, len(self.step) + len(self.queue), ends)

    def _await_loads(self, one: Active, left: int) -> float:
        """Let a step that has room begin before a restore's loads end; returns their end."""
        if left <= 0:
            return 0.0
        self.loader.commit(one)
        one.front = one.cached
        return one.load_end_s

    def _load_the_rest(self) -> None:
        """With nothing else to do, restores for which computing does not pay only load."""
        for one in self.prompts:
            if one.stop is None:
                one.stop = one.front

    def _solo(self, one: Active, solo: SoloRestore, now_s: float) -> float:
        """A step that is a whole restore as it was planned; returns its seconds."""
        self.loader.book(solo, now_s)
        self.step = [(one, solo.computed_tokens)]
        one.front, one.solo = one.total, None
        self.restorer.contention.computed(solo.ttft_s)
        return solo.ttft_s

    def _context(self) -> int:
        """Mean number of tokens that the decoding requests attend to, rounded up."""
        count = len(self.decoding)
        return -(-self.context_sum // count) if count else 0

    def _take(self, one: Active, n_tokens: int, parts: list[tuple[int, int]]) -> int:
        parts.append((one.front, n_tokens))
        self.step.append((one, n_tokens))
        one.front += n_tokens
        return n_tokens

    def wake_s(self, now_s: float) -> float:
        """When an idle instance can go on without an arrival: at the end of a load."""
        look_s = self.loader.end_s(now_s)
        loading = (one for one in self.prompts if one.front < one.cached and one.claimed)
        return min([look_s, *(max(now_s, one.load_end_s) for one in loading)])

    def end(self, now_s: float) -> None:
        """Finish the step: tokens appear, prompts become cached, requests leave."""
        count = len(self.decoding)
        if count:
            self.decode_steps += 1
            self.context_sum += count
            while self.ends and self.ends[0][0] <= self.decode_steps:
                _, order, epoch, one = heapq.heappop(self.ends)
                if one.epoch == epoch and order in self.decoding:
                    self._leave(one)
                    self._finish(one, now_s)
        done = [one for one, _ in self.step if one.front == one.total]
        if done:
            self.prompts = [one for one in self.prompts if one.front < one.total]
        for one in done:
            self._first_token(one, now_s)

    def _leave(self, one: Active) -> None:
        """Take a request out of the decoding batch."""
        del self.decoding[one.order]
        self.context_sum -= one.total + self.decode_steps - one.since + 1

    def _finish(self, one: Active, now_s: float) -> None:
        """A request has its last token."""

    def _first_token(self, one: Active, now_s: float) -> None:
        """A prompt is complete, and its request decodes unless one token was all it asked for."""
        if one.left == 1:
            self._finish(one, now_s)
            return
        one.since = self.decode_steps
        self.decoding[one.order] = one
        self.context_sum += one.total + 1
        heapq.heappush(self.ends, (one.since + one.left - 1, one.order, one.epoch, one))
