"""Predicted time of decode attention, of an index that chooses keys, and of states."""

from __future__ import annotations

from math import log

from sim.cost.estimate import Estimate
from sim.machine.profile import HardwareProfile
from sim.machine.provenance import weakest
from sim.model.attention import FullAttention
from sim.model.kernels import (
    INDEX_BITS,
    DecodeAttention,
    IndexedAttention,
    IndexScores,
    StateUpdate,
)

CHUNKED_FRAC = 0.12
"""Part of the rate of matrix products at which the tokens of a prompt enter a state.

Gated delta of Qwen3.5-27B, 2,048 tokens on an H200: 106.8 us (`gdn_perf` of aiconfigurator-core
0.12.0, vLLM 0.24.0), where the products alone would take 12.8 us.
"""


class AttentionCosts:
    """Times of attention kernels on one machine.

    Args:
        element_bytes: of an element of K, V or a latent in device memory.
    """

    def __init__(self, hardware: HardwareProfile, element_bytes: int) -> None:
        self._costs = hardware.attention
        self._gemm = hardware.gemm
        self._element_bytes = element_bytes
        self._tables = {
            (table.n_heads, table.n_kv_heads, table.head_dim): table
            for table in hardware.attention.tables
        }

    def estimate(self, kernel: DecodeAttention) -> Estimate:
        """Time of one kernel; rows of other sizes go at the rate of the nearest measured ones."""
        costs, one = self._costs, kernel.attention
        if isinstance(one, FullAttention):
            same_values = one.v_head_dim in (None, one.head_dim)
            table = self._tables.get((one.n_heads, one.n_kv_heads, one.head_dim))
            if table is not None and same_values:
                seconds, inside = table.grid.at(kernel.batch, kernel.rows)
                return Estimate(seconds, costs.source, inside)
            if costs.heads:
                return self._of_heads(kernel, one)
        elif costs.latent:
            return self._of_latents(kernel)
        n_bytes = kernel.batch * kernel.rows * one.row_size * self._element_bytes
        source = weakest(costs.source, "fitted") if costs.tables else costs.source
        seconds = n_bytes / costs.bytes_per_s
        if not isinstance(one, FullAttention):  # all heads share a row: arithmetic may take longer
            seconds = max(seconds, kernel.flops / self._gemm.flops_per_s)
        return Estimate(seconds, source, not costs.tables)

    def _of_latents(self, kernel: DecodeAttention) -> Estimate:
        """By the table of the nearest number of heads, in proportion to a row's size."""
        costs, one = self._costs, kernel.attention
        n_heads = getattr(one, "n_heads", 1)
        near = min(costs.latent, key=lambda table: abs(log(table.n_heads / n_heads)))
        seconds, inside = near.fan.at(kernel.batch, kernel.rows)
        same = (near.n_heads, near.latent_size) == (n_heads, one.row_size)
        source = costs.source if same else weakest(costs.source, "fitted")
        return Estimate(seconds * one.row_size / near.latent_size, source, same and inside)

    def indexed(self, kernel: IndexedAttention) -> Estimate | None:
        """By the table of the nearest numbers of heads; None where rows or keys are others."""
        one, index = kernel.attention, kernel.attention.index
        if index is None:
            return None
        known = [table for table in self._costs.sparse if table.index.reads_like(one, index)]
        if not known:
            return None
        heads = one.n_heads, index.n_heads
        near = min(
            known,
            key=lambda table: (
                abs(log(table.n_heads / heads[0])) + abs(log(table.index.n_heads / heads[1]))
            ),
        )
        seconds, inside = near.fan.at(kernel.batch, kernel.keys)
        same = (near.n_heads, near.index.n_heads) == heads
        source = self._costs.source if same else weakest(self._costs.source, "fitted")
        return Estimate(seconds, source, same and inside)

    def _of_heads(self, kernel: DecodeAttention, one: FullAttention) -> Estimate:
        """By the KV heads of all sequences."""
        costs = self._costs
        near = min(costs.heads, key=lambda table: abs(log(table.head_dim / one.head_dim)))
        seconds, inside = near.fan.at(kernel.batch * one.n_kv_heads, kernel.rows)
        row_size = 2 * one.n_kv_heads * near.head_dim
        if row_size == one.row_size:
            return Estimate(seconds, costs.source, inside)
        scaled_s = seconds * one.row_size / row_size
        return Estimate(scaled_s, weakest(costs.source, "fitted"), False)

    def state(self, kernel: StateUpdate) -> Estimate:
        """By the table of the nearest shape of the same rule, in proportion to the states' size."""
        one, costs = kernel.state, self._costs
        shape = (one.n_key_heads, one.key_head_dim, one.n_value_heads, one.value_head_dim)
        wanted = (*shape, one.state_bits)
        work = kernel.sequences, kernel.rows / kernel.sequences
        known = [
            (table, found)
            for table in costs.states
            if table.rule == one.rule and (found := table.seconds(*work)) is not None
        ]
        if not known:
            return self.without_table(kernel)
        near, (seconds, inside) = min(
            known,
            key=lambda pair: sum(
                abs(log(a / b)) for a, b in zip(pair[0].shape, wanted, strict=True)
            ),
        )
        if near.shape == wanted:
            return Estimate(seconds, costs.source, inside)
        scaled_s = seconds * one.state_size * one.state_bits / near.bits
        return Estimate(scaled_s, weakest(costs.source, "fitted"), False)

    def without_table(self, kernel: IndexScores | StateUpdate) -> Estimate:
        """The longer of the bytes at the rate of attention and of the FLOPs."""
        rate = self._gemm.rate(INDEX_BITS)
        if isinstance(kernel, StateUpdate):
            rate = self._gemm.flops_per_s * (CHUNKED_FRAC if kernel.chunked else 1.0)
        seconds = max(kernel.bytes / self._costs.bytes_per_s, kernel.flops / rate)
        return Estimate(seconds, weakest(self._costs.source, "fitted"), False)
