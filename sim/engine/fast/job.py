"""The fast simulator: what `sim.engine.api` does, compiled over arrays.

A graph is turned into arrays once (`arrays_of`), and a cost is computed once for all tasks of one
kind. A graph or machine that uses a field which this engine does not read is refused. Where tasks
with one claim start within rounding of each other, either may come first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sim.cost.model import CostModel
from sim.engine.fast.graph_arrays import GraphArrays, arrays_of
from sim.engine.fast.known import check_known
from sim.engine.fast.loops import (
    NOBODY,
    Sharing,
    State,
    Work,
    begin,
    prepare,
    run_events,
    run_uncontended,
)
from sim.engine.fast.records import KIND_COST, LANE, RUN, Floats, Records
from sim.engine.launch import released
from sim.engine.sharing import Uncontended, capacity_bytes_per_s
from sim.graph.claims import part_of
from sim.graph.tasks import Task, TaskGraph
from sim.graph.timeline import Timeline
from sim.lanes import COPY_LANES
from sim.machine.availability import ALWAYS, Availability
from sim.machine.links import Dispatch
from sim.machine.profile import HardwareProfile


@dataclass(frozen=True)
class FastJob:
    """A graph and its task times on a machine, ready to run.

    Args:
        uncontended: task times without contention, also of the part that a claim leaves of a task.
        kind_costs: of `KIND_COST`, by kind of task.
        released_s: earliest start of tasks, by position.
        runs: [N] of `RUN`.
        sharing: None where nothing slows a running task down and nothing is claimed.
    """

    graph: TaskGraph
    uncontended: Uncontended
    kind_costs: Records
    released_s: dict[int, float]
    runs: Records
    sharing: Sharing | None
    dispatch: Dispatch

    @classmethod
    def of(
        cls,
        graph: TaskGraph,
        hardware: HardwareProfile,
        availability: Availability = ALWAYS,
        release_s: Mapping[str, float] | None = None,
        costs: CostModel | None = None,
    ) -> FastJob:
        """The job of a graph.

        Args:
            costs: of this machine and job, if they are known.

        Raises:
            BadInput: an argument uses a field that this engine does not read.
        """
        links = hardware.links
        parts = [hardware, links, links.h2d, links.d2h, links.host, hardware.dispatch]
        check_known([*parts, *hardware.interference, *hardware.uplinks])
        check_known([availability, *availability.steps])
        uncontended, shared = Uncontended.on(hardware, graph, costs)
        runs = np.empty(len(graph.tasks), RUN)
        sharing = sharing_of(arrays_of(graph), shared, availability)
        kind_costs = kind_costs_of(arrays_of(graph), uncontended)
        starts = released(graph, release_s)
        return cls(
            graph, uncontended, kind_costs, starts, runs, sharing, uncontended.costs.dispatch
        )

    def run(self) -> None:
        """Fill in `runs`."""
        self._prepare()
        self._go()

    def run_resized(self, places: Sequence[int], task_costs: Floats) -> None:
        """Fill in `runs` with other sizes of some tasks.

        Args:
            places: positions of these tasks, P of them.
            task_costs: [P, 2], `uncontended_s` and `demand_bytes_per_s`.
        """
        self._prepare()
        self.runs["uncontended_s"][places] = task_costs[:, 0]
        self.runs["demand_bytes_per_s"][places] = task_costs[:, 1]
        self._go()

    def _prepare(self) -> None:
        arrays, runs, host = arrays_of(self.graph), self.runs, self.dispatch
        places, n_lanes, n_devices = arrays.places, len(arrays.lanes), arrays.n_devices
        prepare(places, arrays.kind, self.kind_costs, n_devices, n_lanes, host.head_start_s, runs)
        for task, earliest_s in self.released_s.items():
            runs["launched_s"][task] = max(runs["launched_s"][task], earliest_s)

    def _go(self) -> None:
        arrays, runs, host = arrays_of(self.graph), self.runs, self.dispatch
        places = arrays.places
        if self.sharing is None:
            run_uncontended(
                places, arrays.deps, arrays.heads.size, host.gap_s, host.handover_s, runs
            )
        else:
            self._run_events(self.sharing)

    def _run_events(self, sharing: Sharing) -> None:
        arrays, host = arrays_of(self.graph), self.dispatch
        lanes = np.zeros(arrays.heads.size, LANE)
        lanes["head"] = arrays.heads
        taken = np.full(arrays.n_groups, NOBODY, np.int32)
        work = Work(arrays.places, arrays.deps, arrays.claims.copy(), taken)
        busy, changes = np.zeros(arrays.n_devices, np.int32), np.zeros(1, np.int32)
        state = State(lanes, busy, changes, self.runs)
        begin(work, state, host.handover_s)
        while True:
            at = run_events(work, sharing, state, host.gap_s, host.handover_s)
            if at == NOBODY:
                return
            claim = work.claims[arrays.places["claim"][at]]
            tokens = int(claim["got_start"]), int(claim["got_stop"])
            part = part_of(self.graph, self.graph.tasks[at], tokens)
            uncontended_s = self.uncontended.seconds(part)
            self.runs["uncontended_s"][at] = uncontended_s
            self.runs["demand_bytes_per_s"][at] = (
                part.bytes / uncontended_s if uncontended_s else 0.0
            )

    def timeline(self) -> Timeline:
        """Start and end of every task: those of the reference within 1e-9."""
        self.run()
        start_s, end_s = self.runs["start_s"].tolist(), self.runs["end_s"].tolist()
        return Timeline(self.graph, tuple(start_s), tuple(end_s))

    @property
    def nbytes(self) -> int:
        return arrays_of(self.graph).nbytes + self.runs.nbytes


def kind_costs_of(arrays: GraphArrays, uncontended: Uncontended) -> Records:
    """Uncontended time, link demand and launch time of each kind of task."""
    kind_costs = np.empty(len(arrays.kinds), KIND_COST)
    uncontended_s = np.array([uncontended.seconds(one) for one in arrays.kinds])
    n_bytes = np.array([float(one.bytes) for one in arrays.kinds])
    kind_costs["uncontended_s"] = uncontended_s
    demand = np.divide(
        n_bytes, uncontended_s, out=np.zeros_like(uncontended_s), where=uncontended_s > 0
    )
    kind_costs["demand_bytes_per_s"] = demand
    kind_costs["launch_s"] = [uncontended.costs.launch_s(one) for one in arrays.kinds]
    kind_costs["earliest_s"] = [uncontended.costs.earliest_s(one) for one in arrays.kinds]
    return kind_costs


def sharing_of(
    arrays: GraphArrays, hardware: HardwareProfile, availability: Availability
) -> Sharing | None:
    """Contention of the machine, or None if no task can be slowed down or claimed.

    Args:
        hardware: with only the uplinks that devices share.
    """
    slowing = [entry for entry in hardware.interference if entry.rate < 1.0]
    uplinks = hardware.uplinks
    if not (slowing or uplinks or availability.steps or arrays.claims.size):
        return None
    lanes, devices = arrays.lanes, np.arange(arrays.n_devices)
    busy = np.arange(2 ** len(lanes))
    pace = np.empty((1 + len(availability.steps), len(lanes), busy.size))
    for at, lane in enumerate(lanes):
        pace[:, at] = np.array([availability.course(lane)]).T
    for entry in slowing:
        if entry.lane in lanes and entry.while_busy in lanes:
            other_runs = busy >> lanes.index(entry.while_busy) & 1 == 1
            pace[:, lanes.index(entry.lane), other_runs] *= entry.rate
    capacity = np.zeros((len(lanes), len(uplinks)))
    for at, lane in enumerate(lanes):
        if lane in COPY_LANES:
            capacity[at] = [capacity_bytes_per_s(one, lane) for one in uplinks]
    crosses = np.zeros((devices.size, len(uplinks)), np.bool_)
    for at, uplink in enumerate(uplinks):
        crosses[:, at] = np.isin(devices, uplink.devices)
    shares = np.array([bool(uplinks) and lane in COPY_LANES for lane in lanes])
    change_s = np.array([*availability.changes_s, np.inf])
    return Sharing(change_s, pace, shares, capacity, crosses)


class Resizable:
    """A graph on a machine that is simulated with other sizes of some tasks.

    Args:
        ops: operations of those tasks. What they move is in proportion to their tokens.

    Attributes:
        sized: those tasks, in graph order.
    """

    def __init__(self, graph: TaskGraph, hardware: HardwareProfile, ops: Collection[str]) -> None:
        self._job = FastJob.of(graph, hardware)
        self._places = [at for at, task in enumerate(graph.tasks) if task.op in ops]
        self.sized = [graph.tasks[at] for at in self._places]
        self._costs: dict[tuple[str, int], tuple[float, float]] = {}

    def makespan_s(self, counts: Sequence[int]) -> float:
        """Of the graph in which the sized tasks work on so many tokens, at least one each."""
        task_costs = [self._cost(*one) for one in zip(self.sized, counts, strict=True)]
        self._job.run_resized(self._places, np.array(task_costs).reshape(-1, 2))
        return float(self._job.runs["end_s"].max())

    def _cost(self, task: Task, count: int) -> tuple[float, float]:
        """Uncontended seconds, and the link rate in bytes/s of a copy during them."""
        key = task.op, count
        if key not in self._costs:
            n_bytes = task.bytes // task.n_tokens * count
            resized = replace(task, token_stop=task.token_start + count, bytes=n_bytes)
            uncontended_s = self._job.uncontended.seconds(resized)
            self._costs[key] = uncontended_s, n_bytes / uncontended_s if uncontended_s else 0.0
        return self._costs[key]
