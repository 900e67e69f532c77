"""What happened to each request of a service."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from math import inf

GPU = "gpu"


@dataclass
class Journal:
    """What happened to each request; times are infinite until they are known.

    Args:
        hits: tokens found in each tier, by its name.
        computed: tokens that steps computed, recomputed ones too.
    """

    admitted_s: array[float]
    first_s: array[float]
    finish_s: array[float]
    computed: array[int]
    hits: dict[str, array[int]]
    preemptions: int = 0
    rejected: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, n_requests: int, tiers: list[str]) -> Journal:
        admitted, first, finish = (array("d", [inf]) * n_requests for _ in range(3))
        hits = {name: array("q", [0]) * n_requests for name in (GPU, *tiers)}
        return cls(admitted, first, finish, array("q", [0]) * n_requests, hits)
