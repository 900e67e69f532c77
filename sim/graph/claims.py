"""Alternatives in a static graph: a claim decides at run time which task does a token.

Tasks with the same claim are alternatives for the tokens their ranges share. The first to start
does them. A later task does the rest of its range, and is skipped if nothing is left. A task that
waits for one of the same claim and range (the second leg of a load) works on the tokens that this
one got.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sim.graph.tasks import Task, TaskGraph

Tokens = tuple[int, int]
"""Half-open range of positions."""


class Claims:
    """Tokens claimed so far in one run of `graph`."""

    def __init__(self, graph: TaskGraph) -> None:
        self.graph = graph
        self.got: dict[int, Tokens] = {}
        self._taken: dict[str, list[Tokens]] = {}

    def take(self, at: int) -> Tokens:
        """The tokens that the task at position `at` does; an empty range if none are left.

        A task with separate ranges of free tokens does all from the first to the last.
        """
        task = self.graph.tasks[at]
        before = first_leg(self.graph, at)
        if before is not None:
            self.got[at] = self.got[before]
        elif not task.claim:
            self.got[at] = (task.token_start, task.token_stop)
        else:
            taken = self._taken.setdefault(task.claim, [])
            self.got[at] = _free(task, taken)
            if self.got[at][0] < self.got[at][1]:
                _add(taken, self.got[at])
        return self.got[at]


def first_leg(graph: TaskGraph, at: int) -> int | None:
    """The dep that works on the very same tokens under the same claim, if there is one."""
    tasks = graph.tasks
    if not tasks[at].claim:
        return None
    return next((dep for dep in graph.dep_indices[at] if _same(tasks[dep], tasks[at])), None)


def _same(one: Task, other: Task) -> bool:
    return (one.claim, one.token_start, one.token_stop) == (
        other.claim,
        other.token_start,
        other.token_stop,
    )


def _free(task: Task, taken: Sequence[Tokens]) -> Tokens:
    """The range without the tokens taken at its ends."""
    start, stop = task.token_start, task.token_stop
    moved = True
    while moved and start < stop:
        moved = False
        for first, last in taken:
            if first <= start < last:
                start, moved = min(last, stop), True
            if first < stop <= last:
                stop, moved = max(first, start), True
    return (start, max(start, stop))


def _add(taken: list[Tokens], more: Tokens) -> None:
    """Join a range with those that it touches, so that few are left to compare with."""
    start, stop = more
    for one in [one for one in taken if one[0] <= stop and start <= one[1]]:
        taken.remove(one)
        start, stop = min(start, one[0]), max(stop, one[1])
    taken.append((start, stop))


def part_of(graph: TaskGraph, task: Task, tokens: Tokens) -> Task:
    """The task with only these of its tokens, its FLOPs, and its bytes by what each layer loads."""
    n_tokens = tokens[1] - tokens[0]
    if n_tokens == task.n_tokens:
        return task
    part = replace(task, token_start=tokens[0], token_stop=tokens[1])
    if not task.bytes:
        return replace(part, flops=task.flops * n_tokens // task.n_tokens)
    left_bytes = graph.loaded_bytes(part) if n_tokens else 0
    return replace(part, bytes=task.bytes * left_bytes // graph.loaded_bytes(task))


def claimed(graph: TaskGraph, start_s: Sequence[float]) -> tuple[Task, ...]:
    """Each task with the tokens it did in a timeline, in graph order; skipped tasks have none.

    Of tasks that start at the same moment, the one that comes first in the graph claims first.
    """
    if not any(task.claim for task in graph.tasks):
        return graph.tasks
    claims = Claims(graph)
    for at in sorted(range(len(graph.tasks)), key=lambda at: (start_s[at], at)):
        claims.take(at)
    return tuple(part_of(graph, task, claims.got[at]) for at, task in enumerate(graph.tasks))


@dataclass(frozen=True, slots=True)
class RestoreProgress:
    """Progress of the two ends of a restore while it runs.

    Args:
        now_s: seconds, from any zero.
        computed_to: the first cached token that no step has begun.
        loaded_from: the first token of the last load that has begun.
        running: the task on every busy lane, and its start in seconds.
    """

    now_s: float
    computed_to: int
    loaded_from: int
    running: tuple[tuple[Task, float], ...]
