"""`kvoverlap traffic` with a model and a machine: latencies of a service under a trace."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from kvoverlap.cli.options import Bytes, CachedKvBits, Count, Decimal, Runtime, cached_kv_bits
from kvoverlap.cli.output import print_json, progress, say, table
from planner.restore.service import make_service
from sim.catalog import find_runtime
from sim.errors import BadInput, UnknownName
from sim.files import write_bytes
from sim.graph.jobs import CACHED_DATA, KV, KV_AND_X
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec
from sim.progress import Part, Progress
from sim.service import (
    PLANNED,
    Engine,
    Outcome,
    RequestTrace,
    Service,
    ServiceCosts,
    ServiceSettings,
    Spread,
    TrafficAnswer,
    answer,
    enough,
    price_per_million,
    simulate_service,
)
from sim.units import ms, percent

NO_OFFLOAD, FREE_COPIES = "no offload", "free copies"
"""Runs that every policy is compared with: hits only in GPU memory, and hits that cost no time.

The second is no bound: other copy times admit and route requests in other orders.
"""

LONG_S = 10.0
"""Times from which on are printed in seconds."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ServiceOptions:
    """The service that the requests run through."""

    host_cache: Annotated[
        Bytes | None, Parameter(help="Host memory of each instance that caches K and V.")
    ] = None
    ssd_cache: Annotated[Bytes | None, Parameter(help="SSD of each instance behind it.")] = None
    net_cache: Annotated[
        Bytes | None, Parameter(help="Storage across the network that all instances share.")
    ] = None
    policy: Annotated[
        str,
        Parameter(
            help="How a hit outside GPU memory is restored: load-only, two-ended, lp, layer-wise, "
            "joint or compute-only, as `kvoverlap restore` has them."
        ),
    ] = "load-only"
    runtime: Runtime = None
    cached_data: Annotated[
        str,
        Parameter(
            help="What is stored of a block. kv: K and V, as serving runtimes do. kv+x: the "
            "attention inputs X too, from which layer-wise and joint may project K and V."
        ),
    ] = KV
    load_order: Annotated[
        str,
        Parameter(
            help="Who gets the link and the GPU next: fcfs, the first admitted; gain, who needs "
            "the least of them, unless that delays the slowest tenth."
        ),
    ] = "fcfs"
    cache_eviction: Annotated[
        str, Parameter(help="Of every tier: lru, fifo, lfu, or optimal, which knows the future.")
    ] = "lru"
    store: Annotated[
        str,
        Parameter(
            help="through: a block is copied to the host once it is computed. evict: when GPU "
            "memory evicts it."
        ),
    ] = "through"
    preemption: Annotated[
        str,
        Parameter(
            help="If GPU memory runs out while requests decode, the last one admitted is computed "
            "again (recompute) or copied to the host and back (swap)."
        ),
    ] = "recompute"
    exclusive: Annotated[
        bool,
        Parameter(help="A tier gets what the tier above it evicts, not all that is stored there."),
    ] = False
    instances: Annotated[Count, Parameter(help="Copies of the model, each of --tp GPUs.")] = 1
    routing: Annotated[
        str,
        Parameter(help="round-robin, least-loaded, or prefix-aware (fewest tokens to compute)."),
    ] = "round-robin"
    chunk: Annotated[Count, Parameter(help="Token budget of an engine step.")] = 8192
    io_chunk: Annotated[Count, Parameter(help="Tokens of one load.")] = 128
    max_batch: Annotated[Count, Parameter(help="Requests of an instance at a time.")] = 256
    kv_bits: CachedKvBits | None = None
    ttft_slo: Annotated[
        Decimal | None, Parameter(help="Seconds to the first token of a good request.")
    ] = None
    tpot_slo: Annotated[
        Decimal | None, Parameter(help="Seconds per later token of a good request.")
    ] = None
    gpu_hour: Annotated[Decimal | None, Parameter(help="Price of one GPU for an hour.")] = None
    gb_month: Annotated[
        Decimal | None, Parameter(help="Price of one GB of host cache for a month.")
    ] = None

    def of(self, model: ModelSpec, hardware: HardwareProfile, block_tokens: int) -> Service:
        """The service, with its tiers in blocks."""
        if self.cached_data not in CACHED_DATA:
            raise UnknownName("cached data", self.cached_data, CACHED_DATA)
        tiers = {"dram": self.host_cache, "ssd": self.ssd_cache, "net": self.net_cache}
        settings = ServiceSettings(
            engine=Engine(
                policy=self.policy,
                load_order=self.load_order,
                store=self.store,
                inclusive=not self.exclusive,
                max_batch=self.max_batch,
                preemption=self.preemption,
            ),
            with_x=self.cached_data == KV_AND_X,
            tier_bytes={name: size for name, size in tiers.items() if size},
            kv_bits=cached_kv_bits(self.kv_bits, model),
            chunk_tokens=self.chunk,
            io_chunk_tokens=self.io_chunk,
            eviction=self.cache_eviction,
            instances=self.instances,
            routing=self.routing,
        )
        runtime = None if self.runtime is None else find_runtime(self.runtime)
        return make_service(settings, model, hardware, block_tokens, runtime)


