"""The operations of a decoder layer, as torch calls on preallocated buffers.

K and V of one layer are token-major, `[S, B, 2, H_kv, D]`, so that a token range is one
contiguous copy and the K/V projection writes its output straight into place.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hw.model.weights import OPT_POSITION_OFFSET, TORCH_DTYPE, Layer, Linear, Norm, Weights
from sim.model.spec import Llama3RopeScaling, ModelSpec


class Kernels:
    """One model's operations with its rotary tables on its device.

    Args:
        max_tokens: positions per sequence that the rotary tables cover.
    """

    def __init__(self, weights: Weights, max_tokens: int) -> None:
        self.weights = weights
        self.model = weights.model
        self._cos: Tensor | None = None
        self._sin: Tensor | None = None
        if self.model.rotary:
            self._cos, self._sin = rotary_tables(self.model, max_tokens, weights.device)

    def embed(self, tokens: Tensor, position: int) -> Tensor:
        """tokens: [B, S] at positions from `position` -> hidden [B, S, h]."""
        hidden = F.embedding(tokens, self.weights.embed)
        if self.weights.positions is not None:
            start = position + OPT_POSITION_OFFSET
            hidden = hidden + self.weights.positions[start : start + tokens.shape[1]]
        return hidden

    def norm(self, norm: Norm, x: Tensor) -> Tensor:
        """Layer norm or RMS norm over the last dimension."""
        if self.model.family == "opt":
            return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, self.model.norm_eps)
        return F.rms_norm(x, x.shape[-1:], norm.weight, self.model.norm_eps)

    def project_kv(self, layer: Layer, x: Tensor, kv: Tensor, position: int) -> None:
        """Write K and V of attention inputs into `kv`.

        Args:
            x: [S, B, h], contiguous.
            kv: [S, B, 2, H_kv, D], contiguous, overwritten.
            position: position of the first of the S tokens.
        """
        rows = x.shape[0] * x.shape[1]
        kv_rows = Linear(
            layer.qkv.weight[self.model.q_size :],
            None if layer.qkv.bias is None else layer.qkv.bias[self.model.q_size :],
        )
        linear_into(kv_rows, x.view(rows, -1), kv.view(rows, -1))
        self.finish_keys(layer, kv[:, :, 0], position)

    def finish_keys(self, layer: Layer, keys: Tensor, position: int) -> None:
        """Key norm and rotary embedding in place; keys: [S, B, H_kv, D]."""
        if layer.k_norm is not None:
            keys.copy_(self.norm(layer.k_norm, keys))
        self.rotate(keys, position)

    def rotate(self, x: Tensor, position: int) -> None:
        """Rotary embedding in place; x: [S, B, heads, D] at positions from `position`."""
        if self._cos is None or self._sin is None:
            return
        cos = self._cos[position : position + x.shape[0], None, None]
        sin = self._sin[position : position + x.shape[0], None, None]
        half = x.shape[-1] // 2
        turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
        x.mul_(cos).add_(turned.mul_(sin))

    def qkv(
        self, layer: Layer, hidden: Tensor, kv_row: Tensor, x_out: Tensor, position: int
    ) -> Tensor:
        """Project one new token of every sequence.

        Args:
            hidden: [B, h].
            kv_row: [1, B, 2, H_kv, D], the new token's place in the KV slot, overwritten.
            x_out: [B, h], receives the attention input X.

        Returns:
            Queries, [B, H, D].
        """
        x_out.copy_(self.norm(layer.input_norm, hidden))
        fused = F.linear(x_out, layer.qkv.weight, layer.qkv.bias)
        queries = fused[:, : self.model.q_size].unflatten(-1, (-1, self.model.head_dim))
        kv_row.view(hidden.shape[0], -1).copy_(fused[:, self.model.q_size :])
        self.finish_keys(layer, kv_row[:, :, 0], position)
        return self.finish_queries(layer, queries[None], position)[0]

    def finish_queries(self, layer: Layer, queries: Tensor, position: int) -> Tensor:
        """Query norm and rotary embedding; queries: [S, B, H, D], may be overwritten."""
        if layer.q_norm is not None:
            queries = self.norm(layer.q_norm, queries)
        self.rotate(queries, position)
        return queries

    def attend(self, queries: Tensor, kv: Tensor) -> Tensor:
        """Attention of one new token over all keys; heads of a group share one pass over K and V.

        Args:
            queries: [B, H, D].
            kv: [S, B, 2, H_kv, D], the new token's row included.

        Returns:
            [B, H * D].
        """
        keys, values = kv[:, :, 0].permute(1, 2, 0, 3), kv[:, :, 1].permute(1, 2, 0, 3)
        grouped = queries.unflatten(1, (self.model.n_kv_heads, -1))  # [B, H_kv, H/H_kv, D]
        return F.scaled_dot_product_attention(grouped, keys, values).flatten(1)

    def attention(self, layer: Layer, hidden: Tensor, queries: Tensor, kv: Tensor) -> None:
        """Attention, output projection and residual; hidden: [B, h], updated in place."""
        hidden.add_(F.linear(self.attend(queries, kv), layer.out.weight, layer.out.bias))

    def mlp(self, layer: Layer, hidden: Tensor) -> None:
        """Norm, MLP and residual; hidden: [..., h], updated in place."""
        x = self.norm(layer.mlp_norm, hidden)
        up = F.linear(x, layer.up.weight, layer.up.bias)
        if layer.gate is None:
            inner = F.relu_(up)
        else:
            inner = F.silu(F.linear(x, layer.gate.weight, layer.gate.bias)).mul_(up)
        hidden.add_(F.linear(inner, layer.down.weight, layer.down.bias))

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [B, h] -> [B, V]."""
        return F.linear(self.norm(self.weights.final_norm, hidden), self.weights.head)

    def causal_attention(
        self, layer: Layer, hidden: Tensor, kv: Tensor, x_out: Tensor, window: int | None = None
    ) -> None:
        """Prefill attention of whole prompts, with residual.

        Args:
            hidden: [B, S, h], updated in place.
            kv: [S, B, 2, H_kv, D], receives K and V.
            x_out: [S, B, h], receives the attention inputs X.
            window: tokens that each token attends to at most, itself included.
        """
        x_out.copy_(self.norm(layer.input_norm, hidden).transpose(0, 1))
        self.project_kv(layer, x_out, kv, 0)
        bias = None if layer.qkv.bias is None else layer.qkv.bias[: self.model.q_size]
        queries = F.linear(x_out, layer.qkv.weight[: self.model.q_size], bias)
        queries = queries.unflatten(-1, (-1, self.model.head_dim))  # [S, B, H, D]
        queries = self.finish_queries(layer, queries, 0).permute(1, 2, 0, 3)
        groups = self.model.n_heads // self.model.n_kv_heads
        keys, values = (
            kv[:, :, part].permute(1, 2, 0, 3).repeat_interleave(groups, dim=1) for part in (0, 1)
        )
        mask = window_mask(kv.shape[0], window, kv.device)
        mixed = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=mask is None
        )
        mixed = mixed.transpose(1, 2).flatten(2)  # [B, S, H * D]
        hidden.add_(F.linear(mixed, layer.out.weight, layer.out.bias))


