"""The operations, buffers and numerical check of a decode graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from hw.backends import Backend
from hw.cache.host import HostCache, kv_layout
from hw.cache.reference import ResidentDecode, planned_decode
from hw.cache.verify import RunNumbers, verify
from hw.model.attention import query_shape
from hw.model.kernels import Kernels
from hw.model.offload import OffloadedLayers
from hw.model.quantise import dequantise_into, quantise_into
from hw.model.weights import TORCH_DTYPE, Weights
from hw.run.arena import Buffer, DeviceArena
from hw.run.executor import Executor
from sim.errors import Mismatch
from sim.graph.memory import HostRows, needed_rows, slot_rows
from sim.graph.tasks import Task, TaskGraph, attended_tokens
from sim.graph.timeline import Timeline
from sim.lanes import HOST
from sim.model.kv_format import QuantisedRow


class DecodeExecutor(Executor):
    """Decodes a graph's steps on K, V and X in host memory.

    Below 32 bit and on a quantised cache, each step is fed the token of the reference instead of
    its own, because rounding can change a close choice and then nothing is comparable. So it is
    with experts: below 32 bit a token passes through those of the reference.

    Args:
        simulated: the predicted timeline of the graph to run.
        weights: on the backend's device.
        caches: K, V and X of each batch's prompts; a run appends the new tokens behind them.
        references: the resident decode of each batch, which `check` compares with.
        offloaded: host copies of the weights for a column schedule, by default made here; several
            executors can share them.
        arena: device memory shared with executors that run at other times, by default none.

    Raises:
        Mismatch: graph, weights and caches do not belong together, or the graph is for several
            GPUs.
        RaceFound: as `Executor`.
    """

    in_turn = False

    def __init__(
        self,
        simulated: Timeline,
        weights: Weights,
        caches: Sequence[HostCache],
        references: Sequence[ResidentDecode],
        backend: Backend,
        offloaded: OffloadedLayers | None = None,
        arena: DeviceArena | None = None,
    ) -> None:
        graph = simulated.graph
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
        super().__init__(simulated, backend)
        _check_caches(caches, graph)
        self.weights, self.caches, self.references = weights, caches, references
        self._row = caches[0].row
        empty = backend.device_empty if arena is None else arena.layout().empty
        buffers = executor_buffers(graph, self._row)
        held = {name: [empty(*one) for one in some] for name, some in buffers.items()}
        self._kernels = Kernels(weights, graph.workload.max_tokens)
        self._kv, self._new_rows = held["kv"], held["new_rows"]
        self._staged = held["staged"] or self._kv
        self._x = dict(zip(_x_slots(graph), held["x"], strict=True))
        self._new_x, self._hidden = held["new_x"], held["hidden"]
        (self._queries,) = held["queries"]
        self._tokens, self._logits = held["tokens"], held["logits"]
        self._pinned: Tensor | None = None
        if (0, HOST) in graph.lanes:
            self._pinned = backend.host_empty(*max(buffers["kv"], key=lambda one: one[0]))
        self._fed: list[Tensor] | None = None  # for each batch [steps, B], instead of its own
        if references and (graph.model.dtype != "float32" or self._row is not None):
            self._fed = [reference.tokens.to(backend.device) for reference in references]
        self._layers = {
            (step, at): layer
            for step in range(graph.workload.gen_tokens)
            for at, layer in enumerate(weights.layers)
        }
        self._own_slot = own_slots(graph)
        self._resident = {
            (task.op, task.layer, task.batch): self._copied_to_device(task)
            for task in graph.tasks
            if task.op in ("place_kv", "recompute_resident") and task.step == 0
        }
        self._offloaded: OffloadedLayers | None = None
        brought = {(t.step, t.layer): t.slot for t in graph.tasks if t.op == "load_weights"}
        if brought:
            offloaded = self._offloaded = offloaded or OffloadedLayers(weights, backend)
            self._layers |= {at: offloaded.layer(at[1], slot) for at, slot in brought.items()}

    def _reset(self) -> None:
        n_new = self.graph.workload.gen_tokens
        for (layer, batch), slot in self._own_slot.items():
            first = self.caches[batch].rows[layer].first
            prompt_kv = self._exact_kv(layer, batch, first, self.graph.workload.prompt_tokens)
            self._kv[slot][:-n_new].copy_(prompt_kv)
        for tokens, cache in zip(self._tokens, self.caches, strict=True):
            tokens[0].copy_(cache.next_tokens)
            cache.wipe(self.graph.workload.prompt_tokens)

    @property
    def tokens(self) -> list[Tensor]:
        """For each batch [steps, B], the token that each step of the last run predicted."""
        return [tokens[1:].cpu() for tokens in self._tokens]

    @property
    def logits(self) -> list[Tensor]:
        """For each batch [B, V] of the last step of the last run."""
        return [logits.cpu() for logits in self._logits]

    def check(self) -> dict[str, float | bool]:
        """Compare the last run with the resident decode of each batch.

        A run on a quantised cache is compared with a resident decode that reads the same quantised
        rows wherever the plan loads them; the distance from `references`, which read none, is
        reported too.

        Raises:
            WrongNumbers: as `verify`.
        """
        same_rows = self.references
        if self._row is not None:
            same_rows = planned_decode(
                self.graph, self.weights, self.caches, self._fed, self.references
            )
        return verify(self._numbers(), same_rows, self.references)

    def _numbers(self) -> RunNumbers:
        """The results of the last run."""
        model, job = self.graph.model, self.graph.workload
        appended = [[kv[-job.gen_tokens :] for kv in cache.kv] for cache in self.caches]
        for (layer, batch), slot in self._own_slot.items():
            appended[batch][layer] = self._kv[slot][-job.gen_tokens :]
        attentions = {task.slot: task for task in self.graph.tasks if task.op == "attention"}
        last = model.n_layers - 1
        left = model.first_token(last, job.max_tokens - 1)
        skipped = min(left, job.prompt_tokens) - model.first_token(last, job.prompt_tokens)
        return RunNumbers(
            self.graph,
            self._row,
            self.tokens,
            self.logits,
            appended,
            {(task.batch, task.layer): self._attended(task) for task in attentions.values()},
            [cache.kv[last][skipped : -job.gen_tokens] for cache in self.caches],
        )

    def _embed(self, task: Task) -> None:
        tokens = self._tokens[task.batch][task.step]
        if self._fed is not None and task.step > 0:
            tokens = self._fed[task.batch][task.step - 1]
        embedded = self._kernels.embed(tokens[:, None], task.token_start)
        self._hidden[task.batch].copy_(embedded[:, 0])

    def _qkv(self, task: Task) -> None:
        layer = self._layers[task.step, task.layer]
        row = self._kv[task.slot][self._rows(task)]
        new_x = self._new_x[task.slot]
        hidden = self._hidden[task.batch]
        queries = self._kernels.qkv(layer, hidden, row, new_x, task.token_start)
        self._queries.copy_(queries)

    def _copied_to_device(self, task: Task) -> Tensor:
        """A device copy of the resident K and V, or X, that `task` reads."""
        if task.op == "place_kv":
            rows = self._exact_kv(task.layer, task.batch, task.token_start, task.token_stop)
        else:
            rows = self._host_x(task)
        return self.backend.device_empty(tuple(rows.shape), rows.dtype).copy_(rows)

    def _exact_kv(self, layer: int, batch: int, start: int, stop: int) -> Tensor:
        """K and V at full precision, recomputed from X if the host cache is quantised."""
        cache = self.caches[batch]
        if cache.row is None:
            return cache.kv_of(layer, start, stop)
        x = cache.x_of(layer, start, stop).to(self.backend.device)
        model = self.graph.model
        kv = x.new_empty((*x.shape[:2], *kv_layout(model, None)[0]))
        with torch.inference_mode():
            self._kernels.project_kv(self.weights.layers[layer], x, kv, start)
        return kv

    def _place_kv(self, task: Task) -> None:
        resident = self._resident[task.op, task.layer, task.batch]
        self._kv[task.slot][self._rows(task)].copy_(resident)

    def _recompute_resident(self, task: Task) -> None:
        self._project(task, self._resident[task.op, task.layer, task.batch])

    def _recompute(self, task: Task) -> None:
        self._project(task, self._x[task.slot][: task.n_tokens])

    def _project(self, task: Task, x: Tensor) -> None:
        layer = self._layers[task.step, task.layer]
        kv = self._kv[task.slot][self._rows(task)]
        self._kernels.project_kv(layer, x, kv, task.token_start)

    def _quantise(self, task: Task) -> None:
        if self._row is not None:
            quantise_into(
                self._kv[task.slot][self._rows(task)], self._new_rows[task.slot], self._row
            )

    def _dequantise(self, task: Task) -> None:
        if self._row is not None:
            rows = self._rows(task)
            dequantise_into(self._staged[task.slot][rows], self._kv[task.slot][rows], self._row)

    def _attention(self, task: Task) -> None:
        layer = self._layers[task.step, task.layer]
        kv = self._attended(task)
        self._kernels.attention(layer, self._hidden[task.batch], self._queries, kv)

    def _mlp(self, task: Task) -> None:
        given = self.references[task.batch].chosen if self.references else None
        follow = None if given is None else given[task.step][task.layer]
        self._kernels.mlp(self._layers[task.step, task.layer], self._hidden[task.batch], follow)

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
        self.backend.copy(self._x[task.slot][: task.n_tokens], self._host_x(task))

    def _load_kv(self, task: Task) -> None:
        rows = self._rows(task)
        kv = self._host_kv(task) if self._pinned is None else self._pinned[rows]
        self.backend.copy(self._staged[task.slot][rows], kv)

    def _store_kv(self, task: Task) -> None:
        rows = self._rows(task)
        new = self._kv[task.slot][rows] if self._row is None else self._new_rows[task.slot]
        self.backend.copy(self._host_kv(task), new, self._pinned is not None)

    def _stage_kv(self, task: Task) -> None:
        if self._pinned is not None:
            self._pinned[self._rows(task)].copy_(self._host_kv(task))

    def _store_x(self, task: Task) -> None:
        self.backend.copy(self._host_x(task)[0], self._new_x[task.slot])

    def _host_kv(self, task: Task) -> Tensor:
        return self.caches[task.batch].kv_of(task.layer, task.token_start, task.token_stop)

    def _host_x(self, task: Task) -> Tensor:
        return self.caches[task.batch].x_of(task.layer, task.token_start, task.token_stop)

    def _rows(self, task: Task) -> slice:
        """Rows of a task's tokens in a staging slot."""
        first = self.caches[task.batch].rows[task.layer].first
        return slice(task.token_start - first, task.token_stop - first)

    def _attended(self, task: Task) -> Tensor:
        """K and V in the slot that an attention task reads, [S, B, 2, H_kv, D]."""
        stop = self._rows(task).stop
        return self._kv[task.slot][stop - attended_tokens(task, self.graph.model) : stop]

    operations: ClassVar = {
        "embed": _embed,
        "qkv": _qkv,
        "place_kv": _place_kv,
        "recompute_resident": _recompute_resident,
        "recompute": _recompute,
        "attention": _attention,
        "mlp": _mlp,
        "head": _head,
        "load_kv_weights": _load_kv_weights,
        "load_weights": _load_weights,
        "load_x": _load_x,
        "load_kv": _load_kv,
        "store_kv": _store_kv,
        "store_x": _store_x,
        "stage_kv": _stage_kv,
        "quantise": _quantise,
        "dequantise": _dequantise,
    }


