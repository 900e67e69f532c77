"""`kvoverlap traffic`: what a cache of some size brings under the requests of a trace."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from kvoverlap.cli.options import (
    AssumeLike,
    Count,
    Counts,
    Decimal,
    Dtype,
    Json,
    Model,
    OutputFile,
    Seed,
    cached_kv_bits,
    parse_sizes,
    parsed_by,
)
from kvoverlap.cli.output import note, print_json, progress, say, table
from sim.catalog import find_model
from sim.errors import BadInput
from sim.model.spec import ModelSpec
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
from sim.units import percent

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
    sizes: Annotated[Sizes, Parameter(help="Sizes in bytes, such as 64GB,1TB; needs --model.")] = (
        None
    )
    eviction: Annotated[
        str, Parameter(help="Comma-separated: lru, fifo, optimal (Belady's, a bound).")
    ] = ",".join(EVICTIONS)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CachedModel:
    """The model whose K and V are cached."""

    model: Model | None = None
    dtype: Dtype = None
    assume_like: AssumeLike = None
    kv_bits: Annotated[
        int | None,
        Parameter(
            help="Bits of one value of the cached KV: 16, 8, 4 or 3. By default 16, or 8 if the "
            "checkpoint asks for it."
        ),
    ] = None

    def load(self) -> ModelSpec | None:
        """The model; None if none is named."""
        if self.model is None:
            return None
        return find_model(self.model, self.dtype, self.assume_like)


def traffic(
    trace: Path | None = None,
    *,
    reading: TraceOptions = TraceOptions(),
    pool: PoolOptions = PoolOptions(),
    cached: CachedModel = CachedModel(),
    generated: GeneratedTraffic = GeneratedTraffic(),
    output: Annotated[
        OutputFile | None,
        Parameter(
            name=["--output", "-o"],
            help="Write the generated trace here; a name that ends in .gz compresses.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show what a KV cache brings under the requests of a trace, or generate one.

    For example:
      kvoverlap traffic --generate 12K --rate 3 --seed 1 -o trace.jsonl.gz
      kvoverlap traffic trace.jsonl.gz --hit-rates --blocks 1024,8192 --json
      kvoverlap traffic trace.jsonl.gz --hit-rates --model llama-3.1-8b \\
          --sizes 64GB,512GB

    Parameters
    ----------
    trace
        Requests: Mooncake or Qwen-Bailian JSONL, or CSV with the columns arrival_s, prompt_tokens,
        gen_tokens and optionally prefix_group, prefix_tokens; gzip too.
    """
    if generated.generate is not None:
        if trace is not None or output is None:
            raise BadInput("--generate writes a trace: name the file by -o, and no trace to read.")
        generated.write(generated.generate, output)
        if json:
            print_json({"output": str(output), "requests": generated.generate})
        else:
            say(f"{generated.generate:,} requests written to {output}")
        return
    if trace is None:
        raise BadInput("TRACE is missing: name a file, or make one by --generate 12K -o FILE.")
    if not pool.hit_rates:
        raise BadInput("what to answer is missing: add --hit-rates.")
    read = reading.read(trace)
    spec = cached.load()
    bits = None if spec is None else cached_kv_bits(cached.kv_bits, spec)
    unit = None if spec is None or bits is None else block_bytes(spec, read.block_tokens, bits)
    blocks = _pool_sizes(pool, read, unit)
    with progress("hit rates") as bar:
        found = hit_rates(read, blocks, pool.eviction.split(","), bar)
    if json:
        print_json(_answer(read, found, unit))
    else:
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
