"""Attention of one decode step over batch and context."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from hw.calibrate.bench import Bench, one_layer
from hw.calibrate.ranges import SampledRanges
from hw.calibrate.tables import Medians, Samplers, grid, heads_of
from hw.model.kernels import Kernels
from sim.machine.profile import Attention, AttentionTable
from sim.model.spec import ModelSpec


def samplers(bench: Bench, models: Sequence[ModelSpec], ranges: SampledRanges) -> Samplers:
    """Attention of each head shape over K and V that were just copied to the device."""
    found: Samplers = {}
    for model in models:
        layer = Kernels(one_layer(model, bench.backend.device), 1)
        heads = layer.weights.layers[0].attention
        for batch in ranges.batches:
            queries = bench.random(batch, model.n_heads, model.head_dim)
            for context in ranges.contexts_of(model):
                shape = (context, batch, 2, model.n_kv_heads, model.head_dim)
                found["attention", *heads_of(model), batch, context] = partial(
                    bench.after_copy, shape, partial(layer.attend.step, heads, queries)
                )
    return found


def block(medians: Medians, models: Sequence[ModelSpec], ranges: SampledRanges) -> Attention:
    """A table for each head shape, and the best rate in bytes of K and V a second."""
    tables, best, batches = {}, 0.0, ranges.batches
    for model in models:
        heads, contexts = heads_of(model), ranges.contexts_of(model)
        measured = grid(medians, ("attention", *heads), batches, contexts)
        tables[heads] = AttentionTable(*heads, measured)
        n_bytes = batches[-1] * contexts[-1] * model.kv_token_bytes
        best = max(best, n_bytes / measured.seconds[-1][-1])
    return Attention("measured", best, tuple(tables.values()))
