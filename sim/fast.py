"""The fast simulator: what `sim.engine` does, compiled over arrays.

A graph is turned into arrays once (`TaskGraph.arrays`); tasks of one price are priced once. What
this engine does not know it refuses, so that it never answers otherwise than the reference.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, Field, dataclass, fields
from itertools import accumulate, chain
from typing import Any

import numpy as np

from sim.cost import CostModel, price_key
from sim.errors import BadInput
from sim.fast_kernels import (
    LANE,
    NOBODY,
    PLACE,
    RUN,
    Bools,
    Floats,
    Ints,
    Records,
    issue,
    run_alone,
    run_shared,
)
from sim.graph import COPY_LANES, LANES, Task, TaskGraph
from sim.hardware import HardwareProfile
from sim.links import Dispatch, Interference, Link, Links, Uplink
from sim.resources import capacity_bytes_per_s, crossing_s
from sim.timeline import Timeline

N_LANES = len(LANES)
KNOWN_FIELDS: dict[type, str] = {
    TaskGraph: "schedule model workload slots tasks",
    Task: "id op lane step layer token_start token_stop slot bytes flops deps device batch",
    HardwareProfile: "name description device_kind dtype memory gemm attention elementwise links "
    "dispatch interference uplinks environment samples restore checks",
    Links: "h2d d2h host",
    Link: "source bytes_per_s latency_s curve paced_bytes_per_s note",
    Interference: "lane while_busy rate source",
    Dispatch: "source task_s kernel_s copy_s gap_s handover_s head_start_s",
    Uplink: "name devices h2d_bytes_per_s d2h_bytes_per_s",
}
"""Fields whose meaning this engine shares with the reference; any other must have its default."""


@dataclass(frozen=True)
class GraphArrays:
    """A graph as the loops take it: N tasks with M deps on D devices of L lanes.

    Args:
        places: [N] of `PLACE`.
        deps: [M].
        heads: [D * L], the first task of each lane, NOBODY where it has none.
        kind: [N], tasks of one kind cost the same on any machine.
        kinds: one task of each kind.
    """

    places: Records
    deps: Ints
    heads: Ints
    kind: Ints
    kinds: tuple[Task, ...]

    @classmethod
    def of(cls, graph: TaskGraph) -> GraphArrays:
        """Raises BadInput where a task has something that this engine does not know."""
        _check_known([graph])
        _check_known(graph.tasks)
        places = np.empty(len(graph.tasks), PLACE)
        at = {lane: number for number, lane in enumerate(LANES)}
        places["lane"] = [task.device * N_LANES + at[task.lane] for task in graph.tasks]
        places["next_on_lane"] = NOBODY
        heads = np.full(graph.n_devices * N_LANES, NOBODY, np.int32)
        for (device, lane), queue in graph.lanes.items():
            heads[device * N_LANES + at[lane]] = queue[0]
            places["next_on_lane"][queue[:-1]] = queue[1:]
        bounds = np.fromiter(accumulate(map(len, graph.dep_indices), initial=0), np.int32)
        places["dep_from"], places["dep_to"] = bounds[:-1], bounds[1:]
        deps = np.fromiter(chain.from_iterable(graph.dep_indices), np.int32)
        numbers: dict[object, int] = {}
        kind = [
            numbers.setdefault(price_key(task, graph.model), len(numbers)) for task in graph.tasks
        ]
        kinds = dict(zip(kind, graph.tasks, strict=True))
        examples = tuple(kinds[number] for number in range(len(kinds)))
        return cls(places, deps, heads, np.array(kind, np.int32), examples)

    @property
    def nbytes(self) -> int:
        arrays = (self.places, self.deps, self.heads, self.kind)
        return sum(array.nbytes for array in arrays)


@dataclass(frozen=True)
class Sharing:
    """What tasks take from each other while they run; shapes as in `run_shared`."""

    factor: Floats
    shares: Bools
    capacity: Floats
    crosses: Bools

    @classmethod
    def of(
        cls,
        interference: tuple[Interference, ...],
        uplinks: tuple[Uplink, ...],
        n_devices: int,
    ) -> Sharing | None:
        """None where nothing can slow a running task down."""
        slowing = [entry for entry in interference if entry.rate < 1.0]
        if not slowing and not uplinks:
            return None
        factor = np.ones((N_LANES, 2**N_LANES))
        busy = np.arange(2**N_LANES)
        for entry in slowing:
            beside = busy >> LANES.index(entry.while_busy) & 1 == 1
            factor[LANES.index(entry.lane), beside] *= entry.rate
        capacity = np.zeros((N_LANES, len(uplinks)))
        for lane in COPY_LANES:
            capacity[LANES.index(lane)] = [capacity_bytes_per_s(one, lane) for one in uplinks]
        crosses = np.zeros((n_devices, len(uplinks)), np.bool_)
        for at, uplink in enumerate(uplinks):
            crosses[:, at] = np.isin(np.arange(n_devices), uplink.devices)
        shares = np.array([bool(uplinks) and lane in COPY_LANES for lane in LANES])
        return cls(factor, shares, capacity, crosses)


@dataclass(frozen=True)
class FastJob:
    """A graph priced on a machine, ready to run.

    Args:
        runs: [N] of `RUN`.
        kind_issue_s: host seconds to issue a task, by kind.
        sharing: None where nothing can slow a running task down.
    """

    arrays: GraphArrays
    runs: Records
    kind_issue_s: Floats
    sharing: Sharing | None
    dispatch: Dispatch

    @classmethod
    def of(cls, graph: TaskGraph, hardware: HardwareProfile) -> FastJob:
        """Raises BadInput where graph or machine has something that this engine does not know."""
        links = hardware.links
        parts = [hardware, links, links.h2d, links.d2h, links.host, hardware.dispatch]
        _check_known([*parts, *hardware.interference, *hardware.uplinks])
        arrays, uplinks = graph.arrays, hardware.uplinks
        costs = CostModel(hardware, graph.model, graph.workload)
        alone_s = np.array([costs.estimate(one).seconds for one in arrays.kinds])
        if graph.n_devices == 1:  # nobody shares its uplinks, so that they only bound its copies
            least_s = [crossing_s(one, uplinks) for one in arrays.kinds]
            alone_s, uplinks = np.maximum(alone_s, least_s), ()
        n_bytes = np.array([float(one.bytes) for one in arrays.kinds])
        demand = np.divide(n_bytes, alone_s, out=np.zeros_like(alone_s), where=alone_s > 0)
        runs = np.empty(arrays.kind.size, RUN)
        runs["alone_s"] = alone_s[arrays.kind]
        runs["demand_bytes_per_s"] = demand[arrays.kind]
        issue_s = np.array([costs.issue_s(one) for one in arrays.kinds])
        sharing = Sharing.of(hardware.interference, uplinks, graph.n_devices)
        return cls(arrays, runs, issue_s, sharing, hardware.dispatch)

    def run(self) -> None:
        """Fill in `issued_s`, `start_s` and `end_s` of `runs`."""
        places, deps, heads = self.arrays.places, self.arrays.deps, self.arrays.heads
        sharing, runs = self.sharing, self.runs
        pauses = self.dispatch.gap_s, self.dispatch.handover_s
        issue(
            places,
            self.arrays.kind,
            self.kind_issue_s,
            heads.size // N_LANES,
            N_LANES,
            self.dispatch.head_start_s,
            runs,
        )
        if sharing is None:
            run_alone(places, deps, heads.size, *pauses, runs)
            return
        lanes = np.zeros(heads.size, LANE)
        lanes["head"], lanes["event_s"] = heads, np.inf
        shared = sharing.factor, sharing.shares, sharing.capacity, sharing.crosses
        run_shared(places, deps, lanes, *shared, *pauses, runs)

    @property
    def nbytes(self) -> int:
        return self.arrays.nbytes + self.runs.nbytes


def fast_timeline(graph: TaskGraph, hardware: HardwareProfile) -> Timeline:
    """When every task of `graph` starts and ends on `hardware`: the reference within rounding.

    Raises:
        BadInput: graph or machine has something that this engine does not know.
    """
    job = FastJob.of(graph, hardware)
    job.run()
    return Timeline(graph, tuple(job.runs["start_s"].tolist()), tuple(job.runs["end_s"].tolist()))


def _check_known(parts: Iterable[object]) -> None:
    new = {kind: _new_fields(kind) for kind in KNOWN_FIELDS}
    if not any(new.values()):
        return
    for part in parts:
        for field in new.get(type(part), ()):
            if getattr(part, field.name) != _default(field):
                raise BadInput(
                    f"engine 'fast' does not know {type(part).__name__}.{field.name}; "
                    "use engine 'simpy'."
                )


def _new_fields(kind: type) -> list[Field[Any]]:
    known = KNOWN_FIELDS[kind].split()
    return [field for field in fields(kind) if field.name not in known]


def _default(field: Field[Any]) -> object:
    return field.default if field.default_factory is MISSING else field.default_factory()
