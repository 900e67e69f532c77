"""The sizes that a profile samples on each kind of device."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sim.graph.jobs import Workload
from sim.model.kv_format import KV_BITS
from sim.model.spec import ModelSpec

CONSECUTIVE_ROWS = 8
"""Kernels for a few rows change at many sizes, so every number of rows up to here is sampled."""


@dataclass(frozen=True, slots=True)
class SampledRanges:
    """Sizes that `profile_device` samples.

    Args:
        max_batch: largest batch of a decode step, rounded down to a power of two.
        max_rows: largest `batch * tokens` of a recomputation.
        contexts: keys of decode attention, rising.
        copy_bytes: sizes of copies over the links and within the host, rising.
        kv_bits: quantised caches whose kernels are sampled.
        restores: also sample chunked prefill and the disk.
        min_batch: smallest batch of a decode step, a power of two.
        exact_batches: the batches that jobs use, if they are known; no others are decoded then.
    """

    max_batch: int
    max_rows: int
    contexts: Sequence[int]
    copy_bytes: Sequence[int]
    kv_bits: Sequence[int] = KV_BITS
    restores: bool = True
    min_batch: int = 1
    exact_batches: Sequence[int] = ()

    @property
    def batches(self) -> list[int]:
        """Powers of two from `min_batch` to `max_batch`."""
        powers = range(self.min_batch.bit_length() - 1, self.max_batch.bit_length())
        return [2**power for power in powers]

    @property
    def decoded_rows(self) -> list[int]:
        """Batches whose matmuls are sampled."""
        return list(self.exact_batches) or self._rows_of_batches()

    @property
    def recomputed_rows(self) -> list[int]:
        """Rows of the recomputations that are sampled, up to `max_rows`."""
        powers = {2**power for power in range(4, self.max_rows.bit_length())}
        between = {3 * 2**power for power in range(7, 14)}
        rows = {*self.decoded_rows, self.max_rows, *powers, *between}
        return sorted(m for m in rows if m <= self.max_rows)

    def _rows_of_batches(self) -> list[int]:
        batches = self.batches
        return sorted(
            {*range(batches[0], min(CONSECUTIVE_ROWS, batches[-1]) + 1), *batches}
            | {3 * batch // 2 for batch in batches if CONSECUTIVE_ROWS <= batch < batches[-1]}
        )

    def for_decodes(self, model: ModelSpec, jobs: Sequence[Workload]) -> SampledRanges:
        """The part of these ranges that decodes of `jobs` use, with the sizes just around it."""
        batches = [job.batch_size for job in jobs]
        tokens = max(job.max_tokens for job in jobs)
        rows = max(job.batch_size * job.max_tokens for job in jobs)
        copied = rows * model.kv_token_bytes
        if any(job.n_batches > 1 for job in jobs):
            copied = max(copied, model.layer_weight_bytes)
        fewest = min(job.prompt_tokens for job in jobs)
        return replace(
            self,
            min_batch=min(_power_of_two(min(batches) // 2 + 1), self.max_batch),
            max_batch=min(_power_of_two(max(batches)), self.max_batch),
            max_rows=next(m for m in self.recomputed_rows if m >= min(rows, self.max_rows)),
            contexts=_around(self.contexts, fewest, tokens),
            copy_bytes=_around(self.copy_bytes, 1, copied),
            exact_batches=sorted(set(batches)),
        )

    def contexts_of(self, model: ModelSpec) -> list[int]:
        """The contexts that a decode of `model` can reach."""
        return [context for context in self.contexts if context <= model.max_positions + 1]


def _power_of_two(least: int) -> int:
    """The smallest power of two that is at least `least`."""
    return 2 ** (least - 1).bit_length()


def _around(sizes: Sequence[int], low: int, high: int) -> Sequence[int]:
    """The rising sizes from `low` to `high`, with one below and one above."""
    return sizes[max(0, bisect_right(sizes, low) - 1) : bisect_left(sizes, high) + 1]


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
