"""What calibration samples for restores: prefill in chunks, and reads of a disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from hw.calibrate.bench import SLOTS, Bench, Work
from hw.model.chunk_prefill import ChunkPrefill, attend_chunk, chunk_bias
from hw.model.quantise import dequantise_into, quantise_into
from hw.model.weights import random_weights
from hw.tiers.direct_io import DirectReader, aligned_buffer
from sim.lanes import COMPUTE, DISK
from sim.machine.curves import Curve, Grid
from sim.machine.prefill import Prefill, PrefillTable, Restore, Tier
from sim.machine.profile import QuantisationTable
from sim.machine.provenance import Point, SourcedValue
from sim.model.kernels import MatMul, kernels, prefill_attention_flops
from sim.model.kv_format import KV_BITS, QuantisedRow
from sim.model.spec import ModelSpec

Sampler = Callable[[], list[float]]

CHUNKS = (16, 32, 64, 128, 256, 512, 1024, 2048)
"""Tokens of a step whose matrix products are sampled."""

ATTENTION_CHUNKS = (1, 16, 64, 128, 256, 512, 2048)
KEYS_BEFORE = (0, 256, 1024, 1536, 4096, 14336, 30720)
"""Tokens of a step whose attention is sampled, and keys before the first of them."""

STEP_TOKENS, STEP_START = 128, 512

READ_BYTES = (2**20, 2**23)
CELL_BYTES = 2**19
"""Sizes that reads of a disk are sampled at, and the part of them that is asked for at a time."""


def _back_to_back(bench: Bench, lane: str, work: Callable[[], object]) -> Sampler:
    return lambda: bench.back_to_back(lane, lambda _: work())


def product_points(bench: Bench, model: ModelSpec, max_rows: int) -> dict[Point, Sampler]:
    """Matrix products of a layer over the tokens of a step."""
    return {
        ("gemm", kernel.n, kernel.k, m): partial(bench.matmul, m, kernel.n, kernel.k)
        for op in ("qkv", "attention", "mlp")
        for kernel in kernels(op, 1, 1, model, 1)
        if isinstance(kernel, MatMul)
        for m in _chunks(CHUNKS, model, max_rows)
    }


def prefill_points(bench: Bench, model: ModelSpec, max_rows: int) -> dict[Point, Sampler]:
    """Attention of a chunk over what is before it."""
    points: dict[Point, Sampler] = {}
    for n_tokens in _chunks(ATTENTION_CHUNKS, model, max_rows):
        queries = bench.random(n_tokens, model.n_heads, model.head_dim)
        for before in _keys_before(model, max_rows):
            shape = (before + n_tokens, 1, 2, model.n_kv_heads, model.head_dim)
            bias = chunk_bias(model, before, n_tokens, bench.backend.device)
            points["prefill", *_heads(model), n_tokens, before + 1] = partial(
                bench.back_to_back, COMPUTE, _attending(queries, bench.cold(*shape), bias)
            )
    return points


def _attending(queries: Tensor, kvs: Sequence[Tensor], bias: Tensor | None) -> Work:
    """Attention over the K and V of one layer after another."""
    return lambda call: attend_chunk(queries, kvs[call % len(kvs)], bias)


def step_point(bench: Bench, model: ModelSpec) -> dict[Point, Sampler]:
    """What a step does besides its layers: look up its tokens, and say which keys they see."""
    n_tokens = STEP_START + STEP_TOKENS
    prompt = torch.zeros(n_tokens, dtype=torch.int64, device=bench.backend.device)
    small = replace(model, n_layers=1, vocab_size=8, intermediate_size=8, max_positions=n_tokens)
    chunk = ChunkPrefill(random_weights(small, 0, prompt.device), prompt, [])

    def step() -> None:
        chunk.run(STEP_START, STEP_START + STEP_TOKENS, range(0))
        chunk_bias(model, STEP_START, STEP_TOKENS, prompt.device)

    return {("step",): _back_to_back(bench, COMPUTE, step)}


@contextmanager
def disk_points(bench: Bench) -> Iterator[dict[Point, Sampler]]:
    """Direct reads of a file on the disk that holds temporary files; none where there is no room.

    The reads go round the file, which is longer than any of them.
    """
    size = 4 * READ_BYTES[-1]
    content = bench.backend.host_empty((size,), torch.uint8).random_()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample"
        try:
            path.write_bytes(content.numpy().data)
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        except OSError:
            yield {}
            return
        with DirectReader(path) as reader:
            calls = count()
            buffer = aligned_buffer(bench.backend, READ_BYTES[-1])

            def read(n_bytes: int) -> None:
                first = next(calls) * READ_BYTES[-1] % size
                starts = range(0, n_bytes, CELL_BYTES)
                reader.several(
                    lambda at: reader.read(first + at, buffer[at : at + CELL_BYTES]), starts
                )

            yield {
                ("tier", DISK, n_bytes): _back_to_back(bench, DISK, partial(read, n_bytes))
                for n_bytes in READ_BYTES
            }


def restore_block(
    figures: dict[Point, float], models: Sequence[ModelSpec], max_rows: int
) -> Restore:
    """The profile's block from the medians of these points."""
    tables, best = [], 0.0
    for model in models:
        chunks, keys = _chunks(ATTENTION_CHUNKS, model, max_rows), _keys_before(model, max_rows)
        seconds = tuple(
            tuple(figures["prefill", *_heads(model), n, before + 1] for before in keys)
            for n in chunks
        )
        grid = Grid(tuple(map(float, chunks)), tuple(before + 1.0 for before in keys), seconds)
        tables.append(PrefillTable(*_heads(model), grid))
        flops = prefill_attention_flops(model, keys[-1], chunks[-1])
        best = max(best, flops / seconds[-1][-1])
    prefill = Prefill(
        SourcedValue("measured", best),
        SourcedValue("measured", figures["step",]),
        tables=_distinct(tables),
    )
    return Restore(prefill, _disk(figures))


