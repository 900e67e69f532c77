"""Conflicting accesses of a graph, declared and real, by comparing every pair of tasks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import combinations
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sim.graph.accesses import graph_accesses
from sim.graph.tasks import TaskGraph

Pair = tuple[int, int]
"""Positions of two tasks in the graph, the earlier one first."""

Touch = tuple[Any, int, int, bool]
"""(buffer, start, stop, whether it is written)."""


def conflicting(touches: Iterable[Iterable[Touch]]) -> dict[Pair, list[Any]]:
    """The pairs of tasks that touch the same part of a buffer, one writing, and the buffers."""
    of_buffer: dict[Any, set[tuple[int, int, int, bool]]] = defaultdict(set)
    for at, of_task in enumerate(touches):
        for buffer, start, stop, write in of_task:
            of_buffer[buffer].add((at, start, stop, write))
    found: dict[Pair, list[Any]] = defaultdict(list)
    for buffer, uses in of_buffer.items():
        if not any(write for *_, write in uses):
            continue
        for one, other in combinations(sorted(uses), 2):
            overlap = max(one[1], other[1]) < min(one[2], other[2])
            if one[0] != other[0] and overlap and (one[3] or other[3]):
                found[one[0], other[0]].append(buffer)
    return found


def declared_conflicts(graph: TaskGraph) -> dict[Pair, list[Any]]:
    return conflicting(graph_accesses(graph))


class TouchedMemory(TorchDispatchMode):
    """Notes the bytes of storage that each operation of torch in this thread reads and writes.

    Every tensor stays alive, so that no two storages have the same address.
    """

    def __init__(self) -> None:
        super().__init__()
        self.touches: set[tuple[int, int, int, bool]] = set()
        self._alive: list[Any] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self._alive += [args, kwargs, made]
        outputs = {_storage(one) for one in tree_leaves(made) if isinstance(one, torch.Tensor)}
        arguments = func._schema.arguments
        named = dict(zip((one.name for one in arguments), args, strict=False)) | (kwargs or {})
        for argument in arguments:
            alias = argument.alias_info
            writes = alias is not None and alias.is_write
            for tensor in tree_leaves(named.get(argument.name)):
                if not isinstance(tensor, torch.Tensor) or not tensor.numel():
                    continue
                is_view = alias is not None and not writes and _storage(tensor) in outputs
                if not is_view:
                    self.touches.add((_storage(tensor), *_bytes(tensor), writes))
        return made


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bytes(tensor: torch.Tensor) -> tuple[int, int]:
    """The bytes of its storage from the tensor's first element to its last."""
    dims = zip(tensor.shape, tensor.stride(), strict=True)
    last = tensor.storage_offset() + sum((size - 1) * stride for size, stride in dims)
    return tensor.storage_offset() * tensor.itemsize, (last + 1) * tensor.itemsize
