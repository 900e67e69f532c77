"""The reference simulator: every lane is a SimPy process that works through its tasks in order.

A lane takes its next task, waits until the task's deps are done and the host has issued it,
runs it on the machine at whatever pace sharing allows, and announces that it is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from sim.engine.launch import released
from sim.engine.reference import ReferenceRun
from sim.engine.sharing import Uncontended, representative
from sim.errors import BadInput, UnknownName
from sim.graph.tasks import TaskGraph
from sim.graph.timeline import Timeline
from sim.machine.availability import ALWAYS, Availability
from sim.machine.profile import HardwareProfile

ENGINES = ("simpy", "fast")
NO_NUMBA = "engine 'fast' needs numba, which is not installed: pip install 'kvoverlap[fast]'."


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
        release_s: earliest start of tasks by id, which were planned only then.

    Raises:
        UnknownName: no such engine.
        BadInput: `fast` without numba, or with something in graph or machine it does not know.
    """
    check_engine(engine)
    if engine == "fast":
        if not fast_engine_installed():
            raise BadInput(NO_NUMBA)
        from sim.engine.fast.job import FastJob

        return FastJob.of(graph, hardware, availability, release_s).timeline()
    one, seen = (graph, hardware) if release_s else representative(graph, hardware)
    uncontended, seen = Uncontended.on(seen, one)
    durations = list(map(uncontended.seconds, one.tasks))
    run = ReferenceRun(one, durations, seen, True, availability, uncontended)
    for at, earliest_s in released(graph, release_s).items():
        run.launched_s[at] = max(run.launched_s[at], earliest_s)
    timeline = run.timeline()
    if one is graph:
        return timeline
    return Timeline(graph, timeline.start_s * graph.n_devices, timeline.end_s * graph.n_devices)


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
    return ReferenceRun(graph, durations_s, hardware, shared=False).timeline()
