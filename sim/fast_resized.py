"""The same graph with other sizes of some tasks, simulated again without building it anew.

A planner that tries one split after another changes how many tokens tasks work on, and neither
which tasks there are nor what they wait for.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from sim.fast import FastJob
from sim.graph import Task, TaskGraph
from sim.hardware import HardwareProfile


class Resizable:
    """A graph on a machine, some of whose tasks change their size.

    Args:
        ops: operations of those tasks. What they move is in proportion to their tokens.

    Attributes:
        sized: those tasks, in graph order.
    """

    def __init__(self, graph: TaskGraph, hardware: HardwareProfile, ops: Collection[str]) -> None:
        self._job = FastJob.of(graph, hardware)
        self._places = [at for at, task in enumerate(graph.tasks) if task.op in ops]
        self.sized = [graph.tasks[at] for at in self._places]
        self._prices: dict[tuple[str, int], tuple[float, float]] = {}

    def makespan_s(self, counts: Sequence[int]) -> float:
        """Of the graph in which the sized tasks work on so many tokens, at least one each."""
        prices = [self._price(*one) for one in zip(self.sized, counts, strict=True)]
        self._job.run_resized(self._places, np.array(prices).reshape(-1, 2))
        return float(self._job.runs["end_s"].max())

    def _price(self, task: Task, count: int) -> tuple[float, float]:
        """Seconds alone, and bytes a second that a copy then uses of its link."""
        key = task.op, count
        if key not in self._prices:
            n_bytes = task.bytes // task.n_tokens * count
            resized = replace(task, token_stop=task.token_start + count, bytes=n_bytes)
            alone_s = self._job.alone.seconds(resized)
            self._prices[key] = alone_s, n_bytes / alone_s if alone_s else 0.0
        return self._prices[key]
