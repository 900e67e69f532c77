"""Hit rates of one pool of blocks under a trace, without time.

A hit is a block of the longest cached prefix; the rate counts tokens. The whole prompt of a request
is looked up and then stored. The last half of the requests is measured, the first half fills the
pool. The eviction orders are those of `kvcache-simulator` 0.1.3, whose rates these equal:

- lru: the block that was used longest ago; of one prompt the last block first;
- fifo: the block that was stored first, wherever it is in a prompt;
- optimal: of the blocks that no stored block follows, the one whose next use is furthest away; a
  block that is needed later than all of them is not stored.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from sim.errors import UnknownName
from sim.progress import Progress, Silent
from sim.service.traces import ROOT, RequestTrace

EVICTIONS = ("lru", "fifo", "optimal")
REPORT_REQUESTS = 100_000


@dataclass(frozen=True, slots=True)
class HitRate:
    """Fraction of the measured tokens that a pool holds when they are asked for.

    Args:
        filled: the pool is full when measuring begins; otherwise a longer trace may hit more.
    """

    eviction: str
    blocks: int
    hit_rate: float
    filled: bool


@dataclass(frozen=True, slots=True)
class HitRates:
    """Rates of every pool asked for; no pool has more than `ceiling`."""

    rates: tuple[HitRate, ...]
    ceiling: float
    unique_blocks: int
    measured_requests: int


def hit_rates(
    trace: RequestTrace,
    blocks: Sequence[int],
    evictions: Sequence[str] = EVICTIONS,
    progress: Progress | None = None,
) -> HitRates:
    """Hit rates of pools of the given numbers of blocks.

    Raises:
        UnknownName: no such eviction.
    """
    for name in evictions:
        if name not in EVICTIONS:
            raise UnknownName("eviction", name, EVICTIONS)
    report = progress or Silent()
    pools = _Pools(trace)
    report("longest prefixes", 0.0)
    ceiling = pools.total and pools.by_distance[-1] / pools.total
    rates = []
    for at, name in enumerate(evictions, start=1):
        for position, size in enumerate(blocks):
            report(name, (at + position / len(blocks)) / (1 + len(evictions)))
            hits = pools.hits(name, size)
            rate = hits / pools.total if pools.total else 0.0
            rates.append(HitRate(name, size, rate, size <= pools.warm_blocks))
    measured = len(pools.requests) - pools.start
    return HitRates(tuple(rates), ceiling, trace.unique_blocks, measured)


class _Pools:
    """Hit tokens of pools of any size; a request without blocks is left out."""

    def __init__(self, trace: RequestTrace) -> None:
        self.trace = trace
        first = trace.first
        self.requests = [at for at in range(len(trace)) if first[at + 1] > first[at]]
        self.start = len(self.requests) // 2
        """The first request that is measured, of those with blocks."""

    def hits(self, eviction: str, size: int) -> int:
        """Hit tokens of one pool."""
        if size == 0:
            return 0
        return {"lru": self.lru, "fifo": self.fifo, "optimal": self.optimal}[eviction](size)

    @cached_property
    def total(self) -> int:
        """Tokens measured."""
        return sum(
            self._tokens(request, self.trace.first[request + 1] - self.trace.first[request])
            for request in self.requests[self.start :]
        )

    @cached_property
    def warm_blocks(self) -> int:
        """Different blocks before the first measured request; nodes are numbered as they appear."""
        if self.start == 0:
            return 0
        end = self.trace.first[self.requests[self.start - 1] + 1]
        return max(self.trace.nodes[:end])

    def _tokens(self, request: int, n_blocks: int) -> int:
        """Tokens of a request's first blocks; the last one of the prompt may be short."""
        prompt, size = self.trace.prompt_tokens[request], self.trace.block_tokens
        whole = min(n_blocks, prompt // size)
        short = n_blocks - whole
        return whole * size + (max(1, prompt - whole * size) + short - 1 if short else 0)

    @cached_property
    def by_distance(self) -> array[int]:
        """Hit tokens of an LRU pool of each number of blocks, 0 to U, from stack distances.

        Blocks in order of use form a stack, a prompt's first block above its second, and a pool
        holds the top of it. The blocks that a request used last of all are a range of its prompt.
        So a tree of sums over requests, of the blocks each used last, gives every distance.
        """
        trace, tree = self.trace, _Sums(len(self.requests))
        user = array("i", [-1]) * (trace.unique_blocks + 1)
        hits = array("q", [0]) * (trace.unique_blocks + 1)
        in_stack = 0
        for number, request in enumerate(self.requests):
            path = trace.path(request)
            at, size = 0, len(path)
            while at < size and (last := user[path[at]]) >= 0:
                begin = at
                while at < size and user[path[at]] == last:
                    user[path[at]] = number
                    at += 1
                if number >= self.start:
                    above = in_stack - tree.up_to(last) + 1
                    for depth in range(begin, at):
                        hits[above + depth] += self._block(request, depth)
                tree.add(last, begin - at)
                in_stack += begin - at
            for depth in range(at, size):
                user[path[depth]] = number
            tree.add(number, size)
            in_stack += size
        for position in range(1, len(hits)):
            hits[position] += hits[position - 1]
        return hits

    def _block(self, request: int, depth: int) -> int:
        """Tokens of one block."""
        size = self.trace.block_tokens
        return max(1, min(size, self.trace.prompt_tokens[request] - depth * size))

    def lru(self, size: int) -> int:
        return self.by_distance[min(size, self.trace.unique_blocks)]

    def fifo(self, size: int) -> int:
        trace, stored = self.trace, bytearray(self.trace.unique_blocks + 1)
        ring = array("i", [ROOT]) * min(size, trace.unique_blocks + 1)
        at = hits = 0
        for number, request in enumerate(self.requests):
            path = trace.path(request)
            if number >= self.start:
                n_hit = 0
                for node in path:
                    if not stored[node]:
                        break
                    n_hit += 1
                hits += self._tokens(request, n_hit)
            for node in path:
                if not stored[node]:
                    stored[ring[at]] = 0
                    ring[at] = node
                    stored[node] = 1
                    at = at + 1 if at + 1 < len(ring) else 0
        return hits

    @cached_property
    def next_use(self) -> array[int]:
        """[E], the next request that uses each block, numbered as `requests` are."""
        trace = self.trace
        never = len(self.requests) + 1
        later = array("i", [never]) * (trace.unique_blocks + 1)
        found = array("i", [never]) * len(trace.nodes)
        for number in range(len(self.requests) - 1, -1, -1):
            request = self.requests[number]
            for position in range(trace.first[request], trace.first[request + 1]):
                node = trace.nodes[position]
                found[position] = later[node]
                later[node] = number
        return found

    def optimal(self, size: int) -> int:
        """Belady's eviction among blocks that no stored block follows.

        A heap holds such blocks by next use, as one number each: `next use * (U + 1) + node`. An
        entry whose block has gone, was used since, or is followed by another is dropped when met.
        """
        trace, parent, uses = self.trace, self.trace.parent, self.next_use
        unit = len(parent)
        stored, followers = bytearray(unit), array("i", [0]) * unit
        key = array("q", [0]) * unit
        heap: list[int] = []
        held = hits = 0
        for number, request in enumerate(self.requests):
            begin, end = trace.first[request], trace.first[request + 1]
            path = trace.nodes[begin:end]
            n_hit = 0
            for node in path:
                if not stored[node]:
                    break
                key[node] = uses[begin + n_hit] * unit + node
                if not followers[node]:
                    heapq.heappush(heap, -key[node])
                n_hit += 1
            if number >= self.start:
                hits += self._tokens(request, n_hit)
            tip = path[n_hit - 1] if n_hit else ROOT
            for position in range(begin + n_hit, end):
                if held >= size:
                    victim = self._furthest(heap, stored, followers, key, tip)
                    if victim == ROOT or key[victim] // unit <= uses[position]:
                        break
                    stored[victim] = 0
                    held -= 1
                    before = parent[victim]
                    followers[before] -= 1
                    if before and not followers[before]:
                        heapq.heappush(heap, -key[before])
                node = trace.nodes[position]
                stored[node] = 1
                held += 1
                followers[tip] += 1
                key[node] = uses[position] * unit + node
                heapq.heappush(heap, -key[node])
                tip = node
        return hits

    @staticmethod
    def _furthest(
        heap: list[int], stored: bytearray, followers: array[int], key: array[int], tip: int
    ) -> int:
        """The block to evict, which stays first in the heap; ROOT if there is none.

        Args:
            tip: last stored block of the prompt that is being stored, which must stay.
        """
        unit = len(key)
        aside = 0
        while heap:
            node = -heap[0] % unit
            if stored[node] and not followers[node] and -heap[0] == key[node]:
                if node != tip:
                    break
                aside = heap[0]
            heapq.heappop(heap)
        found = -heap[0] % unit if heap else ROOT
        if aside:
            heapq.heappush(heap, aside)
        return found


class _Sums:
    """Sums of the first numbers of a row that changes: a Fenwick tree."""

    def __init__(self, size: int) -> None:
        self._tree = array("q", [0]) * (size + 1)

    def add(self, at: int, amount: int) -> None:
        tree, at = self._tree, at + 1
        while at < len(tree):
            tree[at] += amount
            at += at & -at

    def up_to(self, at: int) -> int:
        """The sum of the numbers from 0 to `at`, itself included."""
        tree, at, total = self._tree, at + 1, 0
        while at:
            total += tree[at]
            at &= at - 1
        return total