ONE_INSTANCE = ServiceOptions()


def serve_trace(
    trace: RequestTrace,
    served_by: tuple[ModelSpec, HardwareProfile],
    options: ServiceOptions,
    sizes: Sequence[float] | None,
    to: tuple[Path | None, bool],
) -> None:
    """Run the trace through the service and print what came out.

    Args:
        sizes: of the host cache, one run each; None to compare the policies.
        to: the table to write, and whether JSON is printed.
    """
    (output, json), (model, hardware) = to, served_by
    if output is not None and not find_spec("pyarrow"):
        raise BadInput("-o writes Parquet, which needs pyarrow: pip install 'kvoverlap[sweep]'.")
    service = options.of(model, hardware, trace.block_tokens)
    plain = service
    if service.costs.with_x:
        plain = replace(options, cached_data=KV).of(model, hardware, trace.block_tokens)
    with progress("traffic") as bar:
        if sizes is None:
            outcomes = _policies(service, plain, trace, bar)
        else:
            outcomes = _by_size(service, trace, sizes, bar)
    found = {
        name: answer(one, options.ttft_slo, options.tpot_slo) for name, one in outcomes.items()
    }
    if output is not None:
        chosen = outcomes[_run_name(service) if sizes is None else list(outcomes)[-1]]
        write_bytes(output, _table_of(chosen))
    price = _prices(options, outcomes, found)
    if json:
        print_json(_answer(trace, service, found, price, sizes))
        return
    has_limits = options.ttft_slo is not None or options.tpot_slo is not None
    _print(trace, service, found, price, sizes, has_limits)
    if output is not None:
        say(f"\nrequests written to {output}")


def _policies(
    service: Service, plain: Service, trace: RequestTrace, bar: Progress
) -> dict[str, Outcome]:
    """Outcomes of the service, and of what it is compared with.

    Args:
        plain: the service if it stores K and V only, as the policies do that project nothing.
    """
    engine, costs = plain.engine, plain.costs
    free = ServiceCosts(
        costs.model, costs.hardware, costs.chunk_tokens, costs.io_chunk_tokens, costs.kv_bits, True
    )
    loads = replace(engine, policy="load-only", by_layer=False)
    runs = {
        NO_OFFLOAD: replace(plain, engine=replace(loads, policy="compute-only")),
        "load-only": replace(plain, engine=loads),
        _run_name(service): service,
        FREE_COPIES: replace(plain, costs=free, engine=loads),
    }
    runs.pop("compute-only", None)
    if not service.tier_blocks:
        runs = {_run_name(service): service}
    return _run(runs, trace, bar)


def _run_name(service: Service) -> str:
    return "by layer" if service.engine.by_layer else service.engine.policy


