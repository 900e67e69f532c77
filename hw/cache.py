"""The KV cache and attention inputs in host memory, and the two ways to fill and check it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hw.backends import Backend
from hw.kernels import Kernels
from hw.quantise import dequantise_into, quantise_into
from hw.weights import TORCH_DTYPE, Weights
from sim.errors import Mismatch
from sim.graph import TaskGraph
from sim.host_rows import HostRows, all_rows
from sim.kv_format import QuantisedRow
from sim.model_spec import ModelSpec
from sim.workload import Workload

PREFILL_TOKENS = {"cpu": 4096, "cuda": 32768}
"""Prompt tokens that go through a layer together, by kind of device; bounds the activations'
memory. Rows of a whole batch are one copy to the host, those of some sequences are not."""

MOST_SLOTS = 2
"""Staging slots that a graph may have; as many layers are kept whole for comparison."""

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


@dataclass(slots=True)
class ResidentDecode:
    """What a decode without any offloading computes.

    Args:
        tokens: [steps, B], the token that each step predicts.
        margins: [steps, B], how far the best logit led the second, relative to the largest.
        logits: [B, V] of the last step.
        new_kv: for each layer [steps, B, 2, H_kv, D], the tokens decoded.
        last_kv: by layer, [S, B, 2, H_kv, D] on the device, the tokens that the last step attends
            to, of the layers that staging slots hold at the end of a run.
    """

    tokens: Tensor
    margins: Tensor
    logits: Tensor
    new_kv: list[Tensor]
    last_kv: dict[int, Tensor]


def reference_bytes(model: ModelSpec, workload: Workload) -> int:
    """Device memory that the reference decodes of a job's batches hold while others run."""
    layers = min(MOST_SLOTS, model.n_layers) * workload.n_batches
    return layers * workload.max_tokens * workload.batch_size * model.kv_token_bytes


@torch.inference_mode()
def resident_decode(
    weights: Weights,
    cache: HostCache,
    workload: Workload,
    exact: Sequence[Sequence[int]] | None = None,
    follow: Tensor | None = None,
) -> ResidentDecode:
    """Decode greedily on the full KV cache, layer by layer: the reference for any plan.

    Nothing is split or overlapped. Each layer's cache is put together on the device while the layer
    runs; the host cache stays as it is. Of a quantised cache K and V are recomputed from X, so that
    nothing is lost, except where `exact` says otherwise.

    Args:
        exact: leading tokens `[step][layer]` that a plan has as they were computed; it reads the
            others, generated ones included, as a run left them in its quantised cache.
        follow: [steps, B], tokens to feed instead of the decode's own.
    """
    kernels = Kernels(weights, workload.max_tokens)
    model, device = weights.model, weights.device
    batch, steps = workload.batch_size, workload.gen_tokens
    kv_shape, dtype = kv_layout(model, None)
    new_kv = [torch.empty((steps, batch, *kv_shape), dtype=dtype) for _ in weights.layers]
    shape = (workload.max_tokens, batch, *kv_shape)
    layer_kv = torch.empty(shape, dtype=dtype, device=device)
    x = torch.empty_like(cache.x[0][0], device=device)
    tokens = torch.empty((steps, batch), dtype=torch.int64)
    margins = torch.empty((steps, batch))
    last_kv: dict[int, Tensor] = {}
    current, logits = cache.next_tokens.to(device), torch.empty(0)
    for step in range(steps):
        past = workload.context_tokens(step)
        hidden = kernels.embed(current[:, None], past)[:, 0]
        for number, layer in enumerate(weights.layers):
            start, known = model.first_token(number, past), past
            if exact is not None:
                known = exact[step][number]
            _past_kv(kernels, cache, number, new_kv[number][:step], known, layer_kv[:past])
            queries = kernels.qkv(layer, hidden, layer_kv[past : past + 1], x, past)
            kernels.attention(layer, hidden, queries, layer_kv[start : past + 1])
            kernels.mlp(layer, hidden)
            new_kv[number][step].copy_(layer_kv[past])
            if step == steps - 1 and number >= model.n_layers - MOST_SLOTS:
                last_kv[number] = layer_kv[start : past + 1].clone()
        logits = kernels.logits(hidden)
        tokens[step] = logits.argmax(dim=-1).cpu()
        current = (tokens if follow is None else follow)[step].to(device)
        best, second = logits.float().topk(2, dim=-1).values.unbind(-1)
        margins[step] = ((best - second) / logits.float().abs().max()).cpu()
    return ResidentDecode(tokens, margins, logits.cpu(), new_kv, last_kv)


def planned_decode(
    graph: TaskGraph,
    weights: Weights,
    caches: Sequence[HostCache],
    follow: Sequence[Tensor] | None,
) -> list[ResidentDecode]:
    """For each batch the resident decode of what a graph's last run read, quantised or exact.

    Generated rows are the run's own, because rounding may turn a code over; whether the run stored
    the right ones is to be checked against `new_kv`.

    Args:
        caches: quantised, as the run left them.
        follow: for each batch [steps, B], tokens that the run was fed instead of its own.
    """
    job, n_layers = graph.workload, graph.model.n_layers
    exact = [[job.context_tokens(step)] * n_layers for step in range(job.gen_tokens)]
    for task in graph.tasks:
        if task.op == "dequantise":
            exact[task.step][task.layer] = task.token_start
    return [
        resident_decode(weights, cache, job, exact, None if follow is None else follow[batch].cpu())
        for batch, cache in enumerate(caches)
    ]


def _past_kv(
    kernels: Kernels, cache: HostCache, number: int, new_kv: Tensor, known: int, kv: Tensor
) -> None:
    """Put together K and V of a layer's past tokens.

    Args:
        new_kv: [steps so far, B, 2, H_kv, D], generated tokens as they were computed.
        known: leading tokens that are wanted as they were computed.
        kv: [past, B, 2, H_kv, D], overwritten.
    """
    past, held = kv.shape[0], cache.rows[number].first
    prompt = past - new_kv.shape[0]
    if cache.row is None:
        kv[held:prompt].copy_(cache.kv[number][: prompt - held])
        kv[prompt:].copy_(new_kv)
        return
    remade = min(known, prompt)
    if held < remade:
        x = cache.x[number][: remade - held].to(kv.device)
        kernels.project_kv(kernels.weights.layers[number], x, kv[held:remade], held)
    if known > prompt:
        kv[prompt:known].copy_(new_kv[: known - prompt])
    first = max(known, held)
    if first < past:
        rows = cache.kv[number][first - held : past - held].to(kv.device)
        dequantise_into(rows, kv[first:], cache.row)
