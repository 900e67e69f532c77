"""Kinds of attention: what a token caches, and how queries read it.

Letters of latent attention as in `sim.model.spec`: r, d_n, d_r, d_v.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hw.model.rope import Rotary
from hw.model.weights import Heads, Latents, Linear
from sim.model.spec import ModelSpec

Part = TypeVar("Part")

LATENT_NORM_EPS = 1e-6
"""Of the norms of latents, whatever the config says of others; as in DeepSeek's own model."""

OPEN_ROWS = 512
"""Tokens of a prompt whose scores are in memory at a time, where no fused kernel computes them."""


class AttentionKernels(ABC, Generic[Part]):
    """Attention of one kind, over what the tokens of a sequence have cached.

    Args:
        max_tokens: positions per sequence that the rotary tables cover.
    """

    fused: ClassVar[bool] = True
    """Whether fused kernels of attention compute whole prompts."""

    def __init__(self, model: ModelSpec, max_tokens: int, device: torch.device) -> None:
        self.model = model
        self._rotary = Rotary(model, max_tokens, device) if model.rotary else None
        self._scale, self._cap = model.arithmetic.attention_scale, model.arithmetic.attention_cap

    @abstractmethod
    def cached(self, part: Part) -> Linear:
        """The projection of X to what a token caches, before `finish_kv`."""

    @abstractmethod
    def project(self, part: Part, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and what is cached, both unfinished; x: [n, h]."""

    @abstractmethod
    def queries(self, part: Part, x: Tensor) -> Tensor:
        """Queries alone, unfinished; x: [..., h]."""

    @abstractmethod
    def finish_kv(self, part: Part, kv: Tensor, position: int) -> None:
        """Norm and rotary embedding in place; kv: [S, B, ...] from `position` on."""

    @abstractmethod
    def finish_queries(self, part: Part, queries: Tensor, position: int) -> Tensor:
        """Norm and rotary embedding; queries: [S, B, ...], may be overwritten -> [S, B, H, D]."""

    @abstractmethod
    def keys_values(self, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Both [S, B, H_kv, elements], views of what is cached."""

    def finish(self, part: Part, mixed: Tensor) -> Tensor:  # noqa: ARG002
        """What the output projection reads of mixed values; [..., H * D]."""
        return mixed

    def sinks(self, part: Part) -> Tensor | None:  # noqa: ARG002
        """[H], or None."""
        return None

    def rotate(self, x: Tensor, position: int, local: bool = False) -> None:
        """Rotary embedding in place; arguments as of `Rotary.rotate`."""
        if self._rotary is not None:
            self._rotary.rotate(x, position, local)

    def step(self, part: Part, queries: Tensor, kv: Tensor) -> Tensor:
        """Attention of one new token over all keys; heads of a group share one pass over K and V.

        Args:
            queries: [B, H, D].
            kv: [S, B, ...], the new token's row included.

        Returns:
            [B, H * D].
        """
        keys, values = (one.permute(1, 2, 0, 3) for one in self.keys_values(kv))
        grouped = queries.unflatten(1, (self.model.n_kv_heads, -1))  # [B, H_kv, H/H_kv, D]
        return self._mix(grouped, keys, values, None, self._sinks(part, 1)).flatten(1)

    def chunk(self, part: Part, queries: Tensor, kv: Tensor, bias: Tensor | None) -> Tensor:
        """Attention of the last n tokens of a sequence over all S.

        Heads of a group share one pass over K and V.

        Args:
            queries: [n, H, D].
            kv: [S, 1, ...], the tokens' own rows last.
            bias: [n, S], added to the scores; None if every token attends to all keys before it.

        Returns:
            [n, H * D].
        """
        n_tokens, n_kv_heads = queries.shape[0], self.model.n_kv_heads
        groups = queries.shape[1] // n_kv_heads
        keys, values = (one[:, 0].transpose(0, 1)[None] for one in self.keys_values(kv))
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
        sinks = self._sinks(part, n_tokens)
        mixed = self._mix(grouped, keys, values, bias.repeat(groups, 1), sinks)
        mixed = mixed.view(n_kv_heads, groups, n_tokens, -1).permute(2, 0, 1, 3)
        return mixed.reshape(n_tokens, -1)

    def whole(self, part: Part, queries: Tensor, kv: Tensor, window: int | None) -> Tensor:
        """Causal attention of whole prompts.

        Args:
            queries: [S, B, H, D].
            kv: [S, B, ...].
            window: tokens that each token attends to at most, itself included.

        Returns:
            [B, S, H * D].
        """
        groups = self.model.n_heads // self.model.n_kv_heads
        keys, values = (
            one.permute(1, 2, 0, 3).repeat_interleave(groups, dim=1) for one in self.keys_values(kv)
        )
        asked, n_tokens = queries.permute(1, 2, 0, 3), kv.shape[0]
        mask = window_mask(n_tokens, window, kv.device)
        if self.fused and not self.model.arithmetic.open_scores:
            mixed = F.scaled_dot_product_attention(
                asked, keys, values, attn_mask=mask, is_causal=mask is None, scale=self._scale
            )
            return mixed.transpose(1, 2).flatten(2)
        bias = causal_bias(n_tokens, window, kv.device)
        sinks = self.sinks(part)
        sinks = None if sinks is None else sinks[:, None, None]
        parts = zip(asked.split(OPEN_ROWS, 2), bias.split(OPEN_ROWS), strict=True)
        mixed = torch.cat([self._mix(some, keys, values, rows, sinks) for some, rows in parts], 2)
        return mixed.transpose(1, 2).flatten(2)

    def _sinks(self, part: Part, n_tokens: int) -> Tensor | None:
        """[H_kv, H/H_kv n, 1], the sink of each query of grouped heads."""
        sinks = self.sinks(part)
        if sinks is None:
            return None
        return sinks.view(self.model.n_kv_heads, -1, 1).repeat_interleave(n_tokens, dim=1)

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


class HeadKernels(AttentionKernels[Heads]):
    """Attention of MHA, GQA and MQA. A token caches [2, H_kv, D], its queries are [H, D]."""

    def cached(self, part: Heads) -> Linear:
        return part.qkv.rows(self.model.q_size, None)

    def project(self, part: Heads, x: Tensor) -> tuple[Tensor, Tensor]:
        fused = part.qkv(x)
        return fused[:, : self.model.q_size], fused[:, self.model.q_size :]

    def queries(self, part: Heads, x: Tensor) -> Tensor:
        return part.qkv.rows(0, self.model.q_size)(x)

    def finish_kv(self, part: Heads, kv: Tensor, position: int) -> None:
        keys = kv[:, :, 0]
        if part.k_norm is not None:
            keys.copy_(part.k_norm.rms(keys, self.model.norm_eps))
        self.rotate(keys, position, part.local)

    def finish_queries(self, part: Heads, queries: Tensor, position: int) -> Tensor:
        queries = queries.unflatten(-1, (-1, self.model.head_dim))
        if part.q_norm is not None:
            queries = part.q_norm.rms(queries, self.model.norm_eps)
        self.rotate(queries, position, part.local)
        return queries

    def keys_values(self, kv: Tensor) -> tuple[Tensor, Tensor]:
        return kv[:, :, 0], kv[:, :, 1]

    def sinks(self, part: Heads) -> Tensor | None:
        return part.sinks


class LatentKernels(AttentionKernels[Latents]):
    """Latent attention (MLA). A token caches [1, 1, r + d_r], its queries are [H, r + d_r].

    K and V of a head are never built: a query is multiplied by the key half of the matrix that
    would build them, and the mixed latents by the value half. So all heads share one key, whose
    first r elements are the value.
    """

    fused = False

    def __init__(self, model: ModelSpec, max_tokens: int, device: torch.device) -> None:
        super().__init__(model, max_tokens, device)
        if model.mla is None:
            raise ValueError(f"{model.name} has no latent attention")
        self._sizes = model.mla
        if self._scale is None:
            self._scale = model.head_dim**-0.5  # of keys that are built

    def cached(self, part: Latents) -> Linear:
        return part.cached

    def project(self, part: Latents, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.queries(part, x), part.cached(x)

    def queries(self, part: Latents, x: Tensor) -> Tensor:
        if part.down is not None and part.down_norm is not None:
            x = part.down_norm.rms(part.down(x), LATENT_NORM_EPS)
        return part.asked(x)

    def finish_kv(self, part: Latents, kv: Tensor, position: int) -> None:
        rank = self._sizes.kv_lora_rank
        latents = kv[..., :rank]
        latents.copy_(part.cached_norm.rms(latents, LATENT_NORM_EPS))
        self.rotate(kv[:, :, 0, :, rank:], position)

    def finish_queries(self, part: Latents, queries: Tensor, position: int) -> Tensor:
        plain = self._sizes.qk_nope_head_dim
        queries = queries.unflatten(-1, (self.model.n_heads, -1))
        self.rotate(queries[..., plain:], position)
        absorbed = torch.einsum("sbhd,hdr->sbhr", queries[..., :plain], part.up[:, :plain])
        return torch.cat((absorbed, queries[..., plain:]), dim=-1)

    def keys_values(self, kv: Tensor) -> tuple[Tensor, Tensor]:
        return kv[:, :, 0], kv[:, :, 0, :, : self._sizes.kv_lora_rank]

    def finish(self, part: Latents, mixed: Tensor) -> Tensor:
        latents = mixed.unflatten(-1, (self.model.n_heads, -1))
        values = part.up[:, self._sizes.qk_nope_head_dim :]
        return torch.einsum("...hr,hdr->...hd", latents, values).flatten(-2)


def attention_of(model: ModelSpec, max_tokens: int, device: torch.device) -> AttentionKernels[Any]:
    """The kernels of the model's kind of attention."""
    kind = HeadKernels if model.mla is None else LatentKernels
    return kind(model, max_tokens, device)


def kv_shape(model: ModelSpec) -> tuple[int, int, int]:
    """What a token of one sequence caches in one layer: [2, H_kv, D], or [1, 1, r + d_r]."""
    if model.mla is not None:
        return 1, 1, model.kv_token_size
    return 2, model.n_kv_heads, model.head_dim


def query_shape(model: ModelSpec) -> tuple[int, int]:
    """Finished queries of a token, which have the size of a key."""
    return model.n_heads, kv_shape(model)[2]


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
