"""Caches under the traffic of requests: traces, and the hit rates of a pool."""

from sim.service.blocks import block_bytes
from sim.service.generate import Traffic, write_traffic
from sim.service.hit_rates import EVICTIONS, HitRate, HitRates, hit_rates
from sim.service.traces import RequestTrace, read_trace

__all__ = [
    "EVICTIONS",
    "HitRate",
    "HitRates",
    "RequestTrace",
    "Traffic",
    "block_bytes",
    "hit_rates",
    "read_trace",
    "write_traffic",
]
