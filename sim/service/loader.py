"""The loads of an instance's restores: chunk after chunk, the last tokens of a restore first.

Which restore gets the link next: the first admitted (`fcfs`, as Cake does), or in an order that
brings first tokens earlier (`gain`, see `sim/service/trial.py`).

Both legs of a copy, from the tier into host memory and from there to the GPU, are in series; the
second leg of one chunk overlaps the first leg of the next ones, as far as staging has room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

from sim.lanes import H2D
from sim.service.costs import ServiceCosts
from sim.service.plans import SoloRestore
from sim.service.scheduling import FCFS

STAGING_CHUNKS = 4
"""Chunks that host memory holds between a tier and the GPU."""


@dataclass(slots=True, eq=False)
class Active:
    """A request on an instance.

    Args:
        total: tokens to have in GPU memory before the next token: the prompt, and after a
            preemption what was generated.
        left: tokens to generate.
        front: tokens from the start that are computed, or were in GPU memory.
        back: cached tokens from here on are loaded, or are being loaded.
        cached: tokens that need no computing.
        stop: loads go no further than this token; None where compute and loads meet.
        lanes: of each block from the first loaded one on, the lane before the link to the GPU.
        load_end_s: end of the last copy that has begun.
        layered: a step may begin before the loads end, and follows them through the layers.
        swapped: K and V of all tokens but the last are in host memory.
        solo: what its plan says if it has the instance to itself.
        rank: its turn on the link if that is not by admission.
    """

    request: int
    total: int
    left: int
    path: list[int]
    arrival_s: float = 0.0
    epoch: int = 0
    front: int = 0
    back: int = 0
    cached: int = 0
    stop: int | None = 0
    first_block: int = 0
    lanes: list[str | None] = field(default_factory=list)
    first_needed: int = 0
    ready_s: float = 0.0
    load_end_s: float = 0.0
    shared: int = 0
    private: int = 0
    since: int = 0
    order: int = 0
    layered: bool = False
    swapped: bool = False
    solo: SoloRestore | None = None
    rank: int = 0

    @property
    def claimed(self) -> bool:
        """Whether each cached token is computed, loaded, or being loaded."""
        return self.back <= self.low

    @property
    def low(self) -> int:
        """The token that loads go down to, as things stand."""
        return self.front if self.stop is None else self.stop

    @property
    def to_load(self) -> int:
        """Cached tokens that no copy has begun to load, as things stand."""
        return max(0, self.back - max(self.low, self.first_needed))

    @property
    def to_compute(self) -> int:
        """Tokens that steps have to compute before the next token."""
        if self.front >= self.cached:
            return self.total - self.front
        own = 0 if self.stop is None else max(0, self.stop - self.front)
        return self.total - self.cached + own


class Loader:
    """Chunks of restores, in one of `LOAD_ORDERS`."""

    def __init__(self, costs: ServiceCosts, block_tokens: int, order: str = FCFS) -> None:
        self._costs, self._block_tokens, self._order = costs, block_tokens, order
        self.queue: deque[Active] = deque()
        self.next_s = 0.0
        """When the next chunk may start."""
        self._link_ends_s = deque([0.0], maxlen=STAGING_CHUNKS)
        """Of the copies to the GPU; the first one frees a place for the next chunk."""
        self.closed = False
        """No restore can come any more."""
        self.busy_s: dict[str, float] = {H2D: 0.0}
        self.loaded_bytes = 0
        """Copied to one GPU."""

    def copy(self, copies: Mapping[Active, Active]) -> Loader:
        """The same loads under way and to come, for copies of the requests and for no others."""
        made = Loader(self._costs, self._block_tokens, self._order)
        made.queue.extend(copies[one] for one in self.queue if not one.claimed)
        made.next_s, made.closed = self.next_s, True
        made._link_ends_s = deque(self._link_ends_s, STAGING_CHUNKS)
        return made

    def advance(self, now_s: float) -> None:
        """Start every chunk whose turn comes before `now_s`, while no front moves."""
        while (start_s := self.next_start_s()) < now_s:
            self.start(start_s)

    def commit(self, one: Active) -> None:
        """Start chunks ahead of time until each of a restore's tokens is claimed."""
        while not one.claimed:
            self.start(self.next_start_s())

    def next_start_s(self) -> float:
        """When the next chunk starts if no front moves until then; infinite if none is left."""
        while self.queue and self.queue[0].claimed:
            self.queue.popleft()
        return max(self.next_s, self.queue[0].ready_s) if self.queue else inf

    def idle(self, now_s: float) -> bool:
        """Whether nothing is being copied, nor waits for it."""
        return self.next_start_s() == inf and max(self.next_s, self._link_ends_s[-1]) <= now_s

    def chosen(self, start_s: float) -> Active:
        """The restore whose chunk starts next."""
        if self._order == FCFS:
            return self.queue[0]
        ready = (one for one in self.queue if one.ready_s <= start_s and not one.claimed)
        return min(ready, key=lambda one: (one.rank, one.order))

    def end_s(self, now_s: float) -> float:
        """When an idle instance should look again: at the end of a load, or before it.

        Chunks that start later than now are started ahead of time only if no restore that comes
        can change their order.
        """
        if self._order == FCFS or self.closed:
            self.advance(inf)
            return inf
        while (start_s := self.next_start_s()) <= now_s:
            self.start(start_s)
        return start_s

    def wait_s(self, now_s: float) -> float:
        """About how long a restore that comes now waits for the link."""
        left = sum(
            one.to_load * self._costs.chunk_load_s(one.lanes[0])
            for one in self.queue
            if not one.claimed
        )
        return max(0.0, self.next_s - now_s) + left / self._costs.io_chunk_tokens

    def book(self, solo: SoloRestore, now_s: float) -> None:
        """The copies of a planned restore that has the instance to itself."""
        if solo.link_end_s:
            self.next_s = now_s + solo.link_end_s
            self._link_ends_s.append(self.next_s)
        for lane, seconds in solo.busy_s:
            self.busy_s[lane] = self.busy_s.get(lane, 0.0) + seconds
        self.loaded_bytes += solo.loaded_bytes

    def start(self, start_s: float) -> None:
        """Claim and copy the last chunk that nobody has, of the chosen restore."""
        one, costs = self.chosen(start_s), self._costs
        size = costs.io_chunk_tokens
        low = one.low
        begin = max((one.back - 1) // size * size, low)
        block = (one.back - 1) // self._block_tokens - one.first_block
        lane = one.lanes[block]
        while block and (one.first_block + block) * self._block_tokens > begin:
            block -= 1
            if one.lanes[block] != lane:
                begin = (one.first_block + block + 1) * self._block_tokens
                break
        n_bytes, layers = costs.copies.chunk(begin, one.back, one.cached)
        link_s = costs.copies.load_s(H2D, n_bytes, layers)
        ready_s = start_s
        if lane is not None:
            leg_s = costs.copies.load_s(lane, n_bytes, layers)
            self.busy_s[lane] = self.busy_s.get(lane, 0.0) + leg_s
            ready_s += leg_s
        end_s = max(ready_s, self._link_ends_s[-1]) + link_s
        self._link_ends_s.append(end_s)
        self.next_s = end_s if lane is None else max(ready_s, self._link_ends_s[0])
        self.busy_s[H2D] += link_s
        self.loaded_bytes += n_bytes
        one.load_end_s = end_s
        one.back = begin if begin > one.first_needed else low
