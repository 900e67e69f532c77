"""Ways to obtain an offloaded KV cache in every step: load it, recompute it, or both."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from planner.decode.planner import DecodePlanner
from sim.errors import DoesNotFit

RESIDENT, PARTLY_RESIDENT = "resident", "partly resident"
LOAD, RECOMPUTE, SPLIT, NO_ROOM = "load", "recompute", "split", "no room"
"""Verdicts: the cache in GPU memory, a part of it; otherwise one way only, both ways, or none that
fits this machine."""

WORTH_FRAC = 0.01
"""Minimum saving of a split over the better of loading and recomputing."""


@dataclass(frozen=True, slots=True)
class Ways:
    """Seconds by way; infinite where a way does not fit the memory."""

    load_s: float
    recompute_s: float
    best_s: float

    @classmethod
    def of(cls, planner: DecodePlanner, best_s: float | None = None) -> Ways:
        """The times of a planner's job; `best_s` avoids a repeated search."""
        problem, names = planner.problem, ("load-all", "recompute-all")
        load_s, recompute_s = (problem.makespan_s(problem.choice_of(name)) for name in names)
        return cls(load_s, recompute_s, best_step(planner) if best_s is None else best_s)

    @property
    def verdict(self) -> str:
        """The faster single way, or `split` where that saves more than `WORTH_FRAC`."""
        if self.best_s == inf:
            return NO_ROOM
        single_s = min(self.load_s, self.recompute_s)
        if single_s > self.best_s * (1 + WORTH_FRAC):
            return SPLIT
        return LOAD if single_s == self.load_s else RECOMPUTE


def best_step(planner: DecodePlanner) -> float:
    """Makespan of the planner's choice in seconds; infinite where nothing fits."""
    try:
        return planner.problem.makespan_s(planner.best)
    except DoesNotFit:
        return inf
