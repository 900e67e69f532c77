"""What the users of a service see, and what its lanes and tiers did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from sim.service.service import Outcome

OVERLOAD_FRAC = 0.1
"""A service is overloaded if, at the last arrival, this part of the requests waits for its first
token, in proportion to those that have it."""

PAYS_FRAC = 0.05
"""More cache pays while the 90th percentile of TTFT is this much above the best of all sizes."""


HOURS_A_MONTH = 730.0


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and percentiles, in seconds."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None without values. A percentile is the smallest value that is no less than so many."""
        if not values:
            return None
        ranked = sorted(values)

        def at(fraction: float) -> float:
            return ranked[max(0, ceil(fraction * len(ranked)) - 1)]

        return cls(sum(ranked) / len(ranked), at(0.5), at(0.9), at(0.99))


@dataclass(frozen=True, slots=True)
class Goodput:
    """Requests that meet the limits on latency: each second, and of all."""

    requests_per_s: float
    fraction: float


@dataclass(frozen=True, slots=True)
class TrafficAnswer:
    """Latencies and work of a service under a trace.

    Args:
        ttft_s: from arrival to the first token.
        tpot_s: time per token after the first one, of requests with several.
        queue_s: from arrival to admission.
        hit_rate: of all prompt tokens, those found in each tier.
        arrivals_over_served: rate of arrivals over that of first tokens, up to the last arrival;
            about 1 if the service keeps up.
        busy: fraction of the time that each lane works, of all instances.
        loaded_bytes: copied to the GPUs by restores.
        stored_blocks, unread_blocks: written to each tier, and those of them nobody read.
    """

    requests: int
    rejected: int
    preemptions: int
    makespan_s: float
    ttft_s: Spread | None
    tpot_s: Spread | None
    queue_s: Spread | None
    goodput: Goodput
    output_tokens_per_s: float
    hit_rate: dict[str, float]
    busy: dict[str, float]
    loaded_bytes: int
    stored_blocks: dict[str, int]
    unread_blocks: dict[str, int]
    arrivals_over_served: float

    @property
    def overloaded(self) -> bool:
        return self.arrivals_over_served > 1.0 + OVERLOAD_FRAC


def answer(
    outcome: Outcome, ttft_slo_s: float | None = None, tpot_slo_s: float | None = None
) -> TrafficAnswer:
    """The answer of one outcome.

    Args:
        ttft_slo_s, tpot_slo_s: limits that a good request keeps; None for no limit.
    """
    trace, journal, served = outcome.trace, outcome.journal, outcome.served
    arrival, first, finish = trace.arrival_s, journal.first_s, journal.finish_s
    ttft = [first[at] - arrival[at] for at in served]
    tpot = {
        at: (finish[at] - first[at]) / (trace.output_tokens[at] - 1)
        for at in served
        if trace.output_tokens[at] > 1
    }
    good = sum(
        (ttft_slo_s is None or seconds <= ttft_slo_s)
        and (tpot_slo_s is None or tpot.get(at, 0.0) <= tpot_slo_s)
        for at, seconds in zip(served, ttft, strict=True)
    )
    start_s = arrival[0]
    makespan_s = max((finish[at] for at in served), default=start_s) - start_s
    in_time = sum(first[at] <= arrival[-1] for at in served)
    alone = len(set(arrival)) == 1
    prompts = sum(trace.prompt_tokens[at] for at in served)
    n_lanes = outcome.service.instances
    output = sum(max(1, trace.output_tokens[at]) for at in served)
    return TrafficAnswer(
        requests=len(trace),
        rejected=len(journal.rejected),
        preemptions=journal.preemptions,
        makespan_s=makespan_s,
        ttft_s=Spread.of(ttft),
        tpot_s=Spread.of(list(tpot.values())),
        queue_s=Spread.of([journal.admitted_s[at] - arrival[at] for at in served]),
        goodput=Goodput(good / makespan_s if makespan_s else 0.0, good / len(trace)),
        output_tokens_per_s=output / makespan_s if makespan_s else 0.0,
        hit_rate={
            name: sum(hits) / prompts if prompts else 0.0 for name, hits in journal.hits.items()
        },
        busy={
            lane: seconds / makespan_s / n_lanes if makespan_s else 0.0
            for lane, seconds in outcome.busy_s.items()
        },
        loaded_bytes=outcome.loaded_bytes,
        stored_blocks=outcome.stored_blocks,
        unread_blocks=outcome.unread_blocks,
        arrivals_over_served=1.0 if alone else len(served) / max(1, in_time),
    )


def enough(sizes: Sequence[float], p90_s: Sequence[float]) -> float:
    """The smallest size from which more does not pay."""
    best = min(p90_s)
    return min(
        size
        for size, seconds in zip(sizes, p90_s, strict=True)
        if seconds <= (1 + PAYS_FRAC) * best
    )


def price_per_million(
    outcome: Outcome, found: TrafficAnswer, gpu_hour: float | None, gb_month: float | None
) -> float | None:
    """Price of a million generated tokens; None without prices or tokens.

    Args:
        gpu_hour, gb_month: price of a GPU for an hour, and of a GB of host cache for a month.
    """
    if (gpu_hour is None and gb_month is None) or not found.output_tokens_per_s:
        return None
    service = outcome.service
    blocks = service.tier_blocks.get("dram", 0) if service.tier_names else 0
    cached_bytes = blocks * service.block_bytes(outcome.trace.block_tokens)
    hourly = service.costs.model.tensor_parallel * (gpu_hour or 0.0)
    hourly += cached_bytes / 1e9 * (gb_month or 0.0) / HOURS_A_MONTH
    return service.instances * hourly / (found.output_tokens_per_s * 3600) * 1e6
