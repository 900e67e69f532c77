"""Quantising K and V into rows of bytes and back, as torch calls on preallocated buffers.

K and V of one layer are token-major, `kv: [S, B, 2, H_kv, D]` in the model's dtype; quantised,
`rows: [S, B, row bytes]` of uint8, as `sim/model/kv_format.py` lays them out. A byte holds one code
of 8 bits, or two of 4: K's in the low half, V's of the same place in the high half.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sim.model.kv_format import QuantisedRow

HALF_BITS = 4
LOW_HALF = 2**HALF_BITS - 1
WIDER_FRAC = 2**-10
"""By how much minimum and scale are moved so that rounding them to 16 bits clips no code."""

SMALLEST_SCALE = 2**-24
"""Smallest positive number of 16 bits; the scale of a group whose elements are all equal."""


def quantise_into(kv: Tensor, rows: Tensor, row: QuantisedRow) -> None:
    """Overwrite `rows` with K and V; both on one device.

    The minimum is rounded down and the scale up, so that every code is within its range and no
    element moves by more than half a scale. Elements must be within the range of float16.

    Args:
        kv: [S, B, 2, H_kv, D], contiguous.
        rows: [S, B, row bytes], overwritten.
    """
    codes, scales, minimums = _parts(rows, row)
    groups = kv.view(*kv.shape[:2], row.n_groups, row.group).float()
    low, high = groups.aminmax(dim=-1)  # [S, B, groups]
    minimums.copy_(low.sub_(low.abs(), alpha=WIDER_FRAC))
    high.sub_(minimums).mul_((1 + WIDER_FRAC) / (2**row.bits - 1)).add_(SMALLEST_SCALE)
    scales.copy_(high)
    values = groups.sub(minimums[..., None]).div_(scales[..., None]).round_().flatten(-2)
    if row.bits == HALF_BITS:
        keys, others = values.chunk(2, dim=-1)
        values = keys.add_(others, alpha=2**HALF_BITS)
    codes.copy_(values)


def dequantise_into(rows: Tensor, kv: Tensor, row: QuantisedRow) -> None:
    """Overwrite `kv` with the values of `rows`; both on one device.

    Args:
        rows: [S, B, row bytes].
        kv: [S, B, 2, H_kv, D], contiguous, overwritten.
    """
    codes, scales, minimums = _parts(rows, row)
    values = kv.view(*kv.shape[:2], row.n_values)
    if row.bits == HALF_BITS:
        keys, others = values.chunk(2, dim=-1)
        keys.copy_(codes.bitwise_and(LOW_HALF))  # CUDA has no bitwise kernel with a float output
        others.copy_(codes.bitwise_right_shift(HALF_BITS))
    else:
        values.copy_(codes)
    groups = kv.view(*kv.shape[:2], row.n_groups, row.group)
    groups.mul_(scales[..., None]).add_(minimums[..., None])


def nearest_original(kv: Tensor, rows: Tensor, row: QuantisedRow) -> Tensor:
    """The values nearest to `kv` among all that quantise to `rows`.

    Args:
        kv: [S, B, 2, H_kv, D].
        rows: [S, B, row bytes].

    Returns:
        [S, B, 2, H_kv, D] in 32 bit; NaN where a row holds no numbers.
    """
    restored = torch.empty_like(kv, dtype=torch.float32)
    dequantise_into(rows, restored, row)
    half = _parts(rows, row)[1].float()[..., None] / 2
    half = half.expand(*half.shape[:-1], row.group).reshape(kv.shape)
    return torch.clamp(kv.float(), restored - half, restored + half)


def _parts(rows: Tensor, row: QuantisedRow) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [S, B, code bytes], scales and minimums [S, B, groups], all views of `rows`."""
    used = row.n_values * row.bits // 8
    behind = rows[..., row.code_bytes :].view(torch.float16)
    return rows[..., :used], behind[..., : row.n_groups], behind[..., row.n_groups :]
