"""Device memory that several executors share, because they run one after another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

import torch
from torch import Tensor

from hw.backends import Backend

ALIGNMENT_BYTES = 512
"""Start of every buffer; what the allocators of GPUs keep to."""

Buffer = tuple[tuple[int, ...], torch.dtype]
"""Shape and dtype."""


def buffer_bytes(buffers: Iterable[Buffer]) -> int:
    """Bytes of an arena that holds these buffers at the same time."""
    return sum(_aligned(prod(shape) * dtype.itemsize) for shape, dtype in buffers)


class DeviceArena:
    """One block of device memory; every executor lays its buffers out from the start of it.

    A run overwrites what the run of another executor has left, so results must be read in between.

    Args:
        n_bytes: size of the block, `buffer_bytes` of the executor that needs most.
    """

    def __init__(self, backend: Backend, n_bytes: int) -> None:
        self._block = backend.device_empty((n_bytes,), torch.uint8)

    def layout(self) -> ArenaLayout:
        """A layout of the whole block for one more executor."""
        return ArenaLayout(self._block)


class ArenaLayout:
    """The buffers of one executor in an arena."""

    def __init__(self, block: Tensor) -> None:
        self._block = block
        self._used_bytes = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The next buffer, with whatever the block holds there.

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
