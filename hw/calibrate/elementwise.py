"""Kernels that only move and convert elements: norms, copies, quantising and dequantising."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from hw.calibrate.bench import Bench, one_layer
from hw.calibrate.ranges import SampledRanges
from hw.calibrate.tables import Medians, Samplers, curve, named
from hw.model.attention import kv_shape
from hw.model.kernels import Kernels
from hw.model.quantise import dequantise_into, quantise_into
from hw.model.weights import Norm
from sim.lanes import COMPUTE
from sim.machine.profile import Elementwise, QuantisationTable
from sim.model.kv_format import KV_BITS, QuantisedRow
from sim.model.spec import ModelSpec

MIN_ROWS = 16
"""Rows of the smallest dequantisation that is sampled; the next sizes are four times each other."""


def samplers(bench: Bench, models: Sequence[ModelSpec], ranges: SampledRanges) -> Samplers:
    """Norms, device copies and quantisation; a pass over elements depends little on the model."""
    return {
        **_norms(bench, models, ranges.max_rows),
        **_device_copies(bench, models, ranges.max_rows),
        **_quantisation(bench, models[0], ranges),
    }


def _norms(bench: Bench, models: Sequence[ModelSpec], max_rows: int) -> Samplers:
    """The input norm over bytes read and written, used for all element-wise kernels."""
    model = models[0]
    layer = Kernels(one_layer(model, bench.backend.device), 1)
    full, widest = layer.weights.final_norm, model.hidden_size
    narrowest = min(other.kv_token_size for other in models) // 4
    shapes = {(1, max(1, min(widest, narrowest))), (2 * max_rows, widest)}
    shapes |= {(4**power, widest) for power in range(10) if 4**power < 2 * max_rows}
    found: Samplers = {}
    for rows, width in sorted(shapes):
        x, bias = bench.random(rows, width), full.bias
        norm = Norm(full.weight[:width], None if bias is None else bias[:width])
        found["elementwise", 2 * rows * width * model.element_bytes] = partial(
            bench.between_matmuls, model.hidden_size, partial(layer.norm, norm, x)
        )
    return found


def _device_copies(bench: Bench, models: Sequence[ModelSpec], max_rows: int) -> Samplers:
    """Copies within the memory of a GPU, over bytes read and written."""
    if bench.backend.kind == "cpu":
        return {}
    most = max_rows * max(model.kv_token_size for model in models)
    found: Samplers = {}
    for elements in (4**power for power in range(8, 16) if 4**power <= most):
        into, source = bench.out(elements), bench.random(elements)
        found["copied", 2 * elements * into.itemsize] = partial(
            bench.back_to_back, COMPUTE, partial(into.copy_, source)
        )
    return found


def _quantisation(bench: Bench, model: ModelSpec, ranges: SampledRanges) -> Samplers:
    """Quantising the new rows of a decode step and dequantising loaded rows, over elements."""
    found: Samplers = {}
    device, max_rows = bench.backend.device, ranges.max_rows
    loaded = {max_rows} | {
        MIN_ROWS * 4**power for power in range(12) if MIN_ROWS * 4**power < max_rows
    }
    shape = kv_shape(model)
    for bits in ranges.kv_bits if model.mla is None else ():
        row = QuantisedRow.of(model.layers[0].attention, bits)
        for batch in ranges.batches:
            rows = torch.empty((1, batch, row.bytes), dtype=torch.uint8, device=device)
            found["quantise", bits, batch * row.n_values] = partial(
                bench.after_copy, (1, batch, *shape), partial(quantise_into, rows=rows, row=row)
            )
        for n_rows in sorted(loaded):
            copied = -(-n_rows * row.bytes // model.element_bytes)  # elements of a slot
            outs = bench.outs(n_rows, 1, *shape)
            found["dequantise", bits, n_rows * row.n_values] = partial(
                bench.after_copy, (copied,), partial(_dequantise, outs, row)
            )
    return found


def _dequantise(outs: Iterator[Tensor], row: QuantisedRow, slot: Tensor) -> None:
    kv = next(outs)
    rows = slot.view(torch.uint8)[: kv.shape[0] * row.bytes].view(kv.shape[0], 1, row.bytes)
    dequantise_into(rows, kv, row)


def block(medians: Medians) -> Elementwise:
    """The curve of norms with its best rate, and the curves of copies and quantisation."""
    norms = curve(medians, "elementwise")
    return Elementwise(
        "measured",
        max(work / seconds for work, seconds in zip(norms.work, norms.seconds, strict=True)),
        norms,
        tables=tuple(
            QuantisationTable(op, bits, curve(medians, op, bits))
            for op in ("quantise", "dequantise")
            for bits in KV_BITS
            if (op, bits) in named(medians, op)
        ),
        copies=curve(medians, "copied") if named(medians, "copied") else None,
    )
