"""A prediction against the trace of another program: sums, because it has other tasks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sim.errors import BadInput
from sim.graph.timeline import Timeline
from sim.lanes import COMPUTE, COPY_LANES
from sim.traces.events import KERNEL, GpuWork
from sim.traces.measured import MeasuredTrace
from sim.traces.measures import NS, Busy, Measures, total

SECONDS = {
    "span": "span_s",
    "kernels": "kernel_s",
    "h2d copies": "h2d_copy_s",
    "d2h copies": "d2h_copy_s",
    "exposed copy": "exposed_copy_s",
    "idle": "idle_s",
}
"""Compared seconds by name, and the field of `Measures` that holds each."""


@dataclass(frozen=True, slots=True)
class TraceComparison:
    """Sums of a prediction and of a trace.

    Args:
        subject: the trace, or the step of it, that is compared.
        notes: what the comparison lacks, in sentences.
    """

    subject: str
    predicted: Measures
    measured: Measures
    notes: tuple[str, ...]

    @property
    def predicted_makespan_s(self) -> float:
        return self.predicted.span_s

    @property
    def measured_makespan_s(self) -> float:
        return self.measured.span_s

    @property
    def makespan_error_frac(self) -> float:
        return self.predicted_makespan_s / self.measured_makespan_s - 1.0

    @property
    def seconds(self) -> dict[str, tuple[float, float]]:
        """Predicted and measured seconds by name."""
        both = (self.predicted, self.measured)
        return {
            name: (getattr(both[0], key), getattr(both[1], key)) for name, key in SECONDS.items()
        }

    @property
    def overlap_frac(self) -> dict[str, tuple[float | None, float | None]]:
        """Predicted and measured overlap by direction; None where nothing is copied."""
        one, other = self.predicted, self.measured
        return {
            "h2d": (one.h2d_overlap_frac, other.h2d_overlap_frac),
            "d2h": (one.d2h_overlap_frac, other.d2h_overlap_frac),
        }

    def to_dict(self) -> dict[str, Any]:
        return {
            "subject": self.subject,
            "predicted_makespan_s": self.predicted_makespan_s,
            "measured_makespan_s": self.measured_makespan_s,
            "makespan_error_frac": self.makespan_error_frac,
            "overlap_predicted_frac": self.predicted.overlap_frac,
            "overlap_measured_frac": self.measured.overlap_frac,
            "exposed_copy_predicted_s": self.predicted.exposed_copy_s,
            "exposed_copy_measured_s": self.measured.exposed_copy_s,
            "predicted": {**asdict(self.predicted), **_overlaps(self.predicted)},
            "measured": {**asdict(self.measured), **_overlaps(self.measured)},
            "notes": list(self.notes),
        }


def _overlaps(one: Measures) -> dict[str, float | None]:
    return {"h2d_overlap_frac": one.h2d_overlap_frac, "d2h_overlap_frac": one.d2h_overlap_frac}


def compare_with_trace(
    predicted: Timeline, trace: MeasuredTrace, step: int | None = None
) -> TraceComparison:
    """Compare a predicted timeline with a trace, or with one of its marked steps.

    Raises:
        BadInput: no such step, or what is compared takes no time.
    """
    steps, file = trace.steps, trace.events.file
    subject, measured, notes = file, trace.measures, trace.notes
    if step is not None:
        if step >= len(steps):
            raise BadInput(
                f"--step(={step}): {file} marks {len(steps)} steps, counted from 0; `kvoverlap "
                "trace` lists them."
            )
        subject, measured = f"step {step} of {file}", steps[step].measures
    elif len(steps) > 1:
        notes += (f"{file} marks {len(steps)} steps; --step compares with one.",)
    if not measured.span_s:
        raise BadInput(f"{subject} takes no time, so that there is nothing to compare.")
    return TraceComparison(subject, measures_of(predicted), measured, notes)


def work_of(timeline: Timeline) -> list[GpuWork]:
    """The tasks of the GPUs as a trace would hold them: compute tasks are kernels."""
    kinds = {COMPUTE: KERNEL, **{lane: lane for lane in COPY_LANES}}
    return [
        GpuWork(
            round(span.start_s * NS),
            round(span.end_s * NS),
            span.task.device,
            span.task.lane,
            kinds[span.task.lane],
            span.task.op,
            span.task.bytes,
        )
        for span in timeline.spans
        if span.task.lane in kinds
    ]


def measures_of(timeline: Timeline) -> Measures:
    """What a timeline has of the measures of a trace, from its start to the end of its last task.

    Sums over GPUs, as for a trace.
    """
    work: dict[int, list[GpuWork]] = {}
    for one in work_of(timeline):
        work.setdefault(one.device, []).append(one)
    end_ns = timeline.makespan_s * NS
    parts = [Busy(part).measures(0, end_ns) for part in work.values()]
    return total(parts, timeline.makespan_s)
