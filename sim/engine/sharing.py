"""Contention between running tasks: interference between lanes, and shared uplinks.

A running task is modelled as a fluid with a known uncontended time. Its pace is the product of the
interference factors of the other busy lanes of its device and, for copies, of its max-min fair
share of every uplink on its path. When a task starts or ends, the progress of all others is booked
and their paces are computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sim.cost.model import CostModel
from sim.errors import BadInput
from sim.graph.tasks import Task, TaskGraph
from sim.lanes import COPY_LANES
from sim.machine.availability import Availability
from sim.machine.links import Uplink
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec


def max_min_share(
    demands: Sequence[float], paths: Sequence[Sequence[str]], capacity: dict[str, float]
) -> list[float]:
    """Max-min fair rates in bytes/s: no flow can gain without taking from a flow that has less.

    Args:
        demands: maximum rate of each flow, bytes/s.
        paths: names of the shared links each flow crosses.
        capacity: bytes/s of each shared link.
    """
    rates = [0.0] * len(demands)
    open_flows = set(range(len(demands)))
    left = dict(capacity)
    while open_flows:
        room = {
            link: left[link] / count
            for link in left
            if (count := sum(link in paths[flow] for flow in open_flows))
        }
        tightest = min(room.values(), default=float("inf"))
        satisfied = {flow for flow in open_flows if demands[flow] <= tightest}
        if satisfied:
            fixed = {flow: demands[flow] for flow in satisfied}
        else:
            full = {link for link, share in room.items() if share <= tightest}
            fixed = {
                flow: tightest for flow in open_flows if any(link in full for link in paths[flow])
            }
        for flow, rate in fixed.items():
            rates[flow] = rate
            for link in paths[flow]:
                left[link] = max(0.0, left[link] - rate)
        open_flows -= fixed.keys()
    return rates


def streaming_share(hardware: HardwareProfile, lane: str, devices: int) -> float:
    """Fraction of its link rate that each device gets when all copy in one direction at once.

    If devices differ, the smallest fraction.
    """
    rate: float = getattr(hardware.links, lane).bytes_per_s
    uplinks = _shared_paths(hardware, devices)
    paths = [
        [uplink.name for uplink in uplinks if device in uplink.devices] for device in range(devices)
    ]
    capacity = {uplink.name: capacity_bytes_per_s(uplink, lane) for uplink in uplinks}
    return min(max_min_share([rate] * devices, paths, capacity)) / rate


def crossing_s(task: Task, uplinks: Sequence[Uplink]) -> float:
    """Seconds of a copy over the slowest uplink of its device without contention.

    Zero for work that crosses no link.
    """
    if task.lane not in COPY_LANES:
        return 0.0
    own = [one for one in uplinks if task.device in one.devices]
    return max((task.bytes / capacity_bytes_per_s(one, task.lane) for one in own), default=0.0)


@dataclass(frozen=True)
class Uncontended:
    """Task times without contention, limited by the rates of the uplinks.

    Args:
        uplinks: those that only one device uses, so that they only bound its copies.
    """

    costs: CostModel
    uplinks: tuple[Uplink, ...]

    @classmethod
    def on(
        cls, hardware: HardwareProfile, graph: TaskGraph, costs: CostModel | None = None
    ) -> tuple[Uncontended, HardwareProfile]:
        """Uncontended times of a graph's tasks, and the machine with its shared uplinks.

        Args:
            costs: of this machine and job, if they are known.
        """
        costs = costs or CostModel(hardware, graph.model, graph.workload)
        if graph.n_devices > 1:
            paths = _shared_paths(hardware, graph.n_devices)
            return cls(costs, ()), replace(hardware, uplinks=paths)
        return cls(costs, hardware.uplinks), replace(hardware, uplinks=())

    def seconds(self, task: Task) -> float:
        own_s = self.costs.estimate(task).seconds
        return max(own_s, crossing_s(task, self.uplinks)) if self.uplinks else own_s


def slows_down(graph: TaskGraph, hardware: HardwareProfile, availability: Availability) -> bool:
    """Whether a running task of the graph can be slowed down by another, or by a trace.

    Args:
        hardware: with the uplinks that several devices share, as `Uncontended.on` returns it.
    """
    if hardware.uplinks or availability.steps:
        return True
    pairs = [(one.lane, one.while_busy) for one in hardware.interference if one.rate < 1.0]
    busy = {(task.device, task.lane) for task in graph.tasks} if pairs else set()
    return any(
        (device, other) in busy for device, at in busy for lane, other in pairs if at == lane
    )


def capacity_bytes_per_s(uplink: Uplink, lane: str) -> float:
    """Bytes/s of an uplink in the direction of a copy lane."""
    return uplink.h2d_bytes_per_s if lane == "h2d" else uplink.d2h_bytes_per_s


def representative_device(
    graph: TaskGraph, hardware: HardwareProfile
) -> tuple[TaskGraph, HardwareProfile]:
    """The first device's part of a graph, and the machine as seen by that device.

    If devices differ in their tasks or in their uplinks, graph and machine are returned unchanged.
    """
    seen = representative_machine(hardware, graph.n_devices)
    claims = any(task.claim for task in graph.tasks)  # one device may do what the other skips
    if graph.n_devices == 1 or seen is None or claims or not _replicas(graph):
        return graph, hardware
    return replace(graph, tasks=graph.tasks[: len(graph.tasks) // graph.n_devices]), seen


def representative_machine(hardware: HardwareProfile, devices: int) -> HardwareProfile | None:
    """The machine as seen by one of `devices` identical devices, or None if their uplinks differ.

    Behind uplinks of the same rates with as many users each, all copy at the same moments, and
    the max-min fair share of a device is an equal part of every uplink on its path. The host has
    one memory, one disk and one network link, of which each device has an equal part too.
    """
    if devices == 1:
        return replace(hardware, uplinks=_equal_parts(hardware, 0, 1))
    uplinks = [_equal_parts(hardware, device, devices) for device in range(devices)]
    if any(_rates(own) != _rates(uplinks[0]) for own in uplinks):
        return None
    restore = hardware.restore and hardware.restore.shared_by(devices)
    return replace(hardware, uplinks=uplinks[0], restore=restore)


def machine_of_one_gpu(hardware: HardwareProfile, model: ModelSpec) -> HardwareProfile:
    """The machine as seen by one of the GPUs that share the model, all of which do the same.

    Raises:
        BadInput: the machine has fewer GPUs, or their uplinks have different rates.
    """
    gpus = model.tensor_parallel
    hardware.check_gpus(gpus)
    seen = representative_machine(hardware, gpus)
    if seen is None:
        raise BadInput(
            f"--tp(={gpus}): the GPUs of {hardware.name} have uplinks of different rates, for "
            "which a restore cannot be planned; choose a machine with equal ones."
        )
    return seen


def _shared_paths(hardware: HardwareProfile, devices: int) -> tuple[Uplink, ...]:
    """The uplinks, and host memory where its rate is known and several devices copy from it."""
    dram = hardware.host_dram
    if dram is None or devices == 1:
        return hardware.uplinks
    memory = Uplink("host memory", tuple(range(devices)), dram.value, dram.value)
    return (*hardware.uplinks, memory)


def _equal_parts(hardware: HardwareProfile, device: int, devices: int) -> tuple[Uplink, ...]:
    """The uplinks of one device, each with its equal part of their rates."""
    parts = []
    for uplink in _shared_paths(hardware, devices):
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
    """Fields that decide how long a task takes."""
    return task.op, task.token_start, task.token_stop, task.bytes, task.layers