def _distinct(tables: Sequence[PrefillTable]) -> tuple[PrefillTable, ...]:
    """One table for each head shape."""
    shapes = {(table.n_heads, table.n_kv_heads, table.head_dim): table for table in tables}
    return tuple(shapes.values())


def _disk(figures: dict[Point, float]) -> tuple[Tier, ...]:
    """Rate and latency of a disk, from what a short and a long read take."""
    short, long = READ_BYTES
    if ("tier", DISK, short) not in figures:
        return ()
    short_s, long_s = figures["tier", DISK, short], figures["tier", DISK, long]
    per_byte_s = max((long_s - short_s) / (long - short), long_s / long / 2)
    rate = SourcedValue("measured", 1 / per_byte_s)
    return (Tier(DISK, rate, max(0.0, short_s - short * per_byte_s)),)


def _heads(model: ModelSpec) -> tuple[int, int, int]:
    return model.n_heads, model.n_kv_heads, model.head_dim


def _chunks(sizes: Sequence[int], model: ModelSpec, max_rows: int) -> list[int]:
    """Steps of up to an eighth of the rows that are sampled, and of half of the positions."""
    most = min(max_rows // 8, model.max_positions // 2)
    return [size for size in sizes if size <= most] or [most]


def _keys_before(model: ModelSpec, max_rows: int) -> list[int]:
    longest = _chunks(ATTENTION_CHUNKS, model, max_rows)[-1]
    most = min(max_rows, model.max_positions) - longest
    return [keys for keys in KEYS_BEFORE if keys <= most]


MIN_ROWS = 16
"""Rows of the smallest dequantisation that is sampled; the others are four times each other."""

Key = tuple[str | int, ...]


def quantisation_points(
    bench: Bench, model: ModelSpec, kv_bits: Sequence[int], batches: Sequence[int], max_rows: int
) -> dict[Key, Callable[[], list[float]]]:
    """Samplers by (op, bits, elements), each of work that finds caches as another task left them.

    Args:
        model: used for all models of a profile; assumes that head width has little effect.
        batches: rows that are quantised in one decode step.
        max_rows: most rows that are dequantised at once.
    """
    points: dict[Key, Callable[[], list[float]]] = {}
    device = bench.backend.device
    loaded = {max_rows} | {
        MIN_ROWS * 4**power for power in range(12) if MIN_ROWS * 4**power < max_rows
    }
    for bits in kv_bits:
        row = QuantisedRow.of(model, bits)
        shape = (2, model.n_kv_heads, model.head_dim)
        for batch in batches:
            rows = torch.empty((1, batch, row.bytes), dtype=torch.uint8, device=device)
            work = partial(_quantise, rows, row)
            points["quantise", bits, batch * row.n_values] = partial(
                bench.after_copy, (1, batch, *shape), work
            )
        for n_rows in sorted(loaded):
            words = -(-n_rows * row.bytes // model.element_bytes)
            outs = [bench.out(n_rows, 1, *shape, slot=slot) for slot in range(SLOTS)]
            work = partial(_dequantise, outs, row)
            points["dequantise", bits, n_rows * row.n_values] = partial(
                bench.after_copy, (words,), work
            )
    return points


def quantisation_tables(figures: Mapping[Key, float]) -> tuple[QuantisationTable, ...]:
    """The curves of the sampled points."""
    tables = []
    for op in ("quantise", "dequantise"):
        for bits in KV_BITS:
            points = sorted(
                (float(key[2]), seconds)
                for key, seconds in figures.items()
                if key[:2] == (op, bits)
            )
            if points:
                work, seconds = zip(*points, strict=True)
                tables.append(QuantisationTable(op, bits, Curve(work, seconds)))
    return tuple(tables)


def _quantise(rows: Tensor, row: QuantisedRow, _call: int, kv: Tensor) -> None:
    quantise_into(kv, rows, row)


def _dequantise(outs: Sequence[Tensor], row: QuantisedRow, call: int, slot: Tensor) -> None:
    kv = outs[call % SLOTS]
    rows = slot.view(torch.uint8)[: kv.shape[0] * row.bytes].view(kv.shape[0], 1, row.bytes)
    dequantise_into(rows, kv, row)
