"""Attention of one decode step over batch and context."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from hw.calibrate.bench import Bench, one_layer
from hw.calibrate.ranges import SampledRanges
from hw.calibrate.tables import Medians, Samplers, grid, heads_of
from hw.model.attention import kv_shape, query_shape
from hw.model.kernels import Kernels
from sim.machine.curves import Curve, RaggedGrid
from sim.machine.profile import Attention, AttentionTable, LatentHeads
from sim.model.spec import ModelSpec


def samplers(bench: Bench, models: Sequence[ModelSpec], ranges: SampledRanges) -> Samplers:
    """Attention of each head shape over the sampled batches and contexts."""
    found: Samplers = {}
    for model in models:
        found |= decodes(bench, model, ranges.batches, ranges.contexts_of(model))
    return found


def decodes(
    bench: Bench, model: ModelSpec, batches: Sequence[int], contexts: Sequence[int]
) -> Samplers:
    """Attention of a model's heads over K and V that were just copied to the device."""
    layer = Kernels(one_layer(model, bench.backend.device), 1)
    heads = layer.weights.layers[0].attention
    found: Samplers = {}
    for batch in batches:
        queries = bench.random(batch, *query_shape(model))
        for context in contexts:
            shape = (context, batch, *kv_shape(model))
            found["attention", *heads_of(model), batch, context] = partial(
                bench.after_copy, shape, partial(layer.attend.step, heads, queries)
            )
    return found


def block(medians: Medians, models: Sequence[ModelSpec], ranges: SampledRanges) -> Attention:
    """A table for each head shape, and the best rate in bytes of K and V a second."""
    tables, latent, best, batches = {}, {}, 0.0, ranges.batches
    for model in models:
        heads, contexts = heads_of(model), ranges.contexts_of(model)
        measured = grid(medians, ("attention", *heads), batches, contexts)
        if model.mla is None:
            tables[heads] = AttentionTable(*heads, measured)
        else:
            curves = tuple(Curve(measured.columns, row) for row in measured.seconds)
            by_batch = RaggedGrid(measured.rows, curves)
            latent[heads] = LatentHeads(model.n_heads, model.kv_token_size, by_batch)
        n_bytes = batches[-1] * contexts[-1] * model.kv_token_bytes
        best = max(best, n_bytes / measured.seconds[-1][-1])
    return Attention("measured", best, tuple(tables.values()), latent=tuple(latent.values()))
