"""The KV cache and attention inputs in host memory, and the two ways to fill and check it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hw.backends import Backend
from hw.model.kernels import Kernels
from hw.model.quantise import quantise_into
from hw.model.weights import TORCH_DTYPE, Weights
from sim.errors import Mismatch
from sim.graph.jobs import Workload
from sim.graph.memory import HostRows, all_rows
from sim.model.kv_format import QuantisedRow
from sim.model.spec import ModelSpec

PREFILL_TOKENS = {"cpu": 4096, "cuda": 32768}
"""Prompt tokens that go through a layer together, by kind of device; bounds the activations'
memory. Rows of a whole batch are one copy to the host, those of some sequences are not."""


NO_SCALE = 0xFF
"""Two of these bytes are a scale that is no number."""


@dataclass(slots=True)
class HostCache:
    """K, V and X of the past tokens, in host memory, token-major.

    Args:
        kv: for each layer [S, B, 2, H_kv, D], or quantised [S, B, row bytes] of uint8.
        x: for each layer [S, B, h], the inputs of the K/V projection.
        rows: for each layer the tokens whose rows these are.
        next_tokens: [B], what the prompt's last position predicts; the first decode step's input.
        row: how K and V are quantised; None where they are not.
    """

    kv: list[Tensor]
    x: list[Tensor]
    rows: list[HostRows]
    next_tokens: Tensor
    row: QuantisedRow | None = None

    @classmethod
    def empty(
        cls,
        model: ModelSpec,
        workload: Workload,
        backend: Backend,
        pageable: bool = False,
        rows: list[HostRows] | None = None,
    ) -> HostCache:
        """A cache to fill.

        Args:
            pageable: K and V lie in memory that no copy lane can read, for graphs that stage them.
            rows: what it holds of each layer, by default all that decode steps may attend to.
        """
        dtype, batch = TORCH_DTYPE[model.dtype], workload.batch_size
        rows = rows or all_rows(model, workload)
        bits = workload.kv_bits
        row = None if bits is None else QuantisedRow.of(model, bits)
        kv_shape, kv_dtype = kv_layout(model, row)
        return cls(
            kv=[
                torch.empty((one.n_kv, batch, *kv_shape), dtype=kv_dtype)
                if pageable
                else backend.host_empty((one.n_kv, batch, *kv_shape), kv_dtype)
                for one in rows
            ],
            x=[backend.host_empty((one.n_x, batch, model.hidden_size), dtype) for one in rows],
            rows=rows,
            next_tokens=torch.zeros(workload.batch_size, dtype=torch.int64),
            row=row,
        )

    @property
    def first_tokens(self) -> list[int]:
        """Of each layer the first token that its window leaves."""
        return [held.first for held in self.rows]

    def kv_of(self, layer: int, start: int, stop: int) -> Tensor:
        """Rows of K and V of tokens [start, stop), which lie on one side of the layer's gap."""
        return self.kv[layer][self.rows[layer].kv_slice(start, stop)]

    def x_of(self, layer: int, start: int, stop: int) -> Tensor:
        """Rows of X of tokens [start, stop)."""
        return self.x[layer][self.rows[layer].x_slice(start, stop)]

    def store(self, layer: int, kv: Tensor, x: Tensor, sequences: slice) -> None:
        """Write what the cache holds of the prompts of some sequences, quantised if it is.

        Args:
            kv: [S, b, 2, H_kv, D], contiguous, on the device; x: [S, b, h].
        """
        held, prompt = self.rows[layer], kv.shape[0]
        for start, stop in held.kv_parts(prompt):
            stored = kv[start:stop]
            if self.row is not None:
                shape = (*stored.shape[:2], self.row.bytes)
                stored = kv.new_empty(shape, dtype=torch.uint8)
                quantise_into(kv[start:stop], stored, self.row)
            self.kv_of(layer, start, stop)[:, sequences].copy_(stored)
        start, stop = held.x[0], min(held.x[1], prompt)
        if start < stop:
            self.x_of(layer, start, stop)[:, sequences].copy_(x[start:stop])

    def wipe(self, start: int) -> None:
        """Overwrite the tokens from `start` on with what is no number, quantised or not."""
        for layer, held in enumerate(self.rows):
            for stored in (
                self.kv_of(layer, start, held.stop),
                self.x_of(layer, min(max(start, held.x[0]), held.x[1]), held.x[1]),
            ):
                stored[:] = NO_SCALE if stored.dtype == torch.uint8 else math.nan

    def take_prefix(self, longer: HostCache, prompt_tokens: int, first: int = 0) -> None:
        """Fill from a cache of the same prompts (or more, or longer ones); both hold all rows.

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


def kv_layout(model: ModelSpec, row: QuantisedRow | None) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of K and V of one token of one sequence on the host."""
    if row is not None:
        return (row.bytes,), torch.uint8
    return (2, model.n_kv_heads, model.head_dim), TORCH_DTYPE[model.dtype]


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
def prefill(weights: Weights, prompts: Tensor, cache: HostCache) -> Tensor:
    """Run the prompts through the model and store K, V, X and the predicted next tokens.

    Args:
        prompts: [B, S] token ids.

    Returns:
        [B, V] on the host, the logits behind the last tokens.
    """
    n_sequences, n_tokens = prompts.shape
    kernels = Kernels(weights, n_tokens)
    model, device = weights.model, weights.device
    together = max(1, PREFILL_TOKENS[device.type] // n_tokens)
    logits = []
    for first in range(0, n_sequences, together):
        part = slice(first, min(first + together, n_sequences))
        hidden = kernels.embed(prompts[part].to(device), 0)  # [B, S, h]
        shape = (n_tokens, hidden.shape[0])
        kv = hidden.new_empty((*shape, 2, model.n_kv_heads, model.head_dim))
        x = hidden.new_empty((*shape, model.hidden_size))
        for number, layer in enumerate(weights.layers):
            kernels.causal_attention(layer, hidden, kv, x, model.window(number))
            kernels.mlp(layer, hidden)
            cache.store(number, kv, x, part)
        logits.append(kernels.logits(hidden[:, -1]).cpu())
        cache.next_tokens[part] = logits[-1].argmax(dim=-1)
    return torch.cat(logits)