def window_mask(n_tokens: int, window: int | None, device: torch.device) -> Tensor | None:
    """[S, S], True where token i attends to token j: i - window < j <= i; None without a cut."""
    if window is None or window >= n_tokens:
        return None
    everything = torch.ones((n_tokens, n_tokens), dtype=torch.bool, device=device)
    return everything.tril().triu(1 - window)


def linear_into(linear: Linear, x: Tensor, out: Tensor) -> None:
    """`out = x W^T + b` without a temporary; x: [m, in], out: [m, n]."""
    if linear.bias is None:
        torch.mm(x, linear.weight.t(), out=out)
    else:
        torch.addmm(linear.bias, x, linear.weight.t(), out=out)


def rotary_tables(model: ModelSpec, max_tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [max_tokens, D], halves repeated, computed in 32 bit."""
    exponents = torch.arange(0, model.head_dim, 2, dtype=torch.float32, device=device)
    frequencies = model.rope_theta ** -(exponents / model.head_dim)
    if model.rope_scaling is not None:
        frequencies = _llama3_frequencies(frequencies, model.rope_scaling)
    angles = torch.outer(torch.arange(max_tokens, device=device).float(), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    dtype = TORCH_DTYPE[model.dtype]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _llama3_frequencies(frequencies: Tensor, scaling: Llama3RopeScaling) -> Tensor:
    """Long wavelengths are stretched by `factor`, short ones unchanged, those between blended."""
    wavelength = 2 * math.pi / frequencies
    cold = scaling.original_max_positions / wavelength
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    blend = ((cold - low) / (high - low)).clamp(0.0, 1.0)
    return frequencies * (blend + (1.0 - blend) / scaling.factor)
