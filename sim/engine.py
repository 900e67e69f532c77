"""The reference simulator: every lane is a SimPy process that works through its tasks in order.

A lane takes its next task, waits until the task's deps are done and the host has issued it,
runs it on the machine at whatever pace sharing allows, and announces that it is done.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from importlib.util import find_spec

import simpy

from sim.availability import ALWAYS, Availability
from sim.claims import Claims, part_of
from sim.cost import CostModel
from sim.errors import BadInput, UnknownName
from sim.graph import Task, TaskGraph
from sim.hardware import HardwareProfile
from sim.resources import Machine, Undisturbed
from sim.restore_cost import cost_model
from sim.symmetry import stand_in
from sim.timeline import Timeline

ENGINES = ("simpy", "fast")
NO_NUMBA = "engine 'fast' needs numba, which is not installed: pip install 'kvoverlap[fast]'."
LAST = 2
"""Behind SimPy's own priorities, urgent 0 and normal 1."""


class _Turn(simpy.Event):  # type: ignore[misc]
    """Fires at once, but after everything else of this moment; of several, by rank.

    Who claims first must not depend on the order in which SimPy happens to wake the lanes.
    """

    def __init__(self, env: simpy.Environment, rank: int) -> None:
        super().__init__(env)
        self._ok, self._value = True, None
        env.schedule(self, LAST + rank)


def check_engine(name: str) -> None:
    """Raises UnknownName where there is no such engine."""
    if name not in ENGINES:
        raise UnknownName("engine", name, ENGINES)


def fast_engine_installed() -> bool:
    """Whether numba is there, which engine `fast` needs (extra `fast`)."""
    return find_spec("numba") is not None


def simulate(
    graph: TaskGraph,
    hardware: HardwareProfile,
    engine: str = "simpy",
    availability: Availability = ALWAYS,
    release_s: Mapping[str, float] | None = None,
) -> Timeline:
    """Predict when every task of `graph` starts and ends on `hardware`.

    Args:
        engine: `simpy`, the reference, or `fast`, which gives the same within rounding. Its first
            use in a process takes a moment, and on a new installation, where it compiles, seconds.
        availability: how much of each lane there is over time; all of it by default.
        release_s: of tasks by id, before when they cannot start, as they were not yet planned.

    Raises:
        UnknownName: no such engine.
        BadInput: `fast` without numba, or with something in graph or machine it does not know.
    """
    check_engine(engine)
    if engine == "fast":
        if not fast_engine_installed():
            raise BadInput(NO_NUMBA)
        from sim.fast import FastJob

        return FastJob.of(graph, hardware, availability, release_s).timeline()
    one, seen = (graph, hardware) if release_s else stand_in(graph, hardware)
    alone, seen = Undisturbed.on(seen, one)
    durations = list(map(alone.seconds, one.tasks))
    run = _Run(one, durations, seen, True, availability, alone)
    for at, earliest_s in released(graph, release_s).items():
        run.issued_s[at] = max(run.issued_s[at], earliest_s)
    timeline = run.timeline()
    if one is graph:
        return timeline
    return Timeline(graph, timeline.start_s * graph.n_devices, timeline.end_s * graph.n_devices)


def released(graph: TaskGraph, release_s: Mapping[str, float] | None) -> dict[int, float]:
    """Before when tasks cannot start, by position.

    Raises:
        BadInput: the graph has no such task.
    """
    unknown = [name for name in release_s or {} if name not in graph.index]
    if unknown:
        raise BadInput(f"release_s names task {unknown[0]!r}, which the graph does not have.")
    return {graph.index[name]: earliest_s for name, earliest_s in (release_s or {}).items()}


def replay(graph: TaskGraph, durations_s: Sequence[float], hardware: HardwareProfile) -> Timeline:
    """Teacher-forced prediction: the engine's schedule with each task's time given.

    Measured task times already contain what sharing cost them, so nothing is slowed down again;
    what still differs from the measured makespan is the engine's idea of order and waiting. Claims
    are settled as they were: a task that was skipped took no time.

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
        issued.append(max(costs.earliest_s(task), spent[task.device] - ahead_s))
    return issued


class _Run:
    def __init__(
        self,
        graph: TaskGraph,
        durations_s: Sequence[float],
        hardware: HardwareProfile,
        shared: bool,
        availability: Availability = ALWAYS,
        alone: Undisturbed | None = None,
    ) -> None:
        self.graph = graph
        self.durations_s = durations_s
        self.alone = alone
        self.claims = Claims(graph)
        costs = cost_model(hardware, graph.model, graph.workload)
        self.issued_s = issue_times(graph, costs)
        self.dispatch = costs.dispatch
        self.env = simpy.Environment()
        machine = Machine(self.env, hardware, availability)
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
            work, duration_s = tasks[at], self.durations_s[at]
            if work.claim and self.alone is not None:
                yield _Turn(env, at)
                work, duration_s = self._claim(at, self.alone)
            self.start_s[at] = env.now
            if self.machine is not None:
                yield self.machine.run(work, duration_s)
            else:
                yield env.timeout(duration_s)
            self.end_s[at] = env.now
            self.done[at].succeed()
            if duration_s > 0 or not tasks[at].claim:
                free_s = env.now + self.dispatch.gap_s

    def _claim(self, at: int, alone: Undisturbed) -> tuple[Task, float]:
        """What is left of the task for it to do, and how long that takes."""
        task = self.graph.tasks[at]
        part = part_of(task, self.claims.take(at))
        if not part.n_tokens:
            return part, 0.0
        return part, self.durations_s[at] if part is task else alone.seconds(part)
