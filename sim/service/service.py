"""A service: instances, the tiers behind them, how requests are routed, and what came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf

from sim.errors import BadInput, UnknownName
from sim.lanes import LANE_OF_TIER, TIERS
from sim.service.costs import ServiceCosts
from sim.service.instance import Instance
from sim.service.journal import Journal
from sim.service.loader import Loader
from sim.service.plans import RestorePlans
from sim.service.pools import TIER_EVICTIONS, NextUse, Pool, Tier
from sim.service.restores import Restorer
from sim.service.scheduling import (
    COMPUTE_ONLY,
    LOAD_ORDERS,
    PLANNED,
    PREEMPTIONS,
    SERVICE_POLICIES,
    STORES,
    Engine,
)
from sim.service.traces import RequestTrace

ROUND_ROBIN, LEAST_LOADED, PREFIX_AWARE = "round-robin", "least-loaded", "prefix-aware"
ROUTINGS = (ROUND_ROBIN, LEAST_LOADED, PREFIX_AWARE)
"""To each instance in turn; to the one with the fewest requests; to the one that has the fewest
tokens to compute first: of this prompt those that it has not cached, and for each request that
waits for its first token there as many as this prompt has."""

HOST_DRAM = "host DRAM"
"""Memory of an instance's host, among the lanes whose work is counted."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """What serves the requests.

    Args:
        costs: times and sizes of one instance.
        engine: how each instance schedules.
        tier_blocks: blocks of each tier by name: `dram` and `ssd` of each instance, `net` of all.
        eviction: of `TIER_EVICTIONS`, in every tier. GPU memory evicts by last use.
        instances: copies of the model.
        routing: of `ROUTINGS`.
        plans: of restores that have an instance to themselves, for policies that are planned and
            for loads by layer.

    Raises:
        UnknownName: no such policy, store, eviction, routing or tier.
        BadInput: a count is out of range.
    """

    costs: ServiceCosts
    engine: Engine
    tier_blocks: dict[str, int] = field(default_factory=dict)
    eviction: str = "lru"
    instances: int = 1
    routing: str = ROUND_ROBIN
    plans: RestorePlans | None = None

    def __post_init__(self) -> None:
        for kind, name, known in (
            ("policy", self.engine.policy, SERVICE_POLICIES),
            ("store", self.engine.store, STORES),
            ("order of loads", self.engine.load_order, LOAD_ORDERS),
            ("preemption", self.engine.preemption, PREEMPTIONS),
            ("eviction", self.eviction, TIER_EVICTIONS),
            ("routing", self.routing, ROUTINGS),
            *(("tier", name, TIERS) for name in self.tier_blocks),
        ):
            if name not in known:
                raise UnknownName(kind, name, known)
        if self.engine.policy in PLANNED and self.plans is None:
            raise BadInput(f"policy {self.engine.policy} needs plans; give the service some.")
        if not 1 <= self.instances <= 1024:
            raise BadInput(f"instances(={self.instances}) must be from 1 to 1,024.")
        if not 1 <= self.engine.max_batch < self.costs.chunk_tokens:
            raise BadInput(
                f"max_batch(={self.engine.max_batch}) must be at least 1 and below the "
                f"{self.costs.chunk_tokens} tokens of a step, which decoding must not fill."
            )

    def block_bytes(self, block_tokens: int) -> int:
        """Bytes of a block in a tier, of all GPUs that share the model."""
        return self.costs.block_bytes(block_tokens) * self.costs.model.tensor_parallel

    def with_tiers(self, tier_bytes: Mapping[str, float | None], block_tokens: int) -> Service:
        """The service with tiers of these bytes; one without a size is left out."""
        one = self.block_bytes(block_tokens)
        blocks = {name: int(size // one) for name, size in tier_bytes.items() if size}
        return replace(self, tier_blocks=blocks)

    @property
    def tier_names(self) -> list[str]:
        """Tiers that hold blocks, the nearest first; none if hits are computed."""
        if self.engine.policy == COMPUTE_ONLY:
            return []
        return [name for name in TIERS if self.tier_blocks.get(name)]

    def build(
        self, trace: RequestTrace, loader: Callable[[ServiceCosts, int, str], Loader] = Loader
    ) -> tuple[list[Instance], Journal]:
        """Instances without requests, and the journal that they write."""
        journal = Journal.of(len(trace), self.tier_names)
        uses = NextUse(trace) if self.eviction == "optimal" and self.tier_names else None
        shared = {"net": self._tier("net", trace, uses)} if "net" in self.tier_names else {}
        made = []
        for _ in range(self.instances):
            tiers = [shared.get(name) or self._tier(name, trace, uses) for name in self.tier_names]
            loads = loader(self.costs, trace.block_tokens, self.engine.load_order)
            asked = (self.costs, self.engine, trace.block_tokens, tiers, loads, self.plans)
            parts = (self.costs, self.engine, tiers, journal, Restorer(*asked), uses)
            made.append(Instance(trace, *parts))
        return made, journal

    def _tier(self, name: str, trace: RequestTrace, uses: NextUse | None) -> Tier:
        lane = LANE_OF_TIER.get(name)
        block = trace.block_tokens
        write_s = self.costs.copies.spill_s(lane, block) if lane is not None else 0.0
        pool = Pool(self.tier_blocks[name], self.eviction, uses)
        return Tier(name, pool, lane, write_s)


class Router:
    """Chooses the instance of each request."""

    def __init__(self, routing: str, instances: list[Instance]) -> None:
        self._routing, self._instances = routing, instances
        self._turn = 0

    def choose(self, request: int, now_s: float) -> int:
        """Number of the instance that gets the request that has just arrived."""
        count = len(self._instances)
        self._turn = (self._turn + 1) % count
        if count == 1 or self._routing == ROUND_ROBIN:
            return self._turn
        if self._routing == PREFIX_AWARE:
            for one in self._instances:
                one.settle(now_s)
        return min(range(count), key=lambda at: self._cost(self._instances[at], request))

    def _cost(self, one: Instance, request: int) -> tuple[int, int]:
        """What an instance has to do first, in tokens where prefixes count, and its requests."""
        if self._routing == LEAST_LOADED:
            return 0, one.load
        prompt = one.trace.prompt_tokens[request]
        return (1 + one.waiting) * prompt - one.cached_tokens(request), one.load


@dataclass(frozen=True)
class Outcome:
    """Times of every request of a trace, and the work of every lane.

    Args:
        journal: by request, in the order of `trace`.
        busy_s: seconds of work of each lane, over all instances; also of host memory (`HOST_DRAM`)
            where its rate is known: loads read it once, and stores write it once.
        loaded_bytes: copied to the GPUs by restores.
        stored_blocks, unread_blocks: by tier: blocks written, and those of them nobody read.
    """

    trace: RequestTrace = field(repr=False)
    service: Service = field(repr=False)
    journal: Journal = field(repr=False)
    gpu_blocks: int
    busy_s: dict[str, float]
    loaded_bytes: int
    stored_blocks: dict[str, int]
    unread_blocks: dict[str, int]

    @classmethod
    def of(
        cls, service: Service, trace: RequestTrace, instances: list[Instance], journal: Journal
    ) -> Outcome:
        """Collect what the instances did."""
        busy: dict[str, float] = {}
        tiers = {id(tier): tier for one in instances for tier in one.tiers}.values()
        for one in instances:
            one.settle(inf)
            for lane, seconds in (*one.busy_s.items(), *one.loader.busy_s.items()):
                busy[lane] = busy.get(lane, 0.0) + seconds
        stored = dict.fromkeys(service.tier_names, 0)
        unread = dict(stored)
        for tier in tiers:
            stored[tier.name] += tier.pool.stored_blocks
            unread[tier.name] += tier.pool.never_read
            if tier.lane is not None:
                busy[f"{tier.lane}, writing"] = busy.get(f"{tier.lane}, writing", 0) + tier.busy_s
        loaded = sum(one.loader.loaded_bytes for one in instances)
        loaded *= service.costs.model.tensor_parallel
        dram = service.costs.hardware.host_dram
        if dram is not None and service.tier_names:
            written = stored[service.tier_names[0]] * service.block_bytes(trace.block_tokens)
            busy[HOST_DRAM] = (loaded + written) / dram.value
        gpu_blocks = instances[0].memory.blocks
        return cls(trace, service, journal, gpu_blocks, busy, loaded, stored, unread)

    @cached_property
    def served(self) -> list[int]:
        """Requests that were not rejected."""
        rejected = set(self.journal.rejected)
        return [at for at in range(len(self.trace)) if at not in rejected]
