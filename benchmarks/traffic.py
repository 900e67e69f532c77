"""Seconds to run a request trace through one instance, and how they grow with the trace.

    python benchmarks/traffic.py [--trace FILE] [--largest 100000] [--curve 1] [--json]

Without --trace 12,031 requests are generated, as many as a public trace of one hour has. `seconds`
are CPU seconds of this process, from the trace in memory to all times. `exponent` is the slope of
log(seconds) over log(requests) for generated traces up to `--largest` requests, at a rate that the
instance can serve, and `peak_bytes` the memory of this process after the largest. With `--curve 1`
`curve_seconds` are those of 12 sizes of the host cache with 3 policies on two cores: CPU seconds of
the process that takes longer. `hit_rate_seconds` are those of 18 pools, six sizes in three orders
of eviction, and `peer_seconds` what kvcache-simulator takes for the same with its C++ backend,
which must be compiled first and is not counted; it predicts no times.
"""

from __future__ import annotations

import math
import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
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
    ServiceSettings,
    Traffic,
    hit_rates,
    read_trace,
    simulate_service,
    write_traffic,
)

HOST_CACHE_BYTES = 1e12
CURVE_BYTES = tuple(at * 128e9 for at in range(12))
CURVE_POLICIES = ("compute-only", "load-only", "two-ended")
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


def one_instance(
    model: str,
    gpus: int,
    block_tokens: int,
    host_bytes: float = HOST_CACHE_BYTES,
    policy: str = "load-only",
) -> Service:
    """An instance of some H100s with a host cache."""
    settings = ServiceSettings(engine=Engine(policy=policy), tier_bytes={"dram": host_bytes})
    spec = find_model(model).shard(gpus)
    return settings.service(spec, find_hardware("h100-sxm+pcie5-x16"), block_tokens)


def seconds_of(trace: RequestTrace, model: str, gpus: int) -> float:
    """CPU seconds of one run; what the costs remember of a first one is kept."""
    service = one_instance(model, gpus, trace.block_tokens)
    return cpu_s(lambda: simulate_service(service, trace))


def curve_s(path: str, policies: tuple[str, ...] = CURVE_POLICIES) -> float:
    """CPU seconds of a curve of every policy over all sizes, of the process that takes longer.

    Without a cache, or if every hit is computed, all sizes and policies are the same run.
    """
    runs = {
        (CURVE_POLICIES[0], 0.0) if CURVE_POLICIES[0] == policy or not size else (policy, size)
        for policy in policies
        for size in CURVE_BYTES
    }
    spent: dict[int, float] = {}
    with ProcessPoolExecutor(2) as pool:
        for pid, seconds in pool.map(partial(_curve_point, path), sorted(runs)):
            spent[pid] = max(spent.get(pid, 0.0), seconds)
    return max(spent.values())


def _curve_point(path: str, run: tuple[str, float]) -> tuple[int, float]:
    """This process and its CPU seconds so far; it reads the trace each time."""
    policy, size = run
    trace = read_trace(path)
    simulate_service(one_instance("llama-3.1-70b-fp8", 4, trace.block_tokens, size, policy), trace)
    return os.getpid(), time.process_time()


def peer_s(path: str, trace: RequestTrace) -> float:
    """Seconds of kvcache-simulator for all pools, with the trace parsed by it."""
    ensure_cpp_simulator()
    start = time.perf_counter()
    parsed = parse_trace_file(path, block_size=trace.block_tokens)
    half = parsed.request_count // 2
    run_cpp_sweep(parsed, capacities=[*POOLS], policies=[*EVICTIONS], warmup_requests=half)
    return time.perf_counter() - start


def main() -> None:
    asked = options(__doc__, trace="", largest=100_000, curve=0)
    with tempfile.TemporaryDirectory() as folder:
        path = asked.trace or str(generated(Path(folder), REQUESTS, 3.0))
        trace = read_trace(path)
        seconds = seconds_of(trace, "llama-3.1-70b-fp8", 4)
        ours_s = cpu_s(lambda: hit_rates(read_trace(path), POOLS))
        theirs_s = peer_s(path, trace)
        curve = {"curve_seconds": curve_s(path)} if asked.curve else {}
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
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        **curve,
        "hit_rate_seconds": ours_s,
        "peer_seconds": {"kvcache-simulator": theirs_s},
    }
    report(
        found,
        asked.json,
        f"{len(trace):,} requests in {seconds:.2f} s: {len(trace) / seconds:,.0f} a second",
        f"{sizes[0]:,} to {sizes[-1]:,} requests: time grows with the power {slope:.2f}",
        *[f"a curve of 12 sizes x 3 policies in {value:.1f} s" for value in curve.values()],
        f"18 hit rates in {ours_s:.2f} s, kvcache-simulator in {theirs_s:.2f} s",
    )


if __name__ == "__main__":
    main()
