"""How an instance restores the hits of the requests that it admits.

A hit that has the instance to itself is restored as its policy plans it for an idle machine. Among
other requests a policy that may choose takes the part to compute that delays all of them least
(`sim/service/contention.py`): it loads what it can while the GPU is in demand, and computes while
the link is. The idea of marginal gain over tokens, layers and requests is that of CacheFlow
(arXiv 2604.25080).
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import NamedTuple

from sim.service.contention import Contention
from sim.service.costs import ServiceCosts
from sim.service.forecast import Lanes, Promising, Waiting, promising
from sim.service.loader import Active, Loader
from sim.service.plans import RestorePlans, SoloRestore
from sim.service.pools import Tier
from sim.service.scheduling import COMPUTE_ONLY, LOAD_ONLY, TWO_ENDED, Engine

PARTS = 8
"""Even parts of a hit, of which the first ones may be computed."""


class Demand(NamedTuple):
    """Others that want the GPU when a hit is admitted.

    Args:
        ahead_s: seconds of the prompts admitted before.
        behind: requests that wait behind it.
    """

    ahead_s: float
    behind: int


class Others(NamedTuple):
    """Who else waits when a step may compute cached tokens.

    Args:
        alone: nobody does.
        waiting: requests that wait for this step.
        loads_end_s: of restores whose last load has begun.
    """

    alone: bool
    waiting: int
    loads_end_s: list[float]


class Restorer:
    """Chooses what of each hit is loaded, and queues its loads."""

    def __init__(
        self,
        costs: ServiceCosts,
        engine: Engine,
        block_tokens: int,
        tiers: list[Tier],
        loader: Loader,
        plans: RestorePlans | None,
    ) -> None:
        self._costs, self._engine, self._block = costs, engine, block_tokens
        self._tiers, self.loader, self._plans = tiers, loader, plans
        self.contention = Contention()

    @property
    def chooses(self) -> bool:
        """Whether what is loaded depends on who else is there."""
        return self._engine.policy != LOAD_ONLY or self._engine.by_layer

    def usable(self, n_tokens: int) -> int:
        """Of so many cached tokens, those that a later token can go on from.

        The state of a layer is kept at the end of each block only.
        """
        whole = self._costs.model.state_bytes > 0
        return n_tokens // self._block * self._block if whole else n_tokens

    def find(self, one: Active, prompt: int, now_s: float) -> list[tuple[str, int]]:
        """Look the blocks after those in GPU memory up.

        Returns:
            Tokens found in each tier, in order; empty if the policy computes all hits.
        """
        one.back = one.cached = one.front
        one.stop, one.first_block, one.lanes = one.front, one.shared, []
        one.load_end_s = one.ready_s = now_s
        one.solo, one.layered = None, False
        if self._engine.policy == COMPUTE_ONLY:
            return []
        for tier in self._tiers:
            tier.pool.touch(one.path[: one.shared])
        block, found = self._block, []
        at, end, last = one.shared, one.front, one.total - 1
        for node in one.path[one.shared :]:
            holder = next((tier for tier in self._tiers if node in tier), None)
            stop = self.usable(min((at + 1) * block, prompt, last))
            if holder is None or stop <= end:
                break
            one.lanes.append(holder.lane)
            found.append((holder.name, stop - end))
            at, end = at + 1, stop
        if found:
            for tier in self._tiers:
                tier.pool.touch(one.path[one.shared : at])
            one.cached = one.back = end
        return found

    def swap_in(self, one: Active) -> None:
        """Load all tokens but the last of a request that was swapped out."""
        last = one.total - 1
        one.first_block = one.front // self._block
        one.lanes = [None] * (-(-last // self._block) - one.first_block)
        one.cached, one.swapped = last, False
        self._load(one, one.front)

    def restore(self, one: Active, tiers: list[str], demand: Demand | None, now_s: float) -> None:
        """Decide what a hit loads.

        Args:
            tiers: that hold its blocks.
            demand: None if the request has the instance to itself, or if nothing is to be chosen.
        """
        policy, engine = self._engine.policy, self._engine
        own_s = self._costs.chunk_load_s(one.lanes[0]) / self._costs.io_chunk_tokens
        own_s *= one.cached - one.front
        self.contention.restored(own_s)
        one.ready_s += self._costs.lookup_s
        one.layered = engine.by_layer or policy in ("layer-wise", "joint")
        if not self.chooses:
            self._load(one, one.front)
            return
        if demand is None and self.loader.idle(now_s):
            one.solo = self._planned(one, tiers, now_s)
            if one.solo is not None:
                return
        if policy == LOAD_ONLY:
            self._load(one, one.front)
        elif policy == TWO_ENDED:
            self._meet(one, demand, now_s)
        else:
            self._split(one, demand or Demand(0.0, 0), now_s)

    def copy(self, copies: Mapping[Active, Active]) -> Restorer:
        """The same, for copies of the requests that load."""
        made = copy(self)
        made.loader, made.contention = self.loader.copy(copies), copy(self.contention)
        return made

    def orders(self, prompts: list[Active], now_s: float) -> Promising:
        """Orders that may bring first tokens earlier than first come, first served."""
        costs = self._costs
        waiting = []
        for one in prompts:
            loaded = 0 if one.claimed else one.to_load
            load_s = (
                loaded * costs.chunk_load_s(one.lanes[0]) / costs.io_chunk_tokens if loaded else 0
            )
            ready_s = max(0.0, one.load_end_s - now_s) if one.front < one.cached else 0.0
            count = one.to_compute
            compute_s = costs.prefill_s(one.total) - costs.prefill_s(one.total - count)
            waiting.append(Waiting(one.order, load_s, ready_s, count, compute_s))
        link_s = max(0.0, self.loader.next_s - now_s)
        lanes = Lanes(link_s, costs.chunk_tokens, costs.rows_s)
        return promising(waiting, lanes)

    def _planned(self, one: Active, tiers: list[str], now_s: float) -> SoloRestore | None:
        """The plan of a hit; None if there is none or it would hold up requests that come."""
        if self._plans is None or one.front or len(set(tiers)) > 1:
            return None
        solo = self._plans.solo(one.total, one.cached, tiers[0])
        one_step = one.total - one.cached <= self._costs.chunk_tokens and not (
            solo.computed_tokens > self._costs.chunk_tokens
        )
        return solo if one_step or self.contention.alone(now_s, solo.ttft_s) else None

    def _load(self, one: Active, stop: int | None) -> None:
        """Queue the loads of the cached tokens from `stop` on; None where they meet computing."""
        one.stop, one.back = stop, one.cached
        one.first_needed = max(self._costs.copies.first_needed(one.cached), one.front)
        self.loader.queue.append(one)

    def _compute(self, one: Active) -> None:
        """Leave a hit to be computed."""
        one.back = one.cached = one.stop = one.front
        one.layered = False

    def _meet(self, one: Active, demand: Demand | None, now_s: float) -> None:
        """Both ends, but all computed if no part of it is worth the wait for the link."""
        if demand is not None and self._best_count(one, demand, now_s) == one.cached - one.front:
            self._compute(one)
        else:
            self._load(one, None)

    def _split(self, one: Active, demand: Demand, now_s: float) -> None:
        """The first tokens computed, as many as delay all requests least; the others loaded."""
        best = self._best_count(one, demand, now_s)
        if best == one.cached - one.front:
            self._compute(one)
        else:
            self._load(one, one.front + best)

    def _best_count(self, one: Active, demand: Demand, now_s: float) -> int:
        """How many tokens of a hit to compute so that all requests wait least."""
        hit = one.cached - one.front
        parts = range(PARTS + 1) if self._engine.policy != "layer-wise" else (0, PARTS)
        counts = [hit * part // PARTS for part in parts]
        return min(counts, key=lambda count: self._cost_s(one, count, demand, now_s))

    def _cost_s(self, one: Active, count: int, demand: Demand, now_s: float) -> float:
        """Time to the first token if `count` cached tokens are computed, and of others' delay."""
        costs, contention = self._costs, self.contention
        loaded = one.cached - one.front - count
        load_s = costs.chunk_load_s(one.lanes[0]) * loaded / costs.io_chunk_tokens
        compute_s = costs.prefill_s(one.front + count) - costs.prefill_s(one.front)
        tail_s = costs.prefill_s(one.total) - costs.prefill_s(one.cached)
        link_s = self.loader.wait_s(now_s) + load_s if loaded else 0.0
        gpu_s = demand.ahead_s + compute_s
        if one.layered:
            own_s = max(link_s + tail_s / costs.model.n_layers, gpu_s + tail_s)
        else:
            own_s = max(link_s, gpu_s) + tail_s
        gpu_price = contention.gpu_price(now_s, demand.behind, gpu_s + tail_s)
        link_price = contention.link_price(now_s, 0, link_s)
        return own_s + compute_s * gpu_price + load_s * link_price

    def computing_pays(self, one: Active, n_tokens: int, others: Others, now_s: float) -> bool:
        """Whether a step should compute cached tokens of a restore from both ends.

        It pays if first tokens come earlier on balance: those of the restores that then wait less
        for the link, against all that wait for the step.
        """
        costs = self._costs
        step_s = costs.prefill_s(one.front + n_tokens) - costs.prefill_s(one.front)
        if others.alone and self.contention.alone(now_s, step_s):
            return True
        saved_s = n_tokens * self._token_s(one)
        arrives_s = max(0.0, self.loader.next_s - now_s)
        gain_s, behind = 0.0, False
        for other in self.loader.queue:
            if other.claimed:
                continue
            arrives_s += other.to_load * self._token_s(other)
            behind = behind or other is one
            gain_s += arrives_s - max(step_s, arrives_s - saved_s * behind)
        for end_s in others.loads_end_s:
            gain_s -= max(0.0, now_s + step_s - end_s)
        gain_s += saved_s * self.contention.link_price(now_s, 0, arrives_s)
        return gain_s > step_s * self.contention.gpu_price(now_s, others.waiting, step_s / 2)

    def follows(self, one: Active) -> bool:
        """Whether a step waits for the loads of a restore, layer by layer."""
        return one.layered and self._engine.policy == LOAD_ONLY

    def in_time(self, one: Active, room: int, now_s: float) -> bool:
        """Whether the loads of each layer arrive before a step with so much room gets to it."""
        if not one.claimed:
            return False
        costs, layers = self._costs, self._costs.model.n_layers
        stop = min(one.total, one.cached + room)
        step_s = costs.prefill_s(stop) - costs.prefill_s(one.cached)
        return one.load_end_s - now_s <= step_s * (layers - 1) / layers

    def _token_s(self, one: Active) -> float:
        """Time in which one more token of a restore arrives."""
        return self._costs.chunk_load_s(one.lanes[0]) / self._costs.io_chunk_tokens
