"""The reference simulator: every lane is a SimPy process that works through its tasks in order.

A lane takes its next task, waits until the task's deps are done and the host has issued it,
runs it on the machine at whatever pace sharing allows, and announces that it is done.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from dataclasses import replace
from importlib.util import find_spec

import simpy

from sim.cost import CostModel
from sim.errors import BadInput, UnknownName
from sim.graph import TaskGraph
from sim.hardware import HardwareProfile
from sim.resources import Machine, crossing_s
from sim.symmetry import stand_in
from sim.timeline import Timeline

ENGINES = ("simpy", "fast")
NO_NUMBA = "engine 'fast' needs numba, which is not installed: pip install 'kvoverlap[fast]'."


def check_engine(name: str) -> None:
    """Raises UnknownName where there is no such engine."""
    if name not in ENGINES:
        raise UnknownName("engine", name, ENGINES)


def fast_engine_installed() -> bool:
    """Whether numba is there, which engine `fast` needs (extra `fast`)."""
    return find_spec("numba") is not None


def simulate(graph: TaskGraph, hardware: HardwareProfile, engine: str = "simpy") -> Timeline:
    """Predict when every task of `graph` starts and ends on `hardware`.

    Args:
        engine: `simpy`, the reference, or `fast`, which gives the same within rounding. Its first
            use in a process takes a moment, and on a new installation, where it compiles, seconds.

    Raises:
        UnknownName: no such engine.
        BadInput: `fast` without numba, or with something in graph or machine it does not know.
    """
    check_engine(engine)
    if engine == "fast":
        if not fast_engine_installed():
            raise BadInput(NO_NUMBA)
        from sim.fast import fast_timeline

        return fast_timeline(graph, hardware)
    one, seen = stand_in(graph, hardware)
    costs = CostModel(seen, one.model, one.workload)
    durations = [costs.estimate(task).seconds for task in one.tasks]
    if one.n_devices == 1:  # nobody shares its uplinks, so that they only bound its copies
        least = [crossing_s(task, seen.uplinks) for task in one.tasks]
        durations, seen = list(map(max, durations, least)), replace(seen, uplinks=())
    timeline = _Run(one, durations, seen, shared=True).timeline()
    if one is graph:
        return timeline
    return Timeline(graph, timeline.start_s * graph.n_devices, timeline.end_s * graph.n_devices)


def replay(graph: TaskGraph, durations_s: Sequence[float], hardware: HardwareProfile) -> Timeline:
    """Teacher-forced prediction: the engine's schedule with each task's time given.

    Measured task times already contain what sharing cost them, so nothing is slowed down again;
    what still differs from the measured makespan is the engine's idea of order and waiting.

    Raises:
        BadInput: the number of durations differs from the number of tasks.
    """
    if len(durations_s) != len(graph.tasks):
        raise BadInput(f"{len(durations_s)} durations for {len(graph.tasks)} tasks.")
    return _Run(graph, durations_s, hardware, shared=False).timeline()


def issue_times(graph: TaskGraph, costs: CostModel, free_ops: Collection[str] = ()) -> list[float]:
    """When each task has been issued: for every device a host thread issues one after another.

    Args:
        free_ops: operations that are issued at no cost.
    """
    ahead_s = costs.hardware.dispatch.head_start_s
    spent: dict[int, float] = {}
    issued = []
    for task in graph.tasks:
        cost_s = 0.0 if task.op in free_ops else costs.issue_s(task)
        spent[task.device] = spent.get(task.device, 0.0) + cost_s
        issued.append(max(0.0, spent[task.device] - ahead_s))
    return issued


class _Run:
    def __init__(
        self,
        graph: TaskGraph,
        durations_s: Sequence[float],
        hardware: HardwareProfile,
        shared: bool,
    ) -> None:
        self.graph = graph
        self.durations_s = durations_s
        self.issued_s = issue_times(graph, CostModel(hardware, graph.model, graph.workload))
        self.dispatch = hardware.dispatch
        self.env = simpy.Environment()
        machine = Machine(self.env, hardware)
        self.machine = machine if shared and machine.shares() else None
        self.done = [self.env.event() for _ in graph.tasks]
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
            earliest = max(free_s, self.issued_s[at])
            for dep in self.graph.dep_indices[at]:
                if not self.done[dep].processed:
                    yield self.done[dep]
                if (tasks[dep].device, tasks[dep].lane) != mine:
                    earliest = max(earliest, self.end_s[dep] + self.dispatch.handover_s)
            if earliest > env.now:
                yield env.timeout(earliest - env.now)
            self.start_s[at] = env.now
            if self.machine is not None:
                yield self.machine.run(tasks[at], self.durations_s[at])
            else:
                yield env.timeout(self.durations_s[at])
            self.end_s[at] = env.now
            self.done[at].succeed()
            free_s = env.now + self.dispatch.gap_s
