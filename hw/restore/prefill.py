"""Prefill in chunks: tokens of one sequence through the layers, each over all before it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hw.kernels import Kernels
from hw.weights import TORCH_DTYPE, Weights
from sim.model_spec import ModelSpec


def causal_bias(
    model: ModelSpec, start: int, n_tokens: int, device: torch.device, window: int | None = None
) -> Tensor:
    """[n, start + n], what is added to scores: 0 where token start + i sees key j, else -inf.

    Args:
        window: tokens that each token attends to at most, itself included.
    """
    shape = (n_tokens, start + n_tokens)
    bias = torch.full(shape, -math.inf, dtype=TORCH_DTYPE[model.dtype], device=device)
    bias.triu_(start + 1)
    if window is not None and window < start + n_tokens:
        bias += torch.full_like(bias, -math.inf).tril_(start - window)
    return bias


def attend_chunk(queries: Tensor, kv: Tensor, bias: Tensor) -> Tensor:
    """Attention of some tokens over all before them and themselves.

    Heads of a group share one pass over K and V.

    Args:
        queries: [n, H, D].
        kv: [S, 1, 2, H_kv, D], the tokens' own rows last.
        bias: [n, S], added to the scores.

    Returns:
        [n, H * D].
    """
    n_tokens, n_kv_heads = queries.shape[0], kv.shape[3]
    groups = queries.shape[1] // n_kv_heads
    keys, values = (kv[:, 0, part].transpose(0, 1)[None] for part in (0, 1))  # [1, H_kv, S, D]
    grouped = queries.unflatten(1, (n_kv_heads, groups)).permute(1, 2, 0, 3)
    mixed = F.scaled_dot_product_attention(
        grouped.reshape(1, n_kv_heads, groups * n_tokens, -1),
        keys,
        values,
        attn_mask=bias.repeat(groups, 1),
    )
    mixed = mixed.view(n_kv_heads, groups, n_tokens, -1).permute(2, 0, 1, 3)
    return mixed.reshape(n_tokens, -1)


class ChunkPrefill:
    """Makes K and V of tokens from their ids, or from the hidden state an earlier layer left.

    Args:
        prompt: [S] token ids, on the device.
        kv: for each layer [S, 1, 2, H_kv, D]; rows of tokens before a chunk are read, its own
            are written.
    """

    def __init__(self, weights: Weights, prompt: Tensor, kv: list[Tensor]) -> None:
        self.model = weights.model
        self.prompt = prompt
        self.kv = kv
        self._kernels = Kernels(weights, prompt.shape[0])
        shape = (prompt.shape[0], self.model.hidden_size)
        self.hidden = torch.empty(shape, dtype=TORCH_DTYPE[self.model.dtype], device=prompt.device)

    def run(self, start: int, stop: int, layers: range) -> None:
        """Tokens [start, stop) through `layers`; what they come to is kept in `hidden`."""
        hidden = self.hidden[start:stop]
        if layers.start == 0:
            hidden.copy_(self._kernels.embed(self.prompt[None, start:stop], start)[0])
        biases: dict[int | None, Tensor] = {}
        for number in layers:
            window = self.model.window(number)
            if window not in biases:
                biases[window] = causal_bias(self.model, start, stop - start, hidden.device, window)
            self._layer(number, hidden, start, biases[window])

    def _layer(self, number: int, hidden: Tensor, start: int, bias: Tensor) -> None:
        """hidden: [n, h], updated in place."""
        kernels, model = self._kernels, self.model
        layer, n_tokens = kernels.weights.layers[number], hidden.shape[0]
        x = kernels.norm(layer.input_norm, hidden)
        fused = F.linear(x, layer.qkv.weight, layer.qkv.bias)
        own = self.kv[number][start : start + n_tokens]
        own.view(n_tokens, -1).copy_(fused[:, model.q_size :])
        kernels.finish_keys(layer, own[:, :, 0], start)
        queries = fused[:, None, : model.q_size].unflatten(-1, (-1, model.head_dim))
        queries = kernels.finish_queries(layer, queries, start)[:, 0]
        mixed = attend_chunk(queries, self.kv[number][: start + n_tokens], bias)
        hidden.add_(F.linear(mixed, layer.out.weight, layer.out.bias))
        kernels.mlp(layer, hidden)

    def project(self, number: int, start: int, x: Tensor) -> None:
        """K and V of one layer from attention inputs; x: [n, 1, h] of tokens from `start` on."""
        own = self.kv[number][start : start + x.shape[0]]
        self._kernels.project_kv(self._kernels.weights.layers[number], x, own, start)

    def logits(self) -> Tensor:
        """[1, V] behind the last token."""
        return self._kernels.logits(self.hidden[-1:])
