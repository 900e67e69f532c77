"""From a split (how many tokens each layer recomputes) to the graph that realises it.

A cell is one layer of one batch in one step. The link loads cell after cell into one of `slots`
staging slots: X of the recomputed tokens, then K and V of the others. The compute lane works on
earlier cells meanwhile.

A layer with a sliding window holds and moves only the past tokens that it attends to. Of these, the
first have resident K and V (`Residency`), the next are recomputed (the first of them from resident
X), and the others are loaded. A layer whose whole cache is resident has a slot of its own and moves
nothing.

Layers differ in what they cache. Where an index chooses the rows that a step reads, they are loaded
once the layer that chooses has made its queries, into a slot of as many rows. States, and keys of
indexes, stay on the device, and a layer without rows of its own moves nothing.

A quantised cache is loaded into a slot of rows, which is free again when the compute lane has
dequantised them into the KV slot. The new token's row is quantised after its projection and stored
from a buffer of its own.

Row schedule: weights stay on the device, and every layer of a step runs before the next step.
Column schedule: weights come from host memory, the K and V projections first so that recomputation
can start early, and all batches pass through a layer before the next layer is loaded.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from planner.decode.split import Residency
from sim.errors import BadInput, UnknownName
from sim.graph.jobs import TASKS_PER_LAYER, Workload, check_tasks
from sim.graph.tasks import LANE_OF_OP, STAGING_SLOTS, Task, TaskGraph
from sim.model.kv_format import host_row_bytes
from sim.model.operations import LAYER_OPS, compute_flops, kernels
from sim.model.spec import ModelSpec

Split = Sequence[Sequence[int]]
"""Recomputed tokens, `split[step][layer]`, between the resident and the loaded ones."""

SCHEDULES = ("row", "column")

WEIGHT_OPS = ("load_kv_weights", "load_weights")


def lower(
    schedule: str,
    model: ModelSpec,
    workload: Workload,
    split: Split,
    contexts: Sequence[int] | None = None,
    residency: Residency | None = None,
) -> TaskGraph:
    """The decode graph in which layer i of step t recomputes `split[t][i]` tokens of every batch.

    Args:
        schedule: `row` or `column`.
        contexts: past tokens of each step, by default of the workload's steps. The planner
            shortens long jobs to a few steps this way; such a graph is for costing only.
        residency: resident data, by default none.

    Raises:
        BadInput: the split has the wrong shape, or recomputes more tokens than there are or fewer
            than have resident X; or the row schedule got several batches.
        UnknownName: no such schedule.
    """
    if schedule not in SCHEDULES:
        raise UnknownName("schedule", schedule, SCHEDULES)
    if schedule == "row" and workload.n_batches > 1:
        raise BadInput(
            f"n_batches(={workload.n_batches}): the row schedule decodes one batch; use the column "
            "schedule for several."
        )
    if contexts is None:
        contexts = [workload.context_tokens(step) for step in range(workload.gen_tokens)]
    residency = residency or Residency.nothing(model)
    residency.check(model, workload)
    _check_split(model, workload, contexts, split, residency)
    return _Lowering(schedule, model, workload, split, contexts, residency).graph()


def check_size(model: ModelSpec, workload: Workload, gpus: int) -> None:
    """Refuse a job whose graph is too large to plan."""
    cells = gpus * workload.gen_tokens * workload.n_batches * model.n_layers
    check_tasks(TASKS_PER_LAYER * cells, "lower --gen, --n-batches or --gpus")


def replicate(graph: TaskGraph, devices: int) -> TaskGraph:
    """The graph of `devices` identical decoders, each with its own requests on its own device.

    Tasks of device 0 keep their names, those of device d are called `g<d>.<name>`.
    """
    if devices == 1:
        return graph
    tasks = list(graph.tasks)
    for device in range(1, devices):
        tasks += [
            replace(
                task,
                id=f"g{device}.{task.id}",
                deps=tuple(f"g{device}.{dep}" for dep in task.deps),
                device=device,
            )
            for task in graph.tasks
        ]
    return replace(graph, tasks=tuple(tasks))


def _check_split(
    model: ModelSpec,
    workload: Workload,
    contexts: Sequence[int],
    split: Split,
    residency: Residency,
) -> None:
    if len(split) != len(contexts) or any(len(row) != model.n_layers for row in split):
        raise BadInput(f"the split must hold {len(contexts)} steps of {model.n_layers} layers.")
    for step, (past, row) in enumerate(zip(contexts, split, strict=True)):
        for layer, count in enumerate(row):
            least = residency.x_tokens[layer]
            most = model.layer_context(layer, past) - residency.kv_tokens[layer]
            if residency.holds_whole(layer, workload) or not model.splits(layer):
                most = 0
            if not least <= count <= most:
                raise BadInput(
                    f"recomputed_tokens(={count}) of step {step}, layer {layer} must be between "
                    f"{least} and the {most} attended past tokens that are not resident."
                )


Cell = tuple[int, int, int]
"""(step, layer, batch)."""


class _Lowering:
    def __init__(
        self,
        schedule: str,
        model: ModelSpec,
        workload: Workload,
        split: Split,
        contexts: Sequence[int],
        residency: Residency,
    ) -> None:
        self.schedule = schedule
        self.model = model
        self.workload = workload
        self.quantised = workload.kv_bits is not None
        self.split = split
        self.contexts = contexts
        self.residency = residency
        self.recomputed_later = [
            _recomputed_later(model, layer, contexts, split, residency)
            for layer in range(model.n_layers)
        ]
        self.whole = {
            at
            for at in range(model.n_layers)
            if residency.holds_whole(at, workload) or not model.loads_rows(at)
        }
        self.chooses = {at for at, one in enumerate(model.layers) if one.attention.chooses}
        self.row_bytes = [
            workload.batch_size * host_row_bytes(model, workload.kv_bits, at)
            for at in range(model.n_layers)
        ]
        self.x_bytes = workload.batch_size * model.x_token_bytes
        self.ops = [
            {op for op in LAYER_OPS if kernels(op, 1, 1, model, 1, kind=kind)}
            for kind in range(len(model.kinds))
        ]
        self.chosen_by = ""
        self.flops: dict[tuple[str, int, int, int], int] = {}
        self.cells: list[Cell] = [
            (step, layer, batch)
            for step in range(len(contexts))
            for layer in range(model.n_layers)
            for batch in range(workload.n_batches)
        ]
        first_step = self.cells[: model.n_layers * workload.n_batches]
        whole = [cell[1:] for cell in first_step if self._whole(cell)]
        staging = min(STAGING_SLOTS, len(first_step) - len(whole))
        staged = [cell for cell in self.cells if not self._whole(cell)]
        self.slot_of = {cell: at % staging for at, cell in enumerate(staged)}
        own = {place: staging + at for at, place in enumerate(whole)}
        self.slot_of |= {cell: own[cell[1:]] for cell in self.cells if cell[1:] in own}
        self.slots = staging + len(whole)
        self.ahead = min(STAGING_SLOTS, len(first_step))
        self.tasks: list[Task] = []
        self.prefixes: dict[Cell, str] = {}
        self.kv_readers: list[list[str]] = [[] for _ in range(self.slots)]
        self.row_readers: list[list[str]] = [[] for _ in range(self.slots)]
        self.new_row_readers: list[list[str]] = [[] for _ in range(self.slots)]
        self.x_readers: list[list[str]] = [[] for _ in range(self.slots)]
        self.new_x_readers: list[list[str]] = [[] for _ in range(self.slots)]
        self.weight_readers: list[list[str]] = [[] for _ in range(STAGING_SLOTS)]
        self.stored_kv: dict[tuple[int, int], str] = {}
        self.stored_x: dict[tuple[int, int], str] = {}

    def graph(self) -> TaskGraph:
        batches = range(self.workload.n_batches)
        last_layer = self.model.n_layers - 1
        hidden: dict[int, str] = {}
        for cell in self.cells[: self.ahead]:
            self._loads(cell)
        for at, cell in enumerate(self.cells):
            step, layer, batch = cell
            if layer == batch == 0:
                for each in batches:
                    before = (hidden[each],) if each in hidden else ()
                    hidden[each] = self._compute((step, -1, each), "embed", before)
            hidden[batch] = self._layer(cell, hidden[batch])
            if at + self.ahead < len(self.cells):
                self._loads(self.cells[at + self.ahead])
            if layer == last_layer and batch == batches[-1]:
                for each in batches:
                    hidden[each] = self._compute((step, -1, each), "head", (hidden[each],))
        return TaskGraph(self.schedule, self.model, self.workload, self.slots, tuple(self.tasks))

    def _whole(self, cell: Cell) -> bool:
        return cell[1] in self.whole

    def _moves_weights(self, layer: int) -> bool:
        return self.schedule == "column" and layer not in self.residency.weight_layers

    def _ranges(self, cell: Cell) -> tuple[int, int, int, int, int]:
        """Bounds of the attended past tokens: start, end of the resident K and V, of the resident
        X, of the recomputed tokens and of the loaded ones."""
        step, layer, _ = cell
        past = self.contexts[step]
        if self._whole(cell):
            return past, past, past, past, past
        start = past - self.model.layer_context(layer, past)
        first = start + self.residency.kv_tokens[layer]
        with_x, end = first + self.residency.x_tokens[layer], first + self.split[step][layer]
        return start, first, with_x, end, past

    def _loads(self, cell: Cell) -> None:
        """Copy X, K and V of one cell's past tokens into its slot when the slot is free.

        In the column schedule the layer's weights come before its first batch.
        """
        _, layer, batch = cell
        slot, prompt = self.slot_of[cell], self.workload.prompt_tokens
        *_, with_x, end, past = self._ranges(cell)
        weights = batch == 0 and self._moves_weights(layer)
        if weights:
            self._load_weights(cell, "load_kv_weights")
        if with_x < end:
            deps = list(self.x_readers[slot])
            if end > prompt and (layer, batch) in self.stored_x:
                deps.append(self.stored_x[layer, batch])
            self._copy(cell, "load_x", (with_x, end), deps)
        if weights:
            self._load_weights(cell, "load_weights")
        if end < past and layer not in self.chooses:
            self._load_kv(cell, (end, past), [])

    def _load_kv(self, cell: Cell, tokens: tuple[int, int], deps: list[str]) -> None:
        _, layer, batch = cell
        slot = self.slot_of[cell]
        deps = [*deps, *(self.row_readers[slot] if self.quantised else self.kv_readers[slot])]
        if tokens[1] > self.workload.prompt_tokens and (layer, batch) in self.stored_kv:
            deps.append(self.stored_kv[layer, batch])
        self._copy(cell, "load_kv", tokens, deps)

    def _load_weights(self, cell: Cell, op: str) -> None:
        n_bytes = self.model.kv_weight_bytes
        if op == "load_weights":
            n_bytes = self.model.layer_weight_bytes - n_bytes
        slot = weight_slot(self.model, *cell[:2])
        self._add(cell, op, (0, 0), n_bytes, 0, self.weight_readers[slot], slot)

    def _layer(self, cell: Cell, hidden: str) -> str:
        """Add the cell's compute and the new token's stores; returns the last compute task."""
        step, layer, batch = cell
        slot, ops = self.slot_of[cell], self.ops[self.model.kind_of[layer]]
        if "qkv" not in ops:
            for op in (op for op in ("attention", "mlp") if op in ops):
                hidden = self._compute(cell, op, (hidden,))
            return hidden
        arrived = []
        if self._moves_weights(layer):
            arrived = [self._id((step, layer, 0), op) for op in WEIGHT_OPS]
        ready, free = [], self.kv_readers[slot]
        if arrived:
            ready += self._fill_slot(cell, free, arrived[:1])
        new_free = [*free, *self.new_x_readers[slot]]
        qkv = self._compute(cell, "qkv", (hidden, *arrived, *new_free))
        ready.append(qkv)
        storable = qkv if self._whole(cell) else self._storable(cell, qkv)
        if not arrived:
            ready += self._fill_slot(cell, free, [])
        stores = [] if self._whole(cell) else self._stores(cell, qkv, storable)
        *_, end, past = self._ranges(cell)
        if layer in self.chooses:
            self._choose(cell, qkv, (end, past))
        if end < past:
            ready.append(self._loaded(cell, free, (end, past)))
        attention = self._compute(cell, "attention", tuple(ready))
        self.kv_readers[slot] = [attention, *stores]
        done = self._compute(cell, "mlp", (attention,)) if "mlp" in ops else attention
        if arrived and batch == self.workload.n_batches - 1:
            self.weight_readers[weight_slot(self.model, step, layer)] = [done]
        return done

    def _choose(self, cell: Cell, qkv: str, tokens: tuple[int, int]) -> None:
        """Load the rows that the layer's index, or that of an earlier layer, has chosen."""
        index = getattr(self.model.layers[cell[1]].attention, "index", None)
        if index is not None and not index.shared:
            self.chosen_by = qkv
        if tokens[0] < tokens[1]:
            self._load_kv(cell, tokens, [self.chosen_by or qkv])

    def _fill_slot(self, cell: Cell, free: list[str], kv_weights: list[str]) -> list[str]:
        """Copy resident K and V into the slot and recompute others."""
        start, first, with_x, end, _ = self._ranges(cell)
        made = []
        if start < first:
            made.append(self._compute(cell, "place_kv", tuple(free), (start, first)))
        if first < with_x:
            deps = (*free, *kv_weights)
            made.append(self._compute(cell, "recompute_resident", deps, (first, with_x)))
        if with_x < end:
            deps = (self._id(cell, "load_x"), *free, *kv_weights)
            made.append(self._compute(cell, "recompute", deps, (with_x, end)))
            self.x_readers[self.slot_of[cell]] = made[-1:]
        return made

    def _storable(self, cell: Cell, qkv: str) -> str:
        """The task after which the new token's K and V have the host's format."""
        if not self.quantised:
            return qkv
        return self._compute(cell, "quantise", (qkv, *self.new_row_readers[self.slot_of[cell]]))

    def _loaded(self, cell: Cell, free: Sequence[str], tokens: tuple[int, int]) -> str:
        """The task after which the KV slot holds the loaded tokens."""
        loaded = self._id(cell, "load_kv")
        if not self.quantised:
            return loaded
        made = self._compute(cell, "dequantise", (loaded, *free), tokens)
        self.row_readers[self.slot_of[cell]] = [made]
        return made

    def _stores(self, cell: Cell, qkv: str, storable: str) -> list[str]:
        """Store the new token's K and V, and its X if a later step recomputes from it.

        Returns:
            Tasks that must end before the KV slot is filled again.
        """
        step, layer, batch = cell
        slot, past = self.slot_of[cell], self.contexts[step]
        new = (past, past + 1)
        store = self._copy(cell, "store_kv", new, [storable])
        self.stored_kv[layer, batch] = store
        self.new_row_readers[slot] = [store]
        self.new_x_readers[slot] = []
        if past in self.recomputed_later[layer]:
            stored = self._copy(cell, "store_x", new, [qkv])
            self.stored_x[layer, batch] = stored
            self.new_x_readers[slot] = [stored]
        return [storable if self.quantised else store]

    def _compute(
        self, cell: Cell, op: str, deps: tuple[str, ...], tokens: tuple[int, int] | None = None
    ) -> str:
        """A compute task on `tokens`, by default on the new one."""
        past, layer = self.contexts[cell[0]], cell[1]
        start, stop = tokens or (past, past + 1)
        context = stop - self.model.first_token(layer, past) if op == "attention" else 0
        kind = self.model.kind_of[layer]
        key = (op, stop - start, context, kind)
        if key not in self.flops:
            self.flops[key] = compute_flops(*key[:3], self.model, self.workload.batch_size, kind)
        return self._add(cell, op, (start, stop), 0, self.flops[key], deps)

    def _copy(self, cell: Cell, op: str, tokens: tuple[int, int], deps: Sequence[str]) -> str:
        one = self.x_bytes if op.endswith("_x") else self.row_bytes[cell[1]]
        n_bytes = (tokens[1] - tokens[0]) * one
        return self._add(cell, op, tokens, n_bytes, 0, deps)

    def _add(
        self,
        cell: Cell,
        op: str,
        tokens: tuple[int, int],
        n_bytes: int,
        flops: int,
        deps: Sequence[str],
        slot: int | None = None,
    ) -> str:
        step, layer, batch = cell
        if slot is None:
            slot = self.slot_of.get(cell, -1)
        name, lane = self._id(cell, op), LANE_OF_OP[op]
        unique = tuple(deps) if len(deps) < 2 else tuple(dict.fromkeys(deps))
        start, stop = tokens
        self.tasks.append(
            Task(name, op, lane, step, layer, start, stop, slot, n_bytes, flops, unique, 0, batch)
        )
        return name

    def _id(self, cell: Cell, op: str) -> str:
        prefix = self.prefixes.get(cell)
        if prefix is None:
            step, layer, batch = cell
            in_layer = f"L{layer}." if layer >= 0 else ""
            in_batch = f"b{batch}." if self.workload.n_batches > 1 else ""
            prefix = self.prefixes[cell] = f"s{step}.{in_layer}{in_batch}"
        if op in WEIGHT_OPS:  # all batches share them
            return f"s{cell[0]}.L{cell[1]}.{op}"
        return prefix + op


def weight_slot(model: ModelSpec, step: int, layer: int) -> int:
    """Weight slot of a layer in the column schedule."""
    return (step * model.n_layers + layer) % STAGING_SLOTS


def _recomputed_later(
    model: ModelSpec, layer: int, contexts: Sequence[int], split: Split, residency: Residency
) -> set[int]:
    """Positions of the steps' new tokens that a later step recomputes in `layer`."""
    if len(contexts) == 1:
        return set()
    changes: Counter[int] = Counter()
    for past, row in zip(contexts, split, strict=True):
        if row[layer]:
            start = past - model.layer_context(layer, past) + residency.kv_tokens[layer]
            changes[start] += 1
            changes[start + row[layer]] -= 1
    edges = sorted(changes)
    counts = [0, *accumulate(changes[edge] for edge in edges)]
    return {past for past in contexts if counts[bisect_right(edges, past)]}
