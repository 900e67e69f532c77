"""Predicted time of a matmul: from its own table, from shapes around it, or from the roofline."""

from __future__ import annotations

from sim.machine.curves import Curve
from sim.machine.profile import Gemm
from sim.machine.provenance import Source, weakest
from sim.machine.utilisation import UtilisationTable
from sim.model.kernels import MatMul
from sim.model.spec import ModelSpec


class MatmulCosts:
    """Times of the matmuls of one model on one machine."""

    def __init__(self, gemm: Gemm, model: ModelSpec) -> None:
        self._gemm = gemm
        self._model = model
        self._curves = {(table.n, table.k): table.curve for table in gemm.tables}
        self._own = frozenset(self._curves)
        self._around: set[tuple[int, int]] = set()
        self._utilisation = {table.weight_bits: table for table in gemm.utilisation}

    @property
    def weight_bits(self) -> int:
        """Bits of the layers' weights that the estimates hold for."""
        bits = self._model.weight_bits or 16
        return bits if bits in self._utilisation else 16

    def estimate(self, shape: MatMul) -> tuple[float, Source, bool]:
        """Seconds of one matmul, their source, and whether they are in the measured range."""
        gemm, weights = self._gemm, (shape.n, shape.k)
        curve = self._curve(*weights)
        if curve is None:
            return self._roofline_s(shape), gemm.source, True
        seconds, inside = curve.at(shape.m)
        if weights in self._own or weights in self._around:
            return seconds, gemm.source, inside
        return seconds, weakest(gemm.source, "fitted"), False

    def row_knots(self, shape: MatMul) -> list[float]:
        """Rows between which the time of products with these weights is a straight line."""
        curve = self._curve(shape.n, shape.k)
        return [self._roofline_ridge(shape)] if curve is None else list(curve.work)

    def _curve(self, n: int, k: int) -> Curve | None:
        """Seconds over rows: measured, or with the measured utilisation of shapes around it."""
        if (n, k) not in self._curves:
            table = self._table(n)
            if table is not None:
                self._curves[n, k], inside = table.curve(n, k)
                if inside:
                    self._around.add((n, k))
            elif self._own:
                self._curves[n, k] = self._like_nearest(n, k)
        return self._curves.get((n, k))

    def _table(self, n: int) -> UtilisationTable | None:
        """The table for the weights' bits; the head is no matrix of a layer and keeps its own."""
        bits = 16 if n == self._model.vocab_size else self.weight_bits
        return self._utilisation.get(bits)

    def _like_nearest(self, n: int, k: int) -> Curve:
        """Seconds over rows with the distance from the roofline of the nearest measured shape."""
        near = min(self._own, key=lambda known: abs(known[0] * known[1] / n / k - 1))
        curve = self._curves[near]
        scaled = tuple(
            seconds
            * self._roofline_s(MatMul(int(m), n, k))
            / self._roofline_s(MatMul(int(m), *near))
            for m, seconds in zip(curve.work, curve.seconds, strict=True)
        )
        return Curve(curve.work, scaled)

    def _roofline_s(self, shape: MatMul) -> float:
        return self._gemm.roofline_s(shape.m, shape.n, shape.k, self._model.element_bytes)

    def _roofline_ridge(self, shape: MatMul) -> float:
        """Rows at which a product of this shape turns from memory- to compute-bound."""
        gemm = self._gemm
        if gemm.bytes_per_s is None:
            return 0.0
        size = self._model.element_bytes
        per_row = 2 * shape.n * shape.k / gemm.flops_per_s
        per_row -= (shape.n + shape.k) * size / gemm.bytes_per_s
        return shape.n * shape.k * size / gemm.bytes_per_s / per_row if per_row > 0 else 0.0
