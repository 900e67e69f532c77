"""Run a task graph on a device with real tensors, and measure when each task ran."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hw.backends import Backend, Marker
from hw.cache import HostCache, ResidentDecode
from hw.kernels import Kernels
from hw.offload import OffloadedLayers
from hw.weights import TORCH_DTYPE, Weights
from sim.cost import attended_tokens
from sim.errors import Mismatch, NotSimulated, WrongNumbers
from sim.graph import HOST, Task, TaskGraph
from sim.memory import check_fits, layer_rows, slot_rows
from sim.timeline import Timeline

TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest difference from the resident decode, relative to its largest magnitude."""


class Executor:
    """One graph with its device buffers, ready to run any number of times.

    Args:
        graph: what to run.
        predicted_sha256: hash of the graph whose simulation passed.
        weights: on the backend's device.
        caches: K, V and X of each batch's prompts; the run appends the new tokens behind them.
        follow: for each batch [steps, B], tokens to feed instead of the run's own, so that a
            reference stays comparable in precisions whose rounding can turn a close choice over.

    Raises:
        NotSimulated: `predicted_sha256` is not this graph's hash.
        Mismatch: the weights or the cache belong to another model or workload.
    """

    def __init__(
        self,
        graph: TaskGraph,
        predicted_sha256: str,
        weights: Weights,
        caches: Sequence[HostCache],
        backend: Backend,
        follow: Sequence[Tensor] | None = None,
    ) -> None:
        if predicted_sha256 != graph.sha256:
            raise NotSimulated(
                f"graph {graph.sha256[:12]} has no passing simulation (found one of "
                f"{predicted_sha256[:12]}); simulate the plan first."
            )
        if weights.model != graph.model:
            raise Mismatch(
                f"the plan is for model {graph.model.name} ({graph.model.dtype}), the weights are "
                f"of {weights.model.name} ({weights.model.dtype}); plan for the loaded model."
            )
        if graph.n_devices > 1:
            raise Mismatch(
                f"the plan is for {graph.n_devices} GPUs that share links, which can only be "
                "simulated; plan with --gpus 1 to run."
            )
        _check_caches(caches, graph)
        self.graph = graph
        self.weights = weights
        self.caches = caches
        self.backend = backend
        model, job = graph.model, graph.workload
        dtype, empty = TORCH_DTYPE[model.dtype], backend.device_empty
        loads = [task for task in graph.tasks if task.op == "load_x"]
        x_rows = max((task.n_tokens for task in loads), default=0)
        x_slots = {task.slot for task in loads}
        batch, rows, batches = job.batch_size, range(graph.slots), range(job.n_batches)
        self._kernels = Kernels(weights, job.max_tokens)
        head = (2, model.n_kv_heads, model.head_dim)
        self._kv = [empty((tokens, batch, *head), dtype) for tokens in slot_rows(graph)]
        self._x = {slot: empty((x_rows, batch, model.hidden_size), dtype) for slot in x_slots}
        self._staging: Tensor | None = None
        if (0, HOST) in graph.lanes:
            longest = max(slot_rows(graph))
            self._staging = backend.host_empty((longest, batch, *head), dtype)
        self._new_x = [empty((batch, model.hidden_size), dtype) for _ in rows]
        self._hidden = [empty((batch, model.hidden_size), dtype) for _ in batches]
        self._queries = empty((batch, model.n_heads, model.head_dim), dtype)
        self._tokens = [empty((job.gen_tokens + 1, batch), torch.int64) for _ in batches]
        self._logits = [empty((batch, model.vocab_size), dtype) for _ in batches]
        self._follow = follow and [tokens.to(backend.device) for tokens in follow]
        self._layers = {
            (step, at): layer
            for step in range(job.gen_tokens)
            for at, layer in enumerate(weights.layers)
        }
        self._own_slot = own_slots(graph)
        self._kept = {
            (task.op, task.layer, task.batch): self._keep(task)
            for task in graph.tasks
            if task.op in ("place_kv", "recompute_resident") and task.step == 0
        }
        self._offloaded: OffloadedLayers | None = None
        brought = {(t.step, t.layer): t.slot for t in graph.tasks if t.op == "load_weights"}
        if brought:
            offloaded = self._offloaded = OffloadedLayers(weights, backend)
            self._layers |= {at: offloaded.layer(at[1], slot) for at, slot in brought.items()}
        self._ops: dict[str, Callable[[Task], None]] = {
            "embed": self._embed,
            "qkv": self._qkv,
            "place_kv": self._place_kv,
            "recompute_resident": self._recompute_resident,
            "recompute": self._recompute,
            "attention": self._attention,
            "mlp": self._mlp,
            "head": self._head,
            "load_kv_weights": self._load_kv_weights,
            "load_weights": self._load_weights,
            "load_x": self._load_x,
            "load_kv": self._load_kv,
            "store_kv": self._store_kv,
            "store_x": self._store_x,
            "stage_kv": self._stage_kv,
        }

    def run(self) -> Timeline:
        """Decode once; returns when every task ran.

        What earlier runs stored behind the prompt is wiped first, so that a store that does not
        happen cannot pass for one that did.
        """
        n_new = self.graph.workload.gen_tokens
        for (layer, batch), slot in self._own_slot.items():
            self._kv[slot][:-n_new].copy_(self.caches[batch].kv[layer][:-n_new])
        for tokens, cache in zip(self._tokens, self.caches, strict=True):
            tokens[0].copy_(cache.next_tokens)
            for stored in (*cache.kv, *cache.x):
                stored[-n_new:] = math.nan
        markers: list[Marker] = []
        self.backend.begin()
        for task, deps in zip(self.graph.tasks, self.graph.dep_indices, strict=True):
            markers.append(
                self.backend.issue(task.lane, self._work(task), [markers[dep] for dep in deps])
            )
        self.backend.finish()
        times = self.backend.times_s(markers)
        return Timeline(self.graph, tuple(a for a, _ in times), tuple(b for _, b in times))

    @property
    def tokens(self) -> list[Tensor]:
        """For each batch [steps, B], the token that each step of the last run predicted."""
        return [tokens[1:].cpu() for tokens in self._tokens]

    @property
    def logits(self) -> list[Tensor]:
        """For each batch [B, V] of the last step of the last run."""
        return [logits.cpu() for logits in self._logits]

    def check(self, references: Sequence[ResidentDecode]) -> dict[str, float | bool]:
        """Compare what the last run computed with the resident decode of each batch.

        Looked at are the greedy tokens (below 32 bit only where the reference's choice was clear),
        the last logits, the K and V appended to the host cache,
        and all K and V, loaded and recomputed, that the slots still hold.

        Raises:
            WrongNumbers: tokens differ, or a tensor differs by more than `TOLERANCE`.
        """
        limit = TOLERANCE[self.graph.model.dtype]
        new = slice(-self.graph.workload.gen_tokens, None)
        stored = [[kv[new] for kv in cache.kv] for cache in self.caches]
        for (layer, batch), slot in self._own_slot.items():
            stored[batch][layer] = self._kv[slot][new].cpu()
        appended = max(
            relative_difference(mine, theirs)
            for batch, reference in zip(stored, references, strict=True)
            for mine, theirs in zip(batch, reference.new_kv, strict=True)
        )
        last = {task.slot: task for task in self.graph.tasks if task.op == "attention"}
        in_slots = max(
            relative_difference(
                self._attended(task).cpu(), references[task.batch].last_kv[task.layer]
            )
            for task in last.values()
            if task.layer in references[task.batch].last_kv
        )
        least_margin = 0.0 if self.graph.model.dtype == "float32" else limit
        tokens_equal = not any(
            bool(((mine != theirs.tokens) & (theirs.margins > least_margin)).any())
            for mine, theirs in zip(self.tokens, references, strict=True)
        )
        result: dict[str, float | bool] = {
            "tokens_equal": tokens_equal,
            "logits_difference": max(
                relative_difference(mine, theirs.logits)
                for mine, theirs in zip(self.logits, references, strict=True)
            ),
            "kv_appended_difference": appended,
            "kv_in_slots_difference": in_slots,
        }
        worst = max(value for value in result.values() if not isinstance(value, bool))
        if not result["tokens_equal"] or not worst <= limit:
            raise WrongNumbers(
                f"the run of graph {self.graph.sha256[:12]} differs from the resident decode "
                f"({result}); the limit is {limit}."
            )
        return result

    def _work(self, task: Task) -> Callable[[], None]:
        op = self._ops[task.op]
        return lambda: op(task)

    def _embed(self, task: Task) -> None:
        tokens = self._tokens[task.batch][task.step]
        if self._follow is not None and task.step > 0:
            tokens = self._follow[task.batch][task.step - 1]
        embedded = self._kernels.embed(tokens[:, None], task.token_start)
        self._hidden[task.batch].copy_(embedded[:, 0])

    def _qkv(self, task: Task) -> None:
        layer = self._layers[task.step, task.layer]
        row = self._kv[task.slot][self._rows(task)]
        new_x = self._new_x[task.slot]
        hidden = self._hidden[task.batch]
        queries = self._kernels.qkv(layer, hidden, row, new_x, task.token_start)
        self._queries.copy_(queries)

    def _keep(self, task: Task) -> Tensor:
        """A copy on the device of the K and V, or the X, that `task` will find there."""
        cache = self._cache(task)
        host = (cache.kv if task.op == "place_kv" else cache.x)[task.layer][self._rows(task)]
        return self.backend.device_empty(tuple(host.shape), host.dtype).copy_(host)

    def _place_kv(self, task: Task) -> None:
        kept = self._kept[task.op, task.layer, task.batch]
        self._kv[task.slot][self._rows(task)].copy_(kept)

    def _recompute_resident(self, task: Task) -> None:
        self._project(task, self._kept[task.op, task.layer, task.batch])

    def _recompute(self, task: Task) -> None:
        self._project(task, self._x[task.slot][: task.n_tokens])

    def _project(self, task: Task, x: Tensor) -> None:
        layer = self._layers[task.step, task.layer]
        kv = self._kv[task.slot][self._rows(task)]
        self._kernels.project_kv(layer, x, kv, task.token_start)

    def _attention(self, task: Task) -> None:
        layer = self._layers[task.step, task.layer]
        kv = self._attended(task)
        self._kernels.attention(layer, self._hidden[task.batch], self._queries, kv)

    def _mlp(self, task: Task) -> None:
        self._kernels.mlp(self._layers[task.step, task.layer], self._hidden[task.batch])

    def _head(self, task: Task) -> None:
        logits = self._logits[task.batch]
        logits.copy_(self._kernels.logits(self._hidden[task.batch]))
        torch.argmax(logits, dim=-1, out=self._tokens[task.batch][task.step + 1])

    def _load_kv_weights(self, task: Task) -> None:
        if self._offloaded is not None:
            self._offloaded.load_kv_weights(task.layer, task.slot)

    def _load_weights(self, task: Task) -> None:
        if self._offloaded is not None:
            self._offloaded.load_weights(task.layer, task.slot)

    def _load_x(self, task: Task) -> None:
        held = self._cache(task).x[task.layer][self._rows(task)]
        self.backend.copy(self._x[task.slot][: task.n_tokens], held)

    def _load_kv(self, task: Task) -> None:
        rows = self._rows(task)
        kv = self._cache(task).kv[task.layer] if self._staging is None else self._staging
        self.backend.copy(self._kv[task.slot][rows], kv[rows])

    def _store_kv(self, task: Task) -> None:
        rows = self._rows(task)
        kv, pageable = self._cache(task).kv[task.layer], self._staging is not None
        self.backend.copy(kv[rows], self._kv[task.slot][rows], pageable)

    def _stage_kv(self, task: Task) -> None:
        if self._staging is not None:
            rows = self._rows(task)
            self._staging[rows].copy_(self._cache(task).kv[task.layer][rows])

    def _store_x(self, task: Task) -> None:
        x = self._cache(task).x[task.layer][self._rows(task)]
        self.backend.copy(x[0], self._new_x[task.slot])

    def _rows(self, task: Task) -> slice:
        """Where a task's tokens lie, in a staging slot as in the host cache."""
        first = self._cache(task).first_tokens[task.layer]
        return slice(task.token_start - first, task.token_stop - first)

    def _attended(self, task: Task) -> Tensor:
        """K and V in the slot that an attention task reads, [S, B, 2, H_kv, D]."""
        stop = self._rows(task).stop
        return self._kv[task.slot][stop - attended_tokens(task, self.graph.model) : stop]

    def _cache(self, task: Task) -> HostCache:
        return self.caches[task.batch]


