"""Pools of cached blocks outside GPU memory: what they hold, evict, and have yet to write."""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from math import inf

from sim.service.traces import RequestTrace

TIER_EVICTIONS = ("lru", "fifo", "lfu", "optimal")
"""Orders in which a tier evicts: by last use, by time stored, by number of uses, or by next use,
which no real cache knows."""


class NextUse:
    """The next arrival that asks for a block, seen from the last arrival so far, `now`."""

    def __init__(self, trace: RequestTrace) -> None:
        self._trace = trace
        self.now = 0
        order = array("i", [0]) * (trace.unique_blocks + 2)
        for node in trace.nodes:
            order[node + 1] += 1
        for node in range(1, len(order)):
            order[node] += order[node - 1]
        self._first = array("i", order)
        self._requests = array("i", [0]) * len(trace.nodes)
        for request in range(len(trace)):
            for node in trace.path(request):
                self._requests[order[node]] = request
                order[node] += 1

    def __call__(self, node: int) -> float:
        low, high = self._first[node], self._first[node + 1]
        at = bisect_right(self._requests, self.now, low, high)
        return float(self._requests[at]) if at < high else inf


class Pool:
    """Blocks of one tier, and the order in which they leave.

    Blocks of one prompt are used last block first, so that the last one is the first to leave.

    Args:
        blocks: how many it holds.
        next_use: of `optimal` only.
    """

    def __init__(self, blocks: int, eviction: str, next_use: NextUse | None = None) -> None:
        self.blocks = blocks
        self._eviction = eviction
        self._next_use = next_use
        self._unread: OrderedDict[int, bool] = OrderedDict()
        """Blocks held, the first to leave first for lru and fifo; whether each was never read."""
        self._uses: dict[int, int] = {}
        self._heap: list[tuple[float, int, int]] = []
        self._ticks = 0
        self.stored_blocks = 0
        self.unread_blocks = 0
        """Blocks that left before anybody read them."""

    def __contains__(self, node: int) -> bool:
        return node in self._unread

    def __len__(self) -> int:
        return len(self._unread)

    @property
    def never_read(self) -> int:
        """Stored blocks that nobody has read, those still held too."""
        return self.unread_blocks + sum(self._unread.values())

    def touch(self, path: Sequence[int]) -> None:
        """Mark the held blocks of a prompt as read, without a change of what is held."""
        for node in reversed(path):
            if node in self._unread:
                self._unread[node] = False
                self._used(node)

    def put(self, nodes: Iterable[int], victims: list[int]) -> None:
        """Store blocks, the last one first to leave; those that leave are added to `victims`."""
        if not self.blocks:
            return
        for node in nodes:
            if node in self._unread:
                self._used(node)
                continue
            if len(self._unread) >= self.blocks:
                victims.append(self._evict())
            self._unread[node] = True
            self.stored_blocks += 1
            self._used(node, new=True)

    def drop(self, node: int) -> None:
        """Remove a block that moves to another tier."""
        self._unread.pop(node, None)
        self._uses.pop(node, None)

    def _used(self, node: int, new: bool = False) -> None:
        if self._eviction == "lru":
            self._unread.move_to_end(node)
        elif self._eviction != "fifo":
            self._ticks += 1
            self._uses[node] = 1 if new else self._uses[node] + 1
            key = float(self._uses[node])
            if self._next_use is not None:
                key = -self._next_use(node)
            heapq.heappush(self._heap, (key, self._ticks, node))
            self._uses[-1 - node] = self._ticks

    def _evict(self) -> int:
        if self._eviction in ("lru", "fifo"):
            node, unread = self._unread.popitem(last=False)
        else:
            while True:
                _, tick, node = heapq.heappop(self._heap)
                if node in self._unread and self._uses[-1 - node] == tick:
                    break
            unread = self._unread.pop(node)
        self.unread_blocks += unread
        return node


class Tier:
    """A pool behind a lane on which blocks are written one prompt at a time, in order.

    Args:
        name: `dram`, `ssd` or `net`.
        lane: that loads from it use before the link to the GPU; None for host memory.
        write_s: seconds to write one block.
    """

    def __init__(self, name: str, pool: Pool, lane: str | None, write_s: float) -> None:
        self.name, self.pool, self.lane = name, pool, lane
        self._write_s = write_s
        self._free_s = 0.0
        self.busy_s = 0.0
        self._writing: deque[tuple[float, list[int]]] = deque()
        self._queued: set[int] = set()

    def __contains__(self, node: int) -> bool:
        return node in self.pool

    def expects(self, node: int) -> bool:
        """Whether the tier holds the block or has it in its queue."""
        return node in self.pool or node in self._queued

    def write(self, nodes: list[int], now_s: float) -> None:
        """Queue blocks to be written from `now_s` on; all can be read when the last one is."""
        if not nodes or not self.pool.blocks:
            return
        seconds = len(nodes) * self._write_s
        self._free_s = max(self._free_s, now_s) + seconds
        self.busy_s += seconds
        self._writing.append((self._free_s, nodes))
        self._queued.update(nodes)

    def written(self, now_s: float) -> list[tuple[float, list[int], list[int]]]:
        """Writes that ended by now: time, blocks, and the blocks that left for them."""
        done = []
        while self._writing and self._writing[0][0] <= now_s:
            at_s, nodes = self._writing.popleft()
            self._queued.difference_update(nodes)
            victims: list[int] = []
            self.pool.put(nodes, victims)
            done.append((at_s, nodes, victims))
        return done
