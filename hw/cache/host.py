"""The KV cache and attention inputs X in host memory, and the prefill that fills them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hw.backends import Backend
from hw.model.attention import kv_shape
from hw.model.kernels import Kernels
from hw.model.quantise import quantise_into
from hw.model.weights import TORCH_DTYPE, Weights
from sim.errors import Mismatch
from sim.graph.jobs import Workload
from sim.graph.memory import HostRows, all_rows
from sim.model.kv_format import QuantisedRow
from sim.model.spec import ModelSpec

PREFILL_TOKENS = {"cpu": 4096, "cuda": 32768}
"""Prompt tokens in one pass through a layer, by kind of device; bounds the activation memory."""

Chosen = list[Tensor | None]
"""Experts that tokens passed through, by layer; None of a layer without."""

NO_SCALE = 0xFF
"""Two of these bytes form a NaN scale."""


@dataclass(slots=True)
class HostCache:
    """K, V and X of the past tokens in host memory, token-major.

    Args:
        kv: for each layer [S, B, 2, H_kv, D], or quantised [S, B, row bytes] of uint8.
        x: for each layer [S, B, h], the inputs of the K/V projection.
        rows: for each layer the tokens that `kv` and `x` hold.
        next_tokens: [B], predicted at the last prompt position; input of the first decode step.
        row: format of quantised K and V, or None.
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
        """An uninitialised cache.

        Args:
            pageable: K and V are in memory that copy lanes cannot read, for graphs that stage them.
            rows: tokens of each layer, by default all that decode steps can attend to.
        """
        dtype, batch = TORCH_DTYPE[model.dtype], workload.batch_size
        rows = rows or all_rows(model, workload)
        bits = workload.kv_bits
        row = None if bits is None else QuantisedRow.of(model.layers[0].attention, bits)
        shape, kv_dtype = kv_layout(model, row)
        return cls(
            kv=[
                torch.empty((one.n_kv, batch, *shape), dtype=kv_dtype)
                if pageable
                else backend.host_empty((one.n_kv, batch, *shape), kv_dtype)
                for one in rows
            ],
            x=[backend.host_empty((one.n_x, batch, model.hidden_size), dtype) for one in rows],
            rows=rows,
            next_tokens=torch.zeros(workload.batch_size, dtype=torch.int64),
            row=row,
        )

    @property
    def first_tokens(self) -> list[int]:
        """First token of each layer inside its sliding window."""
        return [held.first for held in self.rows]

    def kv_of(self, layer: int, start: int, stop: int) -> Tensor:
        """Rows of K and V of tokens [start, stop), all on one side of the layer's gap."""
        return self.kv[layer][self.rows[layer].kv_slice(start, stop)]

    def x_of(self, layer: int, start: int, stop: int) -> Tensor:
        """Rows of X of tokens [start, stop)."""
        return self.x[layer][self.rows[layer].x_slice(start, stop)]

    def store(self, layer: int, kv: Tensor, x: Tensor, sequences: slice) -> None:
        """Write the rows of some sequences' prompts, quantised if the cache is.

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
        """Overwrite the tokens from `start` on with NaN, or with NaN scales if quantised."""
        for layer, held in enumerate(self.rows):
            for stored in (
                self.kv_of(layer, start, held.stop),
                self.x_of(layer, min(max(start, held.x[0]), held.x[1]), held.x[1]),
            ):
                stored[:] = NO_SCALE if stored.dtype == torch.uint8 else math.nan

    def take_prefix(self, longer: HostCache, prompt_tokens: int, first: int = 0) -> None:
        """Fill from a cache whose prompts start with these prompts; both hold all rows.

        K, V and X of a token depend only on earlier tokens of its sequence. The next tokens are
        those of the longer prompts, since any token serves as the first step's input.

        Args:
            first: first sequence to copy.

        Raises:
            Mismatch: the sliding windows of the longer prompts start at other tokens.
        """
        if self.first_tokens != longer.first_tokens:
            raise Mismatch(
                "the sliding windows of the longer prompts start at other tokens; prefill the "
                f"prompts of {prompt_tokens} tokens by themselves."
            )
        sequences = slice(first, first + self.next_tokens.shape[0])
        starts = [*self.first_tokens, *self.first_tokens]
        for mine, theirs, start in zip(
            [*self.kv, *self.x], [*longer.kv, *longer.x], starts, strict=True
        ):
            rows = slice(prompt_tokens - start)
            mine[rows].copy_(theirs[rows, sequences])
        self.next_tokens.copy_(longer.next_tokens[sequences])


def kv_layout(model: ModelSpec, row: QuantisedRow | None) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of K and V of one token of one sequence on the host."""
    if row is not None:
        return (row.bytes,), torch.uint8
    return kv_shape(model), TORCH_DTYPE[model.dtype]


def prompt_ids(model: ModelSpec, workload: Workload, seed: int) -> Tensor:
    """Seeded random prompts of all batches, [n_batches * B, S]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (workload.n_batches * workload.batch_size, workload.prompt_tokens)
    return torch.randint(0, model.vocab_size, shape, generator=generator)


def prefilled_caches(
    weights: Weights, workload: Workload, seed: int, backend: Backend, pageable: bool = False
) -> list[HostCache]:
    """A prefilled cache of seeded random prompts for each batch; `pageable` as in `empty`."""
    caches = []
    for prompts in prompt_ids(weights.model, workload, seed).split(workload.batch_size):
        caches.append(HostCache.empty(weights.model, workload, backend, pageable))
        prefill(weights, prompts, caches[-1])
    return caches


@torch.inference_mode()
def prefill(
    weights: Weights, prompts: Tensor, cache: HostCache, chosen: Chosen | None = None
) -> Tensor:
    """Run the prompts through the model and store K, V, X and the predicted next tokens.

    Args:
        prompts: [B, S] token ids.
        chosen: receives the experts of each layer, [b, S, k] of each group of sequences.

    Returns:
        [B, V] on the host, the logits behind the last tokens.
    """
    n_sequences, n_tokens = prompts.shape
    kernels = Kernels(weights, n_tokens)
    model, device = weights.model, weights.device
    together = max(1, PREFILL_TOKENS[device.type] // n_tokens)
    logits = []
    for first in range(0, n_sequences, together):
        sequences = slice(first, min(first + together, n_sequences))
        hidden = kernels.embed(prompts[sequences].to(device), 0)  # [B, S, h]
        shape = (n_tokens, hidden.shape[0])
        kv = hidden.new_empty((*shape, *kv_shape(model)))
        x = hidden.new_empty((*shape, model.hidden_size))
        for number, layer in enumerate(weights.layers):
            kernels.causal_attention(layer, hidden, kv, x, model.window(number))
            experts = kernels.mlp(layer, hidden)
            if chosen is not None:
                chosen.append(experts)
            cache.store(number, kv, x, sequences)
        logits.append(kernels.logits(hidden[:, -1]).cpu())
        cache.next_tokens[sequences] = logits[-1].argmax(dim=-1)
    return torch.cat(logits)
