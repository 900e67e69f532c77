"""Predicted time of a matmul: from its own table, from shapes around it, or from the roofline."""

from __future__ import annotations

from sim.machine.curves import Curve
from sim.machine.profile import Gemm
from sim.machine.provenance import Source, weakest
from sim.model.kernels import MatMul
from sim.model.spec import ModelSpec


class MatmulCosts:
    """Times of the matmuls of one model on one machine."""

    def __init__(self, gemm: Gemm, model: ModelSpec) -> None:
        self._gemm = gemm
        self._model = model
        self._measured = {(table.n, table.k): table.curve for table in gemm.tables}
        self._utilisation = {table.weight_bits: table for table in gemm.utilisation}
        self._curves: dict[tuple[int, int], tuple[Curve, bool]] = {}

    @property
    def measured_bits(self) -> int:
        """Bits of the layers' weights in the measurements behind the estimates."""
        bits = self._model.weight_bits or 16
        return bits if bits in self._utilisation else 16

    def estimate(self, shape: MatMul) -> tuple[float, Source, bool]:
        """Seconds of one matmul, their source, and whether they are in the measured range."""
        gemm = self._gemm
        found = self._curve(shape.n, shape.k)
        if found is None:
            return self._roofline_s(shape), gemm.source, True
        curve, measured = found
        seconds, inside = curve.at(shape.m)
        if measured:
            return seconds, gemm.source, inside
        return seconds, weakest(gemm.source, "fitted"), False

    def row_knots(self, shape: MatMul) -> list[float]:
        """Rows between which the time of products with these weights is a straight line."""
        found = self._curve(shape.n, shape.k)
        return [self._roofline_ridge(shape)] if found is None else list(found[0].work)

    def _curve(self, n: int, k: int) -> tuple[Curve, bool] | None:
        """Seconds over rows, and whether such weights were measured; None without measurements.

        Weights stored in fewer bits than were measured take the utilisation or the distance from
        the roofline of the measured ones, with the bytes that they have.
        """
        if (n, k) not in self._curves:
            quantised = self._stored_bits(n) < self._dtype_bits
            table = self._utilisation.get(self._stored_bits(n))
            stored_bits = None
            if table is None:
                table = self._utilisation.get(16)
                stored_bits = self._stored_bits(n) if quantised else None
            if (n, k) in self._measured and not quantised:
                self._curves[n, k] = self._measured[n, k], True
            elif table is not None:
                curve, inside = table.curve(n, k, stored_bits)
                self._curves[n, k] = curve, inside and stored_bits is None
            elif self._measured:
                self._curves[n, k] = self._like_nearest(n, k), False
        return self._curves.get((n, k))

    @property
    def _dtype_bits(self) -> int:
        return 8 * self._model.element_bytes

    def _stored_bits(self, n: int) -> int:
        """Bits of a weight of a product with `n` columns; the head keeps the model's dtype."""
        head = n == self._model.vocab_size
        return self._dtype_bits if head else self._model.weight_bits or self._dtype_bits

    def _like_nearest(self, n: int, k: int) -> Curve:
        """Seconds over rows with the distance from the roofline of the nearest measured shape."""
        near = min(self._measured, key=lambda known: abs(known[0] * known[1] / n / k - 1))
        curve = self._measured[near]
        scaled = tuple(
            seconds
            * self._roofline_s(MatMul(int(m), n, k))
            / self._gemm.roofline_s(int(m), *near, self._model.element_bytes, self._dtype_bits)
            for m, seconds in zip(curve.work, curve.seconds, strict=True)
        )
        return Curve(curve.work, scaled)

    def _roofline_s(self, shape: MatMul) -> float:
        bits = self._stored_bits(shape.n)
        return self._gemm.roofline_s(shape.m, shape.n, shape.k, self._model.element_bytes, bits)

    def _roofline_ridge(self, shape: MatMul) -> float:
        """Rows at which a product of this shape turns from memory- to compute-bound."""
        gemm = self._gemm
        if gemm.bytes_per_s is None:
            return 0.0
        size = self._model.element_bytes
        bits = self._stored_bits(shape.n)
        per_row = 2 * shape.n * shape.k / gemm.rate(8 if bits == 8 else 16)
        per_row -= (shape.n + shape.k) * size / gemm.bytes_per_s
        weight_bytes = shape.n * shape.k * bits / 8
        return weight_bytes / gemm.bytes_per_s / per_row if per_row > 0 else 0.0
