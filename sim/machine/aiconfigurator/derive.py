"""A compute part from published timings: what is kept of them, and in which form.

No product and no decode attention is kept faster than the datasheet lets it read its operands from
device memory: a benchmark that repeats one shape may find them in the cache, a model does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import log
from statistics import median

from sim.errors import BadFile
from sim.machine.aiconfigurator.tables import DTYPE, EIGHT_BITS, PACKAGE, Shape, SystemTables
from sim.machine.all_reduce import AllReduce, AllReduceTable
from sim.machine.components import ComputePart
from sim.machine.curves import Curve, RaggedGrid
from sim.machine.experts import ExpertsTable
from sim.machine.prefill import Prefill, QueryHeads
from sim.machine.profile import Attention, Elementwise, Gemm, KvHeads, LatentHeads
from sim.machine.provenance import SourcedValue
from sim.machine.sparse import IndexSizes, SparseHeads, SparsePrefill
from sim.machine.states import StateTable
from sim.machine.utilisation import UNIT, UtilisationTable, roofline_s
from sim.model.kernels import ExpertsShape
from sim.model.spec import DTYPE_BYTES

TABLE_ROWS = (
    *(1, 2, 4, 8, 16, 17, 32, 33, 48, 64, 65, 96, 128, 129, 192, 193, 256, 257, 512, 513),
    *(768, 1024, 1025, 1536, 2048, 3072, 4096, 8192, 16384, 32768),
)
"""Rows of products that are kept where more were timed; 16 and 17 show the step of a tile."""

HEAD_DIMS = (64, 128, 256)
QUERIES_PER_KV = (1, 4, 8)
MAX_QUERIES_PER_KV = 16
"""Query heads on one KV head from which decode attention is no longer bound by reading."""

EXPERT_DTYPES = {
    16: {DTYPE: DTYPE},
    8: {"fp8_block": EIGHT_BITS, EIGHT_BITS: EIGHT_BITS},
    4: {"nvfp4": "fp4", "w4a16_mxfp4": DTYPE},
}
"""By the bits of a weight: the package's names of experts' weights, and of the rate of their
products."""

LATENT_SIZE = 512 + 64
"""Elements of a latent and its rotary key in DeepSeek-V3, whose attention was timed."""

STATE_BITS = 32
"""Of an element of the states that were timed: their times are those of reading and writing so
many bits in every large batch."""

LATENT_HEAD_DIMS = 128 + 64, 128
"""Elements of a query or key head and of a value head that its prefill builds from latents."""

INDEX_HEAD_DIM, TOP_TOKENS = 128, 2048
"""Of the index of DeepSeek-V3.2 and GLM-5; a key has a byte an element."""

PREFILL_INDEX_HEADS = 32
"""Of GLM-5."""

BLOCK_HEADS = {90: 64, 100: 128, 103: 128}
"""By compute capability: query heads of one pass of the sparse prefill kernels in FlashMLA, which
fewer heads are padded to."""

SPARSE_KERNELS = 3
"""Launches of a decode attention with an index: scores, choice, attention."""

SPARSE_HEADS = (8, 16, 32, 64, 128)
SPARSE_CONTEXTS = (128, 512, 2048, 8192, 32768, 65536, 131072)
SPARSE_CHUNKS = (1, 16, 64, 128, 512, 1024, 2048, 4096, 8192, 16384)
"""Points that are kept where more were timed."""

MIN_LATENT_CONTEXT = 128
"""Shorter contexts add less than the noise of the timings."""

MIN_TOKENS = 16
MIN_POINTS = 3
DIGITS = 4

LARGE_SIZES = range(4096, 16385)
"""Of m, n and k of the products whose median rates stand for a device where one is asked for: of
FLOPs with all three so large, of reading with one row."""

LARGE_PREFILL = (1, 64, 8, 128, 16384)
"""The prefill whose rate does."""

MEMORY_FRAC = "mem_bw_empirical_scaling_factor"
LAUNCH_S = "mem_empirical_constant_latency"

USUAL_LINK = {32e9: "pcie4-x16", 64e9: "pcie5-x16", 128e9: "pcie6-x16"}
"""By the raw rate that a system's file gives for PCIe."""


