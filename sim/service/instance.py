"""One instance: its queue, its memory, and the steps of the requests that it has admitted.

A request is admitted when its whole prompt finds room in GPU memory. If decoding requests outgrow
the memory, the one admitted last gives its blocks back, and is computed again or copied to the host
and back.
"""

from __future__ import annotations

import heapq
from math import inf

from sim.lanes import COMPUTE, D2H
from sim.service.batch import Batch
from sim.service.costs import ServiceCosts
from sim.service.gpu_memory import GpuMemory
from sim.service.journal import GPU, Journal
from sim.service.loader import Active
from sim.service.pools import NextUse, Tier
from sim.service.restores import Demand, Restorer
from sim.service.scheduling import GAIN, ON_EVICTION, SWAP, THROUGH, Engine
from sim.service.traces import RequestTrace
from sim.service.trial import choose_order


class Instance(Batch):
    """State of one instance between engine steps.

    Args:
        tiers: outside GPU memory, the nearest first.
    """

    def __init__(
        self,
        trace: RequestTrace,
        costs: ServiceCosts,
        engine: Engine,
        tiers: list[Tier],
        journal: Journal,
        restorer: Restorer,
        next_use: NextUse | None = None,
    ) -> None:
        super().__init__(costs, engine, restorer)
        self.next_use = next_use
        self.trace, self.tiers, self.journal = trace, tiers, journal
        self.block = trace.block_tokens
        self.memory = GpuMemory(costs.gpu_blocks(self.block, engine.max_batch))
        self.store_block_s = costs.copies.store_s(self.block)
        self.swap_block_s = costs.copies.swap_s(self.block)
        self.store_free_s = 0.0
        self.grows: list[tuple[int, int, int, Active]] = []
        self.orders = 0
        """Admissions so far."""

    def arrive(self, request: int) -> None:
        """Queue a request, or reject it if it cannot fit even alone."""
        if self.next_use is not None:
            self.next_use.now = request
        prompt = self.trace.prompt_tokens[request]
        output = max(1, self.trace.output_tokens[request])
        too_long = prompt + output > self.costs.model.max_positions
        if too_long or self._blocks(prompt + output) > self.memory.blocks:
            self.journal.rejected.append(request)
            return
        path = list(self.trace.path(request)[: self._blocks(prompt)])
        arrival_s = self.trace.arrival_s[request]
        self.restorer.contention.arrived(arrival_s)
        self.queue.append(Active(request, prompt, output, path, arrival_s))

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.block)

    def cached_tokens(self, request: int) -> int:
        """Tokens of a request's longest prefix in GPU memory or any tier."""
        count = 0
        for node in self.trace.path(request):
            if node not in self.memory and not any(node in tier for tier in self.tiers):
                break
            count += 1
        return min(count * self.block, self.trace.prompt_tokens[request])

    def settle(self, now_s: float) -> None:
        """Put into the tiers what has been written by now."""
        for at, tier in enumerate(self.tiers):
            below = self.tiers[at + 1] if at + 1 < len(self.tiers) else None
            for at_s, nodes, victims in tier.written(now_s):
                if below is not None:
                    down = nodes if self.engine.inclusive else victims
                    below.write([node for node in down if not below.expects(node)], at_s)

    def begin(self, now_s: float) -> float | None:
        """Start the next step; returns its seconds, or None if there is nothing to compute."""
        self.settle(now_s)
        self.loader.advance(now_s)
        self._grow(now_s)
        self._admit(now_s)
        seconds = self.compose(now_s)
        for one, n_tokens in self.step:
            self.journal.computed[one.request] += n_tokens
        return seconds

    def coast(self, now_s: float, seconds: float, until_s: float) -> float:
        """End of the step that has begun, or of a later one if nothing but decoding happens.

        Steps that end before `until_s`, at which no request leaves or needs a block, are done here
        at once. The last step is still to be ended.
        """
        end_s = now_s + seconds
        if self.prompts or self.step:
            return end_s
        count, context = len(self.decoding), self._context()
        steps, first = self.decode_steps, self.decode_steps
        events = [heap[0][0] for heap in (self.ends, self.grows) if heap]
        last, host_s = min(events) - 1, self.engine.decode_s
        low = high = -1
        busy_s = 0.0
        while steps < last and end_s < until_s:
            steps += 1
            context += 1
            if not low <= context <= high:
                low, high, first_s, slope = self.costs.decode_line(count, context)
            seconds = first_s + slope * (context - low) + host_s
            busy_s += seconds
            end_s += seconds
        self.decode_steps = steps
        self.context_sum += count * (steps - first)
        self.busy_s[COMPUTE] += busy_s
        return end_s

    def end(self, now_s: float) -> None:
        """Finish the step: tokens appear, prompts become cached, requests leave."""
        if any(one.front == one.total for one, _ in self.step):
            self.settle(now_s)
        super().end(now_s)

    def _finish(self, one: Active, now_s: float) -> None:
        self.journal.finish_s[one.request] = now_s
        self.memory.release(one)

    def _first_token(self, one: Active, now_s: float) -> None:
        """A prompt is complete: its blocks can be shared and stored, and it decodes."""
        journal = self.journal
        if journal.first_s[one.request] == inf:
            journal.first_s[one.request] = now_s
        self.memory.share(one)
        if self.engine.store == THROUGH and self.tiers:
            self._store([node for node in one.path if not self.tiers[0].expects(node)], now_s)
        super()._first_token(one, now_s)
        if one.left > 1:
            grow = -one.total % self.block
            heapq.heappush(self.grows, (one.since + grow, one.order, one.epoch, one))

    def _grow(self, now_s: float) -> None:
        """A new block for each decoding request whose last one is full."""
        while self.grows and self.grows[0][0] <= self.decode_steps:
            at, order, epoch, one = heapq.heappop(self.grows)
            if one.epoch != epoch or order not in self.decoding:
                continue
            while (victims := self.memory.grow(one)) is None:
                last = self.decoding[max(self.decoding)]
                self._preempt(last, now_s)
                if last is one:
                    break
            else:
                self._evicted(victims, now_s)
                heapq.heappush(self.grows, (at + self.block, order, epoch, one))

    def _preempt(self, one: Active, now_s: float) -> None:
        """Take a decoding request's memory; it is computed or loaded when there is room again."""
        self._leave(one)
        self.memory.release(one)
        self.journal.preemptions += 1
        generated = self.decode_steps - one.since + 1
        one.total += generated
        one.left -= generated
        one.epoch += 1
        self.queue.appendleft(one)
        if self.engine.preemption == SWAP:
            one.swapped = True
            self._to_host(self._blocks(one.total - 1) * self.swap_block_s, now_s)
            self.stalled_s = self.store_free_s

    def _to_host(self, seconds: float, now_s: float) -> None:
        """Copies over the link back, after those that it has still to do."""
        self.busy_s[D2H] += seconds
        self.store_free_s = max(self.store_free_s, now_s) + seconds

    def _store(self, nodes: list[int], now_s: float) -> None:
        """Copy blocks to the first tier, one prompt after another."""
        self._to_host(len(nodes) * self.store_block_s, now_s)
        self.tiers[0].write(nodes[::-1], self.store_free_s)

    def _evicted(self, victims: list[int], now_s: float) -> None:
        """Store what has left GPU memory, if that is when it is stored."""
        if victims and self.engine.store == ON_EVICTION and self.tiers:
            new = [node for node in victims if not self.tiers[0].expects(node)]
            self._store(new[::-1], now_s)

    def _admit(self, now_s: float) -> None:
        """Give requests of the queue their memory, and decide what of their hits is loaded."""
        hits = []
        while self.queue and len(self.prompts) + len(self.decoding) < self.engine.max_batch:
            one = self.queue[0]
            victims = self.memory.admit(one, self._blocks(one.total))
            if victims is None:
                break
            self.queue.popleft()
            self._evicted(victims, now_s)
            tiers = self._look_up(one, now_s)
            self.prompts.append(one)
            if one.swapped:
                self.restorer.swap_in(one)
            elif tiers:
                hits.append((one, tiers))
        for one, tiers in hits:
            demand = self._demand(one) if self.restorer.chooses else None
            self.restorer.restore(one, tiers, demand, now_s)
        if hits and self.engine.load_order == GAIN:
            self.follow(choose_order(self, now_s))

    def _look_up(self, one: Active, now_s: float) -> list[str]:
        """Find an admitted request's prefix; returns the tiers that hold what is not on the GPU."""
        journal, last = self.journal, one.total - 1
        prompt = self.trace.prompt_tokens[one.request]
        one.front = self.restorer.usable(min(one.shared * self.block, prompt, last))
        one.order = self.orders
        self.orders += 1
        found = self.restorer.find(one, prompt, now_s)
        if journal.admitted_s[one.request] == inf:
            journal.admitted_s[one.request] = now_s
            journal.hits[GPU][one.request] = one.front
            for name, n_tokens in found:
                journal.hits[name][one.request] += n_tokens
        return [name for name, _ in found]

    def _demand(self, one: Active) -> Demand | None:
        """Who else wants the GPU; None if nobody does."""
        if len(self.prompts) == 1 and not self.decoding and not self.queue:
            return None
        costs = self.costs
        ahead_s = sum(
            costs.prefill_s(other.total) - costs.prefill_s(other.total - other.to_compute)
            for other in self.prompts
            if other.order < one.order
        )
        behind = sum(other.order > one.order for other in self.prompts)
        return Demand(ahead_s, behind + len(self.queue))
