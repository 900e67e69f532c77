"""A service as its users describe it: sizes in bytes, counts in tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec
from sim.service.costs import ServiceCosts
from sim.service.plans import RestorePlans
from sim.service.scheduling import Engine
from sim.service.service import Service


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """Everything about a service besides its model, its machine and its requests.

    Args:
        engine: how each instance schedules.
        tier_bytes: size of each tier by name; a tier without a size is left out.
        kv_bits: of a cached value outside GPU memory.
        chunk_tokens, io_chunk_tokens: of an engine step, and of one load.
        eviction, instances, routing: as `Service` has them.
        with_x: X is stored with K and V.
    """

    engine: Engine
    tier_bytes: dict[str, float] = field(default_factory=dict)
    kv_bits: int = 16
    chunk_tokens: int = 8192
    io_chunk_tokens: int = 128
    eviction: str = "lru"
    instances: int = 1
    routing: str = "round-robin"
    with_x: bool = False

    def service(
        self,
        model: ModelSpec,
        hardware: HardwareProfile,
        block_tokens: int,
        plans_of: Callable[[ServiceCosts, Engine], RestorePlans | None] | None = None,
    ) -> Service:
        """The service on a machine, with its tiers in blocks.

        Args:
            model: one GPU's part.
            block_tokens: of the trace.
            plans_of: makes the plans of the policies that need some.

        Raises:
            KvOverlapError: as `ServiceCosts` and `Service`.
        """
        chunks = self.chunk_tokens, self.io_chunk_tokens
        costs = ServiceCosts(model, hardware, *chunks, self.kv_bits, with_x=self.with_x)
        service = Service(
            costs=costs,
            engine=self.engine,
            eviction=self.eviction,
            instances=self.instances,
            routing=self.routing,
            plans=plans_of(costs, self.engine) if plans_of is not None else None,
        )
        return service.with_tiers(self.tier_bytes, block_tokens)
