"""Utilisation of a device by matmuls of any shape, over m, n and k.

Published operator timings cover a grid of shapes. From one shape to the next the share of the
possible rate changes little where seconds change a lot, so that share is what is read between
shapes, over the logarithms of n and k. Between rows m seconds are read linearly, as in every other
table: the planner needs straight lines between its points.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, product
from math import log

from sim.errors import BadInput
from sim.files import STRICT_KEYS
from sim.machine.curves import Curve

UNIT = 10_000
"""Utilisation is kept in whole ten-thousandths."""

MAX_SIZE = 2**40
MAX_SHARE = 2 * UNIT
"""A product as short as the floor and as its roofline would have this share."""

RESULT_BYTES = 2
"""Of one element of the product, whatever its weights are stored in."""


@dataclass(frozen=True, slots=True)
class UtilisationTable:
    """Measured utilisation of products `[m, k] x [k, n]`, by the bits of a weight.

    The best that a product could take is `floor_s` and the longer of its FLOPs at `flops_per_s` and
    its bytes at `bytes_per_s`; utilisation is that over the measured seconds.

    Args:
        weight_bits: 16, or 8 where weights and activations are multiplied in 8 bits.
        flops_per_s, bytes_per_s: peaks of the datasheet.
        floor_s: the fastest product of the table: what launching a kernel takes on the device.
        m, n, k: the grid, in rising order.
        shapes: for each n and, within it, each k, one line: its utilisation at every m in
            ten-thousandths, 0 where it was not measured, and an empty line for a whole shape.
    """

    __pydantic_config__ = STRICT_KEYS

    weight_bits: int
    flops_per_s: float
    bytes_per_s: float
    floor_s: float
    m: tuple[int, ...]
    n: tuple[int, ...]
    k: tuple[int, ...]
    shapes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.weight_bits not in (8, 16):
            raise BadInput(f"utilisation: weight_bits(={self.weight_bits}) must be 8 or 16.")
        for name in ("flops_per_s", "bytes_per_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise BadInput(f"utilisation: {name}(={getattr(self, name)}) must be > 0.")
        if not 0 <= self.floor_s < 1:
            raise BadInput(f"utilisation: floor_s(={self.floor_s}) must be in [0, 1) s.")
        for name in "mnk":
            axis = getattr(self, name)
            if not axis or axis[0] < 1 or any(b <= a for a, b in pairwise(axis)):
                raise BadInput(f"utilisation: {name} must be whole numbers in rising order.")
            if axis[-1] > MAX_SIZE:
                raise BadInput(f"utilisation: {name} must hold sizes of at most {MAX_SIZE}.")
        if len(self.shapes) != len(self.n) * len(self.k):
            raise BadInput(
                f"utilisation: shapes must hold {len(self.n)} x {len(self.k)} lines, not "
                f"{len(self.shapes)}."
            )
        for line in self.shapes:
            shares = line.split()
            whole = "".join(shares).isdecimal() and max(map(len, shares)) <= len(str(MAX_SHARE))
            if shares and not (len(shares) == len(self.m) and whole):
                raise BadInput(
                    f"utilisation: line {line[:20]!r} of shapes must hold {len(self.m)} whole "
                    f"numbers of at most {MAX_SHARE}."
                )
        if not any(int(share) for line in self.shapes for share in line.split()):
            raise BadInput("utilisation: shapes must hold one measured shape at least.")

    def best_s(self, m: int, n: int, k: int, stored_bits: float | None = None) -> float:
        """Seconds of `[m, k] x [k, n]` at full utilisation; `stored_bits` as for `curve`."""
        rates = (self.flops_per_s, self.bytes_per_s)
        return self.floor_s + roofline_s(m, n, k, self.weight_bits, *rates, stored_bits)

    def shares(self, n_at: int, k_at: int) -> list[int]:
        """Ten-thousandths over m at a point of the grid, empty where it was not measured."""
        return [int(share) for share in self.shapes[n_at * len(self.k) + k_at].split()]

    def curve(self, n: int, k: int, stored_bits: float | None = None) -> tuple[Curve, bool]:
        """Seconds over rows m for weights `[k, n]`, and whether shapes around it were measured.

        Args:
            stored_bits: of a weight in memory; by default those of the table.

        Utilisation is blended between the measured corners of the grid cell around (n, k); outside
        the grid the utilisation of its edge is used.
        """
        low_n, weight_n, inside_n = _locate(self.n, n)
        low_k, weight_k, inside_k = _locate(self.k, k)
        corners = [
            (self.shares(low_n + up_n, low_k + up_k), share)
            for up_n, up_k in product((0, 1), repeat=2)
            if (share := _part(weight_n, up_n) * _part(weight_k, up_k)) > 0
        ]
        seconds = dict(self._blend(corners, n, k, stored_bits))
        if seconds:
            return Curve(tuple(map(float, seconds)), tuple(seconds.values())), inside_n and inside_k
        nearest = self._nearest(n, k)
        seconds = dict(self._blend([(nearest, 1.0)], n, k, stored_bits))
        return Curve(tuple(map(float, seconds)), tuple(seconds.values())), False

    def _blend(
        self, corners: list[tuple[list[int], float]], n: int, k: int, stored_bits: float | None
    ) -> Iterator[tuple[int, float]]:
        """Rows m that any of the weighted `corners` was measured at, with seconds for (n, k)."""
        for at, m in enumerate(self.m):
            known = [(line[at], share) for line, share in corners if line and line[at]]
            if known:
                total = sum(share for _, share in known)
                blended = sum(value * share for value, share in known) / total
                yield m, self.best_s(m, n, k, stored_bits) * UNIT / blended

    def _nearest(self, n: int, k: int) -> list[int]:
        """The measured shape whose size and proportions are nearest to `[k, n]`."""
        _, n_at, k_at = min(
            (abs(log(known_n / n)) + abs(log(known_k / k)), n_at, k_at)
            for n_at, known_n in enumerate(self.n)
            for k_at, known_k in enumerate(self.k)
            if any(self.shares(n_at, k_at))
        )
        return self.shares(n_at, k_at)

    def faster(self, flops: float, hbm: float) -> UtilisationTable:
        """The table with both peak rates multiplied; utilisation is unchanged."""
        return replace(
            self, flops_per_s=self.flops_per_s * flops, bytes_per_s=self.bytes_per_s * hbm
        )


def roofline_s(
    m: int,
    n: int,
    k: int,
    weight_bits: int,
    flops_per_s: float,
    bytes_per_s: float,
    stored_bits: float | None = None,
) -> float:
    """The longer of the FLOPs of `[m, k] x [k, n]` and of its operands and result, by rate.

    Args:
        weight_bits: of an element of both operands when they are multiplied.
        stored_bits: of an element of `[k, n]` in memory, where that differs.
    """
    n_bytes = (n * k * (stored_bits or weight_bits) + m * k * weight_bits) / 8
    n_bytes += RESULT_BYTES * m * n
    return max(2 * m * n * k / flops_per_s, n_bytes / bytes_per_s)


def _locate(axis: tuple[int, ...], value: int) -> tuple[int, float, bool]:
    """Lower index and logarithmic blend weight of a size on `axis`; its ends are held."""
    if value <= axis[0] or len(axis) == 1:
        return 0, 0.0, value == axis[0]
    if value >= axis[-1]:
        return len(axis) - 2, 1.0, value == axis[-1]
    low = bisect_right(axis, value) - 1
    return low, log(value / axis[low]) / log(axis[low + 1] / axis[low]), True


def _part(weight: float, up: int) -> float:
    return weight if up else 1.0 - weight
