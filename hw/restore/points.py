"""What calibration samples for restores: prefill in chunks, and reads of a disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from hw.bench import Bench, Work
from hw.restore.direct_io import DirectReader, aligned_buffer
from hw.restore.prefill import ChunkPrefill, attend_chunk, chunk_bias
from hw.weights import random_weights
from sim.cost import kernels
from sim.curves import Grid
from sim.graph import COMPUTE
from sim.kernels import MatMul
from sim.model_spec import ModelSpec
from sim.prefill import DISK, Prefill, PrefillTable, Restore, Tier
from sim.restore_cost import prefill_attention_flops
from sim.samples import Point
from sim.source import Figure

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


def _alone(bench: Bench, lane: str, work: Callable[[], object]) -> Sampler:
    return lambda: bench.alone(lane, lambda _: work())


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
                bench.alone, COMPUTE, _attending(queries, bench.turns(*shape), bias)
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

    return {("step",): _alone(bench, COMPUTE, step)}


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
                ("tier", DISK, n_bytes): _alone(bench, DISK, partial(read, n_bytes))
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
        Figure("measured", best), Figure("measured", figures["step",]), tables=_distinct(tables)
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
    rate = Figure("measured", 1 / per_byte_s)
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
