"""Caches under the traffic of requests: traces, hit rates of a pool, and services with time."""

from sim.service.answer import Spread, TrafficAnswer, answer, enough, price_per_million
from sim.service.blocks import block_bytes
from sim.service.costs import ServiceCosts
from sim.service.generate import Traffic, generated_trace, write_traffic
from sim.service.hit_rates import EVICTIONS, HitRate, HitRates, hit_rates
from sim.service.plans import RestorePlans, SoloRestore
from sim.service.pools import TIER_EVICTIONS
from sim.service.scheduling import (
    LOAD_ORDERS,
    PLANNED,
    PREEMPTIONS,
    SERVICE_POLICIES,
    STORES,
    Engine,
)
from sim.service.service import ROUTINGS, Outcome, Service
from sim.service.settings import ServiceSettings
from sim.service.simulate import simulate_service
from sim.service.timeline import (
    PHASES,
    RequestSpan,
    ServiceTimeline,
    WorkSpan,
    packed,
    service_timeline,
)
from sim.service.traces import RequestTrace, holds_requests, read_trace

__all__ = [
    "EVICTIONS",
    "LOAD_ORDERS",
    "PHASES",
    "PLANNED",
    "PREEMPTIONS",
    "ROUTINGS",
    "SERVICE_POLICIES",
    "STORES",
    "TIER_EVICTIONS",
    "Engine",
    "HitRate",
    "HitRates",
    "Outcome",
    "RequestSpan",
    "RequestTrace",
    "RestorePlans",
    "Service",
    "ServiceCosts",
    "ServiceSettings",
    "ServiceTimeline",
    "SoloRestore",
    "Spread",
    "Traffic",
    "TrafficAnswer",
    "WorkSpan",
    "answer",
    "block_bytes",
    "enough",
    "generated_trace",
    "hit_rates",
    "holds_requests",
    "packed",
    "price_per_million",
    "read_trace",
    "service_timeline",
    "simulate_service",
    "write_traffic",
]
