"""Rotary positions: tables of cosines and sines, and the rotation of heads by them."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from hw.model.weights import TORCH_DTYPE
from sim.model.arithmetic import Yarn
from sim.model.spec import Llama3RopeScaling, ModelSpec


class Rotary:
    """Rotates heads of one size by their positions.

    Args:
        max_tokens: positions that the tables cover.
    """

    def __init__(self, model: ModelSpec, max_tokens: int, device: torch.device) -> None:
        self._tables = self._local = rotary_tables(model, max_tokens, device)
        theta = model.arithmetic.local_rope_theta
        if theta is not None:
            local = replace(model, rope_theta=theta, rope_scaling=None)
            self._local = rotary_tables(local, max_tokens, device)

    def rotate(self, x: Tensor, position: int, local: bool = False) -> None:
        """Rotate in place; x: [S, B, heads, D] at positions from `position`.

        Args:
            local: by the base of layers with a window.
        """
        cos, sin = (
            table[position : position + x.shape[0], None, None]
            for table in (self._local if local else self._tables)
        )
        half = x.shape[-1] // 2
        turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
        x.mul_(cos).add_(turned.mul_(sin))


def rotary_tables(model: ModelSpec, max_tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [max_tokens, D], halves repeated, computed in 32 bit."""
    size = model.head_dim if model.mla is None else model.mla.qk_rope_head_dim
    exponents = torch.arange(0, size, 2, dtype=torch.float32, device=device)
    frequencies = model.rope_theta ** -(exponents / size)
    if model.rope_scaling is not None:
        frequencies = _llama3_frequencies(frequencies, model.rope_scaling)
    yarn, magnitude = model.arithmetic.yarn, 1.0
    if yarn is not None:
        frequencies, magnitude = _yarn_frequencies(frequencies, yarn, model), yarn.magnitude
    angles = torch.outer(torch.arange(max_tokens, device=device).float(), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    dtype = TORCH_DTYPE[model.dtype]
    return (angles.cos() * magnitude).to(dtype), (angles.sin() * magnitude).to(dtype)


def _llama3_frequencies(frequencies: Tensor, scaling: Llama3RopeScaling) -> Tensor:
    """Long wavelengths are stretched by `factor`, short ones unchanged, those between blended."""
    wavelength = 2 * math.pi / frequencies
    cold = scaling.original_max_positions / wavelength
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    blend = ((cold - low) / (high - low)).clamp(0.0, 1.0)
    return frequencies * (blend + (1.0 - blend) / scaling.factor)


def _yarn_frequencies(frequencies: Tensor, yarn: Yarn, model: ModelSpec) -> Tensor:
    """Slow frequencies are divided by `factor`, fast ones unchanged, with a ramp between them.

    The ramp is over dimensions: that of a frequency which makes `turns` turns within the original
    positions P is `D ln(P / 2 pi turns) / 2 ln theta`.
    """
    size = 2 * frequencies.shape[0]

    def dimension(turns: float) -> float:
        wavelengths = yarn.original_max_positions / (turns * 2 * math.pi)
        return size * math.log(wavelengths) / (2 * math.log(model.rope_theta))

    low, high = dimension(yarn.fast), dimension(yarn.slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    steps = torch.arange(size // 2, dtype=torch.float32, device=frequencies.device) - low
    ramp = (steps / (high - low if high > low else 1e-3)).clamp(0.0, 1.0)
    return frequencies * (ramp / yarn.factor + 1.0 - ramp)
