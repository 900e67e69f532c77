"""Time of the experts of one layer, from measured fused kernels of the same or a similar shape."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import log

from sim.errors import BadInput
from sim.files import STRICT_KEYS
from sim.machine.curves import Curve
from sim.machine.utilisation import UNIT
from sim.model.kernels import ExpertsShape

BITS = (4, 8, 16, 32)

SCALES_FRAC = 0.15
"""Bits of the scales of quantised weights, at most, as a part of the weights'."""


@dataclass(frozen=True)
class ExpertsTable:
    """Measured utilisation of fused expert kernels over tokens, by the bits of a weight.

    The best that a kernel could take is `floor_s` and its roofline at the datasheet's rates;
    utilisation is that over the measured seconds. Shapes that were not measured take the
    utilisation of the nearest one.

    Args:
        weight_bits: 32, 16, 8, or 4.
        flops_per_s, bytes_per_s: peaks of the datasheet.
        floor_s: the fastest kernel of the table.
        tokens: numbers of tokens, in rising order.
        shapes: one line for each shape: hidden size, width of an expert, experts a token passes
            through, experts to choose from, and the utilisation at each number of tokens in
            ten-thousandths, 0 where it was not measured.
    """

    __pydantic_config__ = STRICT_KEYS

    weight_bits: int
    flops_per_s: float
    bytes_per_s: float
    floor_s: float
    tokens: tuple[int, ...]
    shapes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.weight_bits not in BITS:
            raise BadInput(f"experts: weight_bits(={self.weight_bits}) must be 4, 8, 16 or 32.")
        for name in ("flops_per_s", "bytes_per_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise BadInput(f"experts: {name}(={getattr(self, name)}) must be > 0.")
        if not 0 <= self.floor_s < 1:
            raise BadInput(f"experts: floor_s(={self.floor_s}) must be in [0, 1) s.")
        if not self.tokens or any(b <= a for a, b in pairwise((0, *self.tokens))):
            raise BadInput("experts: tokens must be whole numbers > 0 in rising order.")
        if not self.shapes:
            raise BadInput("experts: shapes must hold one measured shape at least.")
        for line in self.shapes:
            words = line.split()
            numbers = "".join(words).isdecimal() and max(map(len, words)) <= 12
            if not (numbers and len(words) == 4 + len(self.tokens) and any(map(int, words[4:]))):
                raise BadInput(
                    f"experts: line {line[:30]!r} of shapes must hold {4 + len(self.tokens)} whole "
                    "numbers, four sizes and a utilisation for each number of tokens."
                )

    @cached_property
    def _known(self) -> dict[tuple[int, ...], list[int]]:
        lines = [list(map(int, line.split())) for line in self.shapes]
        return {tuple(line[:4]): line[4:] for line in lines}

    def best_s(self, shape: ExpertsShape, n_tokens: float, bits: float | None = None) -> float:
        """Seconds at full utilisation; `bits` of a weight, by default those of the table."""
        rates = (self.flops_per_s, self.bytes_per_s)
        touched = shape.touched(n_tokens)
        return self.floor_s + shape.roofline_s(n_tokens, touched, bits or self.weight_bits, *rates)

    def curve(self, shape: ExpertsShape, bits: float | None = None) -> tuple[Curve, bool]:
        """Seconds over tokens, and whether experts of this shape were measured.

        Args:
            bits: of a weight in memory; by default those of the table.
        """
        key = (shape.hidden, shape.width, shape.active, shape.routed)
        shares = self._known.get(key)
        if shares is None:
            shares = self._known[min(self._known, key=lambda known: _distance(known, key))]
        seconds = {
            float(n): self.best_s(shape, n, bits) * UNIT / share
            for n, share in zip(self.tokens, shares, strict=True)
            if share
        }
        own_bits = bits is None or abs(bits - self.weight_bits) <= SCALES_FRAC * self.weight_bits
        measured = key in self._known and own_bits and (shape.gpus, shape.matrices) == (1, 3)
        return Curve(tuple(seconds), tuple(seconds.values())), measured

    def faster(self, flops: float, hbm: float) -> ExpertsTable:
        """The table with both peak rates multiplied; utilisation is unchanged."""
        return replace(
            self, flops_per_s=self.flops_per_s * flops, bytes_per_s=self.bytes_per_s * hbm
        )


def _distance(known: tuple[int, ...], wanted: tuple[int, ...]) -> float:
    return sum(abs(log(a / b)) for a, b in zip(known, wanted, strict=True))
