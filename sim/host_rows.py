"""Which tokens of each layer's cache have to lie in host memory while a graph runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim.graph import Task, TaskGraph
from sim.model_spec import ModelSpec
from sim.workload import Workload

Tokens = tuple[int, int]
"""Half-open range of positions."""

_KV_OPS = ("load_kv", "stage_kv", "store_kv")
_X_OPS = ("load_x", "store_x", "recompute_resident")


@dataclass(frozen=True, slots=True)
class HostRows:
    """One layer's part of a host cache, a row for each token.

    Tokens that every step recomputes need no K and V there, tokens that none does need no X.

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
        """Whether everything that `needed` has is here."""
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
    stop = workload.max_tokens
    firsts = [model.first_token(layer, workload.prompt_tokens) for layer in range(model.n_layers)]
    return [HostRows(first, stop, (first, first), (first, stop)) for first in firsts]


def needed_rows(graph: TaskGraph) -> list[HostRows]:
    """What the graph's tasks load, store, or keep on the device from the start.

    What stays on the device comes from the host when a job begins. Out of a quantised cache it is
    projected anew, from X.
    """
    tasks: list[list[Task]] = [[] for _ in range(graph.model.n_layers)]
    for task in graph.tasks:
        if task.layer >= 0:
            tasks[task.layer].append(task)
    whole = all_rows(graph.model, graph.workload)
    return [_needed(rows, tasks[layer], graph.workload) for layer, rows in enumerate(whole)]


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
