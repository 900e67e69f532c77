"""Predicted time of a matmul: from its own table, from shapes around it, or from the roofline."""

from __future__ import annotations

from dataclasses import replace

from sim.machine.curves import Curve
from sim.machine.profile import Gemm
from sim.machine.provenance import Source, weakest
from sim.machine.utilisation import UtilisationTable
from sim.model.kernels import MatMul, Weights
from sim.model.spec import ModelSpec, operand_bits


class MatmulCosts:
    """Times of the matmuls of one model on one machine."""

    def __init__(self, gemm: Gemm, model: ModelSpec) -> None:
        self._gemm = gemm
        self._model = model
        self._measured = {(table.n, table.k): table.curve for table in gemm.tables}
        self._utilisation = {table.weight_bits: table for table in gemm.utilisation}
        self._curves: dict[tuple[int, int, Weights], tuple[Curve, bool]] = {}

    @property
    def measured_bits(self) -> int:
        """Bits of the layers' weights in the measurements behind the estimates."""
        bits = self._model.weight_bits or 16
        return bits if bits in self._utilisation else 16

    def estimate(self, shape: MatMul) -> tuple[float, Source, bool]:
        """Seconds of one matmul, their source, and whether they are in the measured range."""
        gemm = self._gemm
        found = self._curve(shape)
        if found is None:
            return self._roofline_s(shape), gemm.source, True
        curve, measured = found
        seconds, inside = curve.at(shape.m)
        if measured:
            return seconds, gemm.source, inside
        return seconds, weakest(gemm.source, "fitted"), False

    def row_knots(self, shape: MatMul) -> list[float]:
        """Rows between which the time of products with these weights is a straight line."""
        found = self._curve(shape)
        return [self._roofline_ridge(shape)] if found is None else list(found[0].work)

    def _curve(self, shape: MatMul) -> tuple[Curve, bool] | None:
        """Seconds over rows, and whether such weights were measured; None without measurements.

        Weights stored in fewer bits than were measured take the utilisation or the distance from
        the roofline of the measured ones, with the bytes that they have. Operands of 8 bits take no
        longer than those of 16 bits: quantising the activations does not pay for a few rows on
        some devices, and runtimes have kernels that widen the weights instead.
        """
        n, k, weights = shape.n, shape.k, shape.weights
        if (n, k, weights) not in self._curves:
            stored, width = self._bits(weights)
            quantised = stored < self._dtype_bits
            if (n, k) in self._measured and not quantised:
                self._curves[n, k, weights] = self._measured[n, k], True
            elif (table := self._table(width)) is not None:
                own = stored == table.weight_bits
                curve, inside = table.curve(n, k, None if own else stored)
                if table.weight_bits == 8 and 16 in self._utilisation:
                    curve = _faster_of(curve, self._utilisation[16].curve(n, k)[0])
                self._curves[n, k, weights] = curve, inside and own
            elif self._measured:
                self._curves[n, k, weights] = self._like_nearest(shape), False
        return self._curves.get((n, k, weights))

    def _table(self, width: int) -> UtilisationTable | None:
        """The table of the narrowest measured operands of at least `width` bits.

        Operands of 4 bits, which no table holds, go at the utilisation of 8 bits.
        """
        wide_enough = [bits for bits in self._utilisation if bits >= width]
        if not wide_enough:
            return None
        table = self._utilisation[min(wide_enough)]
        faster = self._gemm.rate(width) / self._gemm.rate(table.weight_bits)
        return table.faster(faster, 1.0) if width < table.weight_bits and width == 4 else table

    @property
    def _dtype_bits(self) -> int:
        return 8 * self._model.element_bytes

    def _bits(self, weights: Weights) -> tuple[float, int]:
        """Bits of a stored weight, and of both operands when they are multiplied.

        Block scales, which add below a hundredth to weights of 8 bits, are left out there.
        """
        stored: float = getattr(self._model.bits, weights)
        width = operand_bits(stored, self._model.activation_bits)
        return (8.0 if 8 <= stored < 8.1 else stored), width

    def _like_nearest(self, shape: MatMul) -> Curve:
        """Seconds over rows with the distance from the roofline of the nearest measured shape."""
        n, k = shape.n, shape.k
        near = min(self._measured, key=lambda known: abs(known[0] * known[1] / n / k - 1))
        curve = self._measured[near]
        scaled = tuple(
            seconds
            * self._roofline_s(replace(shape, m=int(m)))
            / self._gemm.roofline_s(int(m), *near, self._model.element_bytes, self._dtype_bits)
            for m, seconds in zip(curve.work, curve.seconds, strict=True)
        )
        return Curve(curve.work, scaled)

    def _roofline_s(self, shape: MatMul) -> float:
        size = self._model.element_bytes
        return self._gemm.roofline_s(shape.m, shape.n, shape.k, size, *self._bits(shape.weights))

    def _roofline_ridge(self, shape: MatMul) -> float:
        """Rows at which a product of this shape turns from memory- to compute-bound."""
        gemm = self._gemm
        if gemm.bytes_per_s is None:
            return 0.0
        size = self._model.element_bytes
        stored, width = self._bits(shape.weights)
        per_row = 2 * shape.n * shape.k / gemm.rate(width)
        per_row -= (shape.n + shape.k) * size / gemm.bytes_per_s
        weight_bytes = shape.n * shape.k * stored / 8
        return weight_bytes / gemm.bytes_per_s / per_row if per_row > 0 else 0.0


def _faster_of(one: Curve, other: Curve) -> Curve:
    """The shorter times of two curves, at the work that either was measured at."""
    work = sorted({*one.work, *other.work})
    return Curve(tuple(work), tuple(min(one.at(at)[0], other.at(at)[0]) for at in work))
