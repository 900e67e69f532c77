"""Decode graphs of other systems, made of the same tasks as ours.

============ ====================================================================================
hf-offloaded transformers' `DynamicCache(offloading=True)` (5.x): while a layer computes, the whole
             KV of the next layer is loaded; after the new token's K and V are appended, the whole
             layer is stored before its attention, on the compute stream. The memory traffic of
             appending by concatenation is left out
flexgen      FlexGen (arXiv 2303.06865), as FlexLLMGen's overlapped loop decodes one batch: K and V
             are in pageable memory; before a layer is launched the host thread copies those of the
             next layer into a pinned buffer (as `pin_memory()` does, at the profile's rate), from
             which they are loaded while the layer computes; a barrier ends every layer. Embedding
             and output head are layers too, so layer 0 loads during the embedding. Simplified: the
             new token's K and V are stored during their own layer instead of the next, and the host
             launches ahead as in all other graphs
llama.cpp    llama.cpp with the cache in host memory (`-nkvo`): a layer's K and V are copied when
             its query is known, and the attention waits for them. Whole layers may stay in GPU
             memory. `llama.cpp-ring` is a fork's ring of two buffers: the copies of the next layers
             run meanwhile
============ ====================================================================================
"""

from __future__ import annotations

from planner.decode.split import Residency
from sim.errors import BadInput
from sim.graph.jobs import Workload
from sim.graph.tasks import LANE_OF_OP, STAGING_SLOTS, Task, TaskGraph
from sim.model.operations import compute_flops
from sim.model.spec import ModelSpec

OTHER_SYSTEMS = ("hf-offloaded", "flexgen")
"""Those that every plan is compared with."""

RING = "llama.cpp-ring"
RUNTIME_SYSTEMS = (*OTHER_SYSTEMS, "llama.cpp", RING)


def other_system_graph(
    policy: str, model: ModelSpec, workload: Workload, residency: Residency | None = None
) -> TaskGraph:
    """The decode graph of another system, layer by layer and step by step.

    Args:
        residency: layers whose whole cache stays in GPU memory, of llama.cpp.

    Raises:
        BadInput: several batches, or a quantised cache.
    """
    if model.layer_kinds:
        raise BadInput(
            f"policy {policy!r} moves K and V of every layer, and {model.name} has layers of "
            "several kinds; use lp, load-all or resident."
        )
    if workload.n_batches > 1:
        raise BadInput(
            f"policy {policy!r} decodes one batch; n_batches(={workload.n_batches}) must be 1."
        )
    if workload.kv_bits is not None:
        raise BadInput(
            f"policy {policy!r} keeps K and V in the model's dtype; "
            f"kv_bits(={workload.kv_bits}) must be 16."
        )
    if policy in OTHER_SYSTEMS:
        kind = _FlexGen if policy == "flexgen" else _HfOffloaded
        return kind(model, workload).graph()
    whole = residency or Residency.nothing(model)
    kept = {at for at in range(model.n_layers) if whole.holds_whole(at, workload)}
    return _LlamaCpp(model, workload, kept, policy == RING).graph()


