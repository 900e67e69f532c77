"""Names of the ways in which an instance restores, orders, stores and preempts."""

from __future__ import annotations

from dataclasses import dataclass

COMPUTE_ONLY, LOAD_ONLY, TWO_ENDED = "compute-only", "load-only", "two-ended"
PLANNED = ("lp", "layer-wise", "joint")
SERVICE_POLICIES = (COMPUTE_ONLY, LOAD_ONLY, TWO_ENDED, *PLANNED)
"""Restores of a hit outside GPU memory: computed, loaded, both ends at once, or as planned."""

FCFS, GAIN = "fcfs", "gain"
LOAD_ORDERS = (FCFS, GAIN)
"""Who gets the link and the GPU next: the first admitted, or who needs the least of it."""

THROUGH, ON_EVICTION = "through", "evict"
STORES = (THROUGH, ON_EVICTION)
"""When a block is copied to the host: once it is computed, or when GPU memory evicts it."""

RECOMPUTE, SWAP = "recompute", "swap"
PREEMPTIONS = (RECOMPUTE, SWAP)
"""What a preempted request does when it has room again: compute its tokens, or load them."""


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
        preemption: of `PREEMPTIONS`.
        by_layer: restores load layer after layer, and a step that needs them follows the loads.
        request_s, decode_s: host time before a request can be admitted, and of each step in which
            requests decode.
    """

    policy: str
    load_order: str = FCFS
    store: str = THROUGH
    inclusive: bool = True
    max_batch: int = 256
    preemption: str = RECOMPUTE
    by_layer: bool = False
    request_s: float = 0.0
    decode_s: float = 0.0
