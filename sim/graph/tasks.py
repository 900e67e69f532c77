"""A static, hashed graph of tasks that simulator and device both execute.

A lane is one engine that works first in, first out, such as the compute stream or one copy
direction. A task starts when every task in `deps` is done, its lane is free and the host has
launched it. Dependencies are the only order between lanes: for example, a load depends on the last
task that read its staging slot. Executors add no order of their own. Tasks with the same `claim`
are alternatives: the first to start does the work, and the others do what is left.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

from sim.errors import BadInput
from sim.files import STRICT_KEYS, parse, set_fields
from sim.graph.jobs import RestoreRequest, Workload
from sim.graph.loads import LoadedRows, Loads
from sim.lanes import COMPUTE, D2H, DISK, H2D, HOST, NET
from sim.model.arithmetic import PLAIN
from sim.model.spec import ModelSpec

STAGING_SLOTS = 2
"""Slots that a load and the compute before it alternate between, of K and V, X or weights."""

LANE_OF_OP = {
    "embed": COMPUTE,
    "qkv": COMPUTE,
    "place_kv": COMPUTE,
    "recompute_resident": COMPUTE,
    "quantise": COMPUTE,
    "recompute": COMPUTE,
    "dequantise": COMPUTE,
    "attention": COMPUTE,
    "mlp": COMPUTE,
    "head": COMPUTE,
    "load_kv_weights": H2D,
    "load_weights": H2D,
    "load_x": H2D,
    "load_kv": H2D,
    "store_kv": D2H,
    "store_x": D2H,
    "stage_kv": HOST,
    "prefill": COMPUTE,
    "read_kv": DISK,
    "read_x": DISK,
    "fetch_kv": NET,
    "fetch_x": NET,
}
"""The lane of each operation.

=========== ===================================================================================
embed       token ids -> hidden state of the new tokens
qkv         input norm, Q/K/V projection of the new tokens, append K and V to the slot
place_kv    K and V of `tokens` that stay in device memory -> KV staging slot
recompute_resident  K and V of `tokens` from attention inputs X that stay in device memory
quantise    the new token's K and V -> quantised row
recompute   K and V of `tokens` from their loaded attention inputs X
dequantise  loaded rows of `tokens` -> K and V in the KV slot
attention   attention over all past tokens and the new one, output projection, residual
mlp         norm, MLP, residual
head        final norm, logits, greedy choice of the next token
load_kv_weights  K and V projection of the layer -> weight slot
load_weights     the layer's other matrices -> weight slot
load_x      host X of `tokens` -> X staging slot
load_kv     host K and V of `tokens` -> KV staging slot, quantised ones -> slot of rows
store_kv    the new token's K and V -> host cache
store_x     the new token's X -> host cache
stage_kv    pageable host K and V of `tokens` -> pinned staging buffer, from which they are loaded
prefill     K and V of `tokens` from token ids, or from the hidden state that the task of the layers
            before has left, in `layers` layers