def own_slots(graph: TaskGraph) -> dict[tuple[int, int], int]:
    """Slot of each (layer, batch) whose cache stays on the device: only new rows come in."""
    filling = ("load_x", "load_kv", "place_kv", "recompute", "recompute_resident")
    filled = {(task.layer, task.batch) for task in graph.tasks if task.op in filling}
    return {
        (task.layer, task.batch): task.slot
        for task in graph.tasks
        if task.op == "attention" and (task.layer, task.batch) not in filled
    }


def _check_caches(caches: Sequence[HostCache], graph: TaskGraph) -> None:
    """Refuse caches whose number, layers, shapes or dtype are not the graph's."""
    n_batches = graph.workload.n_batches
    if (0, HOST) in graph.lanes and any(kv.is_pinned() for cache in caches for kv in cache.kv):
        raise Mismatch(
            "the plan stages K and V out of pageable memory, and the cache's is pinned; make it "
            "with pageable=True."
        )
    if len(caches) != n_batches:
        raise Mismatch(f"the plan decodes {n_batches} batches, there are {len(caches)} caches.")
    for cache in caches:
        _check_cache(cache, graph)


def _check_cache(cache: HostCache, graph: TaskGraph) -> None:
    model, job = graph.model, graph.workload
    dtype, layers = TORCH_DTYPE[model.dtype], range(model.n_layers)
    rows = [(layer_rows(model, job, layer), job.batch_size) for layer in layers]
    kv = [((*shape, 2, model.n_kv_heads, model.head_dim), dtype) for shape in rows]
    x = [((*shape, model.hidden_size), dtype) for shape in rows]
    held = [(tuple(tensor.shape), tensor.dtype) for tensor in (*cache.kv, *cache.x)]
    first_tokens = [model.first_token(layer, job.prompt_tokens) for layer in layers]
    if held != [*kv, *x] or cache.first_tokens != first_tokens:
        raise Mismatch(
            f"the cache holds {len(cache.kv)} layers of K/V {held[0]}, the plan needs "
            f"{model.n_layers} of {kv[0]}: it belongs to another model or workload."
        )


def relative_difference(mine: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference over the largest magnitude of `theirs`; infinite for NaN."""
    difference = float((mine.float() - theirs.float()).abs().max() / theirs.float().abs().max())
    return math.inf if math.isnan(difference) else difference


def check_graph_fits(graph: TaskGraph, backend: Backend, held_host_bytes: int = 0) -> None:
    """Refuse a graph that the device or host has no room for, before anything is allocated.

    The reference decode needs all weights on the device, those of a column schedule too.

    Args:
        held_host_bytes: host memory that something else will take beside the graph's.

    Raises:
        DoesNotFit: names what is too large and what to lower.
    """
    memory = backend.memory()
    device_bytes = memory.device_bytes
    if graph.schedule == "column":
        device_bytes -= graph.model.n_layers * graph.model.layer_weight_bytes
    where = f"this {backend.kind} device"
    check_fits(graph, device_bytes, memory.host_bytes - held_host_bytes, where)
