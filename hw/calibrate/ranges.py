"""The sizes that a profile samples on each kind of device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim.model.kv_format import KV_BITS
from sim.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class SampledRanges:
    """Sizes that `profile_device` samples.

    Args:
        max_batch: largest batch of a decode step.
        max_rows: largest `batch * tokens` of a recomputation.
        contexts: keys of decode attention, rising.
        copy_bytes: sizes of copies over the links and within the host, rising.
        kv_bits: quantised caches whose kernels are sampled.
        restores: also sample chunked prefill and the disk.
    """

    max_batch: int
    max_rows: int
    contexts: Sequence[int]
    copy_bytes: Sequence[int]
    kv_bits: Sequence[int] = KV_BITS
    restores: bool = True

    @property
    def batches(self) -> list[int]:
        """Powers of two up to `max_batch`."""
        return [2**power for power in range(self.max_batch.bit_length())]

    def contexts_of(self, model: ModelSpec) -> list[int]:
        """The contexts that a decode of `model` can reach."""
        return [context for context in self.contexts if context <= model.max_positions + 1]


SAMPLED = {
    "cpu": SampledRanges(
        max_batch=8,
        max_rows=4096,
        contexts=(64, 256, 512, 1024, 2048),
        copy_bytes=[4**power for power in range(5, 14)],
    ),
    "cuda": SampledRanges(
        max_batch=32,
        max_rows=32768,
        contexts=(65, 257, 513, 769, 1025, 1537, 2049),
        copy_bytes=[4**power for power in range(5, 16)],
    ),
}
"""Ranges by kind of device. Copies are of 1 KiB to 64 MiB on a CPU and to 1 GiB on a GPU, whose
attention works in tiles of 64 keys: a decode attends to its prompt and the new token."""