class _OtherSystem:
    """Tasks of one batch whose layers share two staging slots."""

    def __init__(self, model: ModelSpec, workload: Workload) -> None:
        self.model = model
        self.workload = workload
        self.slots = min(STAGING_SLOTS, model.n_layers)
        self.tasks: list[Task] = []

    def _slot(self, step: int, layer: int) -> int:
        return (step * self.model.n_layers + layer) % self.slots

    def _attended(self, step: int, layer: int) -> tuple[int, int]:
        """The past tokens that a layer attends to."""
        past = self.workload.context_tokens(step)
        return self.model.first_token(layer, past), past

    def _compute(self, step: int, layer: int, op: str, deps: tuple[str, ...]) -> str:
        past = self.workload.context_tokens(step)
        context = self.model.layer_context(layer, past) + 1
        flops = compute_flops(op, 1, context, self.model, self.workload.batch_size)
        return self._add(step, layer, op, (past, past + 1), 0, flops, deps)

    def _copy(
        self, step: int, layer: int, op: str, tokens: tuple[int, int], deps: tuple[str, ...]
    ) -> str:
        rows = self.workload.batch_size * (tokens[1] - tokens[0])
        return self._add(step, layer, op, tokens, rows * self.model.kv_token_bytes, 0, deps)

    def _add(
        self,
        step: int,
        layer: int,
        op: str,
        tokens: tuple[int, int],
        n_bytes: int,
        flops: int,
        deps: tuple[str, ...],
    ) -> str:
        name = f"s{step}.L{layer}.{op}" if layer >= 0 else f"s{step}.{op}"
        slot = self._slot(step, layer) if layer >= 0 else -1
        unique = tuple(dict.fromkeys(deps))
        self.tasks.append(
            Task(name, op, LANE_OF_OP[op], step, layer, *tokens, slot, n_bytes, flops, unique)
        )
        return name


class _HfOffloaded(_OtherSystem):
    """Layer after layer, each stored whole before its attention."""

    def __init__(self, model: ModelSpec, workload: Workload) -> None:
        super().__init__(model, workload)
        self.stored: dict[int, str] = {}
        self.readers: dict[int, tuple[str, ...]] = {}

    def graph(self) -> TaskGraph:
        hidden: tuple[str, ...] = ()
        cells = [
            (step, layer)
            for step in range(self.workload.gen_tokens)
            for layer in range(self.model.n_layers)
        ]
        for cell in cells[: self.slots]:
            self._load(cell)
        for at, (step, layer) in enumerate(cells):
            if layer == 0:
                hidden = (self._compute(step, -1, "embed", hidden),)
            hidden = (self._layer(step, layer, hidden),)
            if at + self.slots < len(cells):
                self._load(cells[at + self.slots])
            if layer == self.model.n_layers - 1:
                hidden = (self._compute(step, -1, "head", hidden),)
        return TaskGraph("row", self.model, self.workload, self.slots, tuple(self.tasks))

    def _load(self, cell: tuple[int, int]) -> None:
        step, layer = cell
        free = self.readers.get(self._slot(step, layer), ())
        stored = (self.stored[layer],) if layer in self.stored else ()
        self._copy(step, layer, "load_kv", self._attended(step, layer), (*free, *stored))

    def _layer(self, step: int, layer: int, hidden: tuple[str, ...]) -> str:
        slot, past = self._slot(step, layer), self.workload.context_tokens(step)
        qkv = self._compute(step, layer, "qkv", (*hidden, *self.readers.get(slot, ())))
        kept = (self.model.first_token(layer, past + 1), past + 1)
        loaded = f"s{step}.L{layer}.load_kv"
        self.stored[layer] = self._copy(step, layer, "store_kv", kept, (qkv, loaded))
        attention = self._compute(step, layer, "attention", (self.stored[layer],))
        self.readers[slot] = (attention,)
        return self._compute(step, layer, "mlp", (attention,))


class _FlexGen(_OtherSystem):
    """Layers between barriers, the embedding (-1) and the output head (n_layers) among them."""

    def graph(self) -> TaskGraph:
        ended: tuple[str, ...] = ()
        for step in range(self.workload.gen_tokens):
            for layer in range(-1, self.model.n_layers + 1):
                ended = self._between_barriers(step, layer, ended)
        return TaskGraph("row", self.model, self.workload, self.slots, tuple(self.tasks))

    def _between_barriers(self, step: int, layer: int, ended: tuple[str, ...]) -> tuple[str, ...]:
        """Add one layer, with the loads of the next.

        Args:
            ended: tasks of the barrier before.

        Returns:
            Tasks of the barrier after.
        """
        launched = ended
        loading: tuple[str, ...] = ()
        if layer + 1 < self.model.n_layers:
            launched = (self._bring(step, layer + 1, "stage_kv", ended),)
            loading = (self._bring(step, layer + 1, "load_kv", launched),)
        if not 0 <= layer < self.model.n_layers:
            return (*loading, self._compute(step, -1, "embed" if layer < 0 else "head", launched))
        past = self.workload.context_tokens(step)
        qkv = self._compute(step, layer, "qkv", launched)
        attention = self._compute(step, layer, "attention", (qkv,))
        mlp = self._compute(step, layer, "mlp", (attention,))
        return (*loading, mlp, self._copy(step, layer, "store_kv", (past, past + 1), (qkv,)))

    def _bring(self, step: int, layer: int, op: str, deps: tuple[str, ...]) -> str:
        return self._copy(step, layer, op, self._attended(step, layer), deps)


