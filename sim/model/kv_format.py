"""The layout of K and V in host memory: as the model computes them, or quantised in groups.

A group is `GROUP` consecutive elements of one head of K or of V; it has codes of 8 or 4 bits, and
one scale and one minimum of 16 bits each: `x = minimum + scale * code`. K and V of one token of one
sequence in one layer are a row of bytes, first all codes, then all scales, then all minimums. Rows
are stored in token order, so that any range of tokens is one contiguous copy.

Group-wise asymmetric quantisation of a cache: FlexGen, arXiv 2303.06865, section 4.3.
"""

from __future__ import annotations

from dataclasses import dataclass

from sim.errors import BadInput
from sim.model.attention import Attention, FullAttention
from sim.model.spec import ModelSpec

KV_BITS = (8, 4)
GROUP = 64
PARAMETER_BYTES = 2
"""Bytes of a scale, and of a minimum."""


@dataclass(frozen=True, slots=True)
class QuantisedRow:
    """K and V of one token of one sequence in one layer, quantised.

    Args:
        bits: of one code.
        n_values: elements of K and V together.
        group: elements that share a scale and a minimum.
    """

    bits: int
    n_values: int
    group: int

    @classmethod
    def of(cls, attention: Attention, bits: int) -> QuantisedRow:
        """The row of a layer; a head that `GROUP` does not divide is one group.

        Raises:
            BadInput: neither 8 nor 4 bits, or a layer without K and V of heads.
        """
        check_kv_bits(bits)
        if not isinstance(attention, FullAttention):
            raise BadInput(f"kv_bits(={bits}): {attention.text} attention has no K and V of heads.")
        group = attention.head_dim if attention.head_dim % GROUP else GROUP
        return cls(bits, attention.kv_size, group)

    @property
    def n_groups(self) -> int:
        return self.n_values // self.group

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes; an even number, so that the scales behind them are aligned."""
        n_bytes = self.n_values * self.bits // 8
        return n_bytes + n_bytes % PARAMETER_BYTES

    @property
    def bytes(self) -> int:
        """Codes, scales and minimums."""
        return self.code_bytes + 2 * self.n_groups * PARAMETER_BYTES


def check_kv_bits(bits: int | None) -> None:
    """Accept the widths of a code that exist.

    Raises:
        BadInput: neither None, 8 nor 4.
    """
    if bits is not None and (isinstance(bits, bool) or bits not in KV_BITS):
        raise BadInput(
            f"kv_bits(={bits!r}) must be 8 or 4; leave it out to keep K and V in the model's dtype."
        )


def host_row_bytes(model: ModelSpec, kv_bits: int | None, layer: int = 0) -> int:
    """Bytes of a cached row of one sequence in `layer`, in host memory."""
    if kv_bits is None or not model.loads_rows(layer):
        return model.row_bytes(layer)
    return QuantisedRow.of(model.layers[layer].attention, kv_bits).bytes
