"""A whole sweep: batches out, parts in, one table at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from planner.sweep.batch import Batch, answer
from planner.sweep.checkpoints import Parts
from planner.sweep.study import Point, Study
from planner.sweep.workers import Executor
from sim.errors import BadInput

BATCH_S = 2.0
"""Seconds that a batch should take: what a killed sweep loses of each worker, about."""

MAX_IN_BATCH = 500
MIN_BATCHES = 8
"""Batches for each worker at least, so that none waits long for the others at the end."""

SAMPLES = 3

Tell = Callable[[int, int, float], None]
"""Told finished points, all points, and seconds left."""


@dataclass(frozen=True)
class Estimate:
    """What a sweep would take.

    Args:
        points: after filters.
        missing: of them not finished yet.
        point_s: seconds of one point on one core, the mean of a few that were tried.
        seconds: of the whole, on so many workers.
    """

    points: int
    missing: int
    point_s: float
    seconds: float


@dataclass(frozen=True)
class Swept:
    """A finished sweep.

    Args:
        answered: points that this run answered; the others were finished before.
        seconds: of this run.
    """

    table: pa.Table
    answered: int
    seconds: float


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def estimate(study: Study, parts: Parts, workers: int) -> Estimate:
    """Count the points and try a few of them.

    Raises:
        BadInput: no point passes the filters, or a filter cannot be worked out.
    """
    points = sum(1 for _ in study.points())
    if not points:
        raise BadInput("where: no point passes the filters; there is nothing to do.")
    missing = 0 if parts.is_complete() else points - len(parts.done())
    point_s = _point_seconds(study, points)
    return Estimate(points, missing, point_s, missing * point_s / workers)


def _point_seconds(study: Study, points: int) -> float:
    """Mean seconds of points spread over the study, after one that warms up."""
    chosen = {points * at // SAMPLES for at in range(SAMPLES)}
    samples = [point for at, point in enumerate(study.points()) if at in chosen]
    taken_s = []
    for point in (samples[0], *samples):
        start_s = time.perf_counter()
        answer(study.scenario, dict(zip(study.inputs, point, strict=True)))
        taken_s.append(time.perf_counter() - start_s)
    return sum(taken_s[1:]) / len(samples)


def run_sweep(
    study: Study,
    output: Path,
    executor: Executor,
    workers: int,
    resume: bool = False,
    tell: Tell = lambda done, points, left_s: None,  # noqa: ARG005
) -> Swept:
    """Answer every point of a study and write the table.

    Args:
        workers: how many answer at once, for the size of batches.
        resume: go on with what an earlier run has finished.

    Raises:
        BadInput, Mismatch: as `Parts.begin`.
        SweepStopped: workers died; what is finished is kept.
    """
    start_s = time.perf_counter()
    parts = Parts(study, output)
    if resume and parts.is_complete():
        return Swept(pq.read_table(output), 0, time.perf_counter() - start_s)
    expected = estimate(study, parts, workers)
    parts.begin(resume)
    done = parts.done()
    size = min(
        max(1, round(BATCH_S / max(expected.point_s, 1e-6))),
        MAX_IN_BATCH,
        max(1, expected.missing // (MIN_BATCHES * workers)),
    )
    finished, run_s = len(done), time.perf_counter()
    tell(finished, expected.points, expected.seconds)
    for batch, payload in executor(_batches(study, parts.columns, done, size)):
        parts.save(batch.first, batch.last, payload)
        finished += len(batch.points)
        rate = (finished - len(done)) / (time.perf_counter() - run_s)
        tell(finished, expected.points, (expected.points - finished) / rate)
    table = parts.merge(expected.points)
    return Swept(table, finished - len(done), time.perf_counter() - start_s)


def _batches(study: Study, columns: pa.Schema, done: set[int], size: int) -> Iterator[Batch]:
    """Points that are missing, in runs of at most `size` next to each other."""

    def batch(points: list[tuple[int, Point]]) -> Batch:
        values = [point for _, point in points]
        setting = (study.scenario, study.inputs, columns, study.sha256)
        return Batch(*setting, points[0][0], values)

    run: list[tuple[int, Point]] = []
    for number, point in enumerate(study.points()):
        if number in done:
            continue
        if run and (len(run) == size or number != run[-1][0] + 1):
            yield batch(run)
            run = []
        run.append((number, point))
    if run:
        yield batch(run)
