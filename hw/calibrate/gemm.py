"""Matmuls of decode steps, recomputation and prefill."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from hw.calibrate.bench import Bench
from hw.calibrate.ranges import SampledRanges
from hw.calibrate.tables import Medians, Samplers, curve, named
from sim.machine.profile import Gemm, GemmTable
from sim.machine.provenance import Point
from sim.model.kernels import MatMul
from sim.model.operations import kernels
from sim.model.spec import ModelSpec

LAYER_OPS = ("qkv", "attention", "mlp")


def samplers(bench: Bench, models: Sequence[ModelSpec], ranges: SampledRanges) -> Samplers:
    """Matmuls of decode steps, and the K/V projection up to `max_rows` rows."""
    found: Samplers = {}
    for model in models:
        found |= matmuls(bench, model, ranges.decoded_rows, (*LAYER_OPS, "head"))
    for model in models:
        found |= recomputations(bench, model, ranges.recomputed_rows)
    return found


def matmuls(
    bench: Bench, model: ModelSpec, rows: Sequence[int], ops: Sequence[str] = LAYER_OPS
) -> Samplers:
    """Matmuls of `rows` rows with every matrix of these operations."""
    return {
        ("gemm", n, k, m): partial(bench.matmul, m, n, k)
        for n, k in matrices(model, ops)
        for m in rows
    }


def recomputations(bench: Bench, model: ModelSpec, rows: Sequence[int]) -> Samplers:
    """K/V projections of `rows` rows of X that were just copied to the device."""
    n, k = model.kv_token_size, model.hidden_size
    return {("gemm", n, k, m): partial(bench.matmul_after_copy, m, n, k) for m in rows}


def matrices(model: ModelSpec, ops: Sequence[str] = LAYER_OPS) -> list[tuple[int, int]]:
    """Output and input width of each matrix of these operations, in layers of every kind."""
    found = [
        kernel
        for kind in reversed(range(len(model.kinds)))
        for op in ops
        for kernel in kernels(op, 1, 1, model, 1, kind=kind)
    ]
    return list(dict.fromkeys((one.n, one.k) for one in found if isinstance(one, MatMul)))


def shape_of(point: Point) -> MatMul:
    """The matmul of a point `("gemm", n, k, m)`."""
    n, k, m = map(int, point[1:])
    return MatMul(m, n, k)


def block(medians: Medians, element_bytes: int) -> Gemm:
    """A table for each weight shape, and the best rates of all."""
    best_flops = best_bytes = 0.0
    for point, seconds in medians.items():
        if point[0] == "gemm":
            one = shape_of(point)
            elements = one.n * one.k + one.m * (one.n + one.k)
            best_flops = max(best_flops, one.flops / seconds)
            best_bytes = max(best_bytes, elements * element_bytes / seconds)
    shapes = [(int(n), int(k)) for _, n, k in named(medians, "gemm")]
    tables = tuple(GemmTable(n, k, curve(medians, "gemm", n, k)) for n, k in shapes)
    return Gemm("measured", best_flops, best_bytes, tables)
