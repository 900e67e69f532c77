"""Where a cached prefix lies, and how parts of it come into host memory."""

from __future__ import annotations

from collections.abc import Iterable
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
    """What a tier could not give back: tokens [start, stop) of one layer, and why."""

    layer: int
    start: int
    stop: int
    why: str


class Tier(Protocol):
    """Brings parts of the prefix into host memory, where the link to the device begins."""

    @property
    def how(self) -> str:
        """How it reads, for who judges a measurement."""

    def bring(
        self, kind: str, layers: range, start: int, stop: int, slot: Tensor | None, move: Transfer
    ) -> tuple[list[Piece], list[Lost]]:
        """Tokens [start, stop) of `layers`, and which of them are lost.

        Args:
            slot: [n] bytes of host memory to bring them into; None where they are there already.
            move: paces what moves.
        """

    def slot_bytes(self, kind: str, layers: int, n_tokens: int) -> int:
        """Size of a slot that holds so many tokens, wherever they begin."""


class HostMemory:
    """Tier `dram`: K, V and X are in host memory that the copy lanes read."""

    how = "host memory"

    def __init__(self, cache: HostCache) -> None:
        self._held = {KV: cache.kv, X: cache.x}

    def slot_bytes(self, kind: str, layers: int, n_tokens: int) -> int:
        return layers * n_tokens * token_bytes(self._held[kind][0])

    def bring(
        self, kind: str, layers: range, start: int, stop: int, slot: Tensor | None, move: Transfer
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
    """Tier `net`: another machine's memory, behind a link that is emulated by its pace."""

    how = "paced copies within the host"


def token_bytes(held: Tensor) -> int:
    """Bytes of one token in a layer's tensor, token-major."""
    return prod(held.shape[1:]) * held.itemsize


def lost_tokens(recomputed: Iterable[Lost]) -> list[dict[str, object]]:
    """What was computed instead of loaded, as reports hold it: tokens, layers, and why."""
    ranges: dict[tuple[int, int, str], list[int]] = {}
    for one in recomputed:
        ranges.setdefault((one.start, one.stop, one.why), []).append(one.layer)
    return [
        {"tokens": [start, stop], "layers": sorted(layers), "why": why}
        for (start, stop, why), layers in sorted(ranges.items())
    ]
