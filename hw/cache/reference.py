"""Resident references: a prefill and a decode without any offloading, which runs must match."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hw.backends import Backend
from hw.cache.host import Chosen, HostCache, kv_layout, prefill
from hw.model.kernels import Kernels
from hw.model.quantise import dequantise_into
from hw.model.weights import Weights
from sim.graph.jobs import Workload
from sim.graph.memory import HostRows
from sim.graph.tasks import STAGING_SLOTS, TaskGraph
from sim.model.spec import ModelSpec


@dataclass(frozen=True)
class ResidentPrefill:
    """Results of a prefill of the whole prompt, the reference of a restore.

    Args:
        prompt: [S] token ids, on the host.
        cache: K, V and X of all its tokens, in memory that copy lanes can read.
        logits: [1, V] after the last token.
        chosen: for each layer [S, k], experts that the tokens passed through, which a run below 32
            bit follows; None where it makes its own choice.
    """

    prompt: Tensor
    cache: HostCache
    logits: Tensor
    chosen: Chosen | None = None

    @property
    def margin(self) -> float:
        """Difference of the two best logits, relative to the largest magnitude."""
        return float(margins_of(self.logits))


def resident_prefill(weights: Weights, prompt: Tensor, backend: Backend) -> ResidentPrefill:
    """Prefill a prompt, [S] token ids; the cache holds all tokens of every layer."""
    model, n_tokens = weights.model, prompt.shape[0]
    everything = HostRows(0, n_tokens, (0, 0), (0, n_tokens))
    job = Workload(batch_size=1, prompt_tokens=n_tokens, gen_tokens=1)
    cache = HostCache.empty(model, job, backend, rows=[everything] * model.n_layers)
    chosen: Chosen = []
    logits = prefill(weights, prompt[None], cache, chosen)
    if not follows_experts(model):
        return ResidentPrefill(prompt, cache, logits)
    experts: Chosen = [None if one is None else one[0] for one in chosen]
    return ResidentPrefill(prompt, cache, logits, experts)


def follows_experts(model: ModelSpec) -> bool:
    """Whether a run passes through the reference's experts instead of its own.

    Below 32 bit rounding can change a close choice of experts, and then nothing is comparable.
    """
    return model.dtype != "float32" and "experts" in model.layer_elements


def margins_of(logits: Tensor) -> Tensor:
    """Difference of the two best logits, relative to the largest magnitude; [B, V] -> [B]."""
    logits = logits.float()
    best, second = logits.topk(2, dim=-1).values.unbind(-1)
    return (best - second) / logits.abs().max()


@dataclass(slots=True)
class ResidentDecode:
    """Results of a decode without any offloading, the reference of a plan.

    Args:
        tokens: [steps, B], the token that each step predicts.
        margins: [steps, B], difference of the two best logits, relative to the largest magnitude.
        logits: [B, V] of the last step.
        new_kv: for each layer [steps, B, 2, H_kv, D], of the decoded tokens.
        last_kv: [S, B, 2, H_kv, D] on the device, of the tokens that the last step attends to, by
            layer; only the layers that staging slots hold at the end of a run.
        chosen: for each step and layer [B, k], experts that a run below 32 bit follows.
    """

    tokens: Tensor
    margins: Tensor
    logits: Tensor
    new_kv: list[Tensor]
    last_kv: dict[int, Tensor]
    chosen: list[Chosen] | None = None


def reference_bytes(model: ModelSpec, workload: Workload) -> int:
    """Device memory of the reference decodes of a job's batches."""
    layers = min(STAGING_SLOTS, model.n_layers) * workload.n_batches
    return layers * workload.max_tokens * workload.batch_size * model.kv_token_bytes


@torch.inference_mode()
def resident_decode(
    weights: Weights,
    cache: HostCache,
    workload: Workload,
    exact: Sequence[Sequence[int]] | None = None,
    follow: Tensor | None = None,
    given: list[Chosen] | None = None,
) -> ResidentDecode:
    """Decode greedily on the full KV cache, layer by layer, without splitting or overlap.

    Each layer's cache is assembled on the device while the layer runs; the host cache does not
    change. If the cache is quantised, K and V are recomputed from X at full precision, except
    behind the tokens of `exact`.

    Args:
        exact: number of leading tokens `[step][layer]` at full precision; the others, generated
            ones included, are read from the quantised cache as a run left them.
        follow: [steps, B], tokens to feed instead of the decode's own.
        given: for each step and layer [B, k], experts to pass through instead of its own.
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
    chosen: list[Chosen] = [[] for _ in range(steps)]
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
            experts = kernels.mlp(layer, hidden, None if given is None else given[step][number])
            chosen[step].append(experts)
            new_kv[number][step].copy_(layer_kv[past])
            if step == steps - 1 and number >= model.n_layers - STAGING_SLOTS:
                last_kv[number] = layer_kv[start : past + 1].clone()
        logits = kernels.logits(hidden)
        tokens[step] = logits.argmax(dim=-1).cpu()
        current = (tokens if follow is None else follow)[step].to(device)
        margins[step] = margins_of(logits).cpu()
    kept = chosen if follows_experts(model) else None
    return ResidentDecode(tokens, margins, logits.cpu(), new_kv, last_kv, kept)


def planned_decode(
    graph: TaskGraph,
    weights: Weights,
    caches: Sequence[HostCache],
    follow: Sequence[Tensor] | None,
    references: Sequence[ResidentDecode],
) -> list[ResidentDecode]:
    """A resident decode for each batch that reads the same rows as the last run of a graph.

    Generated rows are the run's own, because rounding can change a quantised code. Compare them
    with `new_kv` to check that the run stored the right ones.

    Args:
        caches: quantised, as the run left them.
        follow: for each batch [steps, B], tokens fed to the run instead of its own.
        references: whose experts the run followed.
    """
    job, n_layers = graph.workload, graph.model.n_layers
    exact = [[job.context_tokens(step)] * n_layers for step in range(job.gen_tokens)]
    for task in graph.tasks:
        if task.op == "dequantise":
            exact[task.step][task.layer] = task.token_start
    fed = [None] * len(caches) if follow is None else [tokens.cpu() for tokens in follow]
    return [
        resident_decode(weights, cache, job, exact, tokens, reference.chosen)
        for cache, tokens, reference in zip(caches, fed, references, strict=True)
    ]


def _past_kv(
    kernels: Kernels, cache: HostCache, number: int, new_kv: Tensor, known: int, kv: Tensor
) -> None:
    """Assemble K and V of a layer's past tokens.

    Args:
        new_kv: [steps so far, B, 2, H_kv, D], generated tokens at full precision.
        known: number of leading tokens at full precision.
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
