"""The reference engine: a graph as SimPy processes, one for each lane."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import simpy

from sim.engine.sharing import Uncontended, capacity_bytes_per_s, max_min_share, slows_down
from sim.graph.claims import Claims, part_of
from sim.graph.tasks import Task, TaskGraph
from sim.graph.timeline import Timeline
from sim.lanes import COPY_LANES
from sim.machine.availability import ALWAYS, Availability
from sim.machine.links import Dispatch
from sim.machine.profile import HardwareProfile

LAST = 2
"""Behind SimPy's own priorities, urgent 0 and normal 1."""


class _Turn(simpy.Event):  # type: ignore[misc]
    """Fires at once, but after everything else of this moment; of several, by rank.

    The order of claims must not depend on the order in which SimPy wakes the lanes.
    """

    def __init__(self, env: simpy.Environment, rank: int) -> None:
        super().__init__(env)
        self._ok, self._value = True, None
        env.schedule(self, LAST + rank)


class ReferenceRun:
    """One run of a graph.

    Args:
        durations_s: uncontended seconds of each task, in graph order.
        launched_s: when the host has issued each task.
        dispatch: pauses between tasks.
        hardware: what the tasks share; None if their times already hold what sharing costs.
        availability: fraction of each lane's speed over time.
        uncontended: time of the part that a claim leaves of a task; None if claims are settled.
    """

    def __init__(
        self,
        graph: TaskGraph,
        durations_s: Sequence[float],
        launched_s: Sequence[float],
        dispatch: Dispatch,
        hardware: HardwareProfile | None = None,
        availability: Availability = ALWAYS,
        uncontended: Uncontended | None = None,
    ) -> None:
        self.graph = graph
        self.durations_s = durations_s
        self.launched_s = launched_s
        self.dispatch = dispatch
        self.uncontended = uncontended
        self.claims = Claims(graph)
        self.env = simpy.Environment()
        self.machine = None
        if hardware is not None and slows_down(graph, hardware, availability):
            self.machine = Machine(self.env, hardware, availability)
        self.done = [False] * len(graph.tasks)
        self.awaited: dict[int, simpy.Event] = {}
        self.start_s = [0.0] * len(graph.tasks)
        self.end_s = [0.0] * len(graph.tasks)

    def timeline(self) -> Timeline:
        for queue in self.graph.lanes.values():
            self.env.process(self._work(queue))
        self.env.run()
        return Timeline(self.graph, tuple(self.start_s), tuple(self.end_s))

    def _work(self, queue: list[int]) -> Generator[simpy.Event, None, None]:
        env, tasks = self.env, self.graph.tasks
        free_s = 0.0
        mine = (tasks[queue[0]].device, tasks[queue[0]].lane)
        for at in queue:
            earliest = max(free_s, self.launched_s[at])
            for dep in self.graph.dep_indices[at]:
                if not self.done[dep]:
                    yield self.awaited.setdefault(dep, env.event())
                if (tasks[dep].device, tasks[dep].lane) != mine:
                    earliest = max(earliest, self.end_s[dep] + self.dispatch.handover_s)
            if earliest > env.now:
                yield env.timeout(earliest - env.now)
            work, duration_s = tasks[at], self.durations_s[at]
            if work.claim and self.uncontended is not None:
                yield _Turn(env, at)
                work, duration_s = self._claim(at, self.uncontended)
            if self.machine is None:  # the clock adds differences, which rounds
                self.start_s[at], self.end_s[at] = earliest, earliest + duration_s
                yield env.timeout(duration_s)
            else:
                self.start_s[at] = env.now
                yield self.machine.run(work, duration_s)
                self.end_s[at] = env.now
            self.done[at] = True
            if at in self.awaited:
                self.awaited[at].succeed()
            if duration_s > 0 or not tasks[at].claim:
                free_s = self.end_s[at] + self.dispatch.gap_s

    def _claim(self, at: int, uncontended: Uncontended) -> tuple[Task, float]:
        """The part of the task that its claim leaves, and its uncontended seconds."""
        task = self.graph.tasks[at]
        part = part_of(self.graph, task, self.claims.take(at))
        if not part.n_tokens:
            return part, 0.0
        return part, self.durations_s[at] if part is task else uncontended.seconds(part)


@dataclass(slots=True)
class _Running:
    place: tuple[int, str]
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

    def run(self, task: Task, uncontended_s: float) -> simpy.Event:
        """Start `task`; the event fires at its end, `uncontended_s` later without contention."""
        if uncontended_s <= 0.0:
            return self.env.timeout(uncontended_s)
        place, demand = (task.device, task.lane), task.bytes / uncontended_s
        running = _Running(place, uncontended_s, demand, self.env.event(), since_s=self.env.now)
        key = self._next
        self._next += 1
        self._running[key] = running
        self._set_paces(fresh=key)
        return running.finished

    def _set_paces(self, fresh: int | None = None) -> None:
        busy = {entry.place for entry in self._running.values()}
        shares = self._link_shares() if self._uplinks else {}
        now_s, changes = self.env.now, bool(self._availability.steps)
        for key, entry in self._running.items():
            device, lane = entry.place
            pace = self._availability.at(now_s, lane) if changes else 1.0
            for other, factor in self._factors.get(lane, ()):
                if (device, other) in busy:
                    pace *= factor
            pace *= shares.get(key, 1.0)
            if pace != entry.pace or key == fresh:
                entry.left_s -= (now_s - entry.since_s) * entry.pace
                entry.since_s, entry.pace = now_s, pace
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
        for lane in COPY_LANES:
            flows = [key for key, entry in self._running.items() if entry.place[1] == lane]
            paths = [
                [u.name for u in self._uplinks if self._running[key].place[0] in u.devices]
                for key in flows
            ]
            demands = [self._running[key].demand_bytes_per_s for key in flows]
            capacity = {uplink.name: capacity_bytes_per_s(uplink, lane) for uplink in self._uplinks}
            rates = max_min_share(demands, paths, capacity)
            for key, rate, demand in zip(flows, rates, demands, strict=True):
                shares[key] = rate / demand
        return shares
