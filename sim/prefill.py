"""What a machine needs to know of itself to restore a cached prefix: prefill, and tiers.

A profile holds this as its `restore` block; one without it can still restore from host memory,
with its matrix-product rate taken for attention, and says that it left its calibrated range.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sim.errors import BadInput, NotMeasured
from sim.files import STRICT_KEYS
from sim.source import Figure, Source

DISK = "disk"
NET = "net"
LANE_OF_TIER = {"ssd": DISK, "net": NET}
"""The engine that brings K and V of a tier into host memory; those in DRAM are there."""

TIERS = ("dram", *LANE_OF_TIER)


@dataclass(frozen=True, slots=True)
class Prefill:
    """Computing from token ids: what the matrix-product figures do not tell.

    Args:
        attention_flops_per_s: rate of causal attention of a chunk over everything before it.
        step_s: what a step costs besides, however few tokens it has.
        eight_bit_speedup: matrix products with 8-bit weights against 16-bit ones.
    """

    __pydantic_config__ = STRICT_KEYS

    attention_flops_per_s: Figure
    step_s: Figure
    eight_bit_speedup: Figure | None = None

    def __post_init__(self) -> None:
        for figure in (self.attention_flops_per_s, self.eight_bit_speedup):
            if figure is not None and not figure.value > 0:
                raise BadInput(f"restore.prefill: a rate of {figure.value} must be above 0.")


@dataclass(frozen=True, slots=True)
class Tier:
    """A place behind host memory, whose chunks arrive one after another at a rate.

    Args:
        lane: `disk` or `net`.
        chunk_s: latency of each chunk.
    """

    __pydantic_config__ = STRICT_KEYS

    lane: str
    bytes_per_s: Figure
    chunk_s: float = 0.0

    def __post_init__(self) -> None:
        if self.lane not in LANE_OF_TIER.values():
            raise BadInput(f"restore.tiers: lane {self.lane!r} must be {DISK} or {NET}.")
        if not self.bytes_per_s.value > 0 or not self.chunk_s >= 0:
            raise BadInput(
                f"restore.tiers: bytes_per_s(={self.bytes_per_s.value}) must be above 0 and chunk_s"
                f"(={self.chunk_s}) at least 0."
            )


@dataclass(frozen=True, slots=True)
class Restore:
    """The block of a profile.

    Args:
        lookup_s: from the request to the first byte that moves, on any tier.
    """

    __pydantic_config__ = STRICT_KEYS

    prefill: Prefill | None = None
    tiers: tuple[Tier, ...] = ()
    lookup_s: Figure | None = None

    @property
    def sources(self) -> tuple[Source, ...]:
        figures = [tier.bytes_per_s for tier in self.tiers]
        if self.prefill is not None:
            figures += [self.prefill.attention_flops_per_s, self.prefill.step_s]
        return tuple(figure.source for figure in figures)

    def tier(self, lane: str) -> Tier:
        """The tier whose chunks move on `lane`.

        Raises:
            NotMeasured: the profile has none.
        """
        for tier in self.tiers:
            if tier.lane == lane:
                return tier
        raise NotMeasured(
            f"the hardware profile has no tier on lane {lane!r}; give its rate, as in --tier 7GB/s."
        )

    def with_tier(self, tier: Tier) -> Restore:
        """The same machine with another tier on that lane."""
        others = tuple(one for one in self.tiers if one.lane != tier.lane)
        return replace(self, tiers=(*others, tier))

    def faster_attention(self, factor: float) -> Restore:
        """Attention `factor` times as fast, for what-if questions."""
        if self.prefill is None:
            return self
        rate = self.prefill.attention_flops_per_s
        prefill = replace(
            self.prefill, attention_flops_per_s=replace(rate, value=rate.value * factor)
        )
        return replace(self, prefill=prefill)