def executor_buffers(graph: TaskGraph, row: QuantisedRow | None) -> dict[str, list[Buffer]]:
    """The device buffers that a run of `graph` overwrites, by name.

    Args:
        row: how the host cache is quantised; None where it is not.
    """
    model, job = graph.model, graph.workload
    dtype, batch, n_batches = TORCH_DTYPE[model.dtype], job.batch_size, job.n_batches
    slots, hidden = slot_rows(graph), ((batch, model.hidden_size), dtype)
    x_rows = max((task.n_tokens for task in graph.tasks if task.op == "load_x"), default=0)
    staged: list[Buffer] = []
    new_rows: list[Buffer] = []
    if row is not None:
        staged = [((tokens, batch, row.bytes), torch.uint8) for tokens in slots]
        new_rows = [((1, batch, row.bytes), torch.uint8)] * graph.slots
    head, _ = kv_layout(model, None)
    return {
        "kv": [((tokens, batch, *head), dtype) for tokens in slots],
        "staged": staged,
        "new_rows": new_rows,
        "x": [((x_rows, batch, model.hidden_size), dtype)] * len(_x_slots(graph)),
        "new_x": [hidden] * graph.slots,
        "hidden": [hidden] * n_batches,
        "queries": [((batch, *query_shape(model)), dtype)],
        "tokens": [((job.gen_tokens + 1, batch), torch.int64)] * n_batches,
        "logits": [((batch, model.vocab_size), dtype)] * n_batches,
    }


