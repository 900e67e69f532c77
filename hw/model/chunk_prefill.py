"""Prefill of one sequence in chunks, each of which attends to all tokens before it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hw.model.attention import lower_right
from hw.model.kernels import Kernels
from hw.model.weights import TORCH_DTYPE, Weights
from sim.model.spec import ModelSpec


def chunk_bias(
    model: ModelSpec,
    start: int,
    n_tokens: int,
    device: torch.device,
    window: int | None = None,
    explicit: bool = False,
) -> Tensor | None:
    """Bias of scores, [n, start + n]: 0 where token start + i attends to key j, else -inf.

    None on a GPU if the tokens attend to all keys before them, because its attention kernels are
    several times as fast without a bias. Scores with a cap or sinks, and latents,
    for which it has none, need one.

    Args:
        window: largest number of tokens that each token attends to, itself included.
        explicit: return the bias in that case too.
    """
    cut = window is not None and window < start + n_tokens
    explicit = explicit or model.arithmetic.open_scores or model.mla is not None
    if device.type != "cpu" and not cut and not explicit:
        return None
    shape = (n_tokens, start + n_tokens)
    bias = torch.full(shape, -math.inf, dtype=TORCH_DTYPE[model.dtype], device=device)
    bias.triu_(start + 1)
    if window is not None and cut:
        bias += torch.full_like(bias, -math.inf).tril_(start - window)
    return bias


class ChunkPrefill:
    """Computes K and V of tokens from their ids, or from their hidden state after earlier layers.

    If other requests share the steps, copies of this request's tokens stand in for theirs: they go
    through the same matmuls and attend to as many keys, and their results are dropped.

    Args:
        prompt: [S] token ids, on the device.
        kv: for each layer [S, 1, 2, H_kv, D]; a chunk reads the rows that the layer's window lets
            it attend to, and writes its own.
        n_others: tokens of other requests in a step.
        share: fraction of the device that this request gets.
        chosen: for each layer [S, k], experts that the tokens pass through instead of their own
            choice.
    """

    def __init__(
        self,
        weights: Weights,
        prompt: Tensor,
        kv: list[Tensor],
        n_others: int = 0,
        share: float = 1.0,
        chosen: Sequence[Tensor | None] | None = None,
    ) -> None:
        self.model = weights.model
        self.prompt = prompt
        self.kv = kv
        self.n_others, self._share = n_others, share
        self._chosen = chosen
        self._kernels = Kernels(weights, max(prompt.shape[0], self.n_others))
        if prompt.device.type != "cpu":
            lower_right(1, 1)  # its first call imports for seconds: not in a timed step
        shape = (prompt.shape[0], self.model.hidden_size)
        self.hidden = torch.empty(shape, dtype=TORCH_DTYPE[self.model.dtype], device=prompt.device)

    def run(self, start: int, stop: int, layers: range) -> None:
        """Compute tokens [start, stop) in `layers`; `hidden` holds their state after the last."""
        own = self.hidden[start:stop]
        if layers.start == 0:
            own.copy_(self._kernels.embed(self.prompt[None, start:stop], start)[0])
        hidden = self._with_others(own, self.n_others)
        biases: dict[int | None, Tensor | None] = {}
        for number in layers:
            window, first = self.model.window(number), self.model.first_token(number, start)
            if window not in biases:
                bias = chunk_bias(
                    self.model,
                    start - first,
                    stop - start,
                    hidden.device,
                    window,
                    self.n_others > 0,
                )
                biases[window] = bias if bias is None else F.pad(bias, (0, 0, 0, self.n_others))
            self._layer(
                number, hidden, start, stop - start, self.kv[number][first:stop], biases[window]
            )
        if self.n_others:
            own.copy_(hidden[: stop - start])

    def _with_others(self, own: Tensor, n_others: int) -> Tensor:
        """The tokens' rows and then those of others, [n + others, h]; own: [n, h]."""
        if not n_others:
            return own
        others = own[torch.arange(n_others, device=own.device) % own.shape[0]]
        return torch.cat((own, others))

    def _layer(
        self,
        number: int,
        hidden: Tensor,
        start: int,
        n_tokens: int,
        kv: Tensor,
        bias: Tensor | None,
    ) -> None:
        """Run one layer on hidden, [n + others, h], in place; its first n rows begin at `start`.

        Args:
            kv: [S, 1, 2, H_kv, D], of the tokens that the n attend to, whose own rows come last.
        """
        kernels = self._kernels
        layer = kernels.weights.layers[number]
        part, attend = layer.attention, kernels.attend
        asked, cached = attend.project(part, kernels.norm(layer.input_norm, hidden))
        own = kv[-n_tokens:]
        own.view(n_tokens, -1).copy_(cached[:n_tokens])
        attend.finish_kv(part, own, start)
        queries = attend.finish_queries(part, asked[:n_tokens, None], start)[:, 0]
        if self.n_others:
            others = attend.finish_queries(part, asked[n_tokens:, None], 0)[:, 0]
            queries = torch.cat((queries, others))
        kernels.add_attention(layer, attend.chunk(part, queries, kv, bias), hidden)
        given = None if self._chosen is None else self._chosen[number]
        if given is not None:
            given = self._with_others(given[start : start + n_tokens], self.n_others)
        kernels.mlp(layer, hidden, given)

    def project(self, number: int, start: int, x: Tensor) -> None:
        """K and V of one layer from attention inputs; x: [n, 1, h] of tokens from `start` on."""
        own = self.kv[number][start : start + x.shape[0]]
        layer = self._kernels.weights.layers[number]
        self._kernels.project_kv(layer, x, own, start)
        n_others = self._others_with(x.shape[0])
        if n_others:
            others = self._with_others(x[:, 0], n_others)[x.shape[0] :]
            self._kernels.attend.cached(layer.attention)(others)

    def logits(self) -> Tensor:
        """[1, V] behind the last token."""
        last = self.hidden[-1:]
        return self._kernels.logits(self._with_others(last, self._others_with(1)))[:1]

    def _others_with(self, n_tokens: int) -> int:
        """Tokens of others that the device computes in the same time as `n_tokens`."""
        return round(n_tokens / self._share) - n_tokens