class _LlamaCpp(_OtherSystem):
    """Layers whose K and V are copied before their attention, or are in GPU memory.

    Args:
        kept: layers whose cache stays in GPU memory, in slots of their own.
        ring: a layer is copied as soon as a slot is free.
    """

    def __init__(self, model: ModelSpec, workload: Workload, kept: set[int], ring: bool) -> None:
        super().__init__(model, workload)
        self.kept, self.ring = kept, ring
        self.moved = [layer for layer in range(model.n_layers) if layer not in kept]
        self.staging = min(STAGING_SLOTS, len(self.moved))
        self.slots = self.staging + len(kept)
        self.own = {layer: self.staging + at for at, layer in enumerate(sorted(kept))}
        self.readers: dict[int, tuple[str, ...]] = {}
        self.stored: dict[int, str] = {}

    def _slot(self, step: int, layer: int) -> int:
        if layer in self.own:
            return self.own[layer]
        return (step * len(self.moved) + self.moved.index(layer)) % self.staging

    def graph(self) -> TaskGraph:
        hidden: tuple[str, ...] = ()
        cells = [(step, layer) for step in range(self.workload.gen_tokens) for layer in self.moved]
        ahead = self.staging if self.ring else 0
        for cell in cells[:ahead]:
            self._load(cell, ())
        at = ahead
        for step in range(self.workload.gen_tokens):
            hidden = (self._compute(step, -1, "embed", hidden),)
            for layer in range(self.model.n_layers):
                qkv = self._compute(step, layer, "qkv", self._free(step, layer, hidden))
                if layer not in self.kept and not self.ring:
                    self._load((step, layer), (qkv,))
                hidden = (self._attend(step, layer, qkv),)
                if self.ring and layer not in self.kept and at < len(cells):
                    self._load(cells[at], ())
                    at += 1
            hidden = (self._compute(step, -1, "head", hidden),)
        return TaskGraph("row", self.model, self.workload, self.slots, tuple(self.tasks))

    def _free(self, step: int, layer: int, hidden: tuple[str, ...]) -> tuple[str, ...]:
        """What ends before the new token's row may be written into the layer's slot."""
        return (*hidden, *self.readers.get(self._slot(step, layer), ()))

    def _load(self, cell: tuple[int, int], deps: tuple[str, ...]) -> None:
        step, layer = cell
        free = self.readers.get(self._slot(step, layer), ())
        stored = (self.stored[layer],) if layer in self.stored else ()
        self._copy(step, layer, "load_kv", self._attended(step, layer), (*deps, *free, *stored))

    def _attend(self, step: int, layer: int, qkv: str) -> str:
        past = self.workload.context_tokens(step)
        readers: tuple[str, ...] = ()
        loaded: tuple[str, ...] = ()
        if layer not in self.kept:
            loaded = (f"s{step}.L{layer}.load_kv",)
            self.stored[layer] = self._copy(step, layer, "store_kv", (past, past + 1), (qkv,))
            readers = (self.stored[layer],)
        attention = self._compute(step, layer, "attention", (qkv, *loaded))
        self.readers[self._slot(step, layer)] = (attention, *readers)
        return self._compute(step, layer, "mlp", (attention,))
