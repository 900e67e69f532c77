"""Services, traces and machines with round numbers, for the tests."""

from __future__ import annotations

import random
from dataclasses import fields, replace
from typing import ClassVar

from builders import machine, tiny_model
from hypothesis import strategies as st
from restores import figure

from planner.restore.service import plans_of
from sim.catalog import find_hardware, find_model
from sim.lanes import DISK, NET
from sim.machine.prefill import Prefill, Restore, Tier
from sim.machine.profile import HardwareProfile
from sim.service import (
    SERVICE_POLICIES,
    Engine,
    RequestTrace,
    Service,
    ServiceCosts,
    SoloRestore,
    Spread,
    simulate_service,
)

H100 = find_hardware("h100-sxm+pcie5-x16")
BLOCK = 8
BLOCK_BYTES = 64 * BLOCK
"""K and V of one block in both layers of `tiny_model`."""


ENGINE = ("store", "inclusive", "preemption", "by_layer", "request_s", "decode_s")


class RoundPlans:
    """Plans of round numbers, which no machine has."""

    def solo(self, prompt: int, cached: int, tier: str) -> SoloRestore:
        load_s = cached * (1e-4 if tier == "dram" else 1e-3)
        busy = (("compute", 1e-5 * prompt), ("h2d", load_s))
        return SoloRestore(load_s + 1e-5 * prompt, busy, load_s, 64 * cached, prompt - cached)


def with_blocks(hardware: HardwareProfile, costs_of, blocks: int) -> HardwareProfile:
    """The machine with room for as many blocks in GPU memory."""
    roomy = replace(hardware, memory=replace(hardware.memory, device_bytes=1e9))
    spare = costs_of(roomy).gpu_blocks(BLOCK, 4) - blocks
    device_bytes = roomy.memory.device_bytes - spare * BLOCK_BYTES
    return replace(roomy, memory=replace(roomy.memory, device_bytes=device_bytes))


def service_machine(step_s: float = 1e-3, tokens_per_s: float = 1e5, **rates: float):
    """A step takes `step_s` and the time of its tokens' arithmetic; copies take their bytes'."""
    tiers = tuple(Tier(lane, figure(64 * rates.pop(lane, 1e5))) for lane in (DISK, NET))
    return machine(
        flops_per_s=tokens_per_s * 3e3,
        memory_bytes_per_s=1e9,
        h2d=64 * rates.pop("h2d", 1e6),
        restore=Restore(Prefill(figure(1e12), figure(step_s)), tiers),
    )


def tiny_service(
    policy: str = "load-only", gpu_blocks: int = 24, chunk: int = 16, hardware=None, **options
) -> Service:
    """A service of `tiny_model` with blocks of 8 tokens."""
    model = tiny_model(max_positions=4096)
    tiers = options.pop("tiers", {"dram": 64})
    engine = {
        name: options.pop(name) for name in (*ENGINE, "max_batch", "load_order") if name in options
    }

    free_copies = options.pop("free_copies", False)

    def costs_of(machine_of: HardwareProfile) -> ServiceCosts:
        return ServiceCosts(model, machine_of, chunk, 4, free_copies=free_copies)

    fitted = with_blocks(hardware or service_machine(), costs_of, gpu_blocks)
    return Service(
        costs=costs_of(fitted),
        engine=Engine(policy=policy, **{"max_batch": 4, **engine}),
        tier_blocks=tiers,
        **options,
    )


class Watched(Service):
    """A service whose tiers hold blocks at the start, and whose instances can be looked at."""

    held: ClassVar[dict[int, int]] = {}

    def build(self, trace, *loader):
        made = super().build(trace, *loader)
        object.__setattr__(self, "made", made[0])
        for request, blocks in self.held.items():
            for tier in made[0][0].tiers:
                tier.pool.put([*trace.path(request)][:blocks], [])
        return made


def warm(service: Service, held: dict[int, int]) -> Watched:
    """The service with the first blocks of some requests in the tiers of its first instance."""
    made = Watched(**{one.name: getattr(service, one.name) for one in fields(Service)})
    object.__setattr__(made, "held", held)
    return made


