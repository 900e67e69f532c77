"""Errors of a case against predictions for the machine's speed around each of its runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import hypot, sqrt
from operator import attrgetter
from statistics import median, stdev

from measure.interleave import LINK, MIN_REPEATS, STEADY_FRAC, MeasuredRun, machine_at
from planner import Plan
from sim.machine.profile import HardwareProfile
from sim.units import percent

MAX_NOISE_FRAC = 0.04
"""Largest noise of a case's error at which the error is called one, and of its overlap error / 100.
"""

SETTLED_NOISE_FRAC = 0.015
"""Noise of both at which no further run is needed."""

STUDENT = (1.84, 1.32, 1.20, 1.14, 1.11, 1.09, 1.08, 1.07, 1.06)
"""Half widths of the interval that holds 68 % of Student's t, for 2 values and more."""

MIN_JUDGED_FRAC = 0.75
"""Fraction of the cases that have to be judged before the machine is."""


@dataclass(frozen=True, slots=True)
class JudgedRun:
    """A run against the prediction for the machine's speed around it.

    Args:
        corrected_s: measured makespan at the speed that the plan was made for.
        error_frac: predicted minus measured makespan, over measured.
        overlap_error_points: predicted minus measured overlap, in points of 100.
    """

    run: MeasuredRun
    corrected_s: float
    error_frac: float
    overlap_error_points: float

    @property
    def is_steady(self) -> bool:
        """Whether a real link kept its pace; on a CPU the noise of the errors shows disturbances.

        Others can slow a link down in all of a plan's runs, which then agree.
        """
        return LINK not in self.run.before or self.run.disturbed_frac <= STEADY_FRAC


def judge_run(plan: Plan, hardware: HardwareProfile, run: MeasuredRun) -> JudgedRun:
    """Compare a run with its plan's prediction for the speed around it.

    Args:
        hardware: the profile that the speed is relative to.
    """
    timeline = run.timeline
    predicted = plan.simulate(hardware=machine_at(hardware, run.speed))
    ratio = predicted.makespan_s / timeline.makespan_s
    overlap_frac = predicted.overlap_frac - timeline.overlap_frac
    return JudgedRun(run, plan.makespan_s / ratio, ratio - 1.0, 100 * overlap_frac)


def noise(values: Sequence[float]) -> float | None:
    """Standard error of the mean of some values; None for a single one.

    That of a few values is widened to the same confidence of 68 %, by Student's t.
    """
    if len(values) < 2:
        return None
    widened = STUDENT[min(len(values) - 2, len(STUDENT) - 1)]
    return widened * stdev(values) / sqrt(len(values))


@dataclass(frozen=True)
class Judgement:
    """The runs of a case, each against its own prediction."""

    runs: Sequence[JudgedRun]

    @property
    def error_frac(self) -> float:
        """Median error of the runs."""
        return median(run.error_frac for run in self.runs)

    @property
    def noise_frac(self) -> float | None:
        """Standard error of the runs' `error_frac`."""
        return noise([run.error_frac for run in self.runs])

    @property
    def overlap_error_points(self) -> float:
        """Median overlap error of the runs."""
        return median(run.overlap_error_points for run in self.runs)

    @property
    def overlap_noise_points(self) -> float | None:
        """Standard error of the runs' `overlap_error_points`.

        A plan that waits for its link takes as long on a slow core as on a fast one, and overlaps
        more.
        """
        return noise([run.overlap_error_points for run in self.runs])

    @property
    def corrected_s(self) -> float:
        """Median of the makespans at the speed that the plan was made for."""
        return median(run.corrected_s for run in self.runs)

    def is_settled(self, repeats: int) -> bool:
        """Whether there are enough steady runs, and further ones would hardly change the error."""
        return self._is_sure(repeats, SETTLED_NOISE_FRAC)

    @property
    def is_judged(self) -> bool:
        """Whether enough runs were steady, and the noise is low enough to call the error one.

        Speed that changes within a run leaves no trace in the samples around it, but in the
        errors: those of one plan then differ from run to run.
        """
        return self._is_sure(MIN_REPEATS, MAX_NOISE_FRAC)

    def _is_sure(self, repeats: int, most_noise_frac: float) -> bool:
        if sum(run.is_steady for run in self.runs) < repeats:
            return False
        noise_frac, points = self.noise_frac, self.overlap_noise_points
        if noise_frac is None or points is None:
            return False
        return max(noise_frac, points / 100) <= most_noise_frac


@dataclass(frozen=True, slots=True)
class Regret:
    """How much slower one plan is than another, at the same speed of the machine.

    Args:
        frac: ratio of the corrected times, minus 1.
        noise_frac: standard error of that ratio; None after a single run of one of them.
    """

    other: str
    frac: float
    noise_frac: float | None

    @property
    def measured_frac(self) -> float:
        """`frac` where it exceeds twice its noise; else 0, as the runs show no difference."""
        shown = self.noise_frac is not None and self.frac > 2 * self.noise_frac
        return self.frac if shown else 0.0


def regret(name: str, one: Judgement, other: Judgement) -> Regret:
    """Compare the runs of two plans."""
    frac = one.corrected_s / other.corrected_s - 1.0
    if one.noise_frac is None or other.noise_frac is None:
        return Regret(name, frac, None)
    return Regret(name, frac, hypot(one.noise_frac, other.noise_frac))


def largest(regrets: Iterable[Regret]) -> Regret:
    """The largest regret that exceeds its noise, or else the largest of all."""
    order = attrgetter("measured_frac", "frac")
    return max(regrets, key=order, default=Regret("lp", 0.0, 0.0))


def why_not_judged(
    judgements: Sequence[Judgement], n_cases: int, runs: Iterable[MeasuredRun]
) -> str | None:
    """Why the machine was too unsteady to judge, in one sentence; None if it was steady enough.

    Args:
        judgements: of the measured cases.
        n_cases: cases that were asked for.
        runs: all runs of these cases.
    """
    from hw.doctor.compute import spread_frac

    judged = sum(one.is_judged for one in judgements)
    if judged >= MIN_JUDGED_FRAC * n_cases:
        return None
    measured = list(runs)
    matmuls = [next(iter(run.after.values())) for run in measured]
    lost_frac = 1.0 - median(run.core_share for run in measured)
    return (
        f"This machine is too unsteady to judge: the same matmul varied by "
        f"{percent(spread_frac(matmuls))}, other processes had {percent(lost_frac)} of the compute "
        f"core, and {judged} of {n_cases} cases had an error with at most "
        f"{percent(MAX_NOISE_FRAC)} of noise. Close other programs and run it again."
    )
