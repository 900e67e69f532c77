"""The buffers that each operation reads and writes, as the executors in `hw` run it.

Two tables map an operation to the buffers that it reads and those that it writes: `_DECODE` for
decode jobs (`hw/run/decode.py`, `hw/model/offload.py`) and `_RESTORE` for restores
(`hw/run/restore.py`). An entry names a method, which returns the rows of a buffer that a given task
touches. A change of an operation in `hw` needs the same change here: `tests/hw/test_accesses.py`
runs both on real tensors.

Weights that stay on the device, token ids and files are read only, so they are not declared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

from sim.errors import BadInput
from sim.graph.jobs import RestoreRequest, Workload
from sim.graph.tasks import Task, TaskGraph
from sim.lanes import HOST

Buffer = tuple[Any, ...]
"""(name with a `{}` for each number, device, numbers)."""

KV_SLOT = "KV slot {}"
QUANTISED_SLOT = "quantised rows of slot {}"
X_SLOT = "X slot {}"
NEW_X = "new token's X of slot {}"
NEW_ROW = "new token's quantised row of slot {}"
RESIDENT_KV = "resident K and V of layer {}, batch {}"
RESIDENT_X = "resident X of layer {}, batch {}"
HIDDEN = "hidden state of batch {}"
QUERIES = "queries"
LOGITS = "logits of batch {}"
TOKENS = "predicted tokens of batch {}"
HOST_KV = "host K and V of layer {}, batch {}"
HOST_X = "host X of layer {}, batch {}"
PINNED = "pinned staging buffer"
KV_WEIGHTS = "K and V weights of weight slot {}"
OTHER_WEIGHTS = "other weights of weight slot {}"

RESTORED_KV = "K and V of layers {} to {}"
RESTORED_X = "X of layers {} to {}"
PREFILL_HIDDEN = "hidden state of the prompt"
STAGING_SLOT = "host staging slot {}"
RESTORE_LOGITS = "logits"

WHOLE = (0, 1)
"""Rows of a buffer that a task reads or writes as a whole."""


class Rows(NamedTuple):
    """Rows [start, stop) of a buffer: tokens, or rows of a slot where several layers share it."""

    buffer: Buffer
    start: int
    stop: int


class Access(NamedTuple):
    """Rows [start, stop) of a buffer that a task reads or writes."""

    buffer: Buffer
    start: int
    stop: int
    write: bool


def buffer_name(buffer: Buffer) -> str:
    """Readable name of the buffer, with its device unless that is device 0."""
    name, device, *numbers = buffer
    where = f" of device {device}" if device else ""
    return f"{str(name).format(*numbers)}{where}"


class _DecodeBuffers:
    """Rows of the buffers of `hw.DecodeExecutor` and of the host caches that tasks touch."""

    def __init__(self, graph: TaskGraph) -> None:
        model, job = graph.model, graph.workload
        self._model = model
        self._quantised = job.kv_bits is not None
        self._pageable = {device for device, lane in graph.lanes if lane == HOST}
        self._firsts = {
            layer: model.first_token(layer, job.prompt_tokens)
            for layer in {task.layer for task in graph.tasks}
        }
        self._weight_slots = {
            (task.device, task.step, task.layer): task.slot
            for task in graph.tasks
            if task.op == "load_weights"
        }

    def _token_rows(self, name: str, task: Task, *numbers: int) -> list[Rows]:
        """Rows of the task's tokens in a buffer whose row 0 is the layer's first cached token."""
        first = self._firsts[task.layer]
        buffer = (name, task.device, *numbers)
        return [Rows(buffer, task.token_start - first, task.token_stop - first)]

    def kv_slot(self, task: Task) -> list[Rows]:
        return self._token_rows(KV_SLOT, task, task.slot)

    def attended(self, task: Task) -> list[Rows]:
        stop = task.token_stop - self._firsts[task.layer]
        start = stop - 1 - self._model.layer_context(task.layer, task.token_stop - 1)
        return [Rows((KV_SLOT, task.device, task.slot), start, stop)]

    def quantised_slot(self, task: Task) -> list[Rows]:
        return self._token_rows(QUANTISED_SLOT, task, task.slot)

    def loaded(self, task: Task) -> list[Rows]:
        return self.quantised_slot(task) if self._quantised else self.kv_slot(task)

    def stored(self, task: Task) -> list[Rows]:
        return self.new_row(task) if self._quantised else self.kv_slot(task)

    def x_slot(self, task: Task) -> list[Rows]:
        return [Rows((X_SLOT, task.device, task.slot), 0, task.n_tokens)]

    def new_x(self, task: Task) -> list[Rows]:
        return [Rows((NEW_X, task.device, task.slot), *WHOLE)]

    def new_row(self, task: Task) -> list[Rows]:
        return [Rows((NEW_ROW, task.device, task.slot), *WHOLE)]

    def resident_kv(self, task: Task) -> list[Rows]:
        return self._token_rows(RESIDENT_KV, task, task.layer, task.batch)

    def resident_x(self, task: Task) -> list[Rows]:
        return self._token_rows(RESIDENT_X, task, task.layer, task.batch)

    def host_kv(self, task: Task) -> list[Rows]:
        return self._token_rows(HOST_KV, task, task.layer, task.batch)

    def host_x(self, task: Task) -> list[Rows]:
        return self._token_rows(HOST_X, task, task.layer, task.batch)

    def pinned(self, task: Task) -> list[Rows]:
        return self._token_rows(PINNED, task)

    def load_source(self, task: Task) -> list[Rows]:
        return self.pinned(task) if task.device in self._pageable else self.host_kv(task)

    def hidden(self, task: Task) -> list[Rows]:
        return [Rows((HIDDEN, task.device, task.batch), *WHOLE)]

    def queries(self, task: Task) -> list[Rows]:
        return [Rows((QUERIES, task.device), *WHOLE)]

    def logits(self, task: Task) -> list[Rows]:
        return [Rows((LOGITS, task.device, task.batch), *WHOLE)]

    def input_token(self, task: Task) -> list[Rows]:
        return [Rows((TOKENS, task.device, task.batch), task.step, task.step + 1)]

    def next_token(self, task: Task) -> list[Rows]:
        return [Rows((TOKENS, task.device, task.batch), task.step + 1, task.step + 2)]

    def kv_weights(self, task: Task) -> list[Rows]:
        return self._weights(KV_WEIGHTS, task)

    def other_weights(self, task: Task) -> list[Rows]:
        return self._weights(OTHER_WEIGHTS, task)

    def _weights(self, name: str, task: Task) -> list[Rows]:
        """Weights that pass through a weight slot; those that stay on the device are read only."""
        slot = self._weight_slots.get((task.device, task.step, task.layer))
        return [] if slot is None else [Rows((name, task.device, slot), *WHOLE)]

    def kv_weight_slot(self, task: Task) -> list[Rows]:
        return [Rows((KV_WEIGHTS, task.device, task.slot), *WHOLE)]

    def other_weight_slot(self, task: Task) -> list[Rows]:
        return [Rows((OTHER_WEIGHTS, task.device, task.slot), *WHOLE)]


_D = _DecodeBuffers
_DECODE = {
    # operation: (reads, writes)
    "embed": ([_D.input_token], [_D.hidden]),
    "qkv": ([_D.hidden, _D.kv_weights, _D.other_weights], [_D.kv_slot, _D.new_x, _D.queries]),
    "place_kv": ([_D.resident_kv], [_D.kv_slot]),
    "recompute_resident": ([_D.resident_x, _D.kv_weights], [_D.kv_slot]),
    "recompute": ([_D.x_slot, _D.kv_weights], [_D.kv_slot]),
    "quantise": ([_D.kv_slot], [_D.new_row]),
    "dequantise": ([_D.quantised_slot], [_D.kv_slot]),
    "attention": ([_D.attended, _D.queries, _D.other_weights, _D.hidden], [_D.hidden]),
    "mlp": ([_D.other_weights, _D.hidden], [_D.hidden]),
    "head": ([_D.hidden], [_D.logits, _D.next_token]),
    "load_kv_weights": ([], [_D.kv_weight_slot]),
    "load_weights": ([], [_D.other_weight_slot]),
    "load_x": ([_D.host_x], [_D.x_slot]),
    "load_kv": ([_D.load_source], [_D.loaded]),
    "store_kv": ([_D.stored], [_D.host_kv]),
    "store_x": ([_D.new_x], [_D.host_x]),
    "stage_kv": ([_D.host_kv], [_D.pinned]),
}


class _RestoreBuffers:
    """Rows of the buffers of `hw.run.restore.RestoreExecutor` that a task touches.

    Layers that all tasks of the graph treat alike share one buffer here: a job of 80 layers whose
    tasks all run through 80 layers has one.
    """

    def __init__(self, graph: TaskGraph) -> None:
        self._graph, self._model = graph, graph.model
        self._cached_tokens = cast(RestoreRequest, graph.workload).cached_tokens
        ends = {end for task in graph.tasks for end in (task.layer, task.layer + task.layers)}
        windows = [self._model.window(layer) for layer in range(self._model.n_layers)]
        changes = {at for at in range(1, len(windows)) if windows[at] != windows[at - 1]}
        self._edges = sorted({0, *ends, *changes})
        self._band = {edge: at for at, edge in enumerate(self._edges)}

    def _layer_rows(
        self, name: str, task: Task, first: int, tokens_of: Callable[[int], tuple[int, int]]
    ) -> list[Rows]:
        """Rows that are touched in the layers from `first` to the task's last.

        Args:
            tokens_of: range of tokens by layer.
        """
        edges = self._edges
        return [
            Rows((name, task.device, edges[at], edges[at + 1] - 1), *tokens_of(edges[at]))
            for at in range(self._band[first], self._band[task.layer + task.layers])
        ]

    def kv(self, task: Task) -> list[Rows]:
        tokens = (task.token_start, task.token_stop)
        return self._layer_rows(RESTORED_KV, task, task.layer, lambda _: tokens)

    def loaded_kv(self, task: Task) -> list[Rows]:
        layers, start, stop = self._graph.loaded_rows(task)
        return self._layer_rows(
            RESTORED_KV, task, task.layer, lambda layer: (start, stop if layer in layers else start)
        )

    def kv_before(self, task: Task) -> list[Rows]:
        start = task.token_start
        return self._layer_rows(
            RESTORED_KV,
            task,
            task.layer,
            lambda layer: (self._model.first_token(layer, start), start),
        )

    def lost_kv(self, task: Task) -> list[Rows]:
        """Cached tokens that the tier may have lost: a step of uncached tokens computes them."""
        if task.token_start < self._cached_tokens:
            return []
        return self._layer_rows(RESTORED_KV, task, 0, lambda _: (0, self._cached_tokens))

    def lost_hidden(self, task: Task) -> list[Rows]:
        if task.token_start < self._cached_tokens:
            return []
        return [Rows((PREFILL_HIDDEN, task.device), 0, self._cached_tokens)]

    def x(self, task: Task) -> list[Rows]:
        tokens = (task.token_start, task.token_stop)
        return self._layer_rows(RESTORED_X, task, task.layer, lambda _: tokens)

    def hidden(self, task: Task) -> list[Rows]:
        return [Rows((PREFILL_HIDDEN, task.device), task.token_start, task.token_stop)]

    def staging_slot(self, task: Task) -> list[Rows]:
        """Host memory between a tier and the link; tier `dram` needs none."""
        return [] if task.slot < 0 else [Rows((STAGING_SLOT, task.device, task.slot), *WHOLE)]

    def logits(self, task: Task) -> list[Rows]:
        return [Rows((RESTORE_LOGITS, task.device), *WHOLE)]


_R = _RestoreBuffers
_RESTORE = {
    # operation: (reads, writes)
    "prefill": ([_R.kv_before, _R.hidden], [_R.kv, _R.hidden, _R.lost_kv, _R.lost_hidden]),
    "recompute": ([_R.x], [_R.kv]),
    "head": ([_R.hidden], [_R.logits]),
    "load_kv": ([_R.staging_slot], [_R.loaded_kv]),
    "load_x": ([_R.staging_slot], [_R.x]),
    "read_kv": ([], [_R.staging_slot]),
    "read_x": ([], [_R.staging_slot]),
    "fetch_kv": ([], [_R.staging_slot]),
    "fetch_x": ([], [_R.staging_slot]),
}

_Buffers = TypeVar("_Buffers")
_Uses = Sequence[Callable[[_Buffers, Task], list[Rows]]]


def graph_accesses(graph: TaskGraph) -> Iterator[list[Access]]:
    """For each task of `graph`, in graph order, the rows that it reads and writes.

    Raises:
        BadInput: an operation belongs to the other kind of job.
    """
    return _DECLARED[graph.workload.kind](graph)


def _declared(
    graph: TaskGraph,
    table: Mapping[str, tuple[_Uses[_Buffers], _Uses[_Buffers]]],
    buffers: _Buffers,
) -> Iterator[list[Access]]:
    unknown = next((task for task in graph.tasks if task.op not in table), None)
    if unknown is not None:
        raise BadInput(
            f"task {unknown.id}: op {unknown.op!r} is not part of a {graph.schedule} job; known: "
            f"{', '.join(sorted(table))}."
        )
    return (
        [
            Access(*rows, write)
            for uses, write in zip(table[task.op], (False, True), strict=True)
            for use in uses
            for rows in use(buffers, task)
            if rows.start < rows.stop
        ]
        for task in graph.tasks
    )


_DECLARED: dict[str, Callable[[TaskGraph], Iterator[list[Access]]]] = {
    Workload.kind: lambda graph: _declared(graph, _DECODE, _DecodeBuffers(graph)),
    RestoreRequest.kind: lambda graph: _declared(graph, _RESTORE, _RestoreBuffers(graph)),
}
