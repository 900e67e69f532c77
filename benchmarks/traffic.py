"""Seconds to run a request trace through one instance, and how they grow with the trace.

    python benchmarks/traffic.py [--trace FILE] [--largest 100000] [--json]

Without --trace 12,031 requests are generated, as many as a public trace of one hour has. `seconds`
are CPU seconds of this process, from the trace in memory to all times. `exponent` is the slope of
log(seconds) over log(requests) for generated traces up to `--largest` requests, at a rate that the
instance can serve. `hit_rate_seconds` are those of 18 pools, six sizes in three orders of eviction,
and `peer_seconds` what kvcache-simulator takes for the same with its C++ backend, which must be
compiled first and is not counted; it predicts no times.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import linear_regression

from common import options, report
from kvcache_sim.cpp_backend import ensure_cpp_simulator, run_cpp_sweep
from kvcache_sim.trace import parse_trace_file

from sim import find_hardware, find_model
from sim.service import (
    EVICTIONS,
    Engine,
    RequestTrace,
    Service,
    ServiceCosts,
    Traffic,
    hit_rates,
    read_trace,
    simulate_service,
    write_traffic,
)

HOST_CACHE_BYTES = 1e12
REQUESTS = 12_031
POOLS = (1024, 2048, 4096, 8192, 16384, 32768)


def cpu_s(work: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def generated(folder: Path, requests: int, rate_per_s: float) -> Path:
    """A generated trace of as many requests."""
    path = folder / f"{requests}.jsonl.gz"
    write_traffic(Traffic(requests=requests, rate_per_s=rate_per_s), path)
    return path


def one_instance(model: str, gpus: int, block_tokens: int) -> Service:
    """An instance of some H100s with a host cache of 1 TB, which loads every hit."""
    spec = find_model(model).shard(gpus)
    costs = ServiceCosts(spec, find_hardware("h100-sxm+pcie5-x16"), 8192, 128)
    blocks = int(HOST_CACHE_BYTES // (gpus * costs.block_bytes(block_tokens)))
    return Service(costs=costs, engine=Engine(policy="load-only"), tier_blocks={"dram": blocks})


def seconds_of(trace: RequestTrace, model: str, gpus: int) -> float:
    """CPU seconds of one run; what the costs remember of a first one is kept."""
    service = one_instance(model, gpus, trace.block_tokens)
    return cpu_s(lambda: simulate_service(service, trace))


def peer_s(path: str, trace: RequestTrace) -> float:
    """Seconds of kvcache-simulator for all pools, with the trace parsed by it."""
    ensure_cpp_simulator()
    start = time.perf_counter()
    parsed = parse_trace_file(path, block_size=trace.block_tokens)
    half = parsed.request_count // 2
    run_cpp_sweep(parsed, capacities=[*POOLS], policies=[*EVICTIONS], warmup_requests=half)
    return time.perf_counter() - start


def main() -> None:
    asked = options(__doc__, trace="", largest=100_000)
    with tempfile.TemporaryDirectory() as folder:
        path = asked.trace or str(generated(Path(folder), REQUESTS, 3.0))
        trace = read_trace(path)
        seconds = seconds_of(trace, "llama-3.1-70b-fp8", 4)
        ours_s = cpu_s(lambda: hit_rates(read_trace(path), POOLS))
        theirs_s = peer_s(path, trace)
        sizes = [count for count in (3_000, 10_000, 30_000) if count < asked.largest]
        sizes.append(asked.largest)
        grown = [
            seconds_of(read_trace(generated(Path(folder), count, 1.0)), "llama-3.1-8b", 1)
            for count in sizes
        ]
    slope = linear_regression([*map(math.log, sizes)], [*map(math.log, grown)]).slope
    found = {
        "requests": len(trace),
        "seconds": seconds,
        "requests_per_s": len(trace) / seconds,
        "exponent": slope,
        "sizes": sizes,
        "seconds_by_size": grown,
        "hit_rate_seconds": ours_s,
        "peer_seconds": {"kvcache-simulator": theirs_s},
    }
    report(
        found,
        asked.json,
        f"{len(trace):,} requests in {seconds:.2f} s: {len(trace) / seconds:,.0f} a second",
        f"{sizes[0]:,} to {sizes[-1]:,} requests: time grows with the power {slope:.2f}",
        f"18 hit rates in {ours_s:.2f} s, kvcache-simulator in {theirs_s:.2f} s",
    )


if __name__ == "__main__":
    main()
