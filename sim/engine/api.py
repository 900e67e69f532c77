"""Predicted timelines of a graph: `simulate` from task costs, `replay` from given task times.

Two engines give the same times within 1e-9: `simpy`, the reference, and `fast`, which numba
compiles. Where nothing is shared or claimed, both give the longest paths through the graph, and
`auto` computes just those; else it chooses an engine by the size of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec

from sim.cost.model import CostModel
from sim.engine.launch import launch_times, released
from sim.engine.sharing import Uncontended, representative_device, slows_down
from sim.errors import BadInput, UnknownName
from sim.graph.tasks import TaskGraph
from sim.graph.timeline import Timeline, earliest_schedule
from sim.machine.availability import ALWAYS, Availability
from sim.machine.profile import HardwareProfile

ENGINES = ("simpy", "fast")
AUTO = "auto"
FAST_FROM_TASKS = 5_000
"""Tasks of a graph from which `auto` chooses `fast`. SimPy takes about 0.2 s for one such graph and
a plan simulates several; starting the fast engine takes about 0.8 s once in a process."""

NO_NUMBA = "engine 'fast' needs numba, which is not installed: pip install 'kvoverlap[fast]'."


def check_engine(name: str) -> None:
    """Raises UnknownName unless `name` is an engine or `auto`."""
    if name not in (*ENGINES, AUTO):
        raise UnknownName("engine", name, (*ENGINES, AUTO))


def fast_engine_installed() -> bool:
    """Whether numba is installed, which engine `fast` needs (extra `fast`)."""
    return find_spec("numba") is not None


def simulate(
    graph: TaskGraph,
    hardware: HardwareProfile,
    engine: str = AUTO,
    availability: Availability = ALWAYS,
    release_s: Mapping[str, float] | None = None,
    costs: CostModel | None = None,
) -> Timeline:
    """Predict when every task of `graph` starts and ends on `hardware`.

    Args:
        engine: `simpy`, the reference; `fast`, the same times within 1e-9, whose first use in a
            process takes about a second, and longer on a new installation, where it compiles; or
            `auto`: the longest paths where no task slows another down or claims tokens, else `fast`
            for graphs of `FAST_FROM_TASKS` tasks and more if numba is installed and the engine
            supports the graph, else `simpy`.
        availability: fraction of each lane's speed over time; 1 by default.
        release_s: earliest start of tasks in seconds, by task id.
        costs: those of this machine and job, which simulations of several graphs can share.

    Raises:
        UnknownName: no such engine.
        BadInput: `fast` without numba, or for a field of graph or machine that it does not
            support; or `release_s` names a task that the graph does not have.
    """
    check_engine(engine)
    if engine == "fast":
        return _compiled(graph, hardware, availability, release_s, costs)
    one, seen = (graph, hardware) if release_s else representative_device(graph, hardware)
    known = costs if one is graph else None  # else of another machine
    uncontended, seen = Uncontended.on(seen, one, known)
    reference = engine == "simpy" or slows_down(one, seen, availability)
    reference = reference or any(task.claim for task in one.tasks)
    if engine == AUTO and reference and len(graph.tasks) >= FAST_FROM_TASKS:
        with suppress(BadInput):
            return _compiled(graph, hardware, availability, release_s, costs)
    durations = list(map(uncontended.seconds, one.tasks))
    dispatch, launched_s = uncontended.costs.dispatch, launch_times(one, uncontended.costs)
    for at, earliest_s in released(one, release_s).items():
        launched_s[at] = max(launched_s[at], earliest_s)
    if reference:
        from sim.engine.reference import ReferenceRun

        run = ReferenceRun(one, durations, launched_s, dispatch, seen, availability, uncontended)
        timeline = run.timeline()
    else:
        timeline = earliest_schedule(
            one, durations, launched_s, dispatch.gap_s, dispatch.handover_s
        )
    if one is graph:
        return timeline
    return Timeline(graph, timeline.start_s * graph.n_devices, timeline.end_s * graph.n_devices)


def _compiled(
    graph: TaskGraph,
    hardware: HardwareProfile,
    availability: Availability,
    release_s: Mapping[str, float] | None,
    costs: CostModel | None,
) -> Timeline:
    """The timeline of the fast engine."""
    if not fast_engine_installed():
        raise BadInput(NO_NUMBA)
    from sim.engine.fast.job import FastJob

    return FastJob.of(graph, hardware, availability, release_s, costs).timeline()


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
    costs = CostModel(hardware, graph.model, graph.workload)
    dispatch, launched_s = costs.dispatch, launch_times(graph, costs)
    if not any(task.claim for task in graph.tasks):
        return earliest_schedule(
            graph, durations_s, launched_s, dispatch.gap_s, dispatch.handover_s
        )
    from sim.engine.reference import ReferenceRun

    return ReferenceRun(graph, durations_s, launched_s, dispatch).timeline()