def derive_part(system: SystemTables, name: str, usual_link: str | None = None) -> ComputePart:
    """The compute part of one system.

    Args:
        usual_link: the link part that it is mostly sold with; by default the PCIe that the
            system's file names.

    Raises:
        BadFile: a table lacks the needed rows, or the system's file lacks a number.
    """
    origin = f"{PACKAGE} {system.package_version}, {system.system}"
    run = f"{origin}, {system.engine} {system.engine_version}"
    memory_bytes_per_s = _peak(system, "mem_bw")
    return ComputePart(
        name=name,
        description=f"{system.device}, operator timings of {run}",
        dtype=DTYPE,
        usual_link=usual_link or USUAL_LINK.get(system.pcie_bytes_per_s, "pcie5-x16"),
        memory_bytes=SourcedValue("datasheet", _peak(system, "mem_capacity"), origin),
        gemm=_gemm(system, run),
        attention=_attention(system, memory_bytes_per_s, run),
        elementwise=_elementwise(system, memory_bytes_per_s, origin),
        prefill=_prefill(system, run),
        all_reduce=_all_reduce(system),
        environment={
            "device": system.device,
            "package": f"{PACKAGE} {system.package_version}",
            "system": system.system,
            "engine": f"{system.engine} {system.engine_version}",
        },
    )


def _peak(system: SystemTables, name: str) -> float:
    value = system.peaks.get(name, 0.0)
    if not value > 0:
        raise BadFile(f"{system.system}.yaml of {PACKAGE} has no figure gpu.{name}; update it.")
    return value


def _gemm(system: SystemTables, run: str) -> Gemm:
    products = system.products(DTYPE)
    if not products:
        raise BadFile(f"{run} has no timings of {DTYPE} products; choose another --engine.")
    memory_bytes_per_s = _peak(system, "mem_bw")
    wide, cached = _utilisation(
        products, 16, _peak(system, f"{DTYPE}_tc_flops"), memory_bytes_per_s
    )
    tables = [wide]
    eight_bits = system.products(EIGHT_BITS)
    if eight_bits:
        peak = _peak(system, f"{EIGHT_BITS}_tc_flops")
        tables.append(_utilisation(eight_bits, 8, peak, memory_bytes_per_s)[0])
    experts = [
        table
        for bits, kinds in EXPERT_DTYPES.items()
        if (table := _experts(system, bits, kinds, memory_bytes_per_s)) is not None
    ]
    flops = {shape: 2.0 * shape[0] * shape[1] * shape[2] for shape in products}
    weights = {shape: float(DTYPE_BYTES[DTYPE] * shape[1] * shape[2]) for shape in products}
    read_bytes_per_s = _typical_rate(products, weights, rows=range(1, 2))
    return Gemm(
        "measured",
        flops_per_s=_typical_rate(products, flops, rows=LARGE_SIZES),
        bytes_per_s=min(read_bytes_per_s, memory_bytes_per_s),
        note=f"{run}; medians of products with sizes of 4,096 to 16,384, and of those with one "
        f"row; {cached} of {len(products)} products were faster than device memory and are taken "
        "at its rate",
        utilisation=tuple(tables),
        experts=tuple(experts),
    )


def _experts(
    system: SystemTables, bits: int, kinds: dict[str, str], memory_bytes_per_s: float
) -> ExpertsTable | None:
    """The table of the first kind of weights that was timed; None if none was."""
    timed = ((system.experts(kind), peak) for kind, peak in kinds.items())
    timings, peak = next(((found, peak) for found, peak in timed if found), ({}, ""))
    if not timings:
        return None
    rates = (_peak(system, f"{peak}_tc_flops"), memory_bytes_per_s)
    floor_s = _rounded(min(seconds for seconds, _ in timings.values()))
    tokens = tuple(sorted({key[-1] for key in timings}))
    lines = []
    for key in sorted({key[:-1] for key in timings}):
        shape, shares = ExpertsShape(*key), []
        for n in tokens:
            seconds, even = timings.get((*key, n), (0.0, False))
            touched = min(shape.routed, n * shape.active) if even else shape.touched(n)
            best_s = floor_s + shape.roofline_s(n, touched, bits, *rates)
            shares.append(min(UNIT, round(UNIT * best_s / seconds)) if seconds else 0)
        lines.append(" ".join(map(str, (*key, *shares))))
    return ExpertsTable(bits, *rates, floor_s, tokens, tuple(lines))


