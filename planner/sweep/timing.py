"""How long a sweep will take: from a few points, the start of its workers and idle cores."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from statistics import fmean, stdev
from typing import Any

from planner.sweep.batch import point_row
from planner.sweep.checkpoints import Checkpoints
from planner.sweep.study import Study
from sim.errors import BadInput

MIN_SAMPLES, MAX_SAMPLES, POINTS_PER_SAMPLE = 6, 256, 8
"""Points that are timed before a sweep: one of so many, within these limits."""

SURE_SAMPLES, SURE_FRAC = 32, 0.1
"""Sampling ends at this number of samples, or later, if the mean's standard error is as small."""

SAMPLING_S, SAMPLING_FRAC = 2.0, 0.05
"""Sampling takes about this long at most, or this fraction of the sweep. Points that need the LP
are few and long, so that a short sample misses them."""

MAX_LOAD_S = 3.0
"""A worker loads what this process has loaded. A process that has run for long has done more."""

SHARE_S = 0.2
"""Duration of the measurement of idle cores."""

GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, modulo 1, are spread evenly, however many there are."""


@dataclass(frozen=True)
class Samples:
    """Times of a few points, in CPU seconds, which other programs do not change.

    Args:
        point_s: mean of a point.
        first_s: what the first point of a process takes more: the engine, a machine, a model.
        subject_s: what the first point of each further machine or model takes more.
        unseen: machines with a model that were not sampled.
        subjects: all machines with a model.
        wall_s: duration of the sampling.
        share: CPU seconds per second of it.
    """

    point_s: float
    first_s: float
    subject_s: float
    unseen: int
    subjects: int
    wall_s: float
    share: float


@dataclass(frozen=True)
class Estimate:
    """The expected time of a sweep.

    Args:
        points: after filters.
        missing: points that are not finished.
        point_s: mean CPU seconds of a point, from samples.
        seconds: of the sweep, with the samples and the start of its workers.
        left_s: of the sweep after the samples.
        pace_s: of a point, when all workers run.
    """

    points: int
    missing: int
    point_s: float
    seconds: float
    left_s: float
    pace_s: float


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def estimate(study: Study, checkpoints: Checkpoints, workers: int) -> Estimate:
    """Count the points of the study and the unfinished ones, and time a few.

    Raises:
        BadInput: no point passes the filters, or a filter cannot be evaluated.
    """
    load_s = min(time.process_time(), MAX_LOAD_S)
    points = sum(1 for _ in study.points())
    if not points:
        raise BadInput("where: no point passes the filters; relax one.")
    missing = 0 if checkpoints.is_complete() else points - len(checkpoints.done())
    samples = sample(study, points, workers)
    share = samples.share if workers == 1 else core_share(workers)
    return expect(samples, points, missing, workers, load_s, share)


def expect(
    samples: Samples, points: int, missing: int, workers: int, load_s: float, share: float
) -> Estimate:
    """The time of a sweep whose samples are done.

    Args:
        load_s: CPU seconds until a new process has loaded the program.
        share: of a core, for each worker.
    """
    if workers == 1:  # this process, which has loaded everything
        start_s = samples.unseen * samples.subject_s
    else:
        start_s = load_s + samples.first_s + (samples.subjects - 1) * samples.subject_s
    pace_s = samples.point_s / workers / share
    left_s = (start_s / share + missing * pace_s) if missing else 0.0
    return Estimate(points, missing, samples.point_s, samples.wall_s + left_s, left_s, pace_s)


def sample(study: Study, points: int, workers: int) -> Samples:
    """Time points across the study, until the mean is known well or sampling took long."""
    most = min(MAX_SAMPLES, max(MIN_SAMPLES, points // POINTS_PER_SAMPLE), points)
    order = list(dict.fromkeys(int(points * (at * GOLDEN % 1.0)) for at in range(most)))
    wanted, chosen, subjects = set(order), {}, set()
    for at, point in enumerate(study.points()):
        values = dict(zip(study.inputs, point, strict=True))
        subjects.add(_subject(values))
        if at in wanted:
            chosen[at] = values
    begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
    taken_s: list[float] = []
    more_s: dict[tuple[Any, ...], float] = {}
    for at in order:
        values = chosen[at]
        subject = _subject(values)
        first_s = _cpu_seconds(study, values) if subject not in more_s else 0.0
        taken_s.append(_cpu_seconds(study, values))
        more_s.setdefault(subject, max(0.0, first_s - taken_s[-1]))
        mean_s, spent_s = fmean(taken_s), sum(taken_s)
        if len(taken_s) >= SURE_SAMPLES:
            error_s = stdev(taken_s) / len(taken_s) ** 0.5
            if error_s <= SURE_FRAC * mean_s:
                break
        if spent_s > max(SAMPLING_S, SAMPLING_FRAC * points * mean_s / workers):
            break
    first, *others = more_s.values()
    wall_s, cpu_s = time.perf_counter() - begun_s, time.process_time() - begun_cpu_s
    return Samples(
        mean_s,
        first,
        fmean(others) if others else 0.0,
        len(subjects) - len(more_s),
        len(subjects),
        wall_s,
        min(1.0, cpu_s / wall_s),
    )


def core_share(workers: int) -> float:
    """Part of an own core that each of some busy workers gets now.

    Other programs take a part, and so do workers whose cores are threads of one.
    """
    blocks, _, cpu_s = _hash_for(SHARE_S / 2, 1)
    blocks_per_s = blocks / cpu_s
    blocks, wall_s, _ = _hash_for(SHARE_S, workers)
    return min(1.0, blocks / wall_s / workers / blocks_per_s)


def _hash_for(seconds: float, threads: int) -> tuple[int, float, float]:
    """Blocks hashed by some threads, without the interpreter's lock; wall and CPU seconds.

    Each hashes at least one: a thread may get no core until the time is over.
    """

    def work(until_s: float) -> int:
        blocks, block = 0, bytes(2**22)
        while not blocks or time.perf_counter() < until_s:
            sha256(block)
            blocks += 1
        return blocks

    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        blocks = sum(pool.map(work, [start_s + seconds] * threads))
    return blocks, time.perf_counter() - start_s, time.process_time() - start_cpu_s


def _subject(values: dict[str, Any]) -> tuple[Any, ...]:
    """What a process reads files for once."""
    return values.get("model"), values.get("hardware")


def _cpu_seconds(study: Study, values: dict[str, Any]) -> float:
    start_s = time.process_time()
    point_row(study.scenario, values)
    return time.process_time() - start_s
