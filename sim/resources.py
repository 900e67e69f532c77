"""What several tasks share while they run: link bandwidth and each other's attention.

Every running task is a fluid that needs some seconds alone. Its pace at any moment is the
product of the interference factors of the lanes that are busy beside it and, for copies, of its
max-min fair share of every uplink on its path. Whenever a task starts or ends, progress so far
is booked and the paces of the others are set anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import simpy

from sim.availability import ALWAYS, Availability
from sim.cost import CostModel
from sim.graph import COPY_LANES, Task, TaskGraph
from sim.hardware import HardwareProfile
from sim.links import Uplink
from sim.restore_cost import cost_model


def max_min_share(
    demands: Sequence[float], paths: Sequence[Sequence[str]], capacity: dict[str, float]
) -> list[float]:
    """Max-min fair rates: nobody can gain without taking from somebody who has less.

    Args:
        demands: the most each flow can use, bytes/s.
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
    """Part of its own link rate that each device keeps when all copy in one direction at once.

    Of unequal devices the smallest part.
    """
    rate: float = getattr(hardware.links, lane).bytes_per_s
    paths = [
        [uplink.name for uplink in hardware.uplinks if device in uplink.devices]
        for device in range(devices)
    ]
    capacity = {uplink.name: capacity_bytes_per_s(uplink, lane) for uplink in hardware.uplinks}
    return min(max_min_share([rate] * devices, paths, capacity)) / rate


def crossing_s(task: Task, uplinks: Sequence[Uplink]) -> float:
    """Seconds of a copy over the slowest uplink of its device, which it has for itself.

    Zero for work that crosses no link.
    """
    if task.lane not in COPY_LANES:
        return 0.0
    own = [one for one in uplinks if task.device in one.devices]
    return max((task.bytes / capacity_bytes_per_s(one, task.lane) for one in own), default=0.0)


@dataclass(frozen=True)
class Undisturbed:
    """Tasks that nothing slows down: what they cost, and no less than their uplinks let through.

    Args:
        uplinks: those that a single device has for itself, so that they only bound its copies.
    """

    costs: CostModel
    uplinks: tuple[Uplink, ...]

    @classmethod
    def on(cls, hardware: HardwareProfile, graph: TaskGraph) -> tuple[Undisturbed, HardwareProfile]:
        """For the tasks of a graph, beside the machine with what they share."""
        costs = cost_model(hardware, graph.model, graph.workload)
        if graph.n_devices > 1:
            return cls(costs, ()), hardware
        return cls(costs, hardware.uplinks), replace(hardware, uplinks=())

    def seconds(self, task: Task) -> float:
        return max(self.costs.estimate(task).seconds, crossing_s(task, self.uplinks))


@dataclass(slots=True)
class _Running:
    task: Task
    left_s: float
    demand_bytes_per_s: float
    finished: simpy.Event
    pace: float = 1.0
    since_s: float = 0.0
    wakeup: int = 0


class Machine:
    """Runs tasks at paces that depend on what else is running."""

    def __init__(
        self,
        env: simpy.Environment,
        hardware: HardwareProfile,
        availability: Availability = ALWAYS,
    ) -> None:
        self.env = env
        self._availability = availability
        for change_s in availability.changes_s:
            env.timeout(change_s).callbacks.append(self._change)
        self._factors: dict[str, list[tuple[str, float]]] = {}
        for entry in hardware.interference:
            if entry.rate < 1.0:
                pair = (entry.while_busy, entry.rate)
                self._factors.setdefault(entry.lane, []).append(pair)
        self._uplinks = hardware.uplinks
        self._running: dict[int, _Running] = {}
        self._next = 0

    def shares(self) -> bool:
        """Whether anything on this machine can slow a running task down."""
        return bool(self._factors or self._uplinks or self._availability.steps)

    def run(self, task: Task, alone_s: float) -> simpy.Event:
        """Start `task`, which takes `alone_s` undisturbed; the event fires when it is done."""
        if alone_s <= 0.0:
            return self.env.timeout(alone_s)
        running = _Running(
            task, alone_s, task.bytes / alone_s, self.env.event(), since_s=self.env.now
        )
        key = self._next
        self._next += 1
        self._running[key] = running
        self._set_paces(fresh=key)
        return running.finished

    def _set_paces(self, fresh: int | None = None) -> None:
        busy = {(entry.task.device, entry.task.lane) for entry in self._running.values()}
        shares = self._link_shares()
        for key, entry in self._running.items():
            pace = self._availability.at(self.env.now, entry.task.lane)
            for other, factor in self._factors.get(entry.task.lane, ()):
                if (entry.task.device, other) in busy:
                    pace *= factor
            pace *= shares.get(key, 1.0)
            if pace != entry.pace or key == fresh:
                entry.left_s -= (self.env.now - entry.since_s) * entry.pace
                entry.since_s, entry.pace = self.env.now, pace
                entry.wakeup += 1
                if not pace:
                    continue
                alarm = self.env.timeout(max(0.0, entry.left_s / pace), (key, entry.wakeup))
                alarm.callbacks.append(self._ring)

    def _change(self, _: simpy.Event) -> None:
        self._set_paces()

    def _ring(self, alarm: simpy.Event) -> None:
        key, wakeup = alarm.value
        entry = self._running.get(key)
        if entry is None or entry.wakeup != wakeup:
            return
        del self._running[key]
        entry.finished.succeed()
        self._set_paces()

    def _link_shares(self) -> dict[int, float]:
        """Fraction of its solo speed that each copy on a shared uplink gets."""
        shares: dict[int, float] = {}
        if not self._uplinks:
            return shares
        for lane in COPY_LANES:
            flows = [key for key, entry in self._running.items() if entry.task.lane == lane]
            paths = [
                [u.name for u in self._uplinks if self._running[key].task.device in u.devices]
                for key in flows
            ]
            demands = [self._running[key].demand_bytes_per_s for key in flows]
            capacity = {uplink.name: capacity_bytes_per_s(uplink, lane) for uplink in self._uplinks}
            rates = max_min_share(demands, paths, capacity)
            for key, rate, demand in zip(flows, rates, demands, strict=True):
                shares[key] = rate / demand
        return shares


def capacity_bytes_per_s(uplink: Uplink, lane: str) -> float:
    """What an uplink carries in the direction of a copy lane."""
    return uplink.h2d_bytes_per_s if lane == "h2d" else uplink.d2h_bytes_per_s