def _typical_rate(products: dict[Shape, float], amounts: dict[Shape, float], rows: range) -> float:
    """Median of amount over seconds of the products with `rows` and large weights, or of all."""
    large = [
        shape
        for shape in products
        if shape[0] in rows and shape[1] in LARGE_SIZES and shape[2] in LARGE_SIZES
    ]
    return median(amounts[shape] / products[shape] for shape in large or products)


def _nearest(timings: Iterable[Shape], wanted: Shape) -> Shape:
    """The timed shape that is most like `wanted`."""
    return min(
        timings,
        key=lambda shape: sum(abs(log(a / b)) for a, b in zip(shape, wanted, strict=True)),
    )


def _utilisation(
    products: dict[Shape, float], weight_bits: int, flops_per_s: float, bytes_per_s: float
) -> tuple[UtilisationTable, int]:
    """The table of some products, and how many of them were faster than device memory."""
    best_s: dict[Shape, float] = {
        (m, n, k): roofline_s(m, n, k, weight_bits, flops_per_s, bytes_per_s)
        for m, n, k in products
    }
    floor_s = _rounded(min(products.values()))
    all_rows, all_n, all_k = (tuple(sorted({shape[at] for shape in products})) for at in range(3))
    table_rows = all_rows
    if len(all_rows) > len(TABLE_ROWS):
        table_rows = tuple(row for row in all_rows if row in TABLE_ROWS)

    def share(shape: Shape) -> int:
        if shape not in products:
            return 0
        seconds = max(products[shape], best_s[shape])
        return max(1, round(UNIT * (floor_s + best_s[shape]) / seconds))

    shapes = []
    for n in all_n:
        for k in all_k:
            shares = [share((m, n, k)) for m in table_rows]
            shapes.append(" ".join(map(str, shares)) if any(shares) else "")
    cached = sum(seconds < best_s[shape] for shape, seconds in products.items())
    table = UtilisationTable(
        weight_bits,
        flops_per_s,
        bytes_per_s,
        floor_s,
        table_rows,
        all_n,
        all_k,
        tuple(shapes),
    )
    return table, cached


def _attention(system: SystemTables, memory_bytes_per_s: float, run: str) -> Attention:
    """Decode attention over the KV heads of all sequences, whatever groups read them."""
    times: dict[int, dict[tuple[int, int], list[float]]] = {}
    best_bytes_per_s = 0.0
    for (
        batch,
        n_heads,
        n_kv_heads,
        head_dim,
        context,
    ), seconds in system.decode_attention().items():
        if head_dim not in HEAD_DIMS or n_heads // n_kv_heads > MAX_QUERIES_PER_KV:
            continue
        kv_heads = batch * n_kv_heads
        n_bytes = 2 * DTYPE_BYTES[DTYPE] * kv_heads * head_dim * context
        slowest = max(seconds, n_bytes / memory_bytes_per_s)
        best_bytes_per_s = max(best_bytes_per_s, n_bytes / slowest)
        times.setdefault(head_dim, {}).setdefault((kv_heads, context), []).append(slowest)
    heads = [
        KvHeads(head_dim, grid)
        for head_dim, known in sorted(times.items())
        if (grid := _ragged_grid({at: median(values) for at, values in known.items()})) is not None
    ]
    if not heads:
        raise BadFile(f"{run} has no timings of decode attention; choose another --engine.")
    latent = tuple(_latent(system, memory_bytes_per_s))
    states = tuple(_states(system, memory_bytes_per_s))
    return Attention(
        "measured",
        best_bytes_per_s,
        note=run,
        heads=tuple(heads),
        latent=latent,
        states=states,
        sparse=tuple(_sparse(system, memory_bytes_per_s)),
    )


def _states(system: SystemTables, memory_bytes_per_s: float) -> Iterator[StateTable]:
    """Kernels of gated delta that update the states, which are in 32 bits, by shape."""
    run, decode, chunked, batched = system.states()
    for shape in sorted({key[:-1] for key in decode}):
        n_key_heads, key_head_dim, n_value_heads, value_head_dim = shape
        n_elements = key_head_dim * n_value_heads * value_head_dim
        read_s = 2 * n_elements * STATE_BITS / 8 / memory_bytes_per_s
        tokens = _states_curve(decode, shape, read_s)
        if tokens is not None:
            yield StateTable(
                "gated delta",
                n_key_heads,
                key_head_dim,
                n_value_heads,
                value_head_dim,
                STATE_BITS,
                tokens,
                _states_curve(chunked, shape, 0.0),
                _states_curve(batched, shape, 0.0),
                run,
            )


