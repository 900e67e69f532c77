"""Run a simulated task graph on a device with real tensors, and measure when each task ran."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Protocol

from hw.backends import Backend, Handle
from sim.errors import Mismatch
from sim.graph.claims import Claims, Tokens, part_of
from sim.graph.races import check_races
from sim.graph.tasks import Task
from sim.graph.timeline import Timeline
from sim.lanes import COMPUTE
from sim.machine.availability import ALWAYS, Availability


class ClaimPolicy(Protocol):
    """Chooses the tokens of each task when the task is about to start."""

    def take(self, at: int) -> Tokens | None:
        """The tokens of the task at position `at` of the graph; an empty range skips the task.

        None if the choice cannot be made yet; the executor then asks again.
        """

    def ended(self, at: int, seconds: float) -> None:
        """Called when the task at position `at` has ended, with its duration."""


class Executor(ABC):
    """One simulated graph with its device buffers, ready to run any number of times.

    A subclass holds the buffers of its kind of job, the operations on them, and the check.

    Args:
        simulated: the predicted timeline; its graph is the one that runs.

    Raises:
        Mismatch: the graph has an operation that belongs to another kind of job.
        RaceFound: two tasks of the graph touch the same buffer in no fixed order.
    """

    operations: ClassVar[Mapping[str, Callable[[Any, Task], None]]]
    """The function of each operation. They are not bound to the executor: that would make a
    reference cycle, which keeps its buffers until the garbage collector runs."""

    in_turn: ClassVar[bool]
    """Whether each task is launched only when its dependencies are done, as claims need it."""

    def __init__(self, simulated: Timeline, backend: Backend) -> None:
        self.graph, self.backend = simulated.graph, backend
        unknown = sorted({task.op for task in self.graph.tasks} - self.operations.keys())
        if unknown:
            raise Mismatch(
                f"{type(self).__name__} has no operation {', '.join(unknown)}: the graph belongs "
                "to another kind of job; run a decode as a decode and a restore as a restore."
            )
        check_races(self.graph)
        self._tasks: list[Task] = []
        self._handles: list[Handle] = []

    def run(
        self, trace: Availability = ALWAYS, claim_policy: ClaimPolicy | None = None
    ) -> Timeline:
        """Run all tasks once and return their measured times.

        The results of the previous run are overwritten first, so that a copy that does not happen
        cannot pass for one that did.

        Args:
            trace: share of each lane that is available over time.
            claim_policy: chooses the tokens of each task; by default the graph's claims do.
        """
        self._reset()
        self._tasks, self._handles = list(self.graph.tasks), []
        claims = Claims(self.graph)
        self.backend.begin(trace, self.in_turn or claim_policy is not None)
        try:
            for at, (task, deps) in enumerate(
                zip(self.graph.tasks, self.graph.dep_indices, strict=True)
            ):
                policy = claim_policy or (claims if task.claim else None)
                handle = self.backend.launch(
                    task.lane,
                    partial(self._work, at),
                    [self._handles[dep] for dep in deps],
                    None if policy is None else partial(self._resolve, policy, at),
                    None if claim_policy is None else partial(claim_policy.ended, at),
                )
                self._handles.append(handle)
        except Exception:
            self.backend.finish()  # drains what is queued, which still uses the buffers
            raise
        self.backend.finish()
        times = self.backend.times_s(self._handles)
        return Timeline(self.graph, tuple(a for a, _ in times), tuple(b for _, b in times))

    @property
    def core_share(self) -> float:
        """Processor time / duration of the last run's compute tasks: 1 on a core of its own."""
        spent = [
            (end_s - start_s, worked_s)
            for task, (start_s, end_s), worked_s in zip(
                self.graph.tasks,
                self.backend.times_s(self._handles),
                self.backend.worked_s(self._handles),
                strict=True,
            )
            if task.lane == COMPUTE
        ]
        took_s = sum(seconds for seconds, _ in spent)
        return min(1.0, sum(worked_s for _, worked_s in spent) / took_s) if took_s else 1.0

    @abstractmethod
    def check(self) -> dict[str, float | bool]:
        """Compare the results of the last run with the reference.

        Returns:
            Largest relative difference by quantity, and whether the tokens are equal.

        Raises:
            WrongNumbers: a difference exceeds the tolerance of the dtype.
        """

    @abstractmethod
    def _reset(self) -> None:
        """Overwrite the results of the previous run."""

    def _work(self, at: int) -> None:
        task = self._tasks[at]
        self.operations[task.op](self, task)

    def _resolve(self, policy: ClaimPolicy | Claims, at: int) -> bool | None:
        """Whether the task has any tokens to do; None if the policy is undecided."""
        tokens = policy.take(at)
        if tokens is None:
            return None
        if tokens[0] < tokens[1]:
            self._tasks[at] = part_of(self.graph, self.graph.tasks[at], tokens)
        return tokens[0] < tokens[1]
