"""Sampling what quantising a new token's K and V and dequantising loaded ones takes on a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from hw.bench import SLOTS, Bench
from hw.quantise import dequantise_into, quantise_into
from sim.curves import Curve
from sim.kv_format import KV_BITS, QuantisationTable, QuantisedRow
from sim.model_spec import ModelSpec

LEAST_ROWS = 16
"""Rows of the smallest dequantisation that is sampled; the others are four times each other."""

Key = tuple[str | int, ...]


def quantisation_points(
    bench: Bench, model: ModelSpec, kv_bits: Sequence[int], batches: Sequence[int], max_rows: int
) -> dict[Key, Callable[[], list[float]]]:
    """Samplers by (op, bits, elements), each of work that finds caches as another task left them.

    Args:
        model: stands for all of a profile; that the width of a head decides little is assumed.
        batches: rows that are quantised in one decode step.
        max_rows: most rows that are dequantised at once.
    """
    points: dict[Key, Callable[[], list[float]]] = {}
    device = bench.backend.device
    loaded = {max_rows} | {
        LEAST_ROWS * 4**power for power in range(12) if LEAST_ROWS * 4**power < max_rows
    }
    for bits in kv_bits:
        row = QuantisedRow.of(model, bits)
        shape = (2, model.n_kv_heads, model.head_dim)
        for batch in batches:
            rows = torch.empty((1, batch, row.bytes), dtype=torch.uint8, device=device)
            work = partial(_quantise, rows, row)
            points["quantise", bits, batch * row.n_values] = partial(
                bench.fed, (1, batch, *shape), work
            )
        for n_rows in sorted(loaded):
            words = -(-n_rows * row.bytes // model.element_bytes)
            outs = [bench.out(n_rows, 1, *shape, slot=slot) for slot in range(SLOTS)]
            work = partial(_dequantise, outs, row)
            points["dequantise", bits, n_rows * row.n_values] = partial(bench.fed, (words,), work)
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
