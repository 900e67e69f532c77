"""The operations of a decoder layer, as torch calls on preallocated buffers.

K and V of one layer are token-major, `[S, B, 2, H_kv, D]`, so that a token range is one
contiguous copy and the K/V projection writes its output straight into place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hw.model.attention import attention_of
from hw.model.experts import routed
from hw.model.weights import (
    OPT_POSITION_OFFSET,
    TORCH_DTYPE,
    Experts,
    Layer,
    Linear,
    Mlp,
    Norm,
    Weights,
)
from sim.model.layers import Experts as ExpertSizes

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


class Kernels:
    """One model's operations with its rotary tables on its device.

    Args:
        max_tokens: positions per sequence that the rotary tables cover.

    Attributes:
        attend: the operations of its kind of attention.
    """

    def __init__(self, weights: Weights, max_tokens: int) -> None:
        self.weights = weights
        self.model = weights.model
        self.attend = attention_of(self.model, max_tokens, weights.device)
        how = self.model.arithmetic
        self._activation = ACTIVATIONS[how.activation]
        scale = torch.tensor(how.embedding_scale, dtype=TORCH_DTYPE[self.model.dtype])
        self._embedding_scale = float(scale)  # rounded as an embedding is
        ffns = [layer.ffn for layer in self.model.groups if isinstance(layer.ffn, ExpertSizes)]
        self._n_active = ffns[0].n_active if ffns else 0

    def embed(self, tokens: Tensor, position: int) -> Tensor:
        """tokens: [B, S] at positions from `position` -> hidden [B, S, h]."""
        hidden = F.embedding(tokens, self.weights.embed)
        if self._embedding_scale != 1.0:
            hidden = hidden * self._embedding_scale
        if self.weights.positions is not None:
            start = position + OPT_POSITION_OFFSET
            hidden = hidden + self.weights.positions[start : start + tokens.shape[1]]
        return hidden

    def norm(self, norm: Norm, x: Tensor) -> Tensor:
        """Layer norm or RMS norm over the last dimension."""
        if self.model.family == "opt":
            return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, self.model.norm_eps)
        return norm.rms(x, self.model.norm_eps)

    def project_kv(self, layer: Layer, x: Tensor, kv: Tensor, position: int) -> None:
        """Write K and V of attention inputs into `kv`.

        Args:
            x: [S, B, h], contiguous.
            kv: [S, B, 2, H_kv, D], contiguous, overwritten.
            position: position of the first of the S tokens.
        """
        rows = x.shape[0] * x.shape[1]
        linear_into(self.attend.cached(layer.attention), x.view(rows, -1), kv.view(rows, -1))
        self.attend.finish_kv(layer.attention, kv, position)

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
        queries, cached = self.attend.project(layer.attention, x_out)
        kv_row.view(hidden.shape[0], -1).copy_(cached)
        self.attend.finish_kv(layer.attention, kv_row, position)
        return self.attend.finish_queries(layer.attention, queries[None], position)[0]

    def attention(self, layer: Layer, hidden: Tensor, queries: Tensor, kv: Tensor) -> None:
        """Attention, output projection and residual; hidden: [B, h], updated in place."""
        self.add_attention(layer, self.attend.step(layer.attention, queries, kv), hidden)

    def add_attention(self, layer: Layer, mixed: Tensor, hidden: Tensor) -> None:
        """Output projection and residual; hidden is updated in place."""
        finished = self.attend.finish(layer.attention, mixed)
        self._add(layer.attention.out(finished), layer.attention_norm, hidden)

    def _add(self, made: Tensor, norm: Norm | None, hidden: Tensor) -> None:
        hidden.add_(made if norm is None else self.norm(norm, made))

    def mlp(self, layer: Layer, hidden: Tensor, follow: Tensor | None = None) -> Tensor | None:
        """Norm, MLP or experts, and residual; hidden: [..., h], updated in place.

        Args:
            follow: [..., k], experts that the tokens pass through, by default their own choice.

        Returns:
            The experts that they passed through, [..., k]; None of an MLP.
        """
        x, ffn = self.norm(layer.mlp_norm, hidden), layer.ffn
        chosen = None
        if isinstance(ffn, Experts):
            made, chosen = self._experts(ffn, x, follow)
        else:
            made = self._mlp(ffn, x)
        self._add(made, layer.ffn_norm, hidden)
        return chosen

    def _mlp(self, mlp: Mlp, x: Tensor) -> Tensor:
        up = mlp.up(x)
        inner = F.relu_(up) if mlp.gate is None else self._activation(mlp.gate(x)).mul_(up)
        return mlp.down(inner)

    def _experts(self, experts: Experts, x: Tensor, follow: Tensor | None) -> tuple[Tensor, Tensor]:
        rows, how = x.flatten(0, -2), self.model.arithmetic
        given = None if follow is None else follow.flatten(0, -2)
        mixed, numbers = routed(experts, rows, self._n_active, how, given)
        made, chosen = mixed.view(x.shape), numbers.view(*x.shape[:-1], -1)
        if experts.shared is None:
            return made, chosen
        shared = self._mlp(experts.shared, x)
        if experts.shared_gate is not None:
            shared.mul_(experts.shared_gate(x).sigmoid_())
        return made.add_(shared), chosen

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [B, h] -> [B, V]."""
        logits = F.linear(self.norm(self.weights.final_norm, hidden), self.weights.head)
        cap = self.model.arithmetic.logit_cap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)

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
        queries = self.attend.queries(layer.attention, x_out)
        queries = self.attend.finish_queries(layer.attention, queries, 0)
        self.add_attention(layer, self.attend.whole(layer.attention, queries, kv, window), hidden)


def linear_into(linear: Linear, x: Tensor, out: Tensor) -> None:
    """`out = x W^T + b` without a temporary; x: [m, in], out: [m, n]."""
    if linear.bias is None:
        torch.mm(x, linear.weight.t(), out=out)
    else:
        torch.addmm(linear.bias, x, linear.weight.t(), out=out)
