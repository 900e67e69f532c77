"""The KV cache and attention inputs in host memory, and the two ways to fill and check it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hw.backends import Backend
from hw.kernels import Kernels
from hw.weights import TORCH_DTYPE, Weights
from sim.errors import Mismatch
from sim.memory import layer_rows
from sim.model_spec import ModelSpec
from sim.workload import Workload

PREFILL_TOKENS = 4096
"""Prompt tokens that go through a layer together; bounds the activations' memory."""


MOST_SLOTS = 2
"""Staging slots that a graph may have; as many layers are kept whole for comparison."""


@dataclass(slots=True)
class HostCache:
    """K, V and X of the past tokens, in host memory, token-major.

    A layer with a sliding window holds only the tokens that decode steps attend to.

    Args:
        kv: for each layer [S, B, 2, H_kv, D].
        x: for each layer [S, B, h], the inputs of the K/V projection.
        first_tokens: for each layer the token of its first row.
        next_tokens: [B], what the prompt's last position predicts; the first decode step's input.
    """

    kv: list[Tensor]
    x: list[Tensor]
    first_tokens: list[int]
    next_tokens: Tensor

    @classmethod
    def empty(
        cls, model: ModelSpec, workload: Workload, backend: Backend, pageable: bool = False
    ) -> HostCache:
        """A cache to fill.

        Args:
            pageable: K and V lie in memory that no copy lane can read, for graphs that stage them.
        """
        dtype, layers = TORCH_DTYPE[model.dtype], range(model.n_layers)
        rows = [(layer_rows(model, workload, layer), workload.batch_size) for layer in layers]
        head = (2, model.n_kv_heads, model.head_dim)
        return cls(
            kv=[
                torch.empty((*shape, *head), dtype=dtype)
                if pageable
                else backend.host_empty((*shape, *head), dtype)
                for shape in rows
            ],
            x=[backend.host_empty((*shape, model.hidden_size), dtype) for shape in rows],
            first_tokens=[model.first_token(layer, workload.prompt_tokens) for layer in layers],
            next_tokens=torch.zeros(workload.batch_size, dtype=torch.int64),
        )

    def take_prefix(self, longer: HostCache, prompt_tokens: int, first: int = 0) -> None:
        """Fill from a cache of the same prompts (or more, or longer ones).

        K, V and X of a token depend on nothing behind it and on no other sequence. The next tokens
        are those of the longer prompts: any token serves as the first step's input.

        Args:
            first: the first sequence to take.

        Raises:
            Mismatch: the windows of the longer prompts have left other tokens behind.
        """
        if self.first_tokens != longer.first_tokens:
            raise Mismatch(
                f"windows of the longer prompts have left other tokens behind; prefill the prompts "
                f"of {prompt_tokens} tokens by themselves."
            )
        taken = slice(first, first + self.next_tokens.shape[0])
        starts = [*self.first_tokens, *self.first_tokens]
        for mine, theirs, start in zip(
            [*self.kv, *self.x], [*longer.kv, *longer.x], starts, strict=True
        ):
            rows = slice(prompt_tokens - start)
            mine[rows].copy_(theirs[rows, taken])
        self.next_tokens.copy_(longer.next_tokens[taken])


