"""Rows of traffic sweeps: latencies of one service under a trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.restore.service import make_service
from planner.sweep.machines import machine_of, model_of
from planner.sweep.traces import generated_requests, request_trace
from sim.errors import BadInput
from sim.graph.jobs import UNCOMPRESSED
from sim.service import (
    Engine,
    RequestTrace,
    ServiceSettings,
    Traffic,
    TrafficAnswer,
    answer,
    price_per_million,
    simulate_service,
)

GPU = "gpu"
TIER_INPUTS = {"dram": "host_cache", "ssd": "ssd_cache", "net": "net_cache"}
LANES = ("compute", "h2d", "d2h", "disk", "net")

TRAFFIC_OUTPUTS: dict[str, type] = {
    "requests": int,
    "rejected": int,
    "preemptions": int,
    **{f"ttft_{name}_s": float for name in ("mean", "p50", "p90", "p99")},
    **{f"tpot_{name}_s": float for name in ("mean", "p50", "p90", "p99")},
    "queue_p90_s": float,
    "hit_frac": float,
    **{f"hit_{tier}_frac": float for tier in (GPU, *TIER_INPUTS)},
    "goodput_frac": float,
    "goodput_per_s": float,
    "tokens_per_s": float,
    "arrivals_over_served": float,
    "overloaded": bool,
    **{f"busy_{lane}_frac": float for lane in LANES},
    "loaded_bytes": int,
    "stored_bytes": int,
    "unread_bytes": int,
    "gpu_blocks": int,
    "h2d_bytes_per_s": float,
    "bottleneck": str,
    "price_per_million_tokens": float,
    "hardware_source": str,
}


def traffic_row(values: Mapping[str, Any]) -> dict[str, Any]:
    """The row of one service under its requests.

    Raises:
        KvOverlapError: the model or the machine does not support the service, or every request is
            too long for it.
    """
    trace = _trace_of(values)
    hardware = machine_of(values).hardware
    model = model_of(values, hardware)
    settings = ServiceSettings(
        engine=Engine(
            policy=values["policy"],
            load_order=values["load_order"],
            store=values["store"],
            inclusive=not values["exclusive"],
            max_batch=values["max_batch"],
        ),
        tier_bytes={tier: values[key] for tier, key in TIER_INPUTS.items() if values[key]},
        kv_bits=values["kv_bits"] or model.kv_bits or UNCOMPRESSED,
        chunk_tokens=values["chunk"],
        io_chunk_tokens=values["io_chunk"],
        eviction=values["cache_eviction"],
        instances=values["instances"],
        routing=values["routing"],
    )
    service = make_service(settings, model, hardware, trace.block_tokens)
    outcome = simulate_service(service, trace)
    found = answer(outcome, values.get("ttft_slo"), values.get("tpot_slo"))
    block = service.block_bytes(trace.block_tokens)
    prices = values.get("gpu_hour"), values.get("gb_month")
    return {
        **_latencies(found),
        "kv_bits": settings.kv_bits,
        "requests": found.requests,
        "rejected": found.rejected,
        "preemptions": found.preemptions,
        "hit_frac": sum(found.hit_rate.values()),
        **{f"hit_{tier}_frac": found.hit_rate.get(tier, 0.0) for tier in (GPU, *TIER_INPUTS)},
        "goodput_frac": found.goodput.fraction,
        "goodput_per_s": found.goodput.requests_per_s,
        "tokens_per_s": found.output_tokens_per_s,
        "arrivals_over_served": found.arrivals_over_served,
        "overloaded": found.overloaded,
        **{f"busy_{lane}_frac": found.busy.get(lane, 0.0) for lane in LANES},
        "loaded_bytes": found.loaded_bytes,
        "stored_bytes": block * sum(found.stored_blocks.values()),
        "unread_bytes": block * sum(found.unread_blocks.values()),
        "gpu_blocks": outcome.gpu_blocks,
        "h2d_bytes_per_s": hardware.links.h2d.bytes_per_s,
        "bottleneck": max(LANES, key=lambda lane: found.busy.get(lane, 0.0)),
        "price_per_million_tokens": price_per_million(outcome, found, *prices),
        "hardware_source": hardware.source,
    }


def _trace_of(values: Mapping[str, Any]) -> RequestTrace:
    if "trace" in values:
        return request_trace(values["trace"], values.get("block_tokens"))
    if "block_tokens" in values:
        raise BadInput("block_tokens goes with a trace; generated blocks have 512 tokens.")
    fields = {"requests": "generate", "rate_per_s": "rate", "think_s": "think"}
    keys = {name: fields.get(name, name) for name in Traffic.__dataclass_fields__}
    asked = {name: values[key] for name, key in keys.items() if key in values}
    return generated_requests(Traffic(**asked))


def _latencies(found: TrafficAnswer) -> dict[str, float | None]:
    ttft, tpot, queue = found.ttft_s, found.tpot_s, found.queue_s
    if ttft is None or queue is None:
        raise BadInput(
            f"all {found.requests:,} requests are too long for the GPU memory or the model; raise "
            "tp, or choose another model."
        )
    names = ("mean", "p50", "p90", "p99")
    return {
        **{f"ttft_{name}_s": getattr(ttft, name) for name in names},
        **{f"tpot_{name}_s": getattr(tpot, name, None) for name in names},
        "queue_p90_s": queue.p90,
    }
