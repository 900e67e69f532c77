"""How much of its core the compute lane really had while something else took a part of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hw.backends import Backend, Marker
from sim.availability import Availability
from sim.graph import COMPUTE, TaskGraph


@dataclass(frozen=True, slots=True)
class Share:
    """From one change of a trace to the next: the part that it states, and the part measured."""

    start_s: float
    stated_frac: float
    measured_frac: float


def compute_shares(
    graph: TaskGraph, backend: Backend, markers: Sequence[Marker], trace: Availability
) -> list[Share]:
    """Shares between the changes of a trace, from the tasks that lie between two of them whole."""
    spans = [
        (*times, worked_s)
        for times, worked_s, task in zip(
            backend.times_s(markers), backend.worked_s(markers), graph.tasks, strict=True
        )
        if task.lane == COMPUTE and times[0] < times[1]
    ]
    edges = [0.0, *(change_s for change_s in trace.changes_s if change_s > 0), math.inf]
    found = []
    for start_s, stop_s in pairwise(edges):
        inside = [span for span in spans if start_s <= span[0] and span[1] <= stop_s]
        if inside:
            took_s = sum(end_s - begun_s for begun_s, end_s, _ in inside)
            worked_s = sum(worked for _, _, worked in inside)
            found.append(Share(start_s, trace.at(start_s, COMPUTE), worked_s / took_s))
    return found