def _by_size(
    service: Service, trace: RequestTrace, sizes: Sequence[float], bar: Progress
) -> dict[str, Outcome]:
    one = service.block_bytes(trace.block_tokens)
    runs = {}
    for size in sorted(set(sizes)):
        blocks = {**service.tier_blocks, "dram": int(size // one)}
        runs[_size(size)] = replace(service, tier_blocks=blocks)
    return _run(runs, trace, bar)


def _run(runs: dict[str, Service], trace: RequestTrace, bar: Progress) -> dict[str, Outcome]:
    return {
        name: simulate_service(service, trace, Part(bar, name, at / len(runs), 1 / len(runs)))
        for at, (name, service) in enumerate(runs.items())
    }


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:,.6g} GB"


def _prices(
    options: ServiceOptions, outcomes: dict[str, Outcome], found: dict[str, TrafficAnswer]
) -> dict[str, float]:
    prices = {}
    for name, one in outcomes.items():
        price = price_per_million(one, found[name], options.gpu_hour, options.gb_month)
        if price is not None:
            prices[name] = price
    return prices


def _answer(
    trace: RequestTrace,
    service: Service,
    found: dict[str, TrafficAnswer],
    price: dict[str, float],
    sizes: Sequence[float] | None,
) -> dict[str, Any]:
    costs = service.costs
    block = service.block_bytes(trace.block_tokens)
    rows = [
        {
            "run": name,
            **asdict(one),
            "overloaded": one.overloaded,
            **({"price_per_million_tokens": price[name]} if name in price else {}),
        }
        for name, one in found.items()
    ]
    answered: dict[str, Any] = {
        "model": costs.model.name,
        "hardware": costs.hardware.name,
        "tp": costs.model.tensor_parallel,
        "instances": service.instances,
        "policy": service.engine.policy,
        "cached_data": KV_AND_X if costs.with_x else KV,
        "requests": len(trace),
        "skipped_lines": trace.skipped,
        "block_tokens": trace.block_tokens,
        "block_bytes": block,
        "gpu_blocks": costs.gpu_blocks(trace.block_tokens, service.engine.max_batch),
        "tier_blocks": service.tier_blocks,
        "runs": rows,
    }
    if sizes is not None:
        for row, size in zip(rows, sorted(set(sizes)), strict=True):
            row["host_cache_bytes"] = size
        answered["enough_bytes"] = _enough(found, sizes)
    return answered


def _enough(found: dict[str, TrafficAnswer], sizes: Sequence[float]) -> float | None:
    """The smallest size from which more does not pay; None if nothing was served."""
    p90 = [one.ttft_s.p90 for one in found.values() if one.ttft_s is not None]
    return enough(sorted(set(sizes)), p90) if len(p90) == len(found) else None


def _print(
    trace: RequestTrace,
    service: Service,
    found: dict[str, TrafficAnswer],
    price: dict[str, float],
    sizes: Sequence[float] | None,
    has_limits: bool,
) -> None:
    costs = service.costs
    gpus = costs.model.tensor_parallel
    blocks = costs.gpu_blocks(trace.block_tokens, service.engine.max_batch)
    one = service.block_bytes(trace.block_tokens)
    say(
        f"{costs.model.name} on {service.instances} x {gpus} GPU of {costs.hardware.name}: "
        f"{len(trace):,} requests in {max(trace.arrival_s) - min(trace.arrival_s):,.0f} s"
    )
    tiers = [f"{name} {count:,}" for name, count in service.tier_blocks.items()]
    say(
        f"blocks of {trace.block_tokens} tokens, {one / 1e6:,.1f} MB: GPU memory {blocks:,}"
        f"{', ' if tiers else ''}{', '.join(tiers)} of each instance"
    )
    if service.engine.policy in PLANNED:
        stored = "K, V and X" if costs.with_x else "K and V, and so projects nothing from X"
        say(f"{service.engine.policy} stores {stored}")
    for name, run in found.items():
        if run.overloaded:
            say(f"overload, {name}: {run.arrivals_over_served:.2f} requests arrive for each served")
        if run.rejected:
            say(f"{name}: {run.rejected:,} requests are too long for GPU memory or the model")
    say("")
    _print_times(found, "policy" if sizes is None else "host cache", price, has_limits)
    say("")
    _print_work(found, "policy" if sizes is None else "host cache", one)
    if sizes is not None and (best := _enough(found, sizes)) is not None:
        say(f"\nMore than {_size(best)} of host cache does not lower the p90 of TTFT by 5 %.")


def _print_times(
    found: dict[str, TrafficAnswer], what: str, price: dict[str, float], has_limits: bool
) -> None:
    """The table of latencies; the goodput only where a latency has a limit."""
    columns = [what, "hit rate", "TTFT p50", "p90", "p99", "TPOT p50", "p90", "queue p90"]
    columns += [*(["goodput"] if has_limits else []), "tokens/s"]
    columns += ["price/M tokens"] if price else []
    rows = []
    for name, one in found.items():
        rows.append(
            (
                name,
                percent(sum(one.hit_rate.values())),
                *(_cell(one.ttft_s, key) for key in ("p50", "p90", "p99")),
                *(_cell(one.tpot_s, key) for key in ("p50", "p90")),
                _cell(one.queue_s, "p90"),
                *([percent(one.goodput.fraction)] if has_limits else []),
                f"{one.output_tokens_per_s:,.0f}",
                *([f"{price[name]:.3f}" if name in price else ""] if price else []),
            )
        )
    table("Latency", columns, rows)


def _cell(spread: Spread | None, key: str) -> str:
    if spread is None:
        return ""
    seconds: float = getattr(spread, key)
    return ms(seconds) if seconds < LONG_S else f"{seconds:,.1f} s"


def _print_work(found: dict[str, TrafficAnswer], what: str, block: int) -> None:
    tiers = list(dict.fromkeys(name for one in found.values() for name in one.hit_rate))
    lanes = list(dict.fromkeys(lane for one in found.values() for lane in one.busy))
    columns = [what, *(f"hits {name}" for name in tiers), *(f"busy {lane}" for lane in lanes)]
    rows = [
        (
            name,
            *(percent(one.hit_rate.get(tier, 0.0)) for tier in tiers),
            *(percent(one.busy.get(lane, 0.0)) for lane in lanes),
            f"{sum(one.stored_blocks.values()) * block / 1e9:,.0f} GB",
            f"{sum(one.unread_blocks.values()) * block / 1e9:,.0f} GB",
        )
        for name, one in found.items()
    ]
    table("Tiers and lanes", [*columns, "stored", "never read"], rows)


def _table_of(outcome: Outcome) -> bytes:
    """A row for each request, as Parquet; times are null for requests that were rejected."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    journal, trace = outcome.journal, outcome.trace

    def times(values: Sequence[float]) -> list[float | None]:
        return [one if one < float("inf") else None for one in values]

    columns = {
        "arrival_s": list(trace.arrival_s),
        "prompt_tokens": list(trace.prompt_tokens),
        "output_tokens": list(trace.output_tokens),
        "admitted_s": times(journal.admitted_s),
        "first_token_s": times(journal.first_s),
        "finish_s": times(journal.finish_s),
        "computed_tokens": list(journal.computed),
        **{f"hit_tokens_{name}": list(hits) for name, hits in journal.hits.items()},
    }
    file = BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()
