"""Run the task graph of a restore on a device with real tensors, and measure its tasks."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Protocol

from torch import Tensor

from hw.backends import Backend, Handle
from hw.cache.host import kv_layout
from hw.cache.reference import ResidentPrefill
from hw.cache.verify import verify_restore
from hw.model.chunk_prefill import ChunkPrefill
from hw.model.weights import TORCH_DTYPE, Weights
from hw.run.preflight import check_restore
from hw.tiers.direct_io import aligned_buffer
from hw.tiers.tiers import KV, Lost, Piece, Tier, X
from sim.errors import NotSimulated
from sim.graph.claims import Claims, Tokens
from sim.graph.races import check_races
from sim.graph.tasks import Task, TaskGraph
from sim.graph.timeline import Timeline
from sim.lanes import COMPUTE, TIER_LANES
from sim.machine.availability import ALWAYS, Availability

Operation = Callable[["RestoreExecutor", Task, Tokens], None]


class ClaimPolicy(Protocol):
    """Decides, when the turn of a task has come, which of its tokens it does."""

    def take(self, at: int) -> Tokens | None:
        """The tokens of the task at position `at` of the graph, an empty range to leave it out.

        None where that is not decided yet.
        """

    def ended(self, at: int, seconds: float) -> None:
        """That task has ended."""


class RestoreExecutor:
    """One graph with its device buffers, ready to run any number of times.

    Args:
        graph: what to run.
        predicted_sha256: hash of the graph whose simulation passed.
        weights: on the backend's device.
        reference: the prompt, computed whole; what a run comes to is held to it.
        tier: where the cached prefix lies.

    Attributes:
        kv: for each layer [S, 1, 2, H_kv, D] on the device, as the last run left it.
        logits: [1, V] behind the last token.
        recomputed: what the last run computed because the tier had lost it.

    Raises:
        NotSimulated: `predicted_sha256` is not this graph's hash.
        Mismatch: the weights or the prompt belong to another model or request.
        BadInput: the request is one that can only be simulated.
        RaceFound: two tasks of the graph touch the same buffer in no fixed order.
    """

    def __init__(
        self,
        graph: TaskGraph,
        predicted_sha256: str,
        weights: Weights,
        reference: ResidentPrefill,
        tier: Tier,
        backend: Backend,
    ) -> None:
        if predicted_sha256 != graph.sha256:
            raise NotSimulated(
                f"graph {graph.sha256[:12]} has no passing simulation (found one of "
                f"{predicted_sha256[:12]}); simulate the plan first."
            )
        check_races(graph)
        self.request = check_restore(graph, weights.model, reference.prompt)
        self.graph, self.reference, self.tier, self.backend = graph, reference, tier, backend
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
        self._got: dict[int, Tokens] = {}
        self._handles: list[Handle] = []

    def _staging_slots(self) -> list[Tensor]:
        """Host memory between a tier and the link, by the slots of the graph."""
        sizes = [
            self.tier.slot_bytes(task.op.partition("_")[2], task.layers, task.n_tokens)
            for task in self.graph.tasks
            if task.lane in TIER_LANES
        ]
        return [
            aligned_buffer(self.backend, max(sizes, default=0)) for _ in range(self.graph.slots)
        ]

    def run(
        self, trace: Availability = ALWAYS, claim_policy: ClaimPolicy | None = None
    ) -> Timeline:
        """Restore once; returns when every task ran.

        What an earlier run left on the device is wiped first, so that a load that does not happen
        cannot pass for one that did.

        Args:
            trace: how much of each lane there is over time.
            settler: decides who does which tokens; by default the graph's claims.
        """
        for held in (*self.kv, *self._x.values(), self._prefill.hidden, self.logits):
            held.fill_(math.nan)
        self._staged, self._lost, self.recomputed, self._got = {}, [], [], {}
        claims = Claims(self.graph)
        handles: list[Handle] = []
        self.backend.begin(trace, in_turn=True)
        for at, (task, deps) in enumerate(
            zip(self.graph.tasks, self.graph.dep_indices, strict=True)
        ):
            taker = claim_policy or (claims if task.claim else None)
            self._got[at] = (task.token_start, task.token_stop)
            resolve = None if taker is None else partial(self._resolve, taker, at)
            after = [handles[dep] for dep in deps]
            work = partial(self._work, at)
            done = None if claim_policy is None else partial(claim_policy.ended, at)
            handles.append(self.backend.launch(task.lane, work, after, resolve, done))
        self.backend.finish()
        self._handles = handles
        times = self.backend.times_s(handles)
        return Timeline(self.graph, tuple(a for a, _ in times), tuple(b for _, b in times))

    def shares(self, trace: Availability) -> list[Share]:
        """How much of its core the compute lane had in the last run, beside what `trace` says."""
        return compute_shares(self.graph, self.backend, self._handles, trace)

    def check(self) -> dict[str, float | bool]:
        """Compare what the last run left on the device with the reference.

        Raises:
            WrongNumbers: as `verify_restore`.
        """
        return verify_restore(self.graph.model, self.kv, self.logits.cpu(), self.reference)

    def _resolve(self, taker: ClaimPolicy | Claims, at: int) -> bool | None:
        tokens = taker.take(at)
        if tokens is None:
            return None
        self._got[at] = tokens
        return tokens[0] < tokens[1]

    def _work(self, at: int) -> None:
        task = self.graph.tasks[at]
        OPS[task.op](self, task, self._got[at])

    def _compute(self, task: Task, tokens: Tokens) -> None:
        if task.token_start >= self.request.cached_tokens:
            self._recompute_lost(task.layer + task.layers)
        self._prefill.run(*tokens, range(task.layer, task.layer + task.layers))

    def _recompute_lost(self, layers: int) -> None:
        """Compute what the tier has lost of the first `layers`, when all before it is there.

        The hidden state of these tokens exists in no layer, so they go through all from the first.
        """
        with self._losing:
            now = [one for one in self._lost if one.layer < layers]
            self._lost = [one for one in self._lost if one not in now]
        self.recomputed += now
        for start, stop in sorted({(one.start, one.stop) for one in now}):
            last = max(one.layer for one in now if (one.start, one.stop) == (start, stop))
            self._prefill.run(start, stop, range(last + 1))

    def _project(self, task: Task, tokens: Tokens) -> None:
        """K and V of the tokens whose X has come; of those that were lost it never will."""
        first = self._x_tokens[task.layer][0]
        rows = self._x[task.layer][tokens[0] - first : tokens[1] - first]
        self._prefill.project(task.layer, tokens[0], rows)

    def _head(self, _task: Task, _tokens: Tokens) -> None:
        self.logits.copy_(self._prefill.logits())

    def _bring(self, kind: str, task: Task, tokens: Tokens) -> None:
        layers = range(task.layer, task.layer + task.layers)
        move = self.backend.transfer()
        pieces, lost = self.tier.bring(kind, layers, *tokens, self._slots[task.slot], move)
        self._staged[task.slot] = pieces
        with self._losing:
            self._lost += lost

    def _load(self, kind: str, task: Task, tokens: Tokens) -> None:
        if task.slot >= 0:
            pieces = self._staged.pop(task.slot)
        else:
            layers = range(task.layer, task.layer + task.layers)
            pieces, _ = self.tier.bring(kind, layers, *tokens, None, self.backend.transfer())
        self.backend.copy_all([(self._place(kind, piece), piece.rows) for piece in pieces])

    def _place(self, kind: str, piece: Piece) -> Tensor:
        """Where a piece belongs on the device."""
        held, first = self.kv[piece.layer], 0
        if kind == X:
            held, first = self._x[piece.layer], self._x_tokens[piece.layer][0]
        return held[piece.start - first : piece.stop - first]


def _loading(kind: str) -> Operation:
    return lambda executor, task, tokens: executor._load(kind, task, tokens)


def _bringing(kind: str) -> Operation:
    return lambda executor, task, tokens: executor._bring(kind, task, tokens)


OPS: dict[str, Operation] = {
    "prefill": RestoreExecutor._compute,
    "recompute": RestoreExecutor._project,
    "head": RestoreExecutor._head,
    "load_kv": _loading(KV),
    "load_x": _loading(X),
    "read_kv": _bringing(KV),
    "read_x": _bringing(X),
    "fetch_kv": _bringing(KV),
    "fetch_x": _bringing(X),
}
"""What each operation does; functions and not bound methods, as in `hw/run/decode.py`."""


def _x_tokens(graph: TaskGraph) -> dict[int, Tokens]:
    """Of each layer the tokens whose X is loaded."""
    ranges: dict[int, Tokens] = {}
    for task in graph.tasks:
        if task.op == "load_x":
            start, stop = ranges.get(task.layer, (task.token_start, task.token_stop))
            ranges[task.layer] = (min(start, task.token_start), max(stop, task.token_stop))
    return ranges


@dataclass(frozen=True, slots=True)
class Share:
    """From one change of a trace to the next: the part that it states, and the part measured."""

    start_s: float
    stated_frac: float
    measured_frac: float


def compute_shares(
    graph: TaskGraph, backend: Backend, handles: Sequence[Handle], trace: Availability
) -> list[Share]:
    """Shares between the changes of a trace, from the tasks that lie between two of them whole."""
    spans = [
        (*times, worked_s)
        for times, worked_s, task in zip(
            backend.times_s(handles), backend.worked_s(handles), graph.tasks, strict=True
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
