"""Device memory shared by executors that run one after another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

import torch
from torch import Tensor

from hw.backends import Backend

ALIGNMENT_BYTES = 512
"""Alignment of every buffer, as in GPU allocators."""

Buffer = tuple[tuple[int, ...], torch.dtype]
"""Shape and dtype."""


def buffer_bytes(buffers: Iterable[Buffer]) -> int:
    """Size of an arena that holds all these buffers."""
    return sum(_aligned(prod(shape) * dtype.itemsize) for shape, dtype in buffers)


class DeviceArena:
    """One block of device memory, in which every executor places its buffers from the start.

    A run overwrites the results of other executors, so read results before the next run.

    Args:
        n_bytes: size of the block: the largest `buffer_bytes` of its executors.
    """

    def __init__(self, backend: Backend, n_bytes: int) -> None:
        self._block = backend.device_empty((n_bytes,), torch.uint8)

    def layout(self) -> ArenaLayout:
        """A new layout of the whole block, for one executor."""
        return ArenaLayout(self._block)


class ArenaLayout:
    """The buffers of one executor in an arena."""

    def __init__(self, block: Tensor) -> None:
        self._block = block
        self._used_bytes = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The next buffer, uninitialised.

        Raises:
            ValueError: the block is full.
        """
        n_bytes = prod(shape) * dtype.itemsize
        start = self._used_bytes
        self._used_bytes += _aligned(n_bytes)
        if start + n_bytes > self._block.numel():
            raise ValueError(
                f"an arena of {self._block.numel()} bytes has no room for {n_bytes} from {start}"
            )
        return self._block[start : start + n_bytes].view(dtype).view(tuple(shape))


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
