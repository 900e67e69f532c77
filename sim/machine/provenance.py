"""The source of each number, and the samples behind measured ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from typing import Literal

from sim.errors import BadInput
from sim.files import STRICT_KEYS

Source = Literal["measured", "fitted", "datasheet"]
SOURCES: tuple[Source, ...] = ("measured", "fitted", "datasheet")
"""Strongest first; a sum is as strong as its weakest term."""


def weakest(*sources: Source) -> Source:
    return max(sources, key=SOURCES.index)


@dataclass(frozen=True, slots=True)
class SourcedValue:
    """A number with its source; the field that holds it gives its name and unit."""

    __pydantic_config__ = STRICT_KEYS

    source: Source
    value: float
    note: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.value < float("inf"):
            raise BadInput(f"value(={self.value}) must be at least 0 and finite.")


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Parts of a data sheet's peak rates that kernels are taken to reach.

    Args:
        compute, memory: of the FLOP rate and of the memory bandwidth, in (0, 1].
        source: where the two parts come from, or `assumed`.
    """

    __pydantic_config__ = STRICT_KEYS

    compute: float
    memory: float
    source: str = "assumed"

    def __post_init__(self) -> None:
        for name in ("compute", "memory"):
            if not 0 < getattr(self, name) <= 1:
                raise BadInput(
                    f"{name}_efficiency(={getattr(self, name):g}) must be a part of the peak rate, "
                    "above 0 and at most 1, such as 0.8."
                )

    def __str__(self) -> str:
        return (
            f"{100 * self.compute:g} % of the peak FLOP/s and {100 * self.memory:g} % of the peak "
            f"memory bandwidth ({self.source})"
        )


DIGITS = 4
"""Significant digits that are kept; repeats of a point differ in the third."""

Point = tuple[str | int, ...]
"""The quantity and size of a measurement.

================================================== =============================================
gemm, n, k, m                                      seconds of `[m, k] x [k, n]`
attention, n_heads, n_kv_heads, head_dim, batch,   seconds of one decode attention
context
elementwise, bytes                                 seconds of one element-wise kernel
copied, bytes                                      seconds of one copy within device memory, over
                                                   bytes read and written
link, lane, bytes                                  seconds of one copy in direction `lane`
pace, lane, other                                  pace of `lane` while `other` works, 1 if idle
prefill, n_heads, n_kv_heads, head_dim, tokens,    seconds of causal attention of a chunk whose
first_keys                                         first token attends to so many keys
step                                               seconds of what a step of prefill does besides
tier, lane, bytes                                  seconds of one read of so many bytes
task / kernel / copy                               host seconds to issue it
gap / handover                                     seconds between two tasks of one / two lanes
turn                                               seconds between two tasks that the host hands
                                                   over one after the other
================================================== =============================================

Kernels of a CPU are sampled relative to reference kernels. Their seconds hold for the speed at
which the reference kernels take their least time.
"""


@dataclass(frozen=True, slots=True)
class Samples:
    """All measurements of one point, in order."""

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
        """Samples rounded to `DIGITS` digits."""
        return cls(point, tuple(float(f"{value:.{DIGITS}g}") for value in values))


@dataclass(frozen=True, slots=True)
class TableErrors:
    """Leave-one-out errors of all tables of one kind.

    Args:
        kind: one of `sim.machine.cross_validation.KINDS`.
        points: predictions made; an inner point of an attention grid is predicted twice, from
            its neighbours along context and from those along batch.
        p90_abs_error_frac: nine tenths of the points are at most so far off.
        worst: the point that is farthest off.
        worst_error_frac: its error with sign, predicted - measured.
    """

    __pydantic_config__ = STRICT_KEYS

    kind: str
    points: int
    median_abs_error_frac: float
    p90_abs_error_frac: float
    max_abs_error_frac: float
    worst: str
    worst_error_frac: float