def prompt_ids(model: ModelSpec, workload: Workload, seed: int) -> Tensor:
    """Seeded random prompts of all batches, [n_batches * B, S]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (workload.n_batches * workload.batch_size, workload.prompt_tokens)
    return torch.randint(0, model.vocab_size, shape, generator=generator)


def prefilled_caches(
    weights: Weights, workload: Workload, seed: int, backend: Backend, pageable: bool = False
) -> list[HostCache]:
    """For each batch a cache of its seeded random prompts; `pageable` as in `HostCache.empty`."""
    caches = []
    for prompts in prompt_ids(weights.model, workload, seed).split(workload.batch_size):
        caches.append(HostCache.empty(weights.model, workload, backend, pageable))
        prefill(weights, prompts, caches[-1])
    return caches


@torch.inference_mode()
def prefill(weights: Weights, prompts: Tensor, cache: HostCache) -> None:
    """Run the prompts through the model and store K, V, X and the predicted next tokens.

    Args:
        prompts: [B, S] token ids.
    """
    n_sequences, n_tokens = prompts.shape
    kernels = Kernels(weights, n_tokens)
    model, device = weights.model, weights.device
    together = max(1, PREFILL_TOKENS // n_tokens)
    for first in range(0, n_sequences, together):
        part = slice(first, min(first + together, n_sequences))
        hidden = kernels.embed(prompts[part].to(device), 0)  # [B, S, h]
        shape = (n_tokens, hidden.shape[0])
        kv = hidden.new_empty((*shape, 2, model.n_kv_heads, model.head_dim))
        x = hidden.new_empty((*shape, model.hidden_size))
        for number, layer in enumerate(weights.layers):
            kernels.causal_attention(layer, hidden, kv, x, model.window(number))
            kernels.mlp(layer, hidden)
            start = cache.first_tokens[number]
            cache.kv[number][: n_tokens - start, part].copy_(kv[start:])
            cache.x[number][: n_tokens - start, part].copy_(x[start:])
        cache.next_tokens[part] = kernels.logits(hidden[:, -1]).argmax(dim=-1).cpu()


@dataclass(slots=True)
class ResidentDecode:
    """What a decode without any offloading computes.

    Args:
        tokens: [steps, B], the token that each step predicts.
        margins: [steps, B], how far the best logit led the second, relative to the largest.
        logits: [B, V] of the last step.
        new_kv: for each layer [steps, B, 2, H_kv, D], the tokens decoded.
        last_kv: by layer, [S, B, 2, H_kv, D], the tokens that the last step attends to, of the
            layers that staging slots hold at the end of a run.
    """

    tokens: Tensor
    margins: Tensor
    logits: Tensor
    new_kv: list[Tensor]
    last_kv: dict[int, Tensor]


@torch.inference_mode()
def resident_decode(weights: Weights, cache: HostCache, workload: Workload) -> ResidentDecode:
    """Decode greedily on the full KV cache, layer by layer: the reference for any plan.

    Nothing is recomputed, split or overlapped. Each layer's cache is put together on the device
    while the layer runs; the host cache stays as it is.
    """
    kernels = Kernels(weights, workload.max_tokens)
    model, device, prompt = weights.model, weights.device, workload.prompt_tokens
    batch, steps = workload.batch_size, workload.gen_tokens
    kv_shape = (batch, 2, model.n_kv_heads, model.head_dim)
    new_kv = [layer_kv.new_empty((steps, *kv_shape)) for layer_kv in cache.kv]
    layer_kv = torch.empty((workload.max_tokens, *kv_shape), dtype=cache.kv[0].dtype, device=device)
    x = torch.empty_like(cache.x[0][0], device=device)
    tokens = torch.empty((steps, batch), dtype=torch.int64)
    margins = torch.empty((steps, batch))
    current, logits = cache.next_tokens.to(device), torch.empty(0)
    for step in range(steps):
        past = workload.context_tokens(step)
        hidden = kernels.embed(current[:, None], past)[:, 0]
        for number, layer in enumerate(weights.layers):
            start, held = model.first_token(number, past), cache.first_tokens[number]
            layer_kv[held:prompt].copy_(cache.kv[number][: prompt - held])
            layer_kv[prompt:past].copy_(new_kv[number][:step])
            queries = kernels.qkv(layer, hidden, layer_kv[past : past + 1], x, past)
            kernels.attention(layer, hidden, queries, layer_kv[start : past + 1])
            kernels.mlp(layer, hidden)
            new_kv[number][step].copy_(layer_kv[past])
        logits = kernels.logits(hidden)
        current = logits.argmax(dim=-1)
        tokens[step] = current.cpu()
        best, second = logits.float().topk(2, dim=-1).values.unbind(-1)
        margins[step] = ((best - second) / logits.float().abs().max()).cpu()
    last_kv = {
        number: torch.cat((cache.kv[number][:-steps], new_kv[number]))[
            -(model.layer_context(number, workload.max_tokens - 1) + 1) :
        ]
        for number in range(max(0, model.n_layers - MOST_SLOTS), model.n_layers)
    }
    return ResidentDecode(tokens, margins, logits.cpu(), new_kv, last_kv)