def _states_curve(timings: dict[Shape, float], shape: Shape, read_s: float) -> Curve | None:
    """Seconds over the last entry of the keys, `read_s` for each of it at least."""
    times = {key[-1]: seconds for key, seconds in timings.items() if key[:-1] == shape}
    if len(times) < MIN_POINTS:
        return None
    amounts = sorted(times)
    seconds = (_rounded(max(times[amount], amount * read_s)) for amount in amounts)
    return Curve(tuple(map(float, amounts)), tuple(seconds))


def _latent(system: SystemTables, memory_bytes_per_s: float) -> Iterator[LatentHeads]:
    """Decode attention over latents: what a longer context adds to the shortest one that was timed.

    The rest of the timed layer is its products. Each kernel takes the launch of one in addition.
    """
    launch_s, token_bytes = _peak(system, LAUNCH_S), LATENT_SIZE * DTYPE_BYTES[DTYPE]
    times: dict[int, dict[int, dict[int, float]]] = {}
    for (n_heads, batch, context), seconds in system.latent_attention().items():
        times.setdefault(n_heads, {}).setdefault(batch, {})[context] = seconds
    for n_heads, batches in sorted(times.items()):
        grid = _ragged_grid(
            {
                (batch, context): launch_s
                + max(
                    seconds - known[min(known)], batch * context * token_bytes / memory_bytes_per_s
                )
                for batch, known in batches.items()
                for context, seconds in known.items()
                if context >= MIN_LATENT_CONTEXT
            }
        )
        if grid is not None:
            yield LatentHeads(n_heads, LATENT_SIZE, grid)


def _sparse(system: SystemTables, memory_bytes_per_s: float) -> Iterator[SparseHeads]:
    """Decode attention with an index, likewise: what a longer context adds to short ones.

    Times of contexts below `MIN_LATENT_CONTEXT` have one median, and those of longer ones rise.
    """
    launch_s = SPARSE_KERNELS * _peak(system, LAUNCH_S)
    times: dict[tuple[int, int], dict[int, dict[int, float]]] = {}
    for (index_heads, n_heads, batch, context), seconds in system.indexed_attention().items():
        if n_heads in SPARSE_HEADS:
            batches = times.setdefault((index_heads, n_heads), {})
            batches.setdefault(batch, {})[context] = seconds
    for (index_heads, n_heads), batches in sorted(times.items()):
        points: dict[tuple[int, int], float] = {}
        for batch, known in batches.items():
            short = [seconds for at, seconds in known.items() if at < MIN_LATENT_CONTEXT]
            added_s = 0.0
            for context in sorted(set(known) & set(SPARSE_CONTEXTS)) if short else ():
                read = min(context, TOP_TOKENS) * LATENT_SIZE * DTYPE_BYTES[DTYPE]
                read_s = batch * (read + context * INDEX_HEAD_DIM) / memory_bytes_per_s
                added_s = max(added_s, known[context] - median(short), read_s)
                points[batch, context] = launch_s + added_s
        grid = _ragged_grid(points)
        if grid is not None:
            index = IndexSizes(index_heads, INDEX_HEAD_DIM, TOP_TOKENS, LATENT_SIZE)
            yield SparseHeads(n_heads, index, grid)


def _sparse_prefill(system: SystemTables) -> SparsePrefill | None:
    """Kernels of a chunk with an index; None where they were not timed.

    The attention reads as many rows for every token, whatever is before it: its median counts.
    """
    block_heads = BLOCK_HEADS.get(round(system.peaks.get("sm_version", 0.0)))
    run, attended = system.indexed_prefill("dsa_attn")
    if block_heads is None or not attended:
        return None
    by_tokens: dict[int, list[float]] = {}
    for (_, tokens, _), seconds in attended.items():
        by_tokens.setdefault(tokens, []).append(seconds)
    amounts = sorted(by_tokens)
    attend = Curve(
        tuple(map(float, amounts)), tuple(_rounded(median(by_tokens[at])) for at in amounts)
    )
    score, choose = (
        _ragged_grid(
            {
                (tokens, before + 1): seconds
                for (_, tokens, before), seconds in system.indexed_prefill(kernel)[1].items()
                if tokens in SPARSE_CHUNKS and before in (0, TOP_TOKENS, *SPARSE_CONTEXTS[3:])
            }
        )
        for kernel in ("mqa_logits", "topk")
    )
    if score is None or choose is None:
        return None
    index = IndexSizes(PREFILL_INDEX_HEADS, INDEX_HEAD_DIM, TOP_TOKENS, LATENT_SIZE)
    n_heads = next(iter(attended))[0]
    return SparsePrefill(n_heads, block_heads, index, attend, score, choose, run)


