"""Attention over K and V of each KV head: what a token caches, and how queries read it."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hw.model.rope import Rotary
from hw.model.weights import Heads, Linear, Norm
from sim.model.spec import ModelSpec


class HeadKernels:
    """Attention of MHA, GQA and MQA. A token caches [2, H_kv, D], its queries are [H, D].

    Args:
        max_tokens: positions per sequence that the rotary tables cover.
    """

    def __init__(self, model: ModelSpec, max_tokens: int, device: torch.device) -> None:
        self.model = model
        self._rotary = Rotary(model, max_tokens, device) if model.rotary else None

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
            keys.copy_(self._norm(heads.k_norm, keys))
        self.rotate(keys, position)

    def finish_queries(self, heads: Heads, queries: Tensor, position: int) -> Tensor:
        """Query norm and rotary embedding; queries: [S, B, H D], may be overwritten.

        Returns:
            [S, B, H, D].
        """
        queries = queries.unflatten(-1, (-1, self.model.head_dim))
        if heads.q_norm is not None:
            queries = self._norm(heads.q_norm, queries)
        self.rotate(queries, position)
        return queries

    def rotate(self, x: Tensor, position: int) -> None:
        """Rotary embedding in place; x: [S, B, heads, D] at positions from `position`."""
        if self._rotary is not None:
            self._rotary.rotate(x, position)

    def _norm(self, norm: Norm, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], norm.weight, self.model.norm_eps)

    def step(self, queries: Tensor, kv: Tensor) -> Tensor:
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

    def chunk(self, queries: Tensor, kv: Tensor, bias: Tensor | None) -> Tensor:
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
            )
            return mixed[0].transpose(0, 1).reshape(n_tokens, -1)
        grouped = queries.unflatten(1, (n_kv_heads, groups)).permute(1, 2, 0, 3)
        mixed = F.scaled_dot_product_attention(
            grouped.reshape(1, n_kv_heads, groups * n_tokens, -1),
            keys,
            values,
            attn_mask=bias.repeat(groups, 1),
        )
        mixed = mixed.view(n_kv_heads, groups, n_tokens, -1).permute(2, 0, 1, 3)
        return mixed.reshape(n_tokens, -1)

    def whole(self, queries: Tensor, kv: Tensor, window: int | None) -> Tensor:
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
        mask = window_mask(kv.shape[0], window, kv.device)
        mixed = F.scaled_dot_product_attention(
            queries.permute(1, 2, 0, 3), keys, values, attn_mask=mask, is_causal=mask is None
        )
        return mixed.transpose(1, 2).flatten(2)


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
