"""Piecewise-linear costs of the operations whose size the LP chooses."""

from __future__ import annotations

from itertools import pairwise
from typing import TypeVar

from sim.cost.model import CostModel

Tokens = TypeVar("Tokens", int, float)

SIZED_OPS = (
    "load_x",
    "load_kv",
    "place_kv",
    "recompute_resident",
    "recompute",
    "dequantise",
)
"""Operations whose token count is a variable."""


def sized_tokens(past: Tokens, kv: Tokens, x: Tokens, recomputed: Tokens) -> dict[str, Tokens]:
    """Tokens of each sized operation of a layer in one step.

    Args:
        past: tokens that the layer attends to.
        kv, x: of these, with resident K and V, or X.
        recomputed: from X, resident or loaded.
    """
    loaded = past - kv - recomputed
    return {
        "load_x": recomputed - x,
        "load_kv": loaded,
        "place_kv": kv,
        "recompute_resident": x,
        "recompute": recomputed - x,
        "dequantise": loaded,
    }


Line = tuple[float, float]
"""(seconds at zero tokens, seconds per further token)."""


class PiecewiseLinearCosts:
    """Convex piecewise-linear lower bounds on the cost of the operations that the LP sizes.

    Layers of one kind share them.
    """

    def __init__(self, costs: CostModel, max_tokens: int) -> None:
        self._costs = costs.operations
        self._max_tokens = max_tokens
        self._kind_of = costs.model.kind_of
        self._lines: dict[tuple[str, int], list[Line]] = {}

    def of(self, op: str, layer: int) -> list[Line]:
        """Lines of `op` in `layer`, the largest of which is the bound."""
        key = op, self._kind_of[layer]
        if key not in self._lines:
            self._lines[key] = self._hull(op, layer)
        return self._lines[key]

    def at(self, op: str, count: float, layer: int) -> float:
        """Lower bound on the seconds of `op` on `count` tokens."""
        return max(base + slope * count for base, slope in self.of(op, layer))

    def _hull(self, op: str, layer: int) -> list[Line]:
        points = [
            (count, self.seconds(op, count, layer))
            for count in self._costs.token_knots(op, self._max_tokens, layer)
        ]
        hull: list[tuple[float, float]] = []
        for point in points:
            while len(hull) > 1 and _turns_down(hull[-2], hull[-1], point):
                hull.pop()
            hull.append(point)
        lines = []
        for (x0, y0), (x1, y1) in pairwise(hull):
            slope = (y1 - y0) / (x1 - x0)
            lines.append((y0 - slope * x0, slope))
        return lines

    def seconds(self, op: str, count: int, layer: int) -> float:
        """Exact seconds of `op` on `count` tokens; 0 for 0 tokens, which need no task."""
        costs = self._costs
        if count == 0 or (op == "dequantise" and costs.workload.kv_bits is None):
            return 0.0
        if op not in ("load_x", "load_kv"):
            return costs.compute(op, count, count, self._kind_of[layer]).seconds
        return costs.copy("h2d", costs.load_bytes(op, count, layer)).seconds


def _turns_down(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether b is on or above the straight line from a to c, up to rounding."""
    cross = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
    return cross <= 1e-12 * abs((c[0] - a[0]) * (c[1] - a[1]))