def _x_slots(graph: TaskGraph) -> list[int]:
    return sorted({task.slot for task in graph.tasks if task.op == "load_x"})


def own_slots(graph: TaskGraph) -> dict[tuple[int, int], int]:
    """Slot of each (layer, batch) whose whole cache is resident on the device."""
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
    needed = needed_rows(graph)
    for cache in caches:
        _check_cache(cache, graph, needed)


def _check_cache(cache: HostCache, graph: TaskGraph, needed: Sequence[HostRows]) -> None:
    model, job = graph.model, graph.workload
    dtype = TORCH_DTYPE[model.dtype]
    row = None if job.kv_bits is None else QuantisedRow.of(model.layers[0].attention, job.kv_bits)
    kv_shape, kv_dtype = kv_layout(model, row)
    kv = [((one.n_kv, job.batch_size, *kv_shape), kv_dtype) for one in cache.rows]
    x = [((one.n_x, job.batch_size, model.hidden_size), dtype) for one in cache.rows]
    held = [(tuple(tensor.shape), tensor.dtype) for tensor in (*cache.kv, *cache.x)]
    if held != [*kv, *x] or not _holds(cache.rows, needed):
        raise Mismatch(
            f"the cache holds {len(cache.kv)} layers of K/V {held[0]}, the plan needs "
            f"{model.n_layers} of {job.max_tokens} tokens, batch {job.batch_size}, {kv_dtype}: it "
            "belongs to another model or workload."
        )


def _holds(rows: Sequence[HostRows], needed: Sequence[HostRows]) -> bool:
    return len(rows) == len(needed) and all(
        one.holds(other) for one, other in zip(rows, needed, strict=True)
    )
