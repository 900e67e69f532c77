"""Running a sweep: batches to the workers, checkpoints to disk, one table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from planner.sweep.batch import Batch
from planner.sweep.checkpoints import Checkpoints
from planner.sweep.study import Point, Study
from planner.sweep.timing import estimate
from planner.sweep.workers import Executor
from sim.progress import Progress, Silent
from sim.units import duration_text

BATCH_S = 2.0
"""Target seconds of a batch. A killed sweep loses about as much for each worker."""

MAX_IN_BATCH = 500
MIN_BATCHES = 8
"""Minimum for each worker, so that no worker idles long at the end."""

PRIOR_FRAC = 0.1
"""Part of the points that the estimate stands for when the time left is updated; the first batches
alone tell little."""


@dataclass(frozen=True)
class Swept:
    """A finished sweep.

    Args:
        answered: points computed by this run, without those of earlier runs.
        seconds: of this run.
    """

    table: pa.Table
    answered: int
    seconds: float


class Clock:
    """The time that a point of a running sweep takes, with all workers at work.

    Args:
        expected_s: the time before anything was measured.
        prior: points that it stands for.
    """

    def __init__(self, expected_s: float, prior: float) -> None:
        self._expected_s, self._prior = expected_s, prior
        self._points, self._begun_s, self._now_s = 0, 0.0, 0.0

    def book(self, points: int, now_s: float) -> None:
        """Count finished points; the first ones mark the end of the workers' start."""
        if not self._points:
            self._begun_s = now_s - points * self._expected_s
        self._points += points
        self._now_s = now_s

    @property
    def pace_s(self) -> float:
        """Seconds of a point."""
        measured_s = self._now_s - self._begun_s
        return (self._prior * self._expected_s + measured_s) / (self._prior + self._points)


def run_sweep(
    study: Study,
    output: Path,
    executor: Executor,
    workers: int,
    resume: bool = False,
    progress: Progress | None = None,
) -> Swept:
    """Compute every point of a study and write the table.

    Args:
        workers: number of workers, which decides the size of batches.
        resume: continue an earlier run of the same study.
        progress: gets a report at the start and after every batch.

    Raises:
        BadInput, Mismatch: as `Checkpoints.begin`.
        SweepStopped: workers died; finished points stay on disk.
    """
    start_s = time.perf_counter()
    checkpoints = Checkpoints(study, output)
    if resume and checkpoints.is_complete():
        return Swept(pq.read_table(output), 0, time.perf_counter() - start_s)
    report = progress or Silent()
    report("timing a few points")
    expected = estimate(study, checkpoints, workers)
    checkpoints.begin(resume)
    done = checkpoints.done()
    batch_points = BATCH_S / max(expected.pace_s * workers, 1e-6)
    size = min(
        max(1, round(batch_points)),
        MAX_IN_BATCH,
        max(1, expected.missing // (MIN_BATCHES * workers)),
    )
    finished = len(done)
    clock = Clock(expected.pace_s, PRIOR_FRAC * expected.missing)
    report(_left(finished, expected.points, expected.left_s), finished / expected.points)
    with checkpoints.discarded_if_empty():
        for batch, payload in executor(_batches(study, checkpoints.columns, done, size)):
            checkpoints.save(batch.first, batch.last, payload)
            finished += len(batch.points)
            clock.book(len(batch.points), time.perf_counter())
            left_s = (expected.points - finished) * clock.pace_s
            report(_left(finished, expected.points, left_s), finished / expected.points)
    table = checkpoints.merge(expected.points)
    return Swept(table, finished - len(done), time.perf_counter() - start_s)


def _left(done: int, points: int, left_s: float) -> str:
    return f"{done:,} of {points:,} points, {duration_text(left_s)} left"


def _batches(study: Study, columns: pa.Schema, done: set[int], size: int) -> Iterator[Batch]:
    """Missing points, in batches of at most `size` consecutive ones."""

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
