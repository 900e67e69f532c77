"""Devices that are alike do the same at the same moments, so that one of them stands for all."""

from __future__ import annotations

from dataclasses import replace

from sim.graph import Task, TaskGraph
from sim.hardware import HardwareProfile
from sim.links import Uplink


def stand_in(graph: TaskGraph, hardware: HardwareProfile) -> tuple[TaskGraph, HardwareProfile]:
    """The first device's part of a graph, and the machine as that device sees it.

    Where devices differ in what they do or in what they share, both come back as they are.
    """
    seen = seen_by_each(hardware, graph.n_devices)
    claims = any(task.claim for task in graph.tasks)  # one device may do what the other skips
    if graph.n_devices == 1 or seen is None or claims or not _replicas(graph):
        return graph, hardware
    return replace(graph, tasks=graph.tasks[: len(graph.tasks) // graph.n_devices]), seen


def seen_by_each(hardware: HardwareProfile, devices: int) -> HardwareProfile | None:
    """The machine as each of some devices sees it that all do the same; None if they differ.

    Behind uplinks of the same rates with as many users each, all copy at the same moments, and
    the max-min fair share of a device is an equal part of every uplink on its path.
    """
    uplinks = [_equal_parts(hardware, device, devices) for device in range(devices)]
    if any(_rates(own) != _rates(uplinks[0]) for own in uplinks):
        return None
    return replace(hardware, uplinks=uplinks[0])


def _equal_parts(hardware: HardwareProfile, device: int, devices: int) -> tuple[Uplink, ...]:
    """The uplinks of one device, each with its equal part of their rates."""
    parts = []
    for uplink in hardware.uplinks:
        if device in uplink.devices:
            users = len({user for user in uplink.devices if user < devices})
            h2d, d2h = uplink.h2d_bytes_per_s / users, uplink.d2h_bytes_per_s / users
            parts.append(Uplink(uplink.name, (0,), h2d, d2h))
    return tuple(parts)


def _rates(uplinks: tuple[Uplink, ...]) -> list[tuple[float, float]]:
    return sorted((uplink.h2d_bytes_per_s, uplink.d2h_bytes_per_s) for uplink in uplinks)


def _replicas(graph: TaskGraph) -> bool:
    """Whether the tasks of device 0 are followed by the same for every other device."""
    size, rest = divmod(len(graph.tasks), graph.n_devices)
    return not rest and all(
        task.device == at // size
        and _work(task) == _work(graph.tasks[at % size])
        and tuple(dep - at // size * size for dep in deps) == graph.dep_indices[at % size]
        for at, (task, deps) in enumerate(zip(graph.tasks, graph.dep_indices, strict=True))
    )


def _work(task: Task) -> tuple[object, ...]:
    """What decides how long a task takes."""
    return task.op, task.token_start, task.token_stop, task.bytes, task.layers
