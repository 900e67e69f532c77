"""Device and host memory of a decode job, computed before anything is allocated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim.errors import DoesNotFit
from sim.graph.jobs import Workload
from sim.graph.tasks import STAGING_SLOTS, Task, TaskGraph
from sim.lanes import HOST
from sim.model.kv_format import host_row_bytes
from sim.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes by purpose, with their sums on device and host."""

    weight_bytes: int
    kv_slot_bytes: int
    x_slot_bytes: int
    resident_bytes: int
    workspace_bytes: int
    host_kv_bytes: int
    host_x_bytes: int
    host_weight_bytes: int
    host_staging_bytes: int
    quantised_slot_bytes: int
    index_bytes: int = 0
    state_bytes: int = 0

    @property
    def device_bytes(self) -> int:
        slots = self.kv_slot_bytes + self.quantised_slot_bytes + self.x_slot_bytes
        always = self.weight_bytes + self.index_bytes + self.state_bytes
        return always + slots + self.workspace_bytes + self.resident_bytes

    @property
    def host_bytes(self) -> int:
        caches_bytes = self.host_kv_bytes + self.host_x_bytes
        return caches_bytes + self.host_weight_bytes + self.host_staging_bytes


def layer_rows(model: ModelSpec, workload: Workload, layer: int) -> int:
    """Rows of one layer that its host cache holds: of the prompt and generated.

    Of the prompt a layer with a sliding window keeps what the first step attends to.
    """
    if not model.loads_rows(layer):
        return 0
    return model.held_rows(layer, workload.prompt_tokens) + workload.gen_tokens


Needs = list[tuple[int, int]]
"""(rows, layer) of the layers that a slot serves."""


def _slot_needs(graph: TaskGraph) -> list[Needs]:
    """What each KV slot of a device has to hold.

    A layer that moves nothing has its whole cache in its slot, any other the rows that it reads.
    """
    model, job = graph.model, graph.workload
    moving = {task.layer for task in graph.tasks if task.op in _KV_OPS}
    needs: list[set[tuple[int, int]]] = [set() for _ in range(graph.slots)]
    for task in graph.tasks:
        if task.op == "attention" and model.loads_rows(task.layer):
            rows = layer_rows(model, job, task.layer)
            if task.layer in moving:
                rows = model.layer_context(task.layer, job.prompt_tokens) + job.gen_tokens
            needs[task.slot].add((rows, task.layer))
    return [sorted(need) for need in needs]


def slot_rows(graph: TaskGraph) -> list[int]:
    """Rows that each KV slot of a device holds: the maximum over the layers it serves."""
    return [max((rows for rows, _ in need), default=0) for need in _slot_needs(graph)]


def footprint(graph: TaskGraph, cache: Sequence[HostRows] | None = None) -> Footprint:
    """Memory that `graph` needs on each device, and on the host for all devices.

    A column schedule moves weights: two layers of those that move are on the device, all of them
    on the host. What stays resident is on the host as well, from where it came.
    The workspace is what one layer's activations need at decode (widest matrix output, in
    32-bit for the logits) plus the new token's K, V and X. A graph that stages K and V has room
    for one layer's in pinned memory. A quantised cache has, for each KV slot, a second slot for the
    loaded rows and the new token's. States and index keys of all tokens are on the device.

    Args:
        cache: rows of each layer on the host, by default those that the graph needs.
    """
    model, job = graph.model, graph.workload
    loads = [task for task in graph.tasks if task.op == "load_x"]
    x_rows = max((task.n_tokens for task in loads), default=0)
    x_slots = len({task.slot for task in loads})
    workspace = job.batch_size * (activation_bytes(model) + 4 * model.vocab_size)
    layers = range(model.n_layers)
    rows = needed_rows(graph) if cache is None else cache
    sequences = job.batch_size * job.n_batches * graph.n_devices
    host_kv = [host_row_bytes(model, job.kv_bits, layer) for layer in layers]
    staged = max(layer_rows(model, job, layer) * model.row_bytes(layer) for layer in layers)
    needs = _slot_needs(graph)
    slots_bytes = sum(
        max((count * model.row_bytes(layer) for count, layer in need), default=0) for need in needs
    )
    quantised = 0 if job.kv_bits is None else _quantised_slot_bytes(needs, host_kv)
    moved = {task.layer for task in graph.tasks if task.op == "load_weights"}
    offloaded = len(moved) * model.layer_weight_bytes
    slots = min(STAGING_SLOTS, len(moved)) * model.layer_weight_bytes
    return Footprint(
        weight_bytes=model.weight_bytes - offloaded + slots,
        kv_slot_bytes=job.batch_size * slots_bytes,
        x_slot_bytes=job.batch_size * (x_slots * x_rows + graph.slots) * model.x_token_bytes,
        resident_bytes=job.batch_size * _kept_bytes(graph),
        workspace_bytes=workspace,
        host_kv_bytes=sequences
        * sum(one.n_kv * each for one, each in zip(rows, host_kv, strict=True)),
        host_x_bytes=sequences * sum(one.n_x for one in rows) * model.x_token_bytes,
        host_weight_bytes=offloaded,
        host_staging_bytes=staged * job.batch_size * graph.n_devices * ((0, HOST) in graph.lanes),
        quantised_slot_bytes=job.batch_size * quantised,
        index_bytes=job.batch_size * model.index_bytes(job.max_tokens),
        state_bytes=job.batch_size * model.state_bytes,
    )


