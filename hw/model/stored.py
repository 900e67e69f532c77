"""Weights stored in FP8 or MXFP4, as the numbers that they stand for.

FP8: a product of one byte an element and a scale for a tensor, a row, or a block of a matrix.
MXFP4 (OCP Microscaling Formats, v1.0): two elements a byte, and an exponent for 32 elements.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sim.errors import Mismatch

BLOCKS, EXPONENTS = "_blocks", "_scales"
"""Ends of the names of a tensor in MXFP4 and of its exponents; both are bytes."""

SCALES = ("weight_scale_inv", "weight_scale")
"""Names of the scale of a `weight` in FP8, by which it is multiplied."""

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitudes of an element of 4 bits; its highest bit is the sign."""

EXPONENT_BIAS = 127

Read = Callable[[str], Tensor | None]
"""The tensor of a name as it is stored, or None."""

Block = tuple[int, int]


def plain(name: str, read: Read, block: Block | None) -> Tensor | None:
    """The tensor of a name, dequantised if it is stored in fewer bits; None if absent.

    Args:
        block: rows and columns that share a scale, for FP8 with scales of two dimensions.

    Raises:
        Mismatch: there is no scale, or of another shape.
    """
    tensor = read(name)
    if tensor is None:
        packed = read(f"{name}{BLOCKS}")
        if packed is None:
            return None
        exponents = read(f"{name}{EXPONENTS}")
        if exponents is None or exponents.shape != packed.shape[:-1]:
            raise Mismatch(
                f"tensor {name + BLOCKS!r} has no exponents {name + EXPONENTS!r} of its shape; "
                "download all of the weight files."
            )
        return from_mxfp4(packed, exponents).mT  # stored by output, read as [in, out]
    if tensor.dtype not in (torch.float8_e4m3fn, torch.float8_e5m2):
        return tensor
    names = [name.removesuffix("weight") + one for one in SCALES]
    scale = next((found for one in names if (found := read(one)) is not None), None)
    if scale is None:
        raise Mismatch(
            f"tensor {name!r} is in FP8 and has no scale {names[0]!r}; download all of the weight "
            "files."
        )
    return from_fp8(name, tensor, scale, block)


def from_fp8(name: str, codes: Tensor, scale: Tensor, block: Block | None) -> Tensor:
    """[n, k] in 32 bit.

    Args:
        scale: of all, [n, 1] of each row, or [n / rows, k / columns] of each block, rounded up.
    """
    n, k = codes.shape
    if scale.numel() > 1 and scale.shape != (n, 1):
        rows, columns = block or (0, 0)
        if not rows or scale.shape != (-(-n // rows), -(-k // columns)):
            raise Mismatch(
                f"the scale of {name!r} has shape {tuple(scale.shape)}, which does not fit "
                f"{tuple(codes.shape)} in blocks of {block} (weight_block_size); use the "
                "config.json of these weights."
            )
        scale = scale.repeat_interleave(rows, 0)[:n].repeat_interleave(columns, 1)[:, :k]
    return codes.float() * (scale.float() if scale.numel() > 1 else scale.float().reshape(()))


def from_mxfp4(packed: Tensor, exponents: Tensor) -> Tensor:
    """[..., 32 g] in 32 bit; packed: [..., g, 16] bytes, lower half first, exponents: [..., g]."""
    values = torch.tensor([*E2M1, *(-one for one in E2M1)], device=packed.device)
    out = torch.empty((*packed.shape[:-1], 32), device=packed.device)
    for one, bytes_, powers in zip(out, packed, exponents, strict=True):  # bounds the memory
        codes = torch.stack((bytes_ & 0xF, bytes_ >> 4), dim=-1).flatten(-2)
        scale = torch.exp2(powers.float() - EXPONENT_BIAS)
        torch.mul(values[codes.int()], scale[..., None], out=one)
    return out.flatten(-2)
