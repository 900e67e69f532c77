"""Rows that the loads of a restore move: a layer with a window needs the end of the prefix only.

Once the prefix is restored, nothing attends to earlier tokens in such a layer. Its earlier I/O
chunks are left out of every load, and the last load stands for all tokens before the first chunk
that any layer needs: whoever has these chunks need not compute the tokens before them.

The state of a layer is that after the last cached token. Whoever loads any token of such a layer
loads its state as a whole, with the last chunk; only computing all cached tokens makes it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import NamedTuple

from sim.graph.jobs import RestoreRequest
from sim.model.attention import Attention
from sim.model.spec import ModelSpec


class LoadedRows(NamedTuple):
    """Tokens [start, stop) of each of `layers`."""

    layers: list[int]
    start: int
    stop: int

    @property
    def n_rows(self) -> int:
        return len(self.layers) * (self.stop - self.start)


class Loads:
    """What the loads of a request move.

    Attributes:
        firsts: first token of each layer that a load moves.
        first: first token that a load of all layers moves.
    """

    def __init__(self, model: ModelSpec, request: RestoreRequest) -> None:
        self._model, self._request = model, request
        self.firsts = tuple(request.first_loaded(model, layer) for layer in range(model.n_layers))
        self.first = min(self.firsts)
        seen: dict[Attention, int] = {}
        self._like = [seen.setdefault(one.attention, at) for at, one in enumerate(model.layers)]
        self._edges = sorted(set(self.firsts))
        self._moved: dict[tuple[int, int, int], tuple[list[int], Counter[int], int]] = {}

    def _moving(self, layer: int, layers: int, stop: int) -> tuple[list[int], Counter[int], int]:
        """Layers that a load up to `stop` moves, their number by kind, and its first token."""
        key = layer, layers, bisect_left(self._edges, stop)  # `stop` matters only at an edge
        if key not in self._moved:
            moved = [at for at in range(layer, layer + layers) if self.firsts[at] < stop]
            like = Counter(self._like[at] for at in moved)
            self._moved[key] = moved, like, min(self.firsts[layer : layer + layers])
        return self._moved[key]

    def rows(self, layer: int, layers: int, start: int, stop: int) -> LoadedRows:
        """Rows of a load of tokens [start, stop) in `layers` layers from `layer` on."""
        moved, _, first = self._moving(layer, layers, stop)
        return LoadedRows(moved, max(start, first), stop)

    def kv_bytes(self, layer: int, layers: int, start: int, stop: int) -> int:
        """Bytes of K and V, index keys and states of such a load."""
        _, like, first = self._moving(layer, layers, stop)
        start, model, request = max(start, first), self._model, self._request
        bits = n_bytes = 0
        for one, count in like.items():
            attention = model.layers[one].attention
            bits += count * request.layer_kv_bits(model, one, start, stop)
            n_bytes += count * attention.index_span_elements(start, stop)
            if stop == request.cached_tokens:
                n_bytes += count * attention.state_bytes(model.element_bytes)
        return max(1, bits // 8 + n_bytes) if model.layer_kinds else bits // 8
