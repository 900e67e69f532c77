"""One instance: GPU memory, its queue, and what each engine step works on.

A step has a budget of tokens: first a token for each decoding request, then prompts in the order of
admission, then the cached tokens that restores compute (the order of Cake, arXiv 2410.03065). A
request is admitted when its whole prompt finds room in GPU memory; blocks that no admitted request
uses stay there as a cache until room is needed. If decoding requests outgrow the memory, the one
admitted last gives its blocks back and is computed again.
"""

from __future__ import annotations

import heapq
from array import array
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from math import inf

from sim.service.costs import ServiceCosts
from sim.service.loader import FCFS, Active, Loader
from sim.service.pools import NextUse, Tier
from sim.service.traces import RequestTrace

COMPUTE_ONLY, LOAD_ONLY, TWO_ENDED = "compute-only", "load-only", "two-ended"
SERVICE_POLICIES = (COMPUTE_ONLY, LOAD_ONLY, TWO_ENDED)
"""Restores of a hit outside GPU memory: computed again, loaded, or both ends at once."""

THROUGH, ON_EVICTION = "through", "evict"
STORES = (THROUGH, ON_EVICTION)
"""When a block is copied to the host: once it is computed, or when GPU memory evicts it."""

GPU = "gpu"


@dataclass
class Journal:
    """What happened to each request; times are infinite until they are known.

    Args:
        hits: tokens found in each tier, by its name.
        computed: tokens that steps computed, recomputed ones too.
    """

    admitted_s: array[float]
    first_s: array[float]
    finish_s: array[float]
    computed: array[int]
    hits: dict[str, array[int]]
    preemptions: int = 0
    rejected: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, n_requests: int, tiers: list[str]) -> Journal:
        admitted, first, finish = (array("d", [inf]) * n_requests for _ in range(3))
        hits = {name: array("q", [0]) * n_requests for name in (GPU, *tiers)}
        return cls(admitted, first, finish, array("q", [0]) * n_requests, hits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How an instance schedules.

    Args:
        policy: of `SERVICE_POLICIES`.
        store: of `STORES`.
        inclusive: a lower tier holds what the tier above it holds, too; otherwise it gets what that
            tier evicts.
        load_order: of `LOAD_ORDERS`.
        max_batch: admitted requests at a time.
    """

    policy: str
    load_order: str = FCFS
    store: str = THROUGH
    inclusive: bool = True
    max_batch: int = 256


class Instance:
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
        loader: Loader,
        next_use: NextUse | None = None,
    ) -> None:
        self.next_use = next_use
        self.trace, self.costs, self.engine = trace, costs, engine
        self.tiers, self.journal = tiers, journal
        self.block = trace.block_tokens
        self.gpu_blocks = costs.gpu_blocks(self.block, engine.max_batch)
        self.free = self.gpu_blocks
        self.users: dict[int, int] = {}
        """Admitted requests that use each block of a prompt in GPU memory."""
        self.idle: OrderedDict[int, None] = OrderedDict()
        """Blocks in GPU memory that no request uses, the next to leave first."""
        self.loader = loader
        self.store_block_s = costs.store_s(self.block)
        self.store_free_s = 0.0
        self.queue: deque[Active] = deque()
        self.prompts: list[Active] = []
        self.decoding: dict[int, Active] = {}
        self.context_sum = 0
        self.decode_steps = 0
        self.grows: list[tuple[int, int, int, Active]] = []
        self.ends: list[tuple[int, int, int, Active]] = []
        self.step: list[tuple[Active, int]] = []
        self.orders = 0
        self.busy_s = {"compute": 0.0, "d2h": 0.0}

    def arrive(self, request: int) -> None:
        """Queue a request, or reject it if it cannot fit even alone."""
        if self.next_use is not None:
            self.next_use.now = request
        prompt = self.trace.prompt_tokens[request]
        output = max(1, self.trace.output_tokens[request])
        too_long = prompt + output > self.costs.model.max_positions
        if too_long or self._blocks(prompt + output) > self.gpu_blocks:
            self.journal.rejected.append(request)
            return
        path = list(self.trace.path(request)[: self._blocks(prompt)])
        self.queue.append(Active(request, prompt, output, path))

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.block)

    @property
    def load(self) -> int:
        """Requests that wait or run."""
        return len(self.queue) + len(self.prompts) + len(self.decoding)

    @property
    def waiting(self) -> int:
        """Requests that wait for their first token."""
        return len(self.queue) + len(self.prompts)

    def cached_tokens(self, request: int) -> int:
        """Tokens of a request's longest prefix in GPU memory or any tier."""
        count = 0
        for node in self.trace.path(request):
            if not self._in_gpu(node) and not any(node in tier for tier in self.tiers):
                break
            count += 1
        return min(count * self.block, self.trace.prompt_tokens[request])

    def _in_gpu(self, node: int) -> bool:
        return node in self.users or node in self.idle

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
        left = self.costs.chunk_tokens - len(self.decoding)
        parts: list[tuple[int, int]] = []
        self.step = []
        restores: list[Active] = []
        for one in self.prompts:
            if one.front < one.cached:
                if not one.claimed or one.load_end_s > now_s:
                    if one.stop is None and not one.claimed:
                        restores.append(one)
                    continue
                one.front = one.cached
            if left > 0:
                left -= self._take(one, min(left, one.total - one.front), parts)
        for one in restores:
            if left <= 0:
                break
            left -= self._take(one, min(left, one.back - one.front), parts)
        count = len(self.decoding)
        if not parts and not count:
            return None
        if parts:
            sampled = count + sum(one.front == one.total for one, _ in self.step)
            seconds = self.costs.step_s(parts, count, self._context(), sampled)
        else:
            low, _, first_s, slope = self.costs.decode_line(count, self._context())
            seconds = first_s + slope * (self._context() - low)
        self.busy_s["compute"] += seconds
        return seconds

    def _context(self) -> int:
        """Mean number of tokens that the decoding requests attend to, rounded up."""
        count = len(self.decoding)
        return -(-self.context_sum // count) if count else 0

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
        last = min(events) - 1
        low = high = -1
        busy_s = 0.0
        while steps < last and end_s < until_s:
            steps += 1
            context += 1
            if not low <= context <= high:
                low, high, first_s, slope = self.costs.decode_line(count, context)
            seconds = first_s + slope * (context - low)
            busy_s += seconds
            end_s += seconds
        self.decode_steps = steps
        self.context_sum += count * (steps - first)
        self.busy_s["compute"] += busy_s
        return end_s

    def _take(self, one: Active, n_tokens: int, parts: list[tuple[int, int]]) -> int:
        parts.append((one.front, n_tokens))
        self.step.append((one, n_tokens))
        self.journal.computed[one.request] += n_tokens
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
            self.settle(now_s)
            self.prompts = [one for one in self.prompts if one.front < one.total]
        for one in done:
            self._first_token(one, now_s)

    def _leave(self, one: Active) -> None:
        """Take a request out of the decoding batch."""
        del self.decoding[one.order]
        self.context_sum -= one.total + self.decode_steps - one.since + 1

    def _finish(self, one: Active, now_s: float) -> None:
        self.journal.finish_s[one.request] = now_s
        self._release(one)

    def _release(self, one: Active) -> None:
        """Give a request's blocks back; those of its prompt stay until room is needed."""
        for node in reversed(one.path[: one.shared]):
            self.users[node] -= 1
            if not self.users[node]:
                del self.users[node]
                self.idle[node] = None
        self.free += one.private
        one.shared = one.private = 0

    def _first_token(self, one: Active, now_s: float) -> None:
        """A prompt is complete: its blocks can be shared and stored, and it decodes."""
        journal = self.journal
        if journal.first_s[one.request] == inf:
            journal.first_s[one.request] = now_s
        for node in one.path[one.shared :]:
            one.private -= 1
            if node in self.users:
                self.users[node] += 1
                self.free += 1
                continue
            if node in self.idle:
                del self.idle[node]
                self.free += 1
            self.users[node] = 1
        one.shared = len(one.path)
        if self.engine.store == THROUGH and self.tiers:
            self._store([node for node in one.path if not self.tiers[0].expects(node)], now_s)
        if one.left == 1:
            self._finish(one, now_s)
            return
        one.since = self.decode_steps
        self.decoding[one.order] = one
        self.context_sum += one.total + 1
        heapq.heappush(self.ends, (one.since + one.left - 1, one.order, one.epoch, one))
        grow = -one.total % self.block
        heapq.heappush(self.grows, (one.since + grow, one.order, one.epoch, one))

    def _store(self, nodes: list[int], now_s: float) -> None:
        """Copy blocks to the first tier over the link back, one prompt after another."""
        seconds = len(nodes) * self.store_block_s
        self.busy_s["d2h"] += seconds
        self.store_free_s = max(self.store_free_s, now_s) + seconds
        self.tiers[0].write(nodes[::-1], self.store_free_s)

    def _grow(self, now_s: float) -> None:
        """A new block for each decoding request whose last one is full."""
        while self.grows and self.grows[0][0] <= self.decode_steps:
            at, order, epoch, one = heapq.heappop(self.grows)
            if one.epoch != epoch or order not in self.decoding:
                continue
            while not self._make_room(1, now_s):
                last = self.decoding[max(self.decoding)]
                self._preempt(last)
                if last is one:
                    break
            else:
                self.free -= 1
                one.private += 1
                heapq.heappush(self.grows, (at + self.block, order, epoch, one))

    def _preempt(self, one: Active) -> None:
        """Take a decoding request's memory; it computes its tokens again when there is room."""
        self._leave(one)
        self._release(one)
        self.journal.preemptions += 1
        generated = self.decode_steps - one.since + 1
        one.total += generated
        one.left -= generated
        one.epoch += 1
        self.queue.appendleft(one)

    def _make_room(self, blocks: int, now_s: float) -> bool:
        """Evict unused blocks until `blocks` are free; False if that is impossible."""
        if self.free + len(self.idle) < blocks:
            return False
        victims = []
        while self.free < blocks:
            victims.append(self.idle.popitem(last=False)[0])
            self.free += 1
        if victims and self.engine.store == ON_EVICTION and self.tiers:
            new = [node for node in victims if not self.tiers[0].expects(node)]
            self._store(new[::-1], now_s)
        return True

    def _admit(self, now_s: float) -> None:
        while self.queue and len(self.prompts) + len(self.decoding) < self.engine.max_batch:
            one = self.queue[0]
            path = one.path
            found = 0
            while found < len(path) and self._in_gpu(path[found]):
                found += 1
            held = [node for node in path[:found] if node in self.idle]
            need = self._blocks(one.total) - found
            if self.free + len(self.idle) - len(held) < need:
                return
            self.queue.popleft()
            for node in held:
                del self.idle[node]
            for node in path[:found]:
                self.users[node] = self.users.get(node, 0) + 1
            self._make_room(need, now_s)
            self.free -= need
            one.shared, one.private = found, need
            self._plan(one, now_s)

    def _plan(self, one: Active, now_s: float) -> None:
        """Decide what an admitted request loads and computes."""
        journal, block, last = self.journal, self.block, one.total - 1
        prompt = self.trace.prompt_tokens[one.request]
        one.front = one.back = one.cached = min(one.shared * block, prompt, last)
        one.stop, one.first_block, one.lanes = one.front, one.shared, []
        one.load_end_s = one.ready_s = now_s
        one.order = self.orders
        self.orders += 1
        first_time = journal.admitted_s[one.request] == inf
        if first_time:
            journal.admitted_s[one.request] = now_s
            journal.hits[GPU][one.request] = one.front
        if self.engine.policy != COMPUTE_ONLY:
            self._find(one, first_time)
        self.prompts.append(one)

    def _find(self, one: Active, first_time: bool) -> None:
        """Queue the loads of the cached blocks that follow those in GPU memory."""
        block, last = self.block, one.total - 1
        for tier in self.tiers:
            tier.pool.touch(one.path[: one.shared])
        at, end = one.shared, one.front
        for node in one.path[one.shared :]:
            holder = next((tier for tier in self.tiers if node in tier), None)
            stop = min((at + 1) * block, self.trace.prompt_tokens[one.request], last)
            if holder is None or stop <= end:
                break
            one.lanes.append(holder.lane)
            if first_time:
                self.journal.hits[holder.name][one.request] += stop - end
            at, end = at + 1, stop
        if end == one.front:
            return
        for tier in self.tiers:
            tier.pool.touch(one.path[one.shared : at])
        one.cached = one.back = end
        one.stop = None if self.engine.policy == TWO_ENDED else one.front
        one.first_needed = max(self.costs.first_needed(end), one.front)
        one.ready_s += self.costs.lookup_s
        self.loader.queue.append(one)