def activation_bytes(model: ModelSpec) -> int:
    """Bytes of one layer's activations of one token: hidden states and the widest output."""
    widest = max(kind.projected_size for kind in model.kinds)
    return (widest + 4 * model.hidden_size) * model.element_bytes


def _quantised_slot_bytes(needs: Sequence[Needs], row_bytes: Sequence[int]) -> int:
    """Loaded rows of each KV slot, and the new token's, of one sequence."""
    return sum(
        max(((rows + 1) * row_bytes[layer] for rows, layer in need), default=0) for need in needs
    )


def _kept_bytes(graph: TaskGraph) -> int:
    """Bytes of one sequence, in all layers and batches, that a step takes from device memory."""
    model, n_bytes = graph.model, 0
    for task in graph.tasks:
        if task.op in ("place_kv", "recompute_resident") and not task.step | task.device:
            kept_kv = task.op == "place_kv"
            one = model.row_bytes(task.layer) if kept_kv else model.x_token_bytes
            n_bytes += task.n_tokens * one
    return n_bytes


def check_fits(
    graph: TaskGraph,
    device_bytes: float,
    host_bytes: float,
    where: str,
    cache: Sequence[HostRows] | None = None,
    reserve_bytes: float = 0.0,
) -> Footprint:
    """Refuse a graph that needs more memory than `where` has.

    Args:
        cache: as for `footprint`.
        reserve_bytes: device memory that no job may use.

    Raises:
        DoesNotFit: names the memory that does not suffice, what fills it, and the smallest change.
    """
    need, batch = footprint(graph, cache), graph.workload.batch_size
    free_bytes = device_bytes - reserve_bytes
    if need.device_bytes > free_bytes:
        staging = need.device_bytes - need.weight_bytes
        most = int((free_bytes - need.weight_bytes) * batch // staging)
        advice = f"lower --batch to {most}, or --prompt"
        if most < 1:
            advice = "lower --prompt"
        if graph.schedule == "row":
            moved = ", or --schedule column, which loads the weights layer by layer"
            check_weights(graph.model, free_bytes, where, moved * graph.model.moves_weights)
        reserved = f" after a reserve of {_gib(reserve_bytes)}" if reserve_bytes else ""
        raise DoesNotFit(
            f"{graph.model.name} needs {_gib(need.device_bytes)} of device memory (weights "
            f"{_gib(need.weight_bytes)}, staging slots and workspace {_gib(staging)}) and {where} "
            f"has {_gib(free_bytes)} for it{reserved}; {advice}."
        )
    if need.host_bytes > host_bytes:
        caches = need.host_bytes - need.host_weight_bytes
        most = int((host_bytes - need.host_weight_bytes) * batch // caches)
        advice = f"lower --batch to {most}, or --prompt"
        if most < 1:
            advice = "lower --prompt or --n-batches, or choose a smaller model"
        elif _may_quantise(graph) and not need.host_x_bytes:
            advice += ", or store K and V in 8 bits (--kv-bits 8)"
        raise DoesNotFit(
            f"{graph.model.name} needs {_gib(need.host_bytes)} of host memory (KV cache and "
            f"activations {_gib(caches)}, weights {_gib(need.host_weight_bytes)}) and {where} has "
            f"{_gib(host_bytes)} for it; {advice}."
        )
    return need


def _may_quantise(graph: TaskGraph) -> bool:
    return graph.workload.kv_bits is None and graph.model.quantises_kv


def check_weights(
    model: ModelSpec, free_bytes: float, where: str, otherwise: str = "", unified: bool = False
) -> None:
    """Refuse a model whose weights alone exceed the memory of a GPU of `where`.

    Args:
        otherwise: the end of the advice.
        unified: CPU and GPU share one memory, so that no other GPU could hold a part.

    Raises:
        DoesNotFit: names how many GPUs could hold them.
    """
    beyond = weights_beyond(model, free_bytes)
    if beyond is None:
        return
    place = f"one GPU of {where}" if model.tensor_parallel == 1 else f"these GPUs of {where}"
    if unified:
        taken = f"{model.weight_bytes / 2**30:.1f} of {_gib(free_bytes)}"
        place, beyond = where, f"weights take {taken}, which CPU and GPU share"
    raise DoesNotFit(
        f"{model.name} does not fit on {place}: {beyond}; choose a smaller model or dtype"
        f"{otherwise}."
    )


def weights_beyond(model: ModelSpec, free_bytes: float) -> str | None:
    """Why a GPU cannot hold its weights, and how many GPUs could; None if it can."""
    if model.weight_bytes <= free_bytes:
        return None
    taken = f"weights take {model.weight_bytes / 2**30:.1f} of {_gib(free_bytes)}"
    if model.tensor_parallel > 1:
        return f"{taken} on each of {model.tensor_parallel} GPUs"
    enough = (n for n in model.tensor_parallel_sizes if model.shard(n).weight_bytes <= free_bytes)
    found = next(enough, None)
    return taken if found is None else f"{taken} ({found} GPUs hold them: --tp {found})"


def _gib(n_bytes: float) -> str:
    return f"{n_bytes / 2**30:.1f} GiB"


Tokens = tuple[int, int]
"""Half-open range of positions."""

_KV_OPS = ("load_kv", "stage_kv", "store_kv")

_X_OPS = ("load_x", "store_x", "recompute_resident")


@dataclass(frozen=True, slots=True)
class HostRows:
    """One layer's part of a host cache, a row for each token.

    Tokens that every step recomputes need no K and V on the host; tokens that no step recomputes
    need no X.

    Args:
        first, stop: positions that the layer's window lets any step attend to.
        gap: tokens among them whose K and V are not there.
        x: tokens whose X is there.
    """

    first: int
    stop: int
    gap: Tokens
    x: Tokens

    @property
    def n_kv(self) -> int:
        return self.stop - self.first - (self.gap[1] - self.gap[0])

    @property
    def n_x(self) -> int:
        return self.x[1] - self.x[0]

    def kv_slice(self, start: int, stop: int) -> slice:
        """Rows of K and V of tokens on one side of the gap."""
        skipped = self.first if start < self.gap[1] else self.first + self.gap[1] - self.gap[0]
        return slice(start - skipped, stop - skipped)

    def x_slice(self, start: int, stop: int) -> slice:
        return slice(start - self.x[0], stop - self.x[0])

    def holds(self, needed: HostRows) -> bool:
        """Whether all rows of `needed` are among these."""
        same = (self.first, self.stop) == (needed.first, needed.stop)
        gap = self.gap[0] == self.gap[1] or _within(self.gap, needed.gap)
        return same and gap and (not needed.n_x or _within(needed.x, self.x))

    def kv_parts(self, stop: int) -> list[Tokens]:
        """The tokens before `stop` whose K and V are there, in ranges."""
        parts = ((self.first, min(self.gap[0], stop)), (self.gap[1], stop))
        return [(a, b) for a, b in parts if a < b]


def _within(inner: Tokens, outer: Tokens) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def all_rows(model: ModelSpec, workload: Workload) -> list[HostRows]:
    """K, V and X of every token that any step may attend to."""
    return [_all_rows(model, workload, layer) for layer in range(model.n_layers)]


def _all_rows(model: ModelSpec, workload: Workload, layer: int) -> HostRows:
    if not model.splits(layer):  # no X, and rows by number instead of by position
        return HostRows(0, layer_rows(model, workload, layer), (0, 0), (0, 0))
    first, stop = model.first_token(layer, workload.prompt_tokens), workload.max_tokens
    return HostRows(first, stop, (first, first), (first, stop))


def needed_rows(graph: TaskGraph) -> list[HostRows]:
    """Host rows that the graph's tasks load, store, or place on the device at the start.

    What stays on the device comes from the host when a job begins. Out of a quantised cache it is
    projected again, from X.
    """
    tasks: list[list[Task]] = [[] for _ in range(graph.model.n_layers)]
    for task in graph.tasks:
        if task.layer >= 0:
            tasks[task.layer].append(task)
    whole = all_rows(graph.model, graph.workload)
    return [
        _needed(rows, tasks[layer], graph.workload) if graph.model.splits(layer) else rows
        for layer, rows in enumerate(whole)
    ]


def _needed(whole: HostRows, tasks: Sequence[Task], job: Workload) -> HostRows:
    moved = [task for task in tasks if task.op in _KV_OPS]
    placed = [task for task in tasks if task.op == "place_kv"]
    first, prompt = whole.first, job.prompt_tokens
    gap = (first, first)
    if moved:  # otherwise the layer keeps its whole cache on the device
        last_kept = max((task.token_stop for task in placed), default=first)
        gap = (last_kept, max(last_kept, min(task.token_start for task in moved)))
    quantised = job.kv_bits is not None
    projected = [task for task in tasks if task.op in _X_OPS or (quantised and task in placed)]
    start = min((task.token_start for task in projected), default=first)
    stop = max((task.token_stop for task in projected), default=first)
    if quantised and not moved:
        start, stop = first, prompt
    return HostRows(first, whole.stop, gap, (start, stop))
