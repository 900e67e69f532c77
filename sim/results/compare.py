"""Predicted against measured, for one graph."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from sim.engine.api import replay
from sim.errors import Mismatch
from sim.lanes import LANES, TIER_LANES
from sim.results.recording import Recording

WORST_TASKS = 10


@dataclass(frozen=True, slots=True)
class TaskError:
    """One task's time; errors are predicted minus measured."""

    task_id: str
    op: str
    lane: str
    layer: int
    step: int
    predicted_s: float
    measured_s: float
    error_s: float
    error_frac: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Errors of a prediction: predicted minus measured.

    Args:
        measured_makespan_s: median over the repeats.
        measured_spread_frac: interquartile range / median of the repeats.
        overlap_*_frac: overlapped copy time / copy time; measured, the median over the repeats, as
            is the exposed copy time.
        teacher_forced_error_frac: makespan error when the engine is given the measured task
            times: what is left is scheduling, what is gone is the error of the task times.
        naive_error_frac: error of `max(copy time, compute time)` from the predicted tasks.
        lane_busy_error_frac: error of each lane's busy time.
    """

    graph_sha256: str
    predicted_makespan_s: float
    measured_makespan_s: float
    makespan_error_frac: float
    measured_spread_frac: float
    overlap_predicted_frac: float
    overlap_measured_frac: float
    exposed_copy_predicted_s: float
    exposed_copy_measured_s: float
    teacher_forced_error_frac: float
    naive_error_frac: float
    lane_busy_error_frac: dict[str, float]
    worst_tasks: tuple[TaskError, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(predicted: Recording, measured: Recording) -> Comparison:
    """Compare two recordings of the same graph.

    Raises:
        Mismatch: the graphs differ; such a comparison means nothing.
    """
    graph = measured.graph
    if predicted.graph.sha256 != graph.sha256:
        raise Mismatch(
            f"the timelines are of different graphs ({predicted.graph.sha256[:12]} and "
            f"{graph.sha256[:12]}); simulate and run the same plan."
        )
    guess, truth = predicted.typical, measured.typical
    forced = replay(graph, truth.duration_s, predicted.hardware)
    measured_s = measured.makespan_s
    naive_s = guess.busiest_lane_s
    return Comparison(
        graph_sha256=graph.sha256,
        predicted_makespan_s=predicted.makespan_s,
        measured_makespan_s=measured_s,
        makespan_error_frac=predicted.makespan_s / measured_s - 1.0,
        measured_spread_frac=measured.spread_frac,
        overlap_predicted_frac=guess.overlap_frac,
        overlap_measured_frac=median(run.overlap_frac for run in measured.runs),
        exposed_copy_predicted_s=guess.exposed_copy_s,
        exposed_copy_measured_s=median(run.exposed_copy_s for run in measured.runs),
        teacher_forced_error_frac=forced.makespan_s / truth.makespan_s - 1.0,
        naive_error_frac=naive_s / measured_s - 1.0,
        lane_busy_error_frac={
            lane: guess.busy_s(lane) / truth.busy_s(lane) - 1.0
            for lane in (*LANES, *TIER_LANES)
            if truth.busy_s(lane) > 0
        },
        worst_tasks=_worst(predicted, measured),
    )


def _worst(predicted: Recording, measured: Recording) -> tuple[TaskError, ...]:
    errors = [
        TaskError(
            task.id,
            task.op,
            task.lane,
            task.layer,
            task.step,
            guess,
            truth,
            guess - truth,
            guess / truth - 1.0 if truth > 0 else 0.0,
        )
        for task, guess, truth in zip(
            measured.graph.tasks,
            predicted.typical.duration_s,
            measured.typical.duration_s,
            strict=True,
        )
    ]
    errors.sort(key=lambda error: abs(error.error_s), reverse=True)
    return tuple(errors[:WORST_TASKS])
