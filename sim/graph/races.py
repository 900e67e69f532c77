"""A static proof that no copy races a kernel: conflicting tasks of a graph run in a fixed order.

Two accesses conflict if they touch the same rows of a buffer and at least one writes. The only
things that order tasks are deps and lanes: a lane runs its tasks in graph order. The check visits
the tasks in graph order and gives each a vector clock: for each lane, how many of its first tasks
are certain to be done when the task starts. A conflicting access by a task that the clock does not
cover is a race. Only tasks beyond the clock are compared, so the cost grows with the number of
tasks that may run at the same time, not with the number of pairs.

Tasks with the same claim (`sim/graph/claims.py`) are alternatives for the same tokens, so their
accesses to the restored K and V need no order, if the claim is two-ended: one lane computes from
the front, each step attends to all tokens before it, and every other lane loads from the back.
Then the computed tokens are always a prefix and the loaded ones a suffix. A step finds all tokens
before it computed by its own lane, or its own tokens are taken and it is skipped. A load that
starts later leaves out what the steps have taken. Every other task, such as a step of uncached
tokens, may meet either alternative and must be ordered after both. A skipped task still waits for
its deps and its turn, so it orders others as if it ran.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from sim.errors import RaceFound
from sim.graph.accesses import RESTORED_KV, Access, Buffer, buffer_name, graph_accesses
from sim.graph.tasks import Task, TaskGraph
from sim.lanes import COMPUTE

Clock = tuple[int, ...]
"""For each lane, how many of its first tasks are done."""

_Earlier = tuple[int, int, int, int, bool]
"""(place in the lane, position in the graph, start, stop, write): plain, so that the garbage
collector skips the hundreds of thousands of them."""


@dataclass(frozen=True, slots=True)
class Race:
    """Two tasks that touch the same rows, at least one of which writes, in no fixed order.

    Args:
        first, second: task ids, in graph order.
        buffer: name of the buffer.
        rows: the rows that both touch, half open.
    """

    first: str
    second: str
    buffer: str
    rows: tuple[int, int]


def check_races(graph: TaskGraph) -> None:
    """Refuse a graph in which the result depends on which of two tasks runs first.

    Raises:
        RaceFound: names the two tasks, the buffer and the missing dependency.
        BadInput: an operation does not belong to this kind of job.
    """
    for race in find_races(graph, limit=1):
        start, stop = race.rows
        raise RaceFound(
            f"tasks {race.first} and {race.second} touch rows [{start}, {stop}) of {race.buffer}, "
            f"at least one of them writes, and nothing fixes their order; make {race.second} "
            f"depend on {race.first}."
        )


def find_races(graph: TaskGraph, limit: int | None = None) -> list[Race]:
    """The races of `graph`, at most `limit`, in graph order of the later task.

    A pair of tasks is listed once for each buffer that it races on.

    Raises:
        BadInput: an operation does not belong to this kind of job.
    """
    found: dict[tuple[str, str, str], Race] = {}
    tasks = graph.tasks
    two_ended = _two_ended_claims(graph)
    lane_numbers = {lane: number for number, lane in enumerate(graph.lanes)}
    lane_clocks: list[Clock] = [(0,) * len(lane_numbers) for _ in lane_numbers]
    clocks: list[Clock] = []
    places: list[tuple[int, int]] = []
    history: dict[Buffer, dict[int, list[_Earlier]]] = {}
    for at, (task, accesses) in enumerate(zip(tasks, graph_accesses(graph), strict=True)):
        lane = lane_numbers[task.device, task.lane]
        clock = lane_clocks[lane]
        for dep in graph.dep_indices[at]:
            dep_lane, dep_place = places[dep]
            if clock[dep_lane] < dep_place:
                clock = tuple(map(max, clock, clocks[dep]))
        place = clock[lane] + 1
        for access in accesses:
            of_buffer = history.setdefault(access.buffer, {})
            for other_at, rows in _uncovered(access, of_buffer, lane, clock):
                other = tasks[other_at]
                alternatives = task.claim in two_ended and task.claim == other.claim
                if alternatives and access.buffer[0] == RESTORED_KV:
                    continue
                race = Race(other.id, task.id, buffer_name(access.buffer), rows)
                found.setdefault((race.first, race.second, race.buffer), race)
                if len(found) == limit:
                    return list(found.values())
            of_buffer.setdefault(lane, []).append((place, at, *access[1:]))
        clock = (*clock[:lane], place, *clock[lane + 1 :])
        clocks.append(clock)
        lane_clocks[lane] = clock
        places.append((lane, place))
    return list(found.values())


def _uncovered(
    access: Access, of_buffer: dict[int, list[_Earlier]], lane: int, clock: Clock
) -> Iterator[tuple[int, tuple[int, int]]]:
    """Conflicting accesses of other lanes that may not be done: position in the graph, rows."""
    _, start, stop, write = access
    for other_lane, earlier in of_buffer.items():
        if other_lane == lane:
            continue
        done = clock[other_lane]
        for place, at, other_start, other_stop, other_write in reversed(earlier):
            if place <= done:
                break
            if (write or other_write) and start < other_stop and other_start < stop:
                yield at, (max(start, other_start), min(stop, other_stop))


def _two_ended_claims(graph: TaskGraph) -> set[str]:
    """Claims whose steps go from the front without a gap and whose loads from the back."""
    members: dict[str, dict[tuple[int, str], list[Task]]] = {}
    for task in graph.tasks:
        if task.claim:
            lanes = members.setdefault(task.claim, {})
            lanes.setdefault((task.device, task.lane), []).append(task)
    return {claim for claim, lanes in members.items() if _is_two_ended(lanes)}


def _is_two_ended(lanes: dict[tuple[int, str], list[Task]]) -> bool:
    fronts = [tasks for (_, lane), tasks in lanes.items() if lane == COMPUTE]
    backs = [tasks for (_, lane), tasks in lanes.items() if lane != COMPUTE]
    if len(fronts) != 1:
        return False
    start, stop = fronts[0][0].token_start, fronts[0][-1].token_stop
    return all(one.token_stop == two.token_start for one, two in pairwise(fronts[0])) and all(
        stop <= back[0].token_stop
        and start <= back[-1].token_start
        and all(one.token_start == two.token_stop for one, two in pairwise(back))
        for back in backs
    )
