"""Storage tiers of a cached prefix, and reads from them into host memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

from torch import Tensor

from hw.backends.pacing import Transfer
from hw.cache.host import HostCache

KV, X = "kv", "x"


@dataclass(frozen=True, slots=True)
class Piece:
    """K and V, [n, 1, 2, H_kv, D], or X, [n, 1, h], of tokens [start, stop) of one layer."""

    layer: int
    start: int
    stop: int
    rows: Tensor


@dataclass(frozen=True, slots=True)
class Lost:
    """Tokens [start, stop) of one layer that a tier could not return, and the reason."""

    layer: int
    start: int
    stop: int
    why: str


class Tier(Protocol):
    """Reads ranges of the prefix into host memory, from where the link copies them."""

    @property
    def how(self) -> str:
        """How it reads, as a report states it."""

    def bring(
        self,
        kind: str,
        layers: Sequence[int],
        start: int,
        stop: int,
        slot: Tensor | None,
        move: Transfer,
    ) -> tuple[list[Piece], list[Lost]]:
        """Read K and V, or X, of tokens [start, stop) of `layers` into host memory.

        Args:
            kind: `kv` or `x`.
            slot: [n] bytes of host memory to read into; None if the link can read the tier itself.
            move: the transfer that paces the read.

        Returns:
            The rows that were read, a `Piece` for each layer (and each chunk of a file), and the
            ranges that the tier could not return, which the caller recomputes.
        """

    def slot_bytes(self, kind: str, layers: int, n_tokens: int) -> int:
        """Size of a slot for `n_tokens`, at any first token."""


class HostMemory:
    """Tier `dram`: K, V and X are in host memory that the copy lanes can read."""

    how = "host memory"

    def __init__(self, cache: HostCache) -> None:
        self._held = {KV: cache.kv, X: cache.x}

    def slot_bytes(self, kind: str, layers: int, n_tokens: int) -> int:
        return layers * n_tokens * token_bytes(self._held[kind][0])

    def bring(
        self,
        kind: str,
        layers: Sequence[int],
        start: int,
        stop: int,
        slot: Tensor | None,
        move: Transfer,
    ) -> tuple[list[Piece], list[Lost]]:
        held = self._held[kind]
        pieces = [Piece(layer, start, stop, held[layer][start:stop]) for layer in layers]
        if slot is None:
            return pieces, []
        at, brought = 0, []
        for piece in pieces:
            n_bytes = piece.rows.numel() * piece.rows.itemsize
            rows = slot[at : at + n_bytes].view(piece.rows.dtype).view(piece.rows.shape)
            rows.copy_(piece.rows)
            move.passed(n_bytes)
            brought.append(Piece(piece.layer, start, stop, rows))
            at += n_bytes
        return brought, []


class FarMemory(HostMemory):
    """Tier `net`: another machine's memory, emulated by paced copies."""

    how = "paced copies within the host"


def token_bytes(held: Tensor) -> int:
    """Bytes of one token in a layer's tensor, token-major."""
    return prod(held.shape[1:]) * held.itemsize


def lost_tokens(recomputed: Iterable[Lost]) -> list[dict[str, object]]:
    """Ranges computed because the tier had lost them: tokens, layers and reason, for reports."""
    ranges: dict[tuple[int, int, str], list[int]] = {}
    for one in recomputed:
        ranges.setdefault((one.start, one.stop, one.why), []).append(one.layer)
    return [
        {"tokens": [start, stop], "layers": sorted(layers), "why": why}
        for (start, stop, why), layers in sorted(ranges.items())
    ]
