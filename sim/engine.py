"""The reference simulator: every lane is a SimPy process that works through its tasks in order.

A lane takes its next task, waits until the task's deps are done and the host has issued it,
runs it on the machine at whatever pace sharing allows, and announces that it is done.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import accumulate

import simpy

from sim.cost import CostModel
from sim.errors import BadInput
from sim.graph import TaskGraph
from sim.hardware import HardwareProfile
from sim.resources import Machine
from sim.timeline import Timeline


def simulate(graph: TaskGraph, hardware: HardwareProfile) -> Timeline:
    """Predict when every task of `graph` starts and ends on `hardware`."""
    costs = CostModel(hardware, graph.model, graph.workload)
    durations = [costs.estimate(task).seconds for task in graph.tasks]
    return _execute(graph, durations, issue_times(graph, costs), hardware)


def replay(graph: TaskGraph, durations_s: Sequence[float], hardware: HardwareProfile) -> Timeline:
    """Teacher-forced prediction: the engine's schedule with each task's time given.

    Measured task times already contain what sharing cost them, so nothing is slowed down again;
    what still differs from the measured makespan is the engine's idea of order and waiting.

    Raises:
        BadInput: the number of durations differs from the number of tasks.
    """
    if len(durations_s) != len(graph.tasks):
        raise BadInput(f"{len(durations_s)} durations for {len(graph.tasks)} tasks.")
    costs = CostModel(hardware, graph.model, graph.workload)
    return _execute(graph, durations_s, issue_times(graph, costs), None)


def issue_times(graph: TaskGraph, costs: CostModel) -> list[float]:
    """When the host, which issues tasks one after another in graph order, has issued each."""
    return list(accumulate(costs.issue_s(task) for task in graph.tasks))


def _execute(
    graph: TaskGraph,
    durations_s: Sequence[float],
    issued_s: Sequence[float],
    hardware: HardwareProfile | None,
) -> Timeline:
    env = simpy.Environment()
    machine = Machine(env, hardware) if hardware is not None else None
    shared = machine is not None and machine.shares()
    done = [env.event() for _ in graph.tasks]
    start, end = [0.0] * len(done), [0.0] * len(done)

    def lane(queue: list[int]) -> Generator[simpy.Event, None, None]:
        for at in queue:
            for dep in graph.dep_indices[at]:
                if not done[dep].processed:
                    yield done[dep]
            if issued_s[at] > env.now:
                yield env.timeout(issued_s[at] - env.now)
            start[at] = env.now
            if shared and machine is not None:
                yield machine.run(graph.tasks[at], durations_s[at])
            else:
                yield env.timeout(durations_s[at])
            end[at] = env.now
            done[at].succeed()

    for queue in graph.lanes.values():
        env.process(lane(queue))
    env.run()
    return Timeline(graph, tuple(start), tuple(end))
