"""A predicted time with its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim.machine.provenance import Source, weakest


@dataclass(frozen=True, slots=True)
class Estimate:
    """Predicted seconds, the weakest source among its terms, and whether all were calibrated.

    Args:
        shares: of a sum, each source of its terms with its fraction of the seconds.
    """

    seconds: float
    source: Source
    in_range: bool
    shares: tuple[tuple[Source, float], ...] = ()

    @property
    def seconds_by_source(self) -> dict[Source, float]:
        shares = self.shares or ((self.source, 1.0),)
        return {source: share * self.seconds for source, share in shares}


def total_of(estimates: Sequence[Estimate]) -> Estimate:
    """The sum: the weakest source counts, and every term must be in range."""
    seconds = sum(one.seconds for one in estimates)
    shares: dict[Source, float] = {}
    for one in estimates:
        for source, part_s in one.seconds_by_source.items():
            shares[source] = shares.get(source, 0.0) + part_s / seconds if seconds else 0.0
    return Estimate(
        seconds,
        weakest(*(one.source for one in estimates)),
        all(one.in_range for one in estimates),
        tuple(shares.items()),
    )
