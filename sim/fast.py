"""The fast simulator: what `sim.engine` does, compiled over arrays.

A graph is turned into arrays once (`TaskGraph.arrays`); tasks of one kind are priced once. What
this engine does not know it refuses, so that it never answers otherwise than the reference. Where
tasks with one claim would start within rounding of each other, either may come first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sim.availability import ALWAYS, Availability
from sim.claims import part_of
from sim.engine import released
from sim.fast_arrays import LANE, PRICE, RUN, Floats, Records
from sim.fast_graph import GraphArrays
from sim.fast_kernels import (
    NOBODY,
    Sharing,
    State,
    Work,
    begin,
    prepare,
    run_alone,
    run_events,
)
from sim.fast_known import check_known
from sim.graph import COPY_LANES, TaskGraph
from sim.hardware import HardwareProfile
from sim.links import Dispatch
from sim.resources import Undisturbed, capacity_bytes_per_s
from sim.timeline import Timeline


@dataclass(frozen=True)
class FastJob:
    """A graph priced on a machine, ready to run.

    Args:
        alone: prices of what claims leave of a task.
        prices: of `PRICE`, by kind of task.
        released_s: before when tasks cannot start, by position.
        runs: [N] of `RUN`.
        sharing: None where nothing slows a running task down and nothing is claimed.
    """

    graph: TaskGraph
    alone: Undisturbed
    prices: Records
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
    ) -> FastJob:
        """Raises BadInput where an argument has something that this engine does not know."""
        links = hardware.links
        parts = [hardware, links, links.h2d, links.d2h, links.host, hardware.dispatch]
        check_known([*parts, *hardware.interference, *hardware.uplinks])
        check_known([availability, *availability.steps])
        alone, shared = Undisturbed.on(hardware, graph)
        runs = np.empty(len(graph.tasks), RUN)
        sharing = sharing_of(graph.arrays, shared, availability)
        prices = prices_of(graph.arrays, alone)
        starts = released(graph, release_s)
        return cls(graph, alone, prices, starts, runs, sharing, alone.costs.dispatch)

    def run(self) -> None:
        """Fill in `runs`."""
        self._prepare()
        self._go()

    def run_resized(self, places: Sequence[int], prices: Floats) -> None:
        """Fill in `runs` with other sizes of some tasks.

        Args:
            places: positions of these tasks, P of them.
            prices: [P, 2], `alone_s` and `demand_bytes_per_s`.
        """
        self._prepare()
        self.runs["alone_s"][places] = prices[:, 0]
        self.runs["demand_bytes_per_s"][places] = prices[:, 1]
        self._go()

    def _prepare(self) -> None:
        arrays, runs, host = self.graph.arrays, self.runs, self.dispatch
        places, n_lanes, n_devices = arrays.places, len(arrays.lanes), arrays.n_devices
        prepare(places, arrays.kind, self.prices, n_devices, n_lanes, host.head_start_s, runs)
        for task, earliest_s in self.released_s.items():
            runs["issued_s"][task] = max(runs["issued_s"][task], earliest_s)

    def _go(self) -> None:
        arrays, runs, host = self.graph.arrays, self.runs, self.dispatch
        places = arrays.places
        if self.sharing is None:
            run_alone(places, arrays.deps, arrays.heads.size, host.gap_s, host.handover_s, runs)
        else:
            self._run_events(self.sharing)

    def _run_events(self, sharing: Sharing) -> None:
        arrays, host = self.graph.arrays, self.dispatch
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
            part = part_of(self.graph.tasks[at], tokens)
            alone_s = self.alone.seconds(part)
            self.runs["alone_s"][at] = alone_s
            self.runs["demand_bytes_per_s"][at] = part.bytes / alone_s if alone_s else 0.0

    def timeline(self) -> Timeline:
        """When every task starts and ends: the reference within rounding."""
        self.run()
        start_s, end_s = self.runs["start_s"].tolist(), self.runs["end_s"].tolist()
        return Timeline(self.graph, tuple(start_s), tuple(end_s))

    @property
    def nbytes(self) -> int:
        return self.graph.arrays.nbytes + self.runs.nbytes


def prices_of(arrays: GraphArrays, alone: Undisturbed) -> Records:
    """What each kind of task needs on a machine."""
    prices = np.empty(len(arrays.kinds), PRICE)
    alone_s = np.array([alone.seconds(one) for one in arrays.kinds])
    n_bytes = np.array([float(one.bytes) for one in arrays.kinds])
    prices["alone_s"] = alone_s
    demand = np.divide(n_bytes, alone_s, out=np.zeros_like(alone_s), where=alone_s > 0)
    prices["demand_bytes_per_s"] = demand
    prices["issue_s"] = [alone.costs.issue_s(one) for one in arrays.kinds]
    prices["earliest_s"] = [alone.costs.earliest_s(one) for one in arrays.kinds]
    return prices


def sharing_of(
    arrays: GraphArrays, hardware: HardwareProfile, availability: Availability
) -> Sharing | None:
    """None where nothing can slow a running task down and nothing is claimed.

    Args:
        hardware: with those uplinks only that devices share.
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
            beside = busy >> lanes.index(entry.while_busy) & 1 == 1
            pace[:, lanes.index(entry.lane), beside] *= entry.rate
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
