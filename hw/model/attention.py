"""Attention over K and V of each KV head: what a token caches, and how queries read it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hw.model.rope import Rotary
from hw.model.weights import Heads, Linear
from sim.model.spec import ModelSpec

OPEN_ROWS = 512
"""Tokens of a prompt whose scores are in memory at a time, where no fused kernel computes them."""


class HeadKernels:
    """Attention of MHA, GQA and MQA. A token caches [2, H_kv, D], its queries are [H, D].

    Args:
        max_tokens: positions per sequence that the rotary tables cover.
    """

    def __init__(self, model: ModelSpec, max_tokens: int, device: torch.device) -> None:
        self.model = model
        self._rotary = Rotary(model, max_tokens, device) if model.rotary else None
        self._scale, self._cap = model.arithmetic.attention_scale, model.arithmetic.attention_cap

    def cached(self, heads: Heads) -> Linear:
        """The projection of X to what a token caches, before `finish_kv`."""
        return heads.qkv.rows(self.model.q_size, None)

    def project(self, heads: Heads, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and what is cached, both unfinished; x: [n, h] -> [n, H D], [n, 2 H_kv D]."""
        fused = heads.qkv(x)
        return fused[:, : self.model.q_size], fused[:, self.model.q_size :]

    def queries(self, heads: Heads, x: Tensor) -> Tensor:
        """Queries alone, unfinished; x: [..., h] -> [..., H D]."""
        return heads.qkv.rows(0, self.model.q_size)(x)

    def finish_kv(self, heads: Heads, kv: Tensor, position: int) -> None:
        """Key norm and rotary embedding in place; kv: [S, B, 2, H_kv, D] from `position` on."""
        keys = kv[:, :, 0]
        if heads.k_norm is not None:
            keys.copy_(heads.k_norm.rms(keys, self.model.norm_eps))
        self.rotate(keys, position, heads.local)

    def finish_queries(self, heads: Heads, queries: Tensor, position: int) -> Tensor:
        """Query norm and rotary embedding; queries: [S, B, H D], may be overwritten.

        Returns:
            [S, B, H, D].
        """
        queries = queries.unflatten(-1, (-1, self.model.head_dim))
        if heads.q_norm is not None:
            queries = heads.q_norm.rms(queries, self.model.norm_eps)
        self.rotate(queries, position, heads.local)
        return queries

    def rotate(self, x: Tensor, position: int, local: bool = False) -> None:
        """Rotary embedding in place; arguments as of `Rotary.rotate`."""
        if self._rotary is not None:
            self._rotary.rotate(x, position, local)

    def step(self, heads: Heads, queries: Tensor, kv: Tensor) -> Tensor:
        """Attention of one new token over all keys; heads of a group share one pass over K and V.

        Args:
            queries: [B, H, D].
            kv: [S, B, 2, H_kv, D], the new token's row included.

        Returns:
            [B, H * D].
        """
        keys, values = kv[:, :, 0].permute(1, 2, 0, 3), kv[:, :, 1].permute(1, 2, 0, 3)
        grouped = queries.unflatten(1, (self.model.n_kv_heads, -1))  # [B, H_kv, H/H_kv, D]
        return self._mix(grouped, keys, values, None, self._sinks(heads, 1)).flatten(1)

    def chunk(self, heads: Heads, queries: Tensor, kv: Tensor, bias: Tensor | None) -> Tensor:
        """Attention of the last n tokens of a sequence over all S.

        Heads of a group share one pass over K and V.

        Args:
            queries: [n, H, D].
            kv: [S, 1, 2, H_kv, D], the tokens' own rows last.
            bias: [n, S], added to the scores; None if every token attends to all keys before it.

        Returns:
            [n, H * D].
        """
        n_tokens, n_kv_heads = queries.shape[0], self.model.n_kv_heads
        groups = queries.shape[1] // n_kv_heads
        keys, values = (kv[:, 0, part].transpose(0, 1)[None] for part in (0, 1))  # [1, H_kv, S, D]
        if bias is None:
            mixed = F.scaled_dot_product_attention(
                queries.transpose(0, 1)[None],
                keys,
                values,
                attn_mask=lower_right(n_tokens, kv.shape[0]),
                enable_gqa=groups > 1,
                scale=self._scale,
            )
            return mixed[0].transpose(0, 1).reshape(n_tokens, -1)
        grouped = queries.unflatten(1, (n_kv_heads, groups)).permute(1, 2, 0, 3)
        grouped = grouped.reshape(1, n_kv_heads, groups * n_tokens, -1)
        sinks = self._sinks(heads, n_tokens)
        mixed = self._mix(grouped, keys, values, bias.repeat(groups, 1), sinks)
        mixed = mixed.view(n_kv_heads, groups, n_tokens, -1).permute(2, 0, 1, 3)
        return mixed.reshape(n_tokens, -1)

    def whole(self, heads: Heads, queries: Tensor, kv: Tensor, window: int | None) -> Tensor:
        """Causal attention of whole prompts.

        Args:
            queries: [S, B, H, D].
            kv: [S, B, 2, H_kv, D].
            window: tokens that each token attends to at most, itself included.

        Returns:
            [B, S, H * D].
        """
        groups = self.model.n_heads // self.model.n_kv_heads
        keys, values = (
            kv[:, :, part].permute(1, 2, 0, 3).repeat_interleave(groups, dim=1) for part in (0, 1)
        )
        asked, n_tokens = queries.permute(1, 2, 0, 3), kv.shape[0]
        mask = window_mask(n_tokens, window, kv.device)
        if not self.model.arithmetic.open_scores:
            mixed = F.scaled_dot_product_attention(
                asked, keys, values, attn_mask=mask, is_causal=mask is None, scale=self._scale
            )
            return mixed.transpose(1, 2).flatten(2)
        bias = causal_bias(n_tokens, window, kv.device)
        sinks = None if heads.sinks is None else heads.sinks[:, None, None]
        parts = zip(asked.split(OPEN_ROWS, 2), bias.split(OPEN_ROWS), strict=True)
        mixed = torch.cat([self._mix(part, keys, values, rows, sinks) for part, rows in parts], 2)
        return mixed.transpose(1, 2).flatten(2)

    def _sinks(self, heads: Heads, n_tokens: int) -> Tensor | None:
        """[H_kv, H/H_kv n, 1], the sink of each query of grouped heads."""
        if heads.sinks is None:
            return None
        return heads.sinks.view(self.model.n_kv_heads, -1, 1).repeat_interleave(n_tokens, dim=1)

    def _mix(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        bias: Tensor | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """Attention of R queries over S keys.

        Args:
            queries: [B, H, R, D]; keys, values: [B, H, S, D].
            bias: [R, S].
            sinks: [H, R or 1, 1], a score whose part of the softmax mixes nothing in.
        """
        if not self.model.arithmetic.open_scores:
            return F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=bias, scale=self._scale
            )
        scale = queries.shape[-1] ** -0.5 if self._scale is None else self._scale
        scores = (queries @ keys.transpose(2, 3)).mul_(scale)
        if self._cap is not None:
            scores.div_(self._cap).tanh_().mul_(self._cap)
        scores = scores.float() if bias is None else scores.float().add_(bias)
        weights = scores.softmax(-1)
        if sinks is not None:
            weights.mul_((scores.logsumexp(-1, keepdim=True) - sinks).sigmoid_())
        return weights.to(values.dtype) @ values


def causal_bias(n_tokens: int, window: int | None, device: torch.device) -> Tensor:
    """[S, S], 0 where token i attends to token j and -inf elsewhere."""
    bias = torch.full((n_tokens, n_tokens), -math.inf, device=device)
    before = torch.full_like(bias, -math.inf).tril_(-(window or n_tokens))
    return bias.triu_(1).add_(before)


def window_mask(n_tokens: int, window: int | None, device: torch.device) -> Tensor | None:
    """[S, S], True where token i attends to token j: i - window < j <= i; None without a cut."""
    if window is None or window >= n_tokens:
        return None
    everything = torch.ones((n_tokens, n_tokens), dtype=torch.bool, device=device)
    return everything.tril().triu(1 - window)


def lower_right(n_queries: int, n_keys: int) -> Tensor:
    """The causal bias whose last query sees all keys.

    torch's own `causal_lower_right` allocates 8 * n_queries * n_keys bytes of host memory a call.
    """
    from torch.nn.attention.bias import CausalBias, CausalVariant  # 3 s: imports torch's compiler

    bias = torch.Tensor._make_subclass(CausalBias, torch.empty(0))
    CausalBias.__init__(bias, CausalVariant.LOWER_RIGHT, n_queries, n_keys)
    return bias