read_kv, read_x    K and V, or X, of `tokens` in `layers` layers: file -> host staging buffer
fetch_kv, fetch_x  the same from another machine
=========== ===================================================================================
"""


@dataclass(frozen=True, slots=True)
class Task:
    """One operation of one layer in one step on one lane.

    Args:
        id: unique, readable: `s0.L3.load_kv`.
        op: a key of `LANE_OF_OP`.
        lane: the engine that runs it.
        step: decode step, from 0.
        layer: layer index, or -1 for work outside the layers (embed, head).
        token_start, token_stop: positions the task works on, half open, in each sequence.
        slot: staging slot the task reads or writes, or -1.
        bytes: bytes that a copy moves, over the link or inside the host, else 0.
        flops: floating-point operations of a compute task, else 0.
        deps: ids that must be done before it starts.
        device: index of the device whose lanes it uses.
        batch: which of the workload's batches it works on.
        layers: how many layers from `layer` on it works on.
        claim: name of work that several tasks could do, for example compute or load the same
            tokens. Where their token ranges overlap, the first task to start takes the tokens. A
            later one works on the tokens that are left; with none left it is skipped. If a task
            depends on another with the same claim and range (the copy from host memory of tokens
            that a disk read brought), it works on exactly the tokens that the other took.
    """

    __pydantic_config__ = STRICT_KEYS

    id: str
    op: str
    lane: str
    step: int
    layer: int
    token_start: int
    token_stop: int
    slot: int
    bytes: int
    flops: int
    deps: tuple[str, ...] = ()
    device: int = 0
    batch: int = 0
    layers: int = 1
    claim: str = ""

    @property
    def n_tokens(self) -> int:
        return self.token_stop - self.token_start


@dataclass(frozen=True)
class TaskGraph:
    """A validated graph with the model and workload its token ranges refer to.

    `tasks` is in topological order, and each lane runs its tasks in that order.

    Raises:
        BadInput: a task is malformed, duplicated, or depends on one that does not precede it.
    """

    __pydantic_config__ = STRICT_KEYS

    schedule: str
    model: ModelSpec
    workload: Workload | RestoreRequest
    slots: int
    tasks: tuple[Task, ...]

    def __post_init__(self) -> None:
        _check_tasks(self.tasks)

    @cached_property
    def sha256(self) -> str:
        """Identity of the graph: timelines are comparable only if their graphs' hashes agree.

        Fields at their default value are left out, here and in files, so that a field added in a
        later version does not change the hash of a graph that does not use it. So is what decides
        no task: how the model computes.
        """
        import hashlib  # loads OpenSSL, which most commands do not need

        model = set_fields(replace(self.model, arithmetic=PLAIN))
        setting = [self.schedule, self.slots, model, set_fields(self.workload)]
        lines = [json.dumps(setting, sort_keys=True), *map(_identity, self.tasks)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of each task id in `tasks`."""
        return {task.id: position for position, task in enumerate(self.tasks)}

    @cached_property
    def dep_indices(self) -> tuple[tuple[int, ...], ...]:
        """For each task the positions of its deps."""
        index = self.index
        return tuple(tuple(index[dep] for dep in task.deps) for task in self.tasks)

    @cached_property
    def n_devices(self) -> int:
        return 1 + max((task.device for task in self.tasks), default=0)

    @cached_property
    def lanes(self) -> dict[tuple[int, str], list[int]]:
        """Positions of the tasks of each (device, lane), in the order the lane runs them."""
        queues: dict[tuple[int, str], list[int]] = {}
        for position, task in enumerate(self.tasks):
            queues.setdefault((task.device, task.lane), []).append(position)
        return queues

    @cached_property
    def _loads(self) -> Loads:
        return Loads(self.model, cast(RestoreRequest, self.workload))

    def loaded_rows(self, task: Task) -> LoadedRows:
        """Rows that a load of a restore moves."""
        return self._loads.rows(task.layer, task.layers, task.token_start, task.token_stop)

    def loaded_bytes(self, task: Task) -> int:
        """Bytes that a load of K and V of a restore moves."""
        return self._loads.kv_bytes(task.layer, task.layers, task.token_start, task.token_stop)

    def to_dict(self) -> dict[str, Any]:
        """The graph as it is written to a file, without fields that have their default value."""
        return {
            "schedule": self.schedule,
            "model": set_fields(self.model),
            "workload": set_fields(self.workload),
            "slots": self.slots,
            "tasks": [set_fields(task) for task in self.tasks],
        }

    @classmethod
    def from_dict(cls, data: Any, where: str) -> TaskGraph:
        """Rebuild a graph from `to_dict`'s content; `where` names the file in errors."""
        return parse(cls, data, where)


def _identity(task: Task) -> str:
    text = (
        f"{task.id} {task.op} {task.lane} {task.step} {task.layer} {task.token_start} "
        f"{task.token_stop} {task.slot} {task.bytes} {task.flops} {task.deps} {task.device}"
    )
    if task.batch:
        text += f" batch {task.batch}"
    if task.layers != 1:
        text += f" layers {task.layers}"
    return f"{text} claim {task.claim}" if task.claim else text


def _check_tasks(tasks: Iterable[Task]) -> None:
    seen: set[str] = set()
    for task in tasks:
        if task.id in seen:
            raise BadInput(f"task {task.id!r} appears twice; ids must be unique.")
        if LANE_OF_OP.get(task.op) != task.lane:
            raise BadInput(
                f"task {task.id}: op {task.op!r} cannot run on lane {task.lane!r}; "
                f"it belongs to {LANE_OF_OP.get(task.op, 'no lane: unknown op')!r}."
            )
        if task.token_start < 0 or task.token_stop < task.token_start:
            raise BadInput(
                f"task {task.id}: tokens [{task.token_start}, {task.token_stop}) is not a range."
            )
        if task.layers < 1:
            raise BadInput(f"task {task.id}: layers(={task.layers}) must be at least 1.")
        if task.bytes < 0 or task.flops < 0 or (task.lane != COMPUTE) != (task.bytes > 0):
            raise BadInput(
                f"task {task.id}: bytes(={task.bytes}) must be > 0 for a copy and 0 for compute, "
                f"flops(={task.flops}) at least 0."
            )
        for dep in task.deps:
            if dep not in seen:
                raise BadInput(
                    f"task {task.id} depends on {dep!r}, which does not precede it in the graph."
                )
        seen.add(task.id)


def attended_tokens(task: Task, model: ModelSpec) -> int:
    """Keys that the last token of `task` attends to, itself included."""
    return task.token_stop - model.first_token(task.layer, task.token_stop - 1)