def _prefill(system: SystemTables, run: str) -> Prefill | None:
    """Causal attention of one sequence; None where it was not timed."""
    timings = {
        shape: seconds
        for shape, seconds in system.prefill_attention().items()
        if shape[0] == 1 and shape[-1] >= MIN_TOKENS
    }
    heads = []
    for head_dim in HEAD_DIMS:
        for queries in QUERIES_PER_KV:
            grid = _ragged_grid(
                {
                    (shape[1], shape[4]): seconds
                    for shape, seconds in timings.items()
                    if shape[3] == head_dim and shape[1] == queries * shape[2]
                }
            )
            if grid is not None:
                heads.append(QueryHeads(head_dim, queries, grid))
    if not heads:
        return None
    latent_run, latent = system.latent_prefill()
    grid = _ragged_grid(
        {(rows, n): seconds for (rows, n), seconds in latent.items() if n >= MIN_TOKENS}
    )
    if grid is not None:
        head_dim, v_head_dim = LATENT_HEAD_DIMS
        heads.append(QueryHeads(head_dim, 1, grid, v_head_dim))
        run = f"{run}, of latents {latent_run}"
    large = _nearest(timings, LARGE_PREFILL)
    _, n_heads, _, head_dim, tokens = large
    flops = 4 * n_heads * head_dim * (tokens * (tokens + 1) // 2)
    return Prefill(
        SourcedValue(
            "measured", flops / timings[large], f"{run}; {n_heads} heads, {tokens} tokens"
        ),
        SourcedValue(
            "datasheet", 0.0, "operator timings do not hold what an engine spends on a step"
        ),
        heads=tuple(heads),
        sparse=_sparse_prefill(system),
    )


def _all_reduce(system: SystemTables) -> AllReduce | None:
    """Sums over GPUs; None where they were not timed."""
    timings: dict[int, dict[int, float]] = {}
    for (gpus, n_bytes), seconds in system.all_reduce().items():
        timings.setdefault(gpus, {})[n_bytes] = seconds
    if not timings:
        return None
    tables = tuple(
        AllReduceTable(
            gpus,
            Curve(
                tuple(map(float, sorted(times))), tuple(_rounded(times[at]) for at in sorted(times))
            ),
        )
        for gpus, times in sorted(timings.items())
    )
    fewest = tables[0]
    step_s = fewest.curve.seconds[0] / (2 * (fewest.gpus - 1))
    rate = system.peer_bytes_per_s
    note = f"{PACKAGE} {system.package_version}, {system.system}, {system.engine}, graph replay"
    return AllReduce("measured", rate, step_s, tables, note)


def _ragged_grid(points: dict[tuple[int, int], float]) -> RaggedGrid | None:
    """Seconds by (row, column) as curves side by side; None where there are not two of them."""
    rows: dict[int, dict[int, float]] = {}
    for (row, column), seconds in points.items():
        rows.setdefault(row, {})[column] = seconds
    known = {row: rows[row] for row in sorted(rows) if len(rows[row]) >= MIN_POINTS}
    if len(known) < 2:
        return None
    curves = (
        Curve(
            tuple(map(float, sorted(columns))),
            tuple(_rounded(columns[column]) for column in sorted(columns)),
        )
        for columns in known.values()
    )
    return RaggedGrid(tuple(map(float, known)), tuple(curves))


def _elementwise(system: SystemTables, memory_bytes_per_s: float, origin: str) -> Elementwise:
    """A launch and a rate: passes are not among the timings."""
    rate = memory_bytes_per_s * _peak(system, MEMORY_FRAC)
    launch_s = _peak(system, LAUNCH_S)
    return Elementwise(
        "datasheet",
        rate,
        Curve.launched(launch_s, rate),
        note=f"{origin}; the datasheet's memory rate times {_peak(system, MEMORY_FRAC):g}, and "
        f"{launch_s * 1e6:g} us for each kernel",
    )


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.{DIGITS}g}")
