"""Running a sweep: batches to the workers, checkpoints to disk, one table at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from planner.sweep.batch import Batch, point_row
from planner.sweep.checkpoints import Checkpoints
from planner.sweep.study import Point, Study
from planner.sweep.workers import Executor
from sim.errors import BadInput
from sim.progress import Progress, Silent
from sim.units import duration_text

BATCH_S = 2.0
"""Target seconds of a batch. A killed sweep loses about as much for each worker."""

MAX_IN_BATCH = 500
MIN_BATCHES = 8
"""Minimum for each worker, so that no worker idles long at the end."""

MIN_SAMPLES, MAX_SAMPLES, POINTS_PER_SAMPLE = 3, 256, 8
"""Points that are timed before a sweep: one of so many, within these limits."""

SURE_SAMPLES, SURE_FRAC = 32, 0.1
"""Sampling ends at this number of samples, or later, if the mean's standard error is as small."""

SAMPLING_S, SAMPLING_FRAC = 2.0, 0.05
"""Sampling takes about this long at most, or this fraction of the sweep. Points that need the LP
are few and long, so that a short sample misses them."""

WORKER_START_S = 3.0
"""About the time from the start of a worker process to its first point: imports."""

PRIOR_FRAC = 0.1
"""Part of the points that the estimate stands for when the time left is updated; the first batches
alone tell little."""

GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, modulo 1, are spread evenly, however many there are."""


@dataclass(frozen=True)
class Estimate:
    """The expected time of a sweep.

    Args:
        points: after filters.
        missing: points that are not finished.
        point_s: mean seconds of a point on one core, from samples.
        seconds: of all missing points on all workers, with reading machines and models.
    """

    points: int
    missing: int
    point_s: float
    seconds: float


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


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def estimate(study: Study, checkpoints: Checkpoints, workers: int) -> Estimate:
    """Count the points of the study and the unfinished ones, and time a few.

    Raises:
        BadInput: no point passes the filters, or a filter cannot be evaluated.
    """
    points = sum(1 for _ in study.points())
    if not points:
        raise BadInput("where: no point passes the filters; relax one.")
    missing = 0 if checkpoints.is_complete() else points - len(checkpoints.done())
    point_s, setup_s = _sampled_seconds(study, points, workers)
    start_s = setup_s + (WORKER_START_S if workers > 1 else 0.0)
    run_s = missing * point_s / workers + (start_s if missing else 0.0)
    return Estimate(points, missing, point_s, run_s)


def _sampled_seconds(study: Study, points: int, workers: int) -> tuple[float, float]:
    """Mean seconds of a point, and seconds that every worker spends once on machines and models.

    Points across the study are timed, until the mean is known well or sampling took long.
    """
    most = min(MAX_SAMPLES, max(MIN_SAMPLES, points // POINTS_PER_SAMPLE))
    order = list(dict.fromkeys(int(points * (at * GOLDEN % 1.0)) for at in range(most)))
    wanted = set(order)
    chosen = {at: point for at, point in enumerate(study.points()) if at in wanted}
    taken_s: list[float] = []
    setup_s, known = 0.0, set()
    for at in order:
        values = dict(zip(study.inputs, chosen[at], strict=True))
        subject = (values.get("model"), values.get("hardware"))
        first_s = 0.0 if subject in known else _seconds(study, values)
        known.add(subject)
        taken_s.append(_seconds(study, values))
        setup_s += max(0.0, first_s - taken_s[-1])
        mean_s, spent_s = fmean(taken_s), sum(taken_s)
        if len(taken_s) >= SURE_SAMPLES:
            error_s = stdev(taken_s) / len(taken_s) ** 0.5
            if error_s <= SURE_FRAC * mean_s:
                break
        if spent_s > max(SAMPLING_S, SAMPLING_FRAC * points * mean_s / workers):
            break
    return mean_s, setup_s


def _seconds(study: Study, values: dict[str, Any]) -> float:
    start_s = time.perf_counter()
    point_row(study.scenario, values)
    return time.perf_counter() - start_s


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
    size = min(
        max(1, round(BATCH_S / max(expected.point_s, 1e-6))),
        MAX_IN_BATCH,
        max(1, expected.missing // (MIN_BATCHES * workers)),
    )
    finished, run_s, prior = len(done), time.perf_counter(), PRIOR_FRAC * expected.missing
    report(_left(finished, expected.points, expected.seconds), finished / expected.points)
    with checkpoints.discarded_if_empty():
        for batch, payload in executor(_batches(study, checkpoints.columns, done, size)):
            checkpoints.save(batch.first, batch.last, payload)
            finished += len(batch.points)
            took_s, answered = time.perf_counter() - run_s, finished - len(done)
            pace_s = (PRIOR_FRAC * expected.seconds + took_s) / (prior + answered)
            left_s = (expected.points - finished) * pace_s
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
