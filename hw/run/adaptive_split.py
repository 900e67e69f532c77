"""A claim policy that can change the split of a restore while it runs.

Steps compute from the front and loads come from the back under every split, so finished work stays
valid after a change. The executed work is that of the graph of the last split.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from sim.errors import Mismatch
from sim.graph.claims import RestoreProgress, Tokens, part_of
from sim.graph.tasks import Task, TaskGraph
from sim.graph.timeline import Timeline
from sim.lanes import COMPUTE

Replan = Callable[[Task, float, RestoreProgress], int | None]
"""The new meeting point, or None to keep it, given the task that has just ended, its duration in
seconds, and the progress of the restore."""


@dataclass(frozen=True, slots=True)
class SplitChange:
    """A change of the meeting point to `computed_tokens`, when a task of `lane` ended."""

    at_s: float
    lane: str
    computed_tokens: int


class AdaptiveSplit:
    """Assigns the tokens of a two-ended graph by a meeting point instead of by first claim.

    An end that reaches the meeting point waits there for the other end. The meeting point is final
    once a task has been cut there.

    Args:
        meeting: number of leading cached tokens to compute; the others are loaded.
        replan: called whenever a task has ended.
    """

    def __init__(self, graph: TaskGraph, meeting: int, replan: Replan) -> None:
        self.graph = graph
        self.meeting = meeting
        self.changes: list[SplitChange] = []
        self._replan = replan
        self._zero_s: float | None = None
        self._got: dict[int, Tokens] = {}
        self._running: dict[str, tuple[Task, float]] = {}
        self._bounds = (0, max(task.token_stop for task in graph.tasks if task.claim))
        self._lock = threading.Lock()

    def take(self, at: int) -> Tokens | None:
        """The tokens of a task on its lane's side of the meeting point.

        None at the meeting point while the other end has not reached it, since the point can still
        move.
        """
        task = self.graph.tasks[at]
        with self._lock:
            got = self._tokens_of(at, task)
            if task.claim:
                if got[0] == got[1] and self._is_awaited(task):
                    return None
                self._book(task, got)
            self._got[at] = got
            if got[0] < got[1]:
                self._running[task.lane] = (part_of(self.graph, task, got), self._now_s())
        return got

    def _is_awaited(self, task: Task) -> bool:
        """Whether the other end has not reached the meeting point yet."""
        least, most = self._bounds
        return most > self.meeting if task.lane == COMPUTE else least < self.meeting

    def _book(self, task: Task, got: Tokens) -> None:
        """Update the range in which the meeting point can still be."""
        least, most = self._bounds
        if got[0] < got[1]:
            if task.lane == COMPUTE:
                least = max(least, got[1])
            else:
                most = min(most, got[0])
        if got != (task.token_start, task.token_stop):
            cut = got[0] < got[1]
            if task.lane == COMPUTE or cut:
                most = min(most, self.meeting)
            if task.lane != COMPUTE or cut:
                least = max(least, self.meeting)
        self._bounds = (least, most)

    def _tokens_of(self, at: int, task: Task) -> Tokens:
        start, stop = task.token_start, task.token_stop
        if not task.claim:
            return start, stop
        for dep in self.graph.dep_indices[at]:
            first = self.graph.tasks[dep]
            if (first.token_start, first.token_stop, first.claim) == (start, stop, task.claim):
                return self._got[dep]
        if task.lane == COMPUTE:
            return start, max(start, min(stop, self.meeting))
        return min(max(start, self.meeting), stop), stop

    def _now_s(self) -> float:
        """Seconds since the first task started."""
        now_s = time.perf_counter()
        if self._zero_s is None:
            self._zero_s = now_s
        return now_s - self._zero_s

    def ended(self, at: int, seconds: float) -> None:
        """Let `replan` move the meeting point after a task has ended."""
        with self._lock:
            task = part_of(self.graph, self.graph.tasks[at], self._got[at])
            self._running.pop(task.lane, None)
            least, most = self._bounds
            if least >= most or not task.claim:
                return
            now_s = self._now_s()
            progress = RestoreProgress(now_s, least, most, tuple(self._running.values()))
            meeting = self._replan(task, seconds, progress)
            if meeting is not None and meeting != self.meeting:
                self.meeting = min(max(meeting, least), most)
                self.changes.append(SplitChange(now_s, task.lane, self.meeting))

    def on_final_graph(self, timeline: Timeline, graph: TaskGraph) -> Timeline:
        """The measured timeline on the graph of the last split.

        Raises:
            Mismatch: the graph belongs to another split.
        """
        spans = {
            _key(part_of(self.graph, span.task, self._got[at])): span
            for at, span in enumerate(timeline.spans)
            if self._got[at][0] < self._got[at][1]
        }
        missing = [task.id for task in graph.tasks if _key(task) not in spans]
        if missing or len(spans) != len(graph.tasks):
            raise Mismatch(f"the run lacks tasks of the graph of its last split: {missing}.")
        done = [spans[_key(task)] for task in graph.tasks]
        return Timeline(
            graph, tuple(span.start_s for span in done), tuple(span.end_s for span in done)
        )


def _key(task: Task) -> tuple[str, int, int]:
    return task.op, task.token_start, task.token_stop
