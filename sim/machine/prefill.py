"""Rates of a machine for restoring a cached prefix: prefill, and tiers behind host memory.

A profile holds this as its `restore` block. Without the block a restore from host memory uses the
matmul rate for attention, and the estimate is marked as out of the calibrated range.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log
from typing import NamedTuple

from sim.errors import BadInput, NotMeasured
from sim.files import STRICT_KEYS
from sim.lanes import DISK, LANE_OF_TIER, NET
from sim.machine.curves import Curve, Grid, RaggedGrid, locate
from sim.machine.provenance import Source, SourcedValue
from sim.machine.sparse import SparsePrefill

MAX_OF_HEADS = 2**16
"""Elements of a head, or heads of a group: far above what any model has."""


def check_head_sizes(where: str, **sizes: int) -> None:
    for name, value in sizes.items():
        if not 1 <= value <= MAX_OF_HEADS:
            raise BadInput(f"{where}: {name}(={value}) must be from 1 to {MAX_OF_HEADS}.")


class HeadShape(NamedTuple):
    """Query heads that share a KV head, and elements of a query or key head and of a value head."""

    queries_per_kv: int
    head_dim: int
    v_head_dim: int

    @property
    def pair_size(self) -> int:
        """Elements that a query head multiplies for each token that it attends to."""
        return self.head_dim + self.v_head_dim


@dataclass(frozen=True, slots=True)
class QueryHeads:
    """Measured seconds of causal attention of one sequence over (query heads, its tokens).

    Args:
        queries_per_kv: query heads that share a KV head.
        v_head_dim: elements of a value head, where it differs from `head_dim`.
    """

    __pydantic_config__ = STRICT_KEYS

    head_dim: int
    queries_per_kv: int
    fan: RaggedGrid
    v_head_dim: int | None = None

    def __post_init__(self) -> None:
        check_head_sizes(
            "restore.prefill.heads",
            head_dim=self.head_dim,
            queries_per_kv=self.queries_per_kv,
            v_head_dim=self.v_head_dim or self.head_dim,
        )

    @property
    def shape(self) -> HeadShape:
        return HeadShape(self.queries_per_kv, self.head_dim, self.v_head_dim or self.head_dim)

    def rooted(self) -> tuple[Curve, ...]:
        """Roots of seconds over tokens: time grows with their square, so these are straight."""
        return tuple(curve.rooted() for curve in self.fan.curves)


class PromptAttention:
    """Seconds of causal attention over the first tokens of a prompt, for one shape of heads.

    Args:
        near: the measured heads whose rate is taken.
    """

    def __init__(self, near: QueryHeads, n_heads: int, shape: HeadShape) -> None:
        self._roots = near.rooted()
        self._at = locate(near.fan.rows, n_heads)
        self._factor = shape.pair_size / near.shape.pair_size
        self._exact = near.shape == shape

    def at(self, n_tokens: float) -> tuple[float, bool]:
        """Seconds of the first `n_tokens`, and whether such heads were measured there."""
        low, weight, scale, inside = self._at
        roots = [curve.at(n_tokens) for curve in self._roots]
        high = min(low + 1, len(roots) - 1)
        squares = [root * root for root, _ in roots]
        seconds = squares[low] * (1.0 - weight) + squares[high] * weight
        within = inside and self._exact and all(one for _, one in roots)
        return seconds * scale * self._factor, within


@dataclass(frozen=True, slots=True)
class PrefillTable:
    """Measured seconds of one layer's causal attention of a chunk, for one head shape.

    Args:
        grid: over (tokens of the chunk, keys that its first token attends to, itself included).
    """

    __pydantic_config__ = STRICT_KEYS

    n_heads: int
    n_kv_heads: int
    head_dim: int
    grid: Grid


@dataclass(frozen=True, slots=True)
class Prefill:
    """Costs of prefill that the matmul tables do not hold.

    Args:
        attention_flops_per_s: rate of causal attention of a chunk over everything before it.
        step_s: fixed cost of a step, independent of its tokens.
        eight_bit_speedup: matrix products with 8-bit weights against 16-bit ones.
        heads: attention that was measured over whole prompts, instead of its one rate.
        tables: attention that was measured chunk by chunk, instead of both.
        sparse: latent attention with an index, where it was measured.
    """

    __pydantic_config__ = STRICT_KEYS

    attention_flops_per_s: SourcedValue
    step_s: SourcedValue
    eight_bit_speedup: SourcedValue | None = None
    heads: tuple[QueryHeads, ...] = ()
    tables: tuple[PrefillTable, ...] = ()
    sparse: SparsePrefill | None = None

    def __post_init__(self) -> None:
        for figure in (self.attention_flops_per_s, self.eight_bit_speedup):
            if figure is not None and not figure.value > 0:
                raise BadInput(f"restore.prefill: a rate of {figure.value} must be above 0.")

    def attention(self, n_heads: int, shape: HeadShape) -> PromptAttention | None:
        """Times of causal attention over a whole prompt; None where nothing was measured.

        Of other heads the FLOP rate of the nearest is taken.
        """
        if not self.heads:
            return None
        near = min(
            self.heads,
            key=lambda one: (
                abs(log(one.shape.pair_size / shape.pair_size)),
                abs(log(one.head_dim / shape.head_dim)),
                abs(log(one.queries_per_kv / shape.queries_per_kv)),
            ),
        )
        return PromptAttention(near, n_heads, shape)


@dataclass(frozen=True, slots=True)
class Tier:
    """A place behind host memory, whose chunks arrive one after another at a rate.

    A host has one of each: its GPUs share the rate.

    A device that runs a plan reads a disk for which this was measured as fast as it can. A link,
    and a disk whose rate was given, are emulated by real copies and reads that keep this pace.

    Args:
        lane: `disk` or `net`.
        chunk_s: latency of each chunk.
    """

    __pydantic_config__ = STRICT_KEYS

    lane: str
    bytes_per_s: SourcedValue
    chunk_s: float = 0.0

    @property
    def paced_bytes_per_s(self) -> float | None:
        """The rate that a device emulates; None if it reads at full speed."""
        measured = self.lane == DISK and self.bytes_per_s.source == "measured"
        return None if measured else self.bytes_per_s.value

    def part_of(self, gpus: int) -> Tier:
        """What one of some GPUs gets that read it at the same time."""
        whole = self.bytes_per_s
        note = "; ".join(filter(None, (f"the part of one of {gpus} GPUs", whole.note)))
        return replace(self, bytes_per_s=SourcedValue(whole.source, whole.value / gpus, note))

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
    lookup_s: SourcedValue | None = None

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

    def shared_by(self, gpus: int) -> Restore:
        """This block as seen by one of some GPUs that read each tier at the same time."""
        return replace(self, tiers=tuple(one.part_of(gpus) for one in self.tiers))

    def with_tables_of(self, other: Restore) -> Restore:
        """This block with the attention tables of another block of the same machine."""
        if self.prefill is None or other.prefill is None:
            return replace(self, prefill=self.prefill or other.prefill)
        shapes = {
            (one.n_heads, one.n_kv_heads, one.head_dim): one
            for one in (*other.prefill.tables, *self.prefill.tables)
        }
        return replace(self, prefill=replace(self.prefill, tables=tuple(shapes.values())))

    def faster_attention(self, factor: float) -> Restore:
        """Attention `factor` times as fast, for what-if questions."""
        if self.prefill is None:
            return self
        rate = self.prefill.attention_flops_per_s
        prefill = replace(
            self.prefill,
            attention_flops_per_s=replace(rate, value=rate.value * factor),
            heads=tuple(
                replace(one, fan=one.fan.scaled(1.0 / factor)) for one in self.prefill.heads
            ),
            tables=tuple(
                replace(table, grid=table.grid.scaled(1.0 / factor))
                for table in self.prefill.tables
            ),
            sparse=self.prefill.sparse and self.prefill.sparse.scaled(1.0 / factor),
        )
        return replace(self, prefill=prefill)
