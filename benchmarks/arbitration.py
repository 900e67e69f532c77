"""TTFT with restores in the order of gain against first come, first served.

    python benchmarks/arbitration.py [--trace FILE] [--requests 3000] [--bursts 300] [--json]

Bursts are 2 to 16 restores that come at once, of random models, links, tiers, budgets of a step and
lengths, each seeded. With --trace, its first requests also run through 4 instances of
llama-3.1-70b-fp8 on 4 H100s each, with 1 TB of host cache and every policy of the bursts. A
`*_frac` is the order of gain over first come, first served, less 1: negative is earlier.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from common import options, report
from services import BURST_POLICIES, random_burst, ttft_of

from planner.restore.service import make_service
from sim import find_hardware, find_model
from sim.service import Engine, RequestTrace, ServiceSettings, Spread, answer, read_trace
from sim.service import simulate_service as simulate

LIMIT = 0.01
"""Relative delay that counts as slower."""


def changes(first_come: Spread, gain: Spread) -> dict[str, float]:
    """Relative differences of mean and 90th percentile."""
    return {
        "mean_frac": gain.mean / first_come.mean - 1,
        "p90_frac": gain.p90 / first_come.p90 - 1,
    }


def burst(seed: int) -> dict[str, Any]:
    """One burst with both orders."""
    service, trace = random_burst(seed)
    first_come, gain = (ttft_of(service, trace, order) for order in ("fcfs", "gain"))
    return {"seed": seed, "policy": service.engine.policy, **changes(first_come, gain)}


def first_requests(path: str, count: int) -> RequestTrace:
    """The first requests of a trace."""
    whole = read_trace(path)
    made = RequestTrace(whole.block_tokens)
    for at in range(min(count, len(whole))):
        sizes = whole.prompt_tokens[at], whole.output_tokens[at]
        made.add(whole.arrival_s[at], *sizes, [*whole.path(at)])
    return made


def served(trace: RequestTrace, policy: str) -> dict[str, float]:
    """The trace with both orders."""
    spread = []
    for order in ("fcfs", "gain"):
        settings = ServiceSettings(
            engine=Engine(policy=policy, load_order=order),
            tier_bytes={"dram": 1e12},
            instances=4,
            routing="prefix-aware",
        )
        spec, hardware = find_model("llama-3.1-70b-fp8"), find_hardware("h100-sxm+pcie5-x16")
        service = make_service(settings, spec.shard(4), hardware, trace.block_tokens)
        found = answer(simulate(service, trace)).ttft_s
        if found is None:
            sys.exit("no request of the trace fits this service.")
        spread.append(found)
    return changes(*spread)


def main() -> None:
    asked = options(__doc__, trace="", requests=3000, bursts=300)
    bursts = [burst(seed) for seed in range(asked.bursts)]
    found: dict[str, Any] = {
        "bursts": len(bursts),
        "slower": [one for one in bursts if max(one["mean_frac"], one["p90_frac"]) > LIMIT],
        "mean_frac": fmean(one["mean_frac"] for one in bursts),
        "p90_frac": fmean(one["p90_frac"] for one in bursts),
        "trace": {},
    }
    lines = [
        f"{len(bursts)} bursts: mean TTFT {100 * found['mean_frac']:+.1f} % on average, p90 "
        f"{100 * found['p90_frac']:+.1f} %; slower by over 1 %: {len(found['slower'])}"
    ]
    if asked.trace:
        trace = first_requests(asked.trace, asked.requests)
        found["requests"] = len(trace)
        for policy in BURST_POLICIES:
            found["trace"][policy] = one = served(trace, policy)
            lines.append(
                f"{len(trace):,} requests, {policy}: mean TTFT {100 * one['mean_frac']:+.1f} %, "
                f"p90 {100 * one['p90_frac']:+.1f} %"
            )
    report(found, asked.json, *lines)


if __name__ == "__main__":
    main()
