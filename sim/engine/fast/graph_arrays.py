"""The arrays of a graph for the fast engine, made once for all machines."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from typing import cast

import numpy as np

from sim.cost.model import cost_key
from sim.engine.fast.known import check_known
from sim.engine.fast.loops import NOBODY
from sim.engine.fast.records import CLAIM, PLACE, Ints, Records
from sim.graph.claims import first_leg
from sim.graph.tasks import Task, TaskGraph
from sim.lanes import COMPUTE, LANES, TIER_LANES

CACHE_KEY = "fast_engine_arrays"


@dataclass(frozen=True)
class GraphArrays:
    """N tasks, K of them under claims, with M deps on D devices of L lanes.

    Args:
        lanes: [L], those that the graph uses; a device's lanes have numbers in this order.
        places: [N] of `PLACE`.
        deps: [M].
        claims: [K] of `CLAIM`, nothing settled.
        heads: [D * L], the first task of each lane, NOBODY where it has none.
        kind: [N], tasks of one kind (`cost_key`) take the same time on any machine.
        kinds: one task of each kind.
    """

    lanes: tuple[str, ...]
    places: Records
    deps: Ints
    claims: Records
    heads: Ints
    kind: Ints
    kinds: tuple[Task, ...]

    @classmethod
    def of(cls, graph: TaskGraph) -> GraphArrays:
        """Raises BadInput where a task uses a field that this engine does not read."""
        check_known([graph])
        check_known(graph.tasks)
        used = {lane for _, lane in graph.lanes}
        lanes = tuple(lane for lane in (*LANES, *TIER_LANES) if lane in used) or (COMPUTE,)
        at = {lane: number for number, lane in enumerate(lanes)}
        places = np.empty(len(graph.tasks), PLACE)
        places["lane"] = [task.device * len(lanes) + at[task.lane] for task in graph.tasks]
        places["next_on_lane"] = NOBODY
        heads = np.full(graph.n_devices * len(lanes), NOBODY, np.int32)
        for (device, lane), queue in graph.lanes.items():
            heads[device * len(lanes) + at[lane]] = queue[0]
            places["next_on_lane"][queue[:-1]] = queue[1:]
        bounds = np.fromiter(accumulate(map(len, graph.dep_indices), initial=0), np.int32)
        places["dep_from"], places["dep_to"] = bounds[:-1], bounds[1:]
        deps = np.fromiter(chain.from_iterable(graph.dep_indices), np.int32)
        claimed = [at for at, task in enumerate(graph.tasks) if task.claim]
        places["claim"] = NOBODY
        places["claim"][claimed] = range(len(claimed))
        numbers: dict[object, int] = {}
        keys = (cost_key(task, graph.model) for task in graph.tasks)
        kind = [numbers.setdefault(key, len(numbers)) for key in keys]
        kinds = dict(zip(kind, graph.tasks, strict=True))
        examples = tuple(kinds[number] for number in range(len(kinds)))
        claims = _claims(graph, claimed)
        return cls(lanes, places, deps, claims, heads, np.array(kind, np.int32), examples)

    @property
    def n_devices(self) -> int:
        return self.heads.size // len(self.lanes)

    @cached_property
    def n_groups(self) -> int:
        """Claims by name."""
        return int(self.claims["group"].max(initial=NOBODY)) + 1

    @property
    def nbytes(self) -> int:
        arrays = (self.places, self.deps, self.claims, self.heads, self.kind)
        return sum(array.nbytes for array in arrays)


def arrays_of(graph: TaskGraph) -> GraphArrays:
    """The arrays of a graph, made once and cached on it.

    Raises:
        BadInput: a task uses a field that this engine does not read.
    """
    made = graph.__dict__.get(CACHE_KEY)
    if made is None:
        made = graph.__dict__[CACHE_KEY] = GraphArrays.of(graph)
    return cast(GraphArrays, made)


def _claims(graph: TaskGraph, claimed: list[int]) -> Records:
    """The rows of the tasks at these positions."""
    row = {at: number for number, at in enumerate(claimed)}
    groups: dict[str, int] = {}
    claims = np.zeros(len(claimed), CLAIM)
    for mine, at in zip(claims, claimed, strict=True):
        task, before = graph.tasks[at], first_leg(graph, at)
        mine["group"] = groups.setdefault(task.claim, len(groups))
        mine["first_leg"] = NOBODY if before is None else row[before]
        mine["start"], mine["stop"] = task.token_start, task.token_stop
    return claims
