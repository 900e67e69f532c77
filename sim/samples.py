"""Every single time behind the medians of a measured profile."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite

from sim.errors import BadInput
from sim.files import STRICT_KEYS

DIGITS = 4
"""Significant digits that are kept; repeats of a point differ in the third."""

Point = tuple[str | int, ...]
"""What was measured, and at which size.

================================================== =============================================
gemm, n, k, m                                      seconds of `[m, k] x [k, n]`
attention, n_heads, n_kv_heads, head_dim, batch,   seconds of one decode attention
context
elementwise, bytes                                 seconds of one element-wise kernel
copied, bytes                                      seconds of one copy within device memory, over
                                                   bytes read and written
link, lane, bytes                                  seconds of one copy in direction `lane`
pace, lane, other                                  pace of `lane` while `other` works, 1 if alone
prefill, n_heads, n_kv_heads, head_dim, tokens,    seconds of causal attention of a chunk whose
first_keys                                         first token attends to so many keys
step                                               seconds of what a step of prefill does besides
tier, lane, bytes                                  seconds of one read of so many bytes
task / kernel / copy                               host seconds to issue it
gap / handover                                     seconds between two tasks of one / two lanes
turn                                               seconds between two tasks that the host hands
                                                   over one after the other
================================================== =============================================
"""


@dataclass(frozen=True, slots=True)
class Samples:
    """All that was measured at one point, in the order of measuring."""

    __pydantic_config__ = STRICT_KEYS

    point: Point
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        sizes = [part for part in self.point if not isinstance(part, str)]
        if not self.point or not all(0 < size < 2**63 for size in sizes):
            raise BadInput(f"samples: point(={self.point}) must hold names and positive sizes.")
        if not self.values or not all(map(isfinite, self.values)):
            raise BadInput(f"samples of {self.point} must be finite numbers, at least one.")

    @classmethod
    def rounded(cls, point: Point, values: Iterable[float]) -> Samples:
        """Samples as they are kept."""
        return cls(point, tuple(float(f"{value:.{DIGITS}g}") for value in values))
