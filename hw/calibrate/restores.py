"""Prefill in chunks and direct disk reads, which only restores need."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count, cycle
from pathlib import Path

import torch
from torch import Tensor

from hw.calibrate.bench import Bench, one_layer
from hw.calibrate.gemm import matmuls
from hw.calibrate.ranges import SampledRanges
from hw.calibrate.tables import Medians, Sampler, Samplers, grid, heads_of
from hw.model.attention import kv_shape, query_shape
from hw.model.chunk_prefill import ChunkPrefill, chunk_bias
from hw.model.kernels import Kernels
from hw.tiers.direct_io import DirectReader, aligned_buffer
from sim.lanes import COMPUTE, DISK
from sim.machine.prefill import Prefill, PrefillTable, Restore, Tier
from sim.machine.provenance import SourcedValue
from sim.model.operations import prefill_attention_flops
from sim.model.spec import ModelSpec

CHUNKS = (16, 32, 64, 128, 256, 512, 1024, 2048)
"""Tokens of a step whose matmuls are sampled."""

ATTENTION_CHUNKS = (1, 16, 64, 128, 256, 512, 2048)
KEYS_BEFORE = (0, 256, 1024, 1536, 4096, 14336, 30720)
"""Tokens of a step whose attention is sampled, and keys before the first of them."""

STEP_TOKENS, STEP_START = 128, 512
"""Tokens of the step whose fixed cost is sampled, and tokens before it."""

READ_BYTES = (2**20, 2**23)
"""Bytes of a short and a long read."""

PART_BYTES = 2**19
"""A read is split into parts of this size, several of which are in flight."""


def samplers(bench: Bench, models: Sequence[ModelSpec], ranges: SampledRanges) -> Samplers:
    """Fixed cost of a step, its matmuls, and its attention over the tokens before it."""
    found: Samplers = {("step",): _step(bench, models[0])}
    for model in models:
        found |= matmuls(bench, model, _chunks(CHUNKS, model, ranges.max_rows))
        chunks, starts = _attention_sizes(model, ranges.max_rows)
        layer = Kernels(one_layer(model, bench.backend.device), 1)
        chunk = partial(layer.attend.chunk, layer.weights.layers[0].attention)
        for n_tokens in chunks:
            queries = bench.random(n_tokens, *query_shape(model))
            for start in starts:
                shape = (start + n_tokens, 1, *kv_shape(model))
                bias = chunk_bias(model, start, n_tokens, bench.backend.device)
                kvs = cycle(bench.cold(*shape))
                found["prefill", *heads_of(model), n_tokens, start + 1] = partial(
                    bench.back_to_back, COMPUTE, partial(_attend, chunk, queries, kvs, bias)
                )
    return found


def _step(bench: Bench, model: ModelSpec) -> Sampler:
    """The work of a step outside its layers: embed its tokens and make the attention bias."""
    stop, device = STEP_START + STEP_TOKENS, bench.backend.device
    prompt = torch.zeros(stop, dtype=torch.int64, device=device)
    chunk = ChunkPrefill(one_layer(model, device, stop), prompt, [])

    def step() -> None:
        chunk.run(STEP_START, stop, range(0))
        chunk_bias(model, STEP_START, STEP_TOKENS, device)

    return partial(bench.back_to_back, COMPUTE, step)


def _attend(
    chunk: Callable[..., Tensor], queries: Tensor, kvs: Iterator[Tensor], bias: Tensor | None
) -> None:
    chunk(queries, next(kvs), bias)


def _attention_sizes(model: ModelSpec, max_rows: int) -> tuple[list[int], list[int]]:
    """Tokens of the sampled chunks, and keys before them."""
    chunks = _chunks(ATTENTION_CHUNKS, model, max_rows)
    most = min(max_rows, model.max_positions) - chunks[-1]
    return chunks, [keys for keys in KEYS_BEFORE if keys <= most]


def _chunks(sizes: Sequence[int], model: ModelSpec, max_rows: int) -> list[int]:
    """Sizes up to an eighth of the sampled rows and half of the model's positions."""
    most = min(max_rows // 8, model.max_positions // 2)
    return [size for size in sizes if size <= most] or [most]


@contextmanager
def disk_samplers(bench: Bench) -> Iterator[Samplers]:
    """Reads of a temporary file; none if the disk has no space for it.

    The reads cycle through the file, which is longer than any of them.
    """
    longest = READ_BYTES[-1]
    size = 4 * longest
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
            buffer, offsets = aligned_buffer(bench.backend, longest), count(0, longest)

            def read(n_bytes: int) -> None:
                first = next(offsets) % size
                reader.several(
                    lambda at: reader.read(first + at, buffer[at : at + PART_BYTES]),
                    range(0, n_bytes, PART_BYTES),
                )

            yield {
                ("tier", DISK, n_bytes): partial(bench.back_to_back, DISK, partial(read, n_bytes))
                for n_bytes in READ_BYTES
            }


def block(medians: Medians, models: Sequence[ModelSpec], ranges: SampledRanges) -> Restore | None:
    """Rates of prefill and of the disk; None if they were not sampled."""
    if not ranges.restores:
        return None
    return Restore(_prefill_block(medians, models, ranges), _disk_block(medians))


def _prefill_block(medians: Medians, models: Sequence[ModelSpec], ranges: SampledRanges) -> Prefill:
    """A table of attention for each head shape, the best rate, and the fixed cost of a step."""
    tables, best = {}, 0.0
    for model in models:
        heads = heads_of(model)
        chunks, starts = _attention_sizes(model, ranges.max_rows)
        first_keys = [start + 1 for start in starts]
        measured = grid(medians, ("prefill", *heads), chunks, first_keys)
        tables[heads] = PrefillTable(*heads, measured)
        flops = prefill_attention_flops(model.layers[0].attention, starts[-1], chunks[-1])
        best = max(best, flops / measured.seconds[-1][-1])
    return Prefill(
        SourcedValue("measured", best),
        SourcedValue("measured", medians["step",]),
        tables=tuple(tables.values()),
    )


def _disk_block(medians: Medians) -> tuple[Tier, ...]:
    """Rate and latency of the disk from its two reads; empty if they were not sampled."""
    short, long = READ_BYTES
    if ("tier", DISK, short) not in medians:
        return ()
    short_s, long_s = medians["tier", DISK, short], medians["tier", DISK, long]
    per_byte_s = max((long_s - short_s) / (long - short), long_s / long / 2)
    rate = SourcedValue("measured", 1 / per_byte_s)
    return (Tier(DISK, rate, max(0.0, short_s - short * per_byte_s)),)
