"""Start and end of each task of a graph, and the overlap and critical path they imply."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from sim.errors import BadInput
from sim.graph.tasks import Task, TaskGraph
from sim.lanes import COMPUTE, COPY_LANES, TIER_LANES

Interval = tuple[float, float]

MOVING_LANES = (*COPY_LANES, *TIER_LANES)
"""Lanes that move K, V or X to or from the device, from host memory or a tier."""


@dataclass(frozen=True, slots=True)
class Span:
    """One task on the time axis."""

    task: Task
    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


class Wait(NamedTuple):
    """Idle time of a lane before one of its tasks, from `free_s` to `start_s`.

    Args:
        at: position of the task.
        cause: position of the dependency that finished last, or -1 without any.
        free_s: end of the task before it on the lane, or 0.
        ready_s: end of the wait for `cause`; from then to `start_s` the lane is handed over
            (pauses, and a host that is late to issue).
    """

    at: int
    cause: int
    free_s: float
    ready_s: float
    start_s: float


@dataclass(frozen=True)
class Breakdown:
    """Wall time of one device in parts that add up to it, each instant counted once.

    Args:
        compute_s: the compute lane works.
        exposed_copy_s: it does not, and a copy runs.
        idle_s: neither runs (launch, hand-over between lanes, copies within the host).
    """

    compute_s: float
    exposed_copy_s: float
    idle_s: float


@dataclass(frozen=True)
class Timeline:
    """Start and end of every task, in the order of `graph.tasks`, in seconds from the start.

    Raises:
        BadInput: the number of times differs from the number of tasks, or a task ends early.
    """

    graph: TaskGraph
    start_s: tuple[float, ...]
    end_s: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.start_s) == len(self.end_s) == len(self.graph.tasks):
            raise BadInput(
                f"a timeline of {len(self.start_s)} starts and {len(self.end_s)} ends cannot "
                f"belong to a graph of {len(self.graph.tasks)} tasks."
            )
        for task, start, end in zip(self.graph.tasks, self.start_s, self.end_s, strict=True):
            if not 0 <= start <= end < float("inf"):
                raise BadInput(f"task {task.id} runs from {start} s to {end} s: not a time span.")

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        return tuple(map(Span, self.graph.tasks, self.start_s, self.end_s))

    @cached_property
    def makespan_s(self) -> float:
        """From time zero to the end of the last task."""
        return max(self.end_s, default=0.0)

    @cached_property
    def duration_s(self) -> tuple[float, ...]:
        return tuple(end - start for start, end in zip(self.start_s, self.end_s, strict=True))

    def intervals(self, lanes: Iterable[str], device: int = 0) -> list[Interval]:
        """Disjoint, sorted times in which any of `lanes` works."""
        queues = [self.graph.lanes.get((device, lane), ()) for lane in sorted(set(lanes))]
        return union((self.start_s[at], self.end_s[at]) for queue in queues for at in queue)

    @cached_property
    def _busy_s(self) -> dict[tuple[int, str], float]:
        """Busy seconds of each lane of each device."""
        return {
            (device, lane): length(self.intervals([lane], device))
            for device, lane in self.graph.lanes
        }

    def busy_s(self, lane: str, device: int = 0) -> float:
        return self._busy_s.get((device, lane), 0.0)

    @cached_property
    def busiest_lane_s(self) -> float:
        """`max(copy, compute)` of its own tasks: a makespan that no order of them can beat."""
        return max(self._busy_s.values(), default=0.0)

    @cached_property
    def copy_s(self) -> float:
        """Time in which at least one copy of device 0 runs."""
        return length(self.intervals(MOVING_LANES))

    @cached_property
    def overlapped_copy_s(self) -> float:
        """Copy time during which the compute lane works too."""
        return length(intersection(self.intervals(MOVING_LANES), self.intervals([COMPUTE])))

    @property
    def exposed_copy_s(self) -> float:
        """Copy time during which the compute lane waits."""
        return self.copy_s - self.overlapped_copy_s

    @property
    def overlap_frac(self) -> float:
        """Overlapped copy time / copy time; 1.0 where nothing is copied."""
        return self.overlapped_copy_s / self.copy_s if self.copy_s else 1.0

    @cached_property
    def breakdown(self) -> Breakdown:
        compute = self.busy_s(COMPUTE)
        return Breakdown(
            compute, self.exposed_copy_s, self.makespan_s - compute - self.exposed_copy_s
        )

    @cached_property
    def critical_path(self) -> tuple[int, ...]:
        """Positions of the tasks that together decide the makespan, first to last.

        From the last task to end, step to the last to finish among its deps and the task before
        it on its lane.
        """
        before = _lane_predecessors(self.graph)
        at = max(range(len(self.end_s)), key=self.end_s.__getitem__, default=-1)
        path: list[int] = []
        while at >= 0:
            path.append(at)
            candidates = [*self.graph.dep_indices[at], *before[at]]
            at = max(candidates, key=self.end_s.__getitem__, default=-1)
        return tuple(reversed(path))

    def idle_by_cause(self, lane: str, device: int = 0) -> dict[str, float]:
        """Idle seconds of a lane, by what it was waiting for.

        Keys: `waits for <lane>` for the lane of the dep that finished last, `hand-over` for the
        time between that dep's end and the start (pauses, and a host that is late to issue),
        `drained` once the lane has no more work.
        """
        idle: dict[str, float] = {}

        def book(cause: str, seconds: float) -> None:
            if seconds > 0:
                idle[cause] = idle.get(cause, 0.0) + seconds

        for wait in self.waits(lane, device):
            if wait.cause >= 0:
                book(f"waits for {self.graph.tasks[wait.cause].lane}", wait.ready_s - wait.free_s)
            book("hand-over", wait.start_s - wait.ready_s)
        queue = self.graph.lanes.get((device, lane), [])
        book("drained", self.makespan_s - (self.end_s[queue[-1]] if queue else 0.0))
        return idle

    def waits(self, lane: str, device: int = 0) -> Iterator[Wait]:
        """The idle time before each task of a lane, in the order of the lane."""
        dep_indices, starts_s, ends_s = self.graph.dep_indices, self.start_s, self.end_s
        free_s = 0.0
        for at in self.graph.lanes.get((device, lane), []):
            start_s, deps = starts_s[at], dep_indices[at]
            cause = max(deps, key=ends_s.__getitem__) if deps else -1
            ready_s = max(ends_s[cause], free_s) if deps else free_s
            yield Wait(at, cause, free_s, min(ready_s, start_s), start_s)
            free_s = ends_s[at]


def _lane_predecessors(graph: TaskGraph) -> list[tuple[int, ...]]:
    before: list[tuple[int, ...]] = [()] * len(graph.tasks)
    for queue in graph.lanes.values():
        for earlier, later in pairwise(queue):
            before[later] = (earlier,)
    return before


def earliest_schedule(
    graph: TaskGraph,
    durations_s: Sequence[float],
    launched_s: Sequence[float],
    gap_s: float = 0.0,
    handover_s: float = 0.0,
) -> Timeline:
    """The timeline in which every task starts as soon as host, deps and lane allow.

    This is the longest path through the graph: what the LP computes, and what the engine gives
    where nothing is shared.

    Args:
        durations_s: seconds of each task, in graph order.
        launched_s: when the host has issued each task.
        gap_s: pause of a lane between two tasks.
        handover_s: from the end of a task to the start of one on another lane that waits for it.
    """
    lanes = [(task.device, task.lane) for task in graph.tasks]
    start: list[float] = []
    end: list[float] = []
    free: dict[tuple[int, str], float] = {}
    each = zip(lanes, graph.dep_indices, launched_s, durations_s, strict=True)
    for lane, deps, earliest, duration_s in each:
        if free.get(lane, 0.0) > earliest:
            earliest = free[lane]
        for dep in deps:
            if lanes[dep] != lane and end[dep] + handover_s > earliest:
                earliest = end[dep] + handover_s
        start.append(earliest)
        end.append(earliest + duration_s)
        free[lane] = end[-1] + gap_s
    return Timeline(graph, tuple(start), tuple(end))


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Disjoint, sorted intervals that cover the same points."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if end <= start:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def intersection(left: Sequence[Interval], right: Sequence[Interval]) -> list[Interval]:
    """Points covered by both of two disjoint, sorted interval lists."""
    common: list[Interval] = []
    i = j = 0
    while i < len(left) and j < len(right):
        start, end = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if start < end:
            common.append((start, end))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return common


def length(intervals: Iterable[Interval]) -> float:
    return sum(end - start for start, end in intervals)