def hit_ttft_s(service: Service, prompt: int, blocks: int, block_tokens: int = 512) -> float:
    """Time to first token of the only request, whose first blocks are in the tiers."""
    trace = RequestTrace(block_tokens)
    trace.add(0.0, prompt, 1, [*range(-(-prompt // block_tokens))])
    outcome = simulate_service(warm(service, {0: blocks}), trace)
    return outcome.journal.first_s[0]


@st.composite
def request_traces(draw, most: int = 14) -> RequestTrace:
    """Requests that often come together, share prefixes, and decode a few tokens."""
    trace, now_s = RequestTrace(BLOCK), 0.0
    for _ in range(draw(st.integers(1, most))):
        now_s += draw(st.sampled_from([0.0, 0.0013, 0.0171, 0.11]))
        ids = draw(st.lists(st.integers(0, 1), min_size=1, max_size=8))
        prompt = BLOCK * len(ids) - draw(st.sampled_from([0, 1, 5]))
        trace.add(now_s, prompt, draw(st.integers(1, 20)), ids)
    return trace


@st.composite
def services(draw) -> Service:
    """Any policy, tiers, evictions, stores, routing and up to three instances."""
    sizes = st.sampled_from([0, 3, 9, 40])
    rate = st.sampled_from([2e4, 3e5, 7e6])
    hardware = service_machine(
        draw(st.sampled_from([1e-4, 3e-3])),
        draw(st.sampled_from([3e4, 1e6])),
        h2d=draw(rate),
        disk=draw(rate),
        net=draw(rate),
    )
    return tiny_service(
        policy=draw(st.sampled_from(SERVICE_POLICIES)),
        plans=RoundPlans(),
        gpu_blocks=draw(st.sampled_from([12, 16, 40])),
        hardware=hardware,
        tiers={name: draw(sizes) for name in ("dram", "ssd", "net")},
        eviction=draw(st.sampled_from(["lru", "fifo", "lfu", "optimal"])),
        store=draw(st.sampled_from(["through", "evict"])),
        free_copies=draw(st.sampled_from([False, False, True])),
        inclusive=draw(st.booleans()),
        load_order=draw(st.sampled_from(["fcfs", "gain"])),
        max_batch=draw(st.sampled_from([1, 3, 9])),
        preemption=draw(st.sampled_from(["recompute", "swap"])),
        by_layer=draw(st.sampled_from([False, False, True])),
        request_s=draw(st.sampled_from([0.0, 0.0019])),
        decode_s=draw(st.sampled_from([0.0, 0.0003])),
        instances=draw(st.sampled_from([1, 1, 2, 3])),
        routing=draw(st.sampled_from(["round-robin", "least-loaded", "prefix-aware"])),
    )


BURST_MODELS = (
    ("llama-3.1-8b", 1),
    ("llama-3.1-70b-fp8", 4),
    ("mistral-7b-v0.1", 1),
    ("gpt-oss-20b", 1),
    ("deepseek-v2-lite", 1),
    ("opt-13b", 1),
)
BURST_POLICIES = ("load-only", "two-ended", "joint", "lp")


def random_burst(
    seed: int, policy: str | None = None, most: int = 16, apart_s: float = 0.0
) -> tuple[Watched, RequestTrace]:
    """2 to `most` hits of one kind of mix, on any of some models, links, tiers and step budgets.

    Args:
        policy: by default any of `BURST_POLICIES`.
        apart_s: mean time between arrivals; all come at once if it is 0.
    """
    chance = random.Random(seed)  # noqa: S311
    model, tp = chance.choice(BURST_MODELS)
    link = H100.links.h2d
    rate = chance.choice([2e9, 6e9, 12e9, 25e9, 55e9])
    hardware = replace(
        H100, links=replace(H100.links, h2d=replace(link, bytes_per_s=rate, curve=None))
    )
    chunk = chance.choice([512, 2048, 8192])
    tier = chance.choice(["dram", "dram", "ssd", "net"])
    longest = {"opt-13b": 3}.get(model, chance.choice([4, 16, 48]))
    rests = chance.choice([1, 2, 12])
    trace, held, now_s = RequestTrace(512), {}, 0.0
    for number in range(chance.randint(2, most)):
        now_s += chance.expovariate(1 / apart_s) if apart_s else 0.0
        cached = chance.randint(0 if chance.random() < 0.1 else 1, longest)
        blocks = min(cached + chance.randint(1, rests), 3 if model == "opt-13b" else 60)
        held[number] = min(cached, blocks)
        ids = [1000 * number + at for at in range(blocks)]
        trace.add(now_s, 512 * blocks - chance.randint(1, 500), chance.choice([1, 1, 20]), ids)
    key = (model, tp, rate, chunk)
    if key not in _BURST_COSTS:
        spec = find_model(model).shard(tp)
        _BURST_COSTS[key] = ServiceCosts(spec, hardware, chunk, 128)
    costs = _BURST_COSTS[key]
    engine = Engine(policy=policy or chance.choice(BURST_POLICIES), max_batch=64)
    service = Service(
        costs=costs, engine=engine, tier_blocks={tier: 10**6}, plans=plans_of(costs, engine)
    )
    return warm(service, held), trace


_BURST_COSTS: dict[tuple[str, int, float, int], ServiceCosts] = {}


def in_order(service: Watched, order: str) -> Watched:
    """The service with an order of loads."""
    engine = replace(service.engine, load_order=order)
    return warm(replace(service, engine=engine), service.held)


def ttft_of(service: Watched, trace: RequestTrace, order: str) -> Spread:
    """TTFT of all requests under an order of loads."""
    changed = in_order(service, order)
    first_s = simulate_service(changed, trace).journal.first_s
    found = Spread.of([at - arrival for at, arrival in zip(first_s, trace.arrival_s, strict=True)])
    assert found is not None
    return found
