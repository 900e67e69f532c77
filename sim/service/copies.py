"""Bytes and times of the copies of cached blocks between GPU memory and the tiers."""

from __future__ import annotations

from collections import Counter

from sim.cost.restore import RestoreCosts
from sim.engine.sharing import capacity_bytes_per_s
from sim.graph.jobs import RestoreRequest
from sim.lanes import D2H, H2D
from sim.machine.profile import HardwareProfile
from sim.service.blocks import block_bytes


class CopyCosts:
    """Copies of one GPU's part of a model's K and V.

    Args:
        request: a restore with this service's chunks and bits of a cached value.
        with_x: X is stored with each block.
        speed: 0 for copies that take no time, else 1.
    """

    def __init__(
        self,
        costs: RestoreCosts,
        hardware: HardwareProfile,
        request: RestoreRequest,
        with_x: bool,
        speed: float,
    ) -> None:
        self._costs, self._hardware, self._request = costs, hardware, request
        self._with_x, self._speed = with_x, speed
        self.model = model = costs.model
        self._bits = request.kv_element_bits(model)
        self._row_bits = model.layers[0].attention.row_size * self._bits
        windows = [model.window(layer) for layer in range(model.n_layers)]
        self._alike = not model.layer_kinds and not any(windows)
        kinds = [*zip(model.layers, windows, strict=True)]
        self._counts = [*Counter(kinds).values()]
        self._examples = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
        self._firsts: dict[int, tuple[int, ...]] = {}
        self._known: dict[tuple[str, int, int], float] = {}

    def _first(self, cached: int) -> tuple[int, ...]:
        """First of `cached` tokens that each kind of layer still needs, at a chunk's start."""
        if cached not in self._firsts:
            size = self._request.io_chunk_tokens
            request = RestoreRequest(
                prompt_tokens=cached + 1, cached_tokens=cached, io_chunk_tokens=size
            )
            firsts = (request.first_loaded(self.model, layer) for layer in self._examples)
            self._firsts[cached] = tuple(firsts)
        return self._firsts[cached]

    def first_needed(self, cached: int) -> int:
        """First of `cached` tokens that any layer still needs."""
        return 0 if self._alike else min(self._first(cached))

    def chunk(self, start: int, stop: int, cached: int) -> tuple[int, int]:
        """Bytes, and number of layers, of a load of [start, stop) of `cached` tokens."""
        model = self.model
        if self._alike:
            return model.n_layers * (stop - start) * self._row_bits // 8, model.n_layers
        firsts = self._first(cached)
        start = max(start, min(firsts))
        bits = others = layers = 0
        for layer, count, first in zip(self._examples, self._counts, firsts, strict=True):
            if first >= stop:
                continue
            layers += count
            one = model.layers[layer].attention
            bits += count * one.span_elements(start, stop, cached) * self._bits
            others += count * one.index_span_elements(start, stop)
            if stop == cached:
                others += count * one.state_bytes(model.element_bytes)
        if not model.layer_kinds:
            return bits // 8, layers
        return max(1, bits // 8 + others), layers

    def load_s(self, lane: str, n_bytes: int, layers: int) -> float:
        """Time of one copy of a chunk on a lane towards the GPU."""
        key = (lane, n_bytes, layers)
        if key not in self._known:
            seconds = self._costs.copy_s(lane, n_bytes)
            if lane == H2D:
                seconds = self._costs.link_copy(lane, n_bytes, layers).seconds
                rates = [capacity_bytes_per_s(one, lane) for one in self._hardware.uplinks]
                seconds = max([seconds, *(n_bytes / rate for rate in rates)])
            self._known[key] = self._speed * seconds
        return self._known[key]

    def block_bytes(self, block_tokens: int) -> int:
        """Bytes of one block of one GPU, as cached outside GPU memory."""
        bits = self._request.tier_kv_bits
        all_gpus = block_bytes(self.model, block_tokens, bits, self._with_x)
        return all_gpus // self.model.tensor_parallel

    def store_s(self, block_tokens: int) -> float:
        """Time to copy one block from GPU memory to the host."""
        return self._speed * self._costs.copy_s(D2H, self.block_bytes(block_tokens))

    def swap_s(self, block_tokens: int) -> float:
        """Time to copy K and V of one block of a preempted request to the host."""
        kv_bytes = block_bytes(self.model, block_tokens, self._request.tier_kv_bits)
        one_gpu = kv_bytes // self.model.tensor_parallel
        return self._speed * self._costs.copy_s(D2H, one_gpu)

    def spill_s(self, lane: str, block_tokens: int) -> float:
        """Time to write one block to the tier of a lane, at the rate it is read with."""
        return self._speed * self._costs.copy_s(lane, self.block_bytes(block_tokens))
