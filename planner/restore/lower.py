"""From a restore's split, or from none where claims decide, to the graph that realises it.

The compute lane takes steps of tokens from the front. Copies bring K and V, or X, from the tier:
straight from host memory, or through a staging buffer there; the second copy of one chunk overlaps
the first copy of the next. Tokens that are not cached come last, because they attend to all others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from planner.restore.split import RestoreSplit
from sim.graph.jobs import RestoreRequest
from sim.graph.loads import Loads
from sim.graph.tasks import LANE_OF_OP, Task, TaskGraph
from sim.lanes import DISK, LANE_OF_TIER
from sim.model.attention import Span
from sim.model.operations import compute_flops, prefill_attention_flops, product_flops
from sim.model.spec import ModelSpec

STAGING_CHUNKS = 4
"""Chunks that host memory holds between a tier and the device."""

CLAIM = "kv"
SCHEDULE = "restore"


def compute_only_graph(model: ModelSpec, request: RestoreRequest) -> TaskGraph:
    """Prefill of the whole prompt, as if nothing were cached."""
    lowering = _Lowering(model, request)
    for start, stop in lowering.steps(0, request.prompt_tokens):
        lowering.prefill(lowering.all_layers(start, stop))
    return lowering.graph()


def two_ended_graph(model: ModelSpec, request: RestoreRequest) -> TaskGraph:
    """Cake's two ends (arXiv 2410.03065): steps from the front and loads from the back.

    Both sides have tasks for all cached tokens. A claim gives each token to the task
    that starts first.
    """
    lowering = _Lowering(model, request)
    for start, stop in lowering.steps(0, request.cached_tokens):
        lowering.prefill(lowering.all_layers(start, stop), claim=CLAIM)
    last = ""
    for start, stop in lowering.io_chunks_from_the_back(0):
        last = lowering.load("kv", lowering.all_layers(start, stop), CLAIM)
    for start, stop in lowering.uncached_steps():
        lowering.prefill(lowering.all_layers(start, stop), (last,))
    return lowering.graph()


def split_graph(
    model: ModelSpec, request: RestoreRequest, split: RestoreSplit, sizes: TaskSizes | None = None
) -> TaskGraph:
    """The graph of a split.

    Args:
        sizes: of this request, which the graphs of several splits can share.

    Raises:
        BadInput: the split is not one of this request.
    """
    split.check(model, request)
    lowering = _Lowering(model, request, sizes)
    lowering.staircase(split)
    if split.by_layer:
        lowering.by_layer(split)
        return lowering.graph()
    last = ""
    for start, stop in lowering.io_chunks_from_the_back(split.computed_tokens[0]):
        last = lowering.load("kv", lowering.all_layers(start, stop))
    for start, stop in lowering.uncached_steps():
        lowering.prefill(lowering.all_layers(start, stop), (last,) if last else ())
    return lowering.graph()


Range = tuple[int, int]
Part = tuple[int, Span]
"""Kind and span of a layer."""


class _Block(NamedTuple):
    """A range of tokens in `layers` layers from `layer` on."""

    start: int
    stop: int
    layer: int
    layers: int = 1

    @property
    def n_tokens(self) -> int:
        return self.stop - self.start


class TaskSizes:
    """Bytes and FLOPs of the tasks of one request, each counted once."""

    def __init__(self, model: ModelSpec, request: RestoreRequest) -> None:
        self._model = model
        self.loads = Loads(model, request)
        self._parts: dict[tuple[int, int], tuple[tuple[Part, int], ...]] = {}
        self._part_flops: dict[tuple[Part, int, int], int] = {}
        self._loaded: dict[tuple[str, _Block], tuple[str, int]] = {}
        kinds = range(len(model.kinds))
        self._product_flops = [product_flops(model, kind) for kind in kinds]
        self._project_flops = [compute_flops("recompute", 1, 1, model, 1, kind) for kind in kinds]

    def loaded(self, kind: str, block: _Block) -> tuple[str, int]:
        """What a load of a block is called after its operation, and its bytes."""
        if (kind, block) not in self._loaded:
            where = (block.layer, block.layers, block.start, block.stop)
            rows = self.loads.rows(*where)
            at = f"L{block.layer}.{rows.start}" if block.layers == 1 else f"{rows.start}"
            n_bytes = rows.n_rows * self._model.x_token_bytes
            if kind == "kv":
                n_bytes = self.loads.kv_bytes(*where)
            self._loaded[kind, block] = at, n_bytes
        return self._loaded[kind, block]

    def prefill_flops(self, block: _Block) -> int:
        """FLOPs of a prefill; layers of one kind and span have the same, which are counted once."""
        where = block.layer, block.layers
        if where not in self._parts:
            layers = range(block.layer, block.layer + block.layers)
            counted = Counter((self._model.kind_of[at], self._model.span(at)) for at in layers)
            self._parts[where] = tuple(counted.items())
        flops = 0
        for part, count in self._parts[where]:
            key = part, block.start, block.stop
            if key not in self._part_flops:
                kind, span = part
                attention = self._model.kinds[kind].attention
                scores = prefill_attention_flops(attention, block.start, block.n_tokens, span)
                self._part_flops[key] = block.n_tokens * self._product_flops[kind] + scores
            flops += count * self._part_flops[key]
        return flops

    def project_flops(self, block: _Block) -> int:
        """FLOPs of a projection of K and V from X."""
        return block.n_tokens * self._project_flops[self._model.kind_of[block.layer]]


class _Lowering:
    def __init__(
        self, model: ModelSpec, request: RestoreRequest, sizes: TaskSizes | None = None
    ) -> None:
        self.model = model
        self.request = request
        self.sizes = sizes or TaskSizes(model, request)
        self.tier_lane = LANE_OF_TIER.get(request.tier)
        self.tasks: list[Task] = []
        self.staged: list[str] = []

    def graph(self) -> TaskGraph:
        """The graph with the output head as its last task."""
        stop = self.request.prompt_tokens
        flops = compute_flops("head", 1, 1, self.model, 1)
        self._add("head", "head", _Block(stop - 1, stop, -1), flops=flops)
        slots = STAGING_CHUNKS if self.tier_lane else 0
        return TaskGraph(SCHEDULE, self.model, self.request, slots, tuple(self.tasks))

    def all_layers(self, start: int, stop: int) -> _Block:
        return _Block(start, stop, 0, self.model.n_layers)

    def steps(self, start: int, stop: int) -> Iterator[Range]:
        """The restore's part of each step, from the front."""
        return _pieces(start, stop, self.request.step_tokens)

    def uncached_steps(self) -> Iterator[Range]:
        return self.steps(self.request.cached_tokens, self.request.prompt_tokens)

    def io_chunks_from_the_back(self, start: int) -> Iterator[Range]:
        """I/O chunks of the cached tokens from `start` on that any layer needs, the last first.

        The last range begins at `start`, even if no layer needs the first of its tokens.
        """
        size, needed = self.request.io_chunk_tokens, max(start, self.sizes.loads.first)
        needed -= needed % size
        chunks = list(_pieces(needed, self.request.cached_tokens, size))
        return (
            (start if first == needed else first, stop)
            for first, stop in reversed(chunks)
            if start < stop
        )

    def staircase(self, split: RestoreSplit) -> None:
        """Steps of the computed tokens, each through as many layers as compute them."""
        computed = split.computed_tokens
        edges = sorted({0, *computed})
        for first, last in pairwise(edges):
            layers = sum(count >= last for count in computed)
            for start, stop in self.steps(first, last):
                self.prefill(_Block(start, stop, 0, layers))

    def by_layer(self, split: RestoreSplit) -> None:
        """X and then K and V, layer after layer; the uncached tokens follow through the layers.

        A copy moves as many bytes as one chunk of all layers.
        """
        size = self.request.io_chunk_tokens * self.model.n_layers
        loads: list[list[tuple[str, _Block]]] = []
        for layer, (first, count) in enumerate(
            zip(split.computed_tokens, split.projected_tokens, strict=True)
        ):
            first = max(first, self.sizes.loads.firsts[layer])
            blocks = [_Block(*piece, layer) for piece in _pieces(first, first + count, size)]
            loads.append([(self.load("x", block), block) for block in blocks])
        last: list[str] = []
        for layer, count in enumerate(split.loaded_tokens(self.model, self.request)):
            stop = self.request.cached_tokens
            names = [
                self.load("kv", _Block(*piece, layer))
                for piece in _pieces(stop - count, stop, size)
            ]
            last.append(names[-1] if names else "")
        for layer, arrived in enumerate(last):
            for name, block in loads[layer]:
                self.project(block, name)
            for start, stop in self.uncached_steps():
                self.prefill(_Block(start, stop, layer), (arrived,) if arrived else ())

    def prefill(self, block: _Block, deps: tuple[str, ...] = (), claim: str = "") -> None:
        flops = self.sizes.prefill_flops(block)
        name = f"prefill.{block.start}"
        if block.layers < self.model.n_layers:
            name = f"L{block.layer}.{name}"
        self._add(name, "prefill", block, deps=deps, flops=flops, claim=claim)

    def project(self, block: _Block, loaded: str) -> None:
        """K and V of tokens from their X."""
        flops = self.sizes.project_flops(block)
        name = f"L{block.layer}.project.{block.start}"
        self._add(name, "recompute", block, deps=(loaded,), flops=flops)

    def load(self, kind: str, block: _Block, claim: str = "") -> str:
        """Both legs of one chunk; returns the name of the one that ends on the device."""
        at, n_bytes = self.sizes.loaded(kind, block)
        deps: tuple[str, ...] = ()
        slot = -1
        if self.tier_lane is not None:
            slot = len(self.staged) % STAGING_CHUNKS
            op = f"{'read' if self.tier_lane == DISK else 'fetch'}_{kind}"
            earlier = self.staged[-STAGING_CHUNKS:]
            freed = tuple(earlier[:1]) if len(earlier) == STAGING_CHUNKS else ()
            deps = (f"{op}.{at}",)
            self._add(*deps, op, block, deps=freed, n_bytes=n_bytes, claim=claim, slot=slot)
        op = f"load_{kind}"
        name = f"{op}.{at}"
        self._add(name, op, block, deps=deps, n_bytes=n_bytes, claim=claim, slot=slot)
        self.staged.append(name)
        return name

    def _add(
        self,
        name: str,
        op: str,
        block: _Block,
        *,
        deps: tuple[str, ...] = (),
        n_bytes: int = 0,
        flops: int = 0,
        claim: str = "",
        slot: int = -1,
    ) -> None:
        self.tasks.append(
            Task(
                id=name,
                op=op,
                lane=LANE_OF_OP[op],
                step=0,
                layer=block.layer,
                token_start=block.start,
                token_stop=block.stop,
                slot=slot,
                bytes=n_bytes,
                flops=flops,
                deps=deps,
                layers=block.layers,
                claim=claim,
            )
        )


def _pieces(start: int, stop: int, size: int) -> Iterator[Range]:
    """[start, stop) in ranges of `size`, the last one shorter."""
    return ((at, min(at + size, stop)) for at in range(start, stop, size))
