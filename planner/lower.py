"""From a split (how many tokens each layer recomputes) to the graph that realises it.

Row schedule: weights stay on the device, every layer of a step runs before the next step. Layer
after layer, in every step, the link loads X of the recomputed tokens and then K and V of the
others into one of `slots` staging slots, while the compute lane works on earlier layers.
"""

from __future__ import annotations

from collections.abc import Sequence

from sim.cost import compute_flops
from sim.errors import BadInput
from sim.graph import LANE_OF_OP, Task, TaskGraph
from sim.model_spec import ModelSpec
from sim.workload import Workload

Split = Sequence[Sequence[int]]
"""Recomputed tokens, `split[step][layer]`; the tokens behind them are loaded."""

SLOTS = 2


def lower_row(
    model: ModelSpec, workload: Workload, split: Split, contexts: Sequence[int] | None = None
) -> TaskGraph:
    """The row-schedule decode graph in which layer i of step t recomputes `split[t][i]` tokens.

    Args:
        contexts: past tokens of each step, by default every step of the workload. The planner
            shortens long jobs to a few representative steps this way; such a graph is for
            costing only.

    Raises:
        BadInput: the split has the wrong shape or recomputes more tokens than there are.
    """
    if contexts is None:
        contexts = [workload.context_tokens(step) for step in range(workload.gen_tokens)]
    _check_split(model, contexts, split)
    return _RowLowering(model, workload, split, contexts).graph()


def _check_split(model: ModelSpec, contexts: Sequence[int], split: Split) -> None:
    if len(split) != len(contexts) or any(len(row) != model.n_layers for row in split):
        raise BadInput(f"the split must hold {len(contexts)} steps of {model.n_layers} layers.")
    for step, (past, row) in enumerate(zip(contexts, split, strict=True)):
        for layer, count in enumerate(row):
            if not 0 <= count <= past:
                raise BadInput(
                    f"recomputed_tokens(={count}) of step {step}, layer {layer} must be between 0 "
                    f"and the {past} past tokens."
                )


class _RowLowering:
    def __init__(
        self, model: ModelSpec, workload: Workload, split: Split, contexts: Sequence[int]
    ) -> None:
        self.model = model
        self.workload = workload
        self.split = split
        self.contexts = contexts
        self.x_needed = _most_needed_later(split)
        self.flops: dict[tuple[str, int, int], int] = {}
        self.slots = min(SLOTS, model.n_layers)
        self.tasks: list[Task] = []
        self.kv_readers: list[list[str]] = [[] for _ in range(self.slots)]
        self.x_readers: list[list[str]] = [[] for _ in range(self.slots)]
        self.new_x_readers: list[list[str]] = [[] for _ in range(self.slots)]
        self.stored_kv: list[str | None] = [None] * model.n_layers
        self.stored_x: list[str | None] = [None] * model.n_layers

    def graph(self) -> TaskGraph:
        n_layers, n_steps = self.model.n_layers, len(self.contexts)
        for ahead in range(self.slots):
            self._loads(0, ahead)
        hidden: tuple[str, ...] = ()
        for step in range(n_steps):
            hidden = (self._compute(step, -1, "embed", hidden),)
            for layer in range(n_layers):
                hidden = (self._layer(step, layer, hidden),)
                ahead = step * n_layers + layer + self.slots
                if ahead < n_steps * n_layers:
                    self._loads(*divmod(ahead, n_layers))
            hidden = (self._compute(step, -1, "head", hidden),)
        return TaskGraph("row", self.model, self.workload, self.slots, tuple(self.tasks))

    def _slot(self, step: int, layer: int) -> int:
        return (step * self.model.n_layers + layer) % self.slots

    def _loads(self, step: int, layer: int) -> None:
        """Bring X and KV of one layer's past tokens into its slot, once the slot is free."""
        slot = self._slot(step, layer)
        past = self.contexts[step]
        recomputed = self.split[step][layer]
        if recomputed:
            deps = list(self.x_readers[slot])
            if recomputed > self.workload.prompt_tokens:
                deps += filter(None, [self.stored_x[layer]])
            self._copy(step, layer, "load_x", (0, recomputed), deps)
        if recomputed < past:
            deps = list(self.kv_readers[slot])
            if past > self.workload.prompt_tokens:
                deps += filter(None, [self.stored_kv[layer]])
            self._copy(step, layer, "load_kv", (recomputed, past), deps)

    def _layer(self, step: int, layer: int, hidden: tuple[str, ...]) -> str:
        """The layer's compute and the new token's way back to the host; returns its last task."""
        slot = self._slot(step, layer)
        past = self.contexts[step]
        recomputed = self.split[step][layer]
        free = (*self.kv_readers[slot], *self.new_x_readers[slot])
        qkv = self._compute(step, layer, "qkv", (*hidden, *free))
        ready = [qkv]
        if recomputed:
            loaded = _id(step, layer, "load_x")
            ready.append(self._compute(step, layer, "recompute", (loaded, *self.kv_readers[slot])))
            self.x_readers[slot] = [ready[-1]]
        new = (past, past + 1)
        store = self._copy(step, layer, "store_kv", new, [qkv])
        self.stored_kv[layer] = store
        self.new_x_readers[slot] = []
        if self.x_needed[step][layer] > past:
            self.stored_x[layer] = self._copy(step, layer, "store_x", new, [qkv])
            self.new_x_readers[slot] = [_id(step, layer, "store_x")]
        if recomputed < past:
            ready.append(_id(step, layer, "load_kv"))
        attention = self._compute(step, layer, "attention", tuple(ready))
        self.kv_readers[slot] = [attention, store]
        return self._compute(step, layer, "mlp", (attention,))

    def _compute(self, step: int, layer: int, op: str, deps: tuple[str, ...]) -> str:
        past = self.contexts[step]
        start, stop = (past, past + 1)
        if op == "recompute":
            start, stop = 0, self.split[step][layer]
        key = (op, stop - start, stop)
        if key not in self.flops:
            self.flops[key] = compute_flops(*key, self.model, self.workload.batch_size)
        return self._add(step, layer, op, (start, stop), 0, self.flops[key], deps)

    def _copy(
        self, step: int, layer: int, op: str, tokens: tuple[int, int], deps: Sequence[str]
    ) -> str:
        one = self.model.x_token_bytes if op.endswith("_x") else self.model.kv_token_bytes
        n_bytes = self.workload.batch_size * (tokens[1] - tokens[0]) * one
        return self._add(step, layer, op, tokens, n_bytes, 0, deps)

    def _add(
        self,
        step: int,
        layer: int,
        op: str,
        tokens: tuple[int, int],
        n_bytes: int,
        flops: int,
        deps: Sequence[str],
    ) -> str:
        slot = self._slot(step, layer) if layer >= 0 else -1
        name = _id(step, layer, op)
        unique = tuple(dict.fromkeys(deps))
        self.tasks.append(
            Task(name, op, LANE_OF_OP[op], step, layer, *tokens, slot, n_bytes, flops, unique)
        )
        return name


def _most_needed_later(split: Split) -> list[list[int]]:
    """For each step and layer the most tokens that any later step recomputes."""
    needed = [[0] * len(split[0])]
    for row in reversed(split[1:]):
        needed.append([max(pair) for pair in zip(needed[-1], row, strict=True)])
    return needed[::-1]


def _id(step: int, layer: int, op: str) -> str:
    return f"s{step}.L{layer}.{op}" if layer >= 0 else f"s{step}.{op}"
