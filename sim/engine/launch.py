"""Launch times of tasks: each device has a host thread that launches in graph order."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sim.cost.model import CostModel
from sim.errors import BadInput
from sim.graph.tasks import TaskGraph


def released(graph: TaskGraph, release_s: Mapping[str, float] | None) -> dict[int, float]:
    """Earliest start of tasks, by position.

    Raises:
        BadInput: the graph has no such task.
    """
    unknown = [name for name in release_s or {} if name not in graph.index]
    if unknown:
        raise BadInput(f"release_s names task {unknown[0]!r}, which the graph does not have.")
    return {graph.index[name]: earliest_s for name, earliest_s in (release_s or {}).items()}


def launch_times(graph: TaskGraph, costs: CostModel, free_ops: Collection[str] = ()) -> list[float]:
    """Time in seconds at which the host has launched each task, in graph order.

    Args:
        free_ops: operations that are launched at no cost.
    """
    ahead_s = costs.hardware.dispatch.head_start_s
    spent: dict[int, float] = {}
    launched = []
    for task in graph.tasks:
        cost_s = 0.0 if task.op in free_ops else costs.launch_s(task)
        spent[task.device] = spent.get(task.device, 0.0) + cost_s
        launched.append(max(costs.earliest_s(task), spent[task.device] - ahead_s))
    return launched
