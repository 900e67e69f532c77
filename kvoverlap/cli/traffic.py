"""`kvoverlap traffic`: what a cache of some size brings under the requests of a trace."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from kvoverlap.cli.options import (
    Count,
    Counts,
    Decimal,
    Json,
    MachineOptions,
    ModelOptions,
    OutputFile,
    Seed,
    cached_kv_bits,
    parsed_by,
)
from kvoverlap.cli.output import note, print_json, progress, say, table
from kvoverlap.cli.traffic_service import ONE_INSTANCE, ServiceOptions, serve_trace
from sim.catalog import find_model
from sim.errors import BadInput
from sim.service import (
    EVICTIONS,
    HitRates,
    RequestTrace,
    Traffic,
    block_bytes,
    hit_rates,
    read_trace,
    write_traffic,
)
from sim.units import parse_sizes, percent

SMALLEST_POOL = 64
"""Blocks of the smallest pool if no size is given; the next ones are twice as large."""

Sizes = Annotated[
    tuple[float, ...] | None,
    Parameter(converter=parsed_by(parse_sizes), metavar="SIZE,..."),
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TraceOptions:
    """How the trace is read."""

    block_tokens: Annotated[
        Count | None,
        Parameter(
            help="Tokens of a block. By default what the lines say, 512 for Mooncake traces and "
            "CSV, 16 for Qwen-Bailian traces."
        ),
    ] = None
    skip_bad: Annotated[
        bool, Parameter(help="Leave bad lines out and count them; otherwise the first one ends it.")
    ] = False

    def read(self, path: Path) -> RequestTrace:
        """The requests of a file, with a note on lines that were left out."""
        with progress("reading") as bar:
            trace = read_trace(path, self.block_tokens, self.skip_bad, bar)
        if trace.skipped:
            note(f"{trace.skipped:,} bad lines of {path} were left out")
        return trace


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class GeneratedTraffic:
    """Traffic to generate; lengths are means, and every length varies."""

    generate: Annotated[
        Count | None,
        Parameter(help="Write a trace of this many requests to -o instead, such as 12K."),
    ] = None
    rate: Annotated[Decimal, Parameter(help="Requests a second.")] = 1.0
    burstiness: Annotated[
        Decimal,
        Parameter(
            help="Standard deviation of the gaps between sessions over their mean. 1: Poisson."
        ),
    ] = 1.0
    turns: Annotated[Decimal, Parameter(help="Requests of a session.")] = 4.0
    think: Annotated[Decimal, Parameter(help="Seconds from an answer to the next turn.")] = 30.0
    agents: Annotated[
        Decimal,
        Parameter(
            help="Fraction of sessions that are agents: 6 times the turns, 5 % of the think time."
        ),
    ] = 0.1
    system_prompts: Annotated[Count, Parameter(help="System prompts that sessions share.")] = 8
    system_tokens: Annotated[Count, Parameter(help="Tokens of a system prompt.")] = 1024
    new_tokens: Annotated[Count, Parameter(help="Tokens that a turn adds to the prompt.")] = 1024
    output_tokens: Annotated[Count, Parameter(help="Tokens of an answer.")] = 256
    seed: Seed = 0

    def write(self, requests: int, path: Path) -> None:
        """Generate the trace and write it."""
        asked = Traffic(
            requests=requests,
            rate_per_s=self.rate,
            burstiness=self.burstiness,
            turns=self.turns,
            think_s=self.think,
            agents=self.agents,
            system_prompts=self.system_prompts,
            system_tokens=self.system_tokens,
            new_tokens=self.new_tokens,
            output_tokens=self.output_tokens,
            seed=self.seed,
        )
        with progress("generating") as bar:
            write_traffic(asked, path, bar)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """Sizes of one pool, for hit rates without time."""

    hit_rates: Annotated[
        bool,
        Parameter(
            help="Hit rates of one pool, without time: the longest cached prefix, in tokens, of "
            "the last half of the requests."
        ),
    ] = False
    blocks: Annotated[
        Counts, Parameter(help="Sizes in blocks. By default powers of two up to the whole trace.")
    ] = None
    sizes: Annotated[
        Sizes,
        Parameter(
            help="Sizes in bytes, such as 0,64GB,1TB: of the pool with --hit-rates, else of the "
            "host cache of each instance, one run each."
        ),
    ] = None
    eviction: Annotated[
        str, Parameter(help="Comma-separated: lru, fifo, optimal (Belady's, a bound).")
    ] = ",".join(EVICTIONS)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TrafficOutput:
    """Where the answer goes."""

    output: Annotated[
        OutputFile | None,
        Parameter(
            name=["--output", "-o"],
            help="Write the generated trace here, compressed if the name ends in .gz; of a "
            "service, a Parquet table with a row for each request.",
        ),
    ] = None
    json: Json = False


PRINT_ONLY = TrafficOutput()


def traffic(
    trace: Path | None = None,
    *,
    reading: TraceOptions = TraceOptions(),
    pool: PoolOptions = PoolOptions(),
    model: ModelOptions | None = None,
    machine: MachineOptions | None = None,
    service: ServiceOptions = ONE_INSTANCE,
    generated: GeneratedTraffic = GeneratedTraffic(),
    to: TrafficOutput = PRINT_ONLY,
) -> None:
    """Show what a KV cache brings under the requests of a trace, or generate one.

    With --model and --hardware the requests run through a service: GPU memory,
    a host cache and tiers behind it, continuous batching. The answer is TTFT and
    time per token, compared with other ways to restore. With --hit-rates it is
    the hit rate of one pool, without time.

    For example:
      kvoverlap traffic --generate 12K --rate 3 --seed 1 -o trace.jsonl.gz
      kvoverlap traffic trace.jsonl.gz --hit-rates --blocks 1024,8192 --json
      kvoverlap traffic trace.jsonl.gz --hit-rates --model llama-3.1-8b \\
          --sizes 64GB,512GB
      kvoverlap traffic trace.jsonl.gz --model llama-3.1-8b --hardware h100-sxm \\
          --host-cache 256GB
      kvoverlap traffic trace.jsonl.gz --model llama-3.1-70b-fp8 --tp 4 \\
          --hardware h100-sxm+pcie5-x16 --instances 2 --sizes 0,256GB,1TB

    Parameters
    ----------
    trace
        Requests: Mooncake or Qwen-Bailian JSONL, or CSV with the columns arrival_s, prompt_tokens,
        gen_tokens and optionally prefix_group, prefix_tokens; gzip too.
    """
    if generated.generate is not None:
        if trace is not None or to.output is None:
            raise BadInput("--generate writes a trace: name the file by -o, and no trace to read.")
        generated.write(generated.generate, to.output)
        if to.json:
            print_json({"output": str(to.output), "requests": generated.generate})
        else:
            say(f"{generated.generate:,} requests written to {to.output}")
        return
    if trace is None:
        raise BadInput("TRACE is missing: name a file, or make one by --generate 12K -o FILE.")
    if pool.hit_rates:
        _hit_rates(reading.read(trace), pool, model, service.kv_bits, to.json)
        return
    if model is None or machine is None:
        raise BadInput("name what serves the requests by --model and --hardware, or --hit-rates.")
    if pool.blocks is not None:
        raise BadInput("--blocks are of --hit-rates; a service takes --sizes in bytes.")
    hardware = machine.load()
    spec = model.load(hardware)
    serve_trace(reading.read(trace), (spec, hardware), service, pool.sizes, (to.output, to.json))


def _hit_rates(
    read: RequestTrace,
    pool: PoolOptions,
    model: ModelOptions | None,
    kv_bits: int | None,
    json: bool,
) -> None:
    unit = spec = None
    if model is not None:
        spec = find_model(model.model, model.dtype, model.assume_like)
        unit = block_bytes(spec, read.block_tokens, cached_kv_bits(kv_bits, spec))
    blocks = _pool_sizes(pool, read, unit)
    with progress("hit rates") as bar:
        found = hit_rates(read, blocks, pool.eviction.split(","), bar)
    if json:
        named = {} if spec is None else {"model": spec.name}
        print_json(named | _answer(read, found, unit))
    else:
        if spec is not None and spec.assumed:
            say(spec.name)
        _print(read, found, unit)


def _pool_sizes(pool: PoolOptions, read: RequestTrace, unit: int | None) -> list[int]:
    """Sizes in blocks, rising."""
    if pool.sizes is not None:
        if pool.blocks is not None or unit is None:
            raise BadInput("--sizes are in bytes: name the --model, and leave --blocks out.")
        return sorted({int(size // unit) for size in pool.sizes})
    if pool.blocks is not None:
        return list(pool.blocks)
    sizes = [SMALLEST_POOL]
    while sizes[-1] < read.unique_blocks:
        sizes.append(2 * sizes[-1])
    return sizes


def _answer(read: RequestTrace, found: HitRates, unit: int | None) -> dict[str, Any]:
    return {
        "requests": len(read),
        "skipped_lines": read.skipped,
        "block_tokens": read.block_tokens,
        "unique_blocks": found.unique_blocks,
        "measured_requests": found.measured_requests,
        "ceiling": found.ceiling,
        "hit_rates": [
            {**asdict(one), **({} if unit is None else {"bytes": one.blocks * unit})}
            for one in found.rates
        ],
    }


def _print(read: RequestTrace, found: HitRates, unit: int | None) -> None:
    say(
        f"{len(read):,} requests, {found.unique_blocks:,} different blocks of "
        f"{read.block_tokens} tokens; measured: the last {found.measured_requests:,} requests"
    )
    say(f"no cache can hit more than {percent(found.ceiling)}\n")
    evictions = list(dict.fromkeys(one.eviction for one in found.rates))
    rates = {(one.eviction, one.blocks): one for one in found.rates}
    rows = []
    for blocks in dict.fromkeys(one.blocks for one in found.rates):
        cells = [percent(rates[name, blocks].hit_rate) for name in evictions]
        size = [] if unit is None else [f"{blocks * unit / 1e9:,.1f} GB"]
        rows.append((f"{blocks:,}", *size, *cells))
    table("Hit rate", ("blocks", *([] if unit is None else ["bytes"]), *evictions), rows)
    if not all(one.filled for one in found.rates):
        say("\nThe first half of the trace does not fill the largest pools.")
