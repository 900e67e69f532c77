"""The operations, buffers and numerical check of a restore graph."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import ClassVar, cast

from torch import Tensor

from hw.backends import Backend
from hw.cache.host import kv_layout
from hw.cache.reference import ResidentPrefill
from hw.cache.verify import verify_restore
from hw.model.chunk_prefill import ChunkPrefill
from hw.model.weights import TORCH_DTYPE, Weights
from hw.run.executor import Executor
from hw.run.preflight import check_restore
from hw.tiers.direct_io import aligned_buffer
from hw.tiers.tiers import KV, Lost, Piece, Tier, X
from sim.graph.claims import Tokens
from sim.graph.jobs import RestoreRequest
from sim.graph.tasks import Task, TaskGraph
from sim.graph.timeline import Timeline
from sim.lanes import COMPUTE, TIER_LANES
from sim.machine.availability import Availability

Operation = Callable[["RestoreExecutor", Task], None]


@dataclass(frozen=True, slots=True)
class Share:
    """Share of the compute lane between two changes of a trace, as stated and as measured."""

    start_s: float
    stated_frac: float
    measured_frac: float


def _loading(kind: str) -> Operation:
    return lambda executor, task: executor._load(kind, task)


def _bringing(kind: str) -> Operation:
    return lambda executor, task: executor._bring(kind, task)


class RestoreExecutor(Executor):
    """Restores the KV cache of a prompt by computing some of its tokens and loading the others.

    Args:
        simulated: the predicted timeline of the graph to run.
        weights: on the backend's device.
        reference: the whole prompt, computed; `check` compares with it.
        tier: holds the cached prefix.

    Attributes:
        kv: for each layer [S, 1, 2, H_kv, D] on the device, as the last run left it.
        logits: [1, V] behind the last token.
        recomputed: ranges that the last run computed because the tier had lost them.

    Raises:
        Mismatch: the weights or the prompt belong to another model or request.
        BadInput: the request can only be simulated.
        RaceFound: as `Executor`.
    """

    in_turn = True

    def __init__(
        self,
        simulated: Timeline,
        weights: Weights,
        reference: ResidentPrefill,
        tier: Tier,
        backend: Backend,
    ) -> None:
        super().__init__(simulated, backend)
        graph = self.graph
        self.request = cast(RestoreRequest, graph.workload)  # no other job has these operations
        check_restore(graph, self.request, weights.model, reference.prompt)
        self.reference, self.tier = reference, tier
        model, n_tokens = graph.model, graph.workload.prompt_tokens
        kv_shape, dtype = kv_layout(model, None)
        empty = backend.device_empty
        self.kv = [empty((n_tokens, 1, *kv_shape), dtype) for _ in weights.layers]
        self._x_tokens = _x_tokens(graph)
        self._prefill = ChunkPrefill(
            weights,
            reference.prompt.to(backend.device),
            self.kv,
            self.request.other_tokens,
            self.request.gpu_share,
            reference.chosen,
        )
        self._x = {
            layer: empty((stop - start, 1, model.hidden_size), TORCH_DTYPE[model.dtype])
            for layer, (start, stop) in self._x_tokens.items()
        }
        self.logits = empty((1, model.vocab_size), dtype)
        self._slots = self._staging_slots()
        self._staged: dict[int, list[Piece]] = {}
        self._lost: list[Lost] = []
        self._losing = threading.Lock()  # the lane of a tier adds, the compute lane takes
        self.recomputed: list[Lost] = []

    def _staging_slots(self) -> list[Tensor]:
        """Host memory between a tier and the link, by the slots of the graph."""
        sizes = []
        for task in self.graph.tasks:
            if task.lane in TIER_LANES:
                layers, start, stop = self.graph.loaded_rows(task)
                kind = task.op.partition("_")[2]
                sizes.append(self.tier.slot_bytes(kind, len(layers), stop - start))
        return [
            aligned_buffer(self.backend, max(sizes, default=0)) for _ in range(self.graph.slots)
        ]

    def _reset(self) -> None:
        for held in (*self.kv, *self._x.values(), self._prefill.hidden, self.logits):
            held.fill_(math.nan)
        self._staged, self._lost, self.recomputed = {}, [], []

    def check(self) -> dict[str, float | bool]:
        """Compare the last run with the reference.

        Raises:
            WrongNumbers: as `verify_restore`.
        """
        cached = self.request.cached_tokens
        return verify_restore(self.graph.model, self.kv, self.logits.cpu(), self.reference, cached)

    def shares(self, trace: Availability) -> list[Share]:
        """Share of its core that the compute lane had in the last run, between changes of `trace`.

        Only tasks that ran entirely between two changes count.
        """
        spans = [
            (*times, worked_s)
            for times, worked_s, task in zip(
                self.backend.times_s(self._handles),
                self.backend.worked_s(self._handles),
                self.graph.tasks,
                strict=True,
            )
            if task.lane == COMPUTE and times[0] < times[1]
        ]
        edges = [0.0, *(change_s for change_s in trace.changes_s if change_s > 0), math.inf]
        found = []
        for start_s, stop_s in pairwise(edges):
            inside = [span for span in spans if start_s <= span[0] and span[1] <= stop_s]
            if inside:
                took_s = sum(end_s - begun_s for begun_s, end_s, _ in inside)
                worked_s = sum(worked for _, _, worked in inside)
                found.append(Share(start_s, trace.at(start_s, COMPUTE), worked_s / took_s))
        return found

    def _compute(self, task: Task) -> None:
        if task.token_start >= self.request.cached_tokens:
            self._recompute_lost(task.layer + task.layers)
        layers = range(task.layer, task.layer + task.layers)
        self._prefill.run(task.token_start, task.token_stop, layers)

    def _recompute_lost(self, layers: int) -> None:
        """Compute the tokens that the tier has lost in the first `layers`.

        No layer has the hidden state of these tokens, so they go through all from the first.
        """
        with self._losing:
            now = [one for one in self._lost if one.layer < layers]
            self._lost = [one for one in self._lost if one not in now]
        self.recomputed += now
        for start, stop in sorted({(one.start, one.stop) for one in now}):
            last = max(one.layer for one in now if (one.start, one.stop) == (start, stop))
            self._compute_again(start, stop, last)

    def _compute_again(self, start: int, stop: int, last: int) -> None:
        """Compute tokens [start, stop) in the layers up to `last`.

        A layer with a window may lack the K and V before them that it attends to. They are computed
        too, from the tokens that the layer before it attends to for them, and so on. What these
        attend to does not count, but NaN in it would spoil the others in the same chunk.
        """
        model, firsts = self.graph.model, [start]
        for layer in reversed(range(last)):
            attended = model.first_token(layer, firsts[-1])
            if attended < self.request.first_loaded(model, layer):
                firsts.append(attended)
                self.kv[layer][model.first_token(layer, attended) : attended].zero_()
            else:
                firsts.append(firsts[-1])
        firsts.reverse()
        size = self.request.step_tokens
        for at in range(firsts[0], stop, size):
            for first, layers in groupby(range(last + 1), key=firsts.__getitem__):
                each, end = [*layers], min(at + size, stop)
                if first < end:
                    self._prefill.run(max(first, at), end, range(each[0], each[-1] + 1))

    def _project(self, task: Task) -> None:
        """K and V from the loaded X; tokens whose X was lost are computed again later."""
        first = self._x_tokens[task.layer][0]
        rows = self._x[task.layer][task.token_start - first : task.token_stop - first]
        self._prefill.project(task.layer, task.token_start, rows)

    def _head(self, _task: Task) -> None:
        self.logits.copy_(self._prefill.logits())

    def _read(self, kind: str, task: Task, slot: Tensor | None) -> tuple[list[Piece], list[Lost]]:
        """The task's tokens out of the tier, through `slot` unless the link can read them there."""
        return self.tier.bring(kind, *self.graph.loaded_rows(task), slot, self.backend.transfer())

    def _bring(self, kind: str, task: Task) -> None:
        self._staged[task.slot], lost = self._read(kind, task, self._slots[task.slot])
        with self._losing:
            self._lost += lost

    def _load(self, kind: str, task: Task) -> None:
        pieces = self._staged.pop(task.slot) if task.slot >= 0 else self._read(kind, task, None)[0]
        self.backend.copy_all([(self._place(kind, piece), piece.rows) for piece in pieces])

    def _place(self, kind: str, piece: Piece) -> Tensor:
        """Device rows that a piece is copied to."""
        held, first = self.kv[piece.layer], 0
        if kind == X:
            held, first = self._x[piece.layer], self._x_tokens[piece.layer][0]
        return held[piece.start - first : piece.stop - first]

    operations: ClassVar = {
        "prefill": _compute,
        "recompute": _project,
        "head": _head,
        "load_kv": _loading(KV),
        "load_x": _loading(X),
        "read_kv": _bringing(KV),
        "read_x": _bringing(X),
        "fetch_kv": _bringing(KV),
        "fetch_x": _bringing(X),
    }


def _x_tokens(graph: TaskGraph) -> dict[int, Tokens]:
    """Range of tokens whose X is loaded, by layer."""
    ranges: dict[int, Tokens] = {}
    for task in graph.tasks:
        if task.op == "load_x":
            start, stop = ranges.get(task.layer, (task.token_start, task.token_stop))
            ranges[task.layer] = (min(start, task.token_start), max(stop, task.token_stop))
    return ranges
