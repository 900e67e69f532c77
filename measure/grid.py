"""A grid of plans, measured setting by setting: the loop behind `validate` and `record`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from measure.interleave import (
    EXTRA_REPEATS,
    MIN_REPEATS,
    InterleavedRuns,
    MeasuredRun,
    Speed,
    machine_at,
    present_machine,
    run_interleaved,
)
from measure.judgement import JudgedRun, Judgement, judge_run
from measure.run import ReadyPlan
from planner import Plan
from sim.errors import KvOverlapError
from sim.graph.timeline import Timeline
from sim.machine.profile import HardwareProfile
from sim.progress import Part, Progress
from sim.results.accuracy import MEASURED, RecordedCase, loosest_tolerance_frac
from sim.results.compare import Comparison, compare
from sim.results.recording import Recording
from sim.units import ms, percent

if TYPE_CHECKING:
    from hw import SpeedProbe
    from hw.backends import Backend

WARMED_PLANS = {"cpu": 1, "cuda": None}
"""Plans that run uncounted first, None for all. On a CPU the first one touches the memory that all
plans of a setting share."""

GRACE_S = 10.0
"""How much later than its time a setting may end."""


T = TypeVar("T")


class OutOfTime(KvOverlapError):
    """The time left does not allow the fewest repeats of the setting `title`."""

    def __init__(self, title: str, needed_s: float, left_s: float) -> None:
        super().__init__(
            f"{MIN_REPEATS} repeats of every case take about {needed_s:.0f} s and "
            f"{max(0.0, left_s):.0f} s are left."
        )
        self.title = title


@dataclass(frozen=True)
class Case(ABC):
    """One plan of a grid with its measurement.

    Args:
        comparison: with the prediction for the speed just before the runs.
        judgement: with the predictions for the speed around each run.
    """

    name: str
    plan: Plan
    measured: Recording
    predicted: Timeline
    comparison: Comparison
    judgement: Judgement

    def save(self, folder: Path) -> None:
        """Write the measurement and then the file that marks the case as complete."""
        self.measured.save(folder / MEASURED)
        tolerance_frac = loosest_tolerance_frac(self.measured)
        RecordedCase(self.plan.policy, tolerance_frac).save(folder)

    def to_dict(self) -> dict[str, Any]:
        facts = {"name": self.name, "policy": self.plan.policy}
        corrected = {
            "corrected_error_frac": self.judgement.error_frac,
            "corrected_noise_frac": self.judgement.noise_frac,
            "corrected_overlap_error_points": self.judgement.overlap_error_points,
            "corrected_overlap_noise_points": self.judgement.overlap_noise_points,
            "judged": self.judgement.is_judged,
        }
        return {**facts, **self.job_facts(), **self.comparison.to_dict(), **corrected}

    @abstractmethod
    def job_facts(self) -> dict[str, Any]:
        """The job and what the plan decided, for the report."""


@dataclass(frozen=True)
class PreparedSetting:
    """One job on one machine, with everything that its plans share on the device.

    Args:
        name: of the setting in reports.
        title: name in progress texts.
        hardware: the profile; plans are for this machine at its present speed.
        probe_samples: samples of the reference kernels before the plans are made.
        case_type: class of its results.
        plans: makes the plans to measure, by case name.
        ready: puts the simulated plans on the device; leaving the context frees their memory.
    """

    name: str
    title: str
    hardware: HardwareProfile
    backend: Backend
    probe: SpeedProbe
    probe_samples: int
    case_type: type[Case]
    plans: Callable[[HardwareProfile], Mapping[str, Plan]]
    ready: Callable[[dict[str, Timeline]], AbstractContextManager[dict[str, ReadyPlan]]]


PrepareSetting = Callable[[Progress], AbstractContextManager[PreparedSetting]]


@dataclass(frozen=True)
class SettingResult:
    """The measured cases of one setting.

    Args:
        drift: the machine's speed just before the plans were made; they are for this speed.
    """

    name: str
    cases: list[Any]
    drift: Speed
    runs: InterleavedRuns


@dataclass
class Grid:
    """Measures settings, each by all of its plans.

    A machine's speed drifts. Just before a setting is planned, reference kernels show the machine's
    present speed, and the plans are for that speed. The runs of the plans are interleaved, with the
    kernels before and after each run, and each run is judged by the speed around it. Plans whose
    errors differ from run to run, or whose real link was disturbed, run again. All runs are judged;
    the least disturbed are recorded.

    Args:
        until_s: moment on `time.monotonic()` after which no run ends, except that every
            plan runs `MIN_REPEATS` times.

    Attributes:
        left_out: one sentence for each setting that the time did not allow.
    """

    repeats: int
    until_s: float = inf
    left_out: list[str] = field(default_factory=list)

    def measure_all(
        self,
        settings: Sequence[T],
        prepare: Callable[[T, Progress], AbstractContextManager[PreparedSetting]],
        progress: Progress,
        weights: Sequence[float] = (),
    ) -> list[SettingResult]:
        """Measure one setting after another; the repeats of each fill its part of the time left.

        Args:
            weights: relative times of one repeat, by default equal.

        Raises:
            KvOverlapError: the time allowed no setting.
        """
        weights = weights or [1.0] * len(settings)
        shares = [weight / sum(weights) for weight in weights]
        results: list[SettingResult] = []
        for number, (setting, share) in enumerate(zip(settings, shares, strict=True)):
            part = Part(progress, "", sum(shares[:number]), share)
            now_s = monotonic()
            if results and now_s > self.until_s:
                self.left_out.append(f"setting {number + 1} left out: no time was left.")
                continue
            part_s = (self.until_s - now_s) * share / sum(shares[number:])
            try:
                results.append(self.measure(partial(prepare, setting), part, now_s + part_s))
            except OutOfTime as error:
                self.left_out.append(f"{error.title} left out: {error}")
                part.note(self.left_out[-1])
                continue
            if results[-1].runs.interrupted:
                raise KeyboardInterrupt
        if not results:
            raise KvOverlapError(
                f"No case was measured. {self.left_out[0]} Close other programs, or raise "
                "--minutes."
            )
        return results

    def measure(
        self, prepare: PrepareSetting, progress: Progress, repeats_until_s: float = inf
    ) -> SettingResult:
        """Prepare one setting; plan, run and compare its cases.

        Args:
            repeats_until_s: moment after which no run ends but the first `MIN_REPEATS`.

        Raises:
            DoesNotFit: the setting needs more memory than the device has.
            WrongNumbers: a run differs from its reference.
            OutOfTime: the time does not allow the fewest repeats.
        """
        with prepare(progress) as setting:
            return self._measure(setting, Part(progress, setting.title), repeats_until_s)

    def _measure(
        self, setting: PreparedSetting, progress: Progress, repeats_until_s: float
    ) -> SettingResult:
        """The cases of one setting."""
        kind = setting.backend.kind
        progress("planning", 0.0)
        hardware, drift = present_machine(
            setting.hardware, setting.probe, kind, setting.probe_samples
        )
        plans = setting.plans(hardware)
        predicted = {name: plan.simulate() for name, plan in plans.items()}
        checks: dict[str, dict[str, Any]] = {}
        judged: dict[str, list[JudgedRun]] = {name: [] for name in plans}

        def judge(name: str, run: MeasuredRun) -> None:
            judged[name].append(judge_run(plans[name], setting.hardware, run))
            if len(judged[name]) == 1:
                progress.note(_first_result(name, judged[name][0]))

        with setting.ready(predicted) as ready:
            progress("warming up")
            warmed = list(ready.values())[: WARMED_PLANS[kind]]
            took_s = sum(one.warm_up(kind) for one in warmed)
            slowdown = took_s / sum(one.predicted.makespan_s for one in warmed)
            all_s = sum(timeline.makespan_s for timeline in predicted.values())
            self._check_time(setting.title, MIN_REPEATS * slowdown * all_s)
            runs = run_interleaved(
                {name: _checked(name, one, checks) for name, one in ready.items()},
                setting.probe,
                self.repeats,
                progress,
                EXTRA_REPEATS,
                min(self.until_s, repeats_until_s),
                judge,
                lambda name: Judgement(judged[name]).is_settled(self.repeats),
            )
            environments = {name: one.environment() for name, one in ready.items()}
        cases = []
        for name in runs.runs:
            plan, counted = plans[name], runs.least_disturbed(name, self.repeats)
            measured = Recording(
                "measured",
                hardware,
                tuple(run.timeline for run in counted),
                environments[name],
                checks[name],
            )
            if kind == "cpu":  # a recording is predicted again for the speed of its typical run
                typical = next(run for run in counted if run.timeline is measured.typical)
                typical_machine = machine_at(setting.hardware, typical.speed)
                measured = replace(measured, hardware=typical_machine)
            comparison = compare(Recording("predicted", hardware, (predicted[name],)), measured)
            cases.append(
                setting.case_type(
                    name, plan, measured, predicted[name], comparison, Judgement(judged[name])
                )
            )
        return SettingResult(setting.name, cases, drift, runs)

    def _check_time(self, title: str, needed_s: float) -> None:
        left_s = self.until_s - monotonic()
        if needed_s > left_s + GRACE_S:
            raise OutOfTime(title, needed_s, left_s)


def _first_result(name: str, first: JudgedRun) -> str:
    """One line on the first run of a case, which appears long before the report."""
    measured_s = first.run.timeline.makespan_s
    predicted_s = measured_s * (1.0 + first.error_frac)
    return (
        f"{name}: predicted {ms(predicted_s)} at the speed around the run, measured "
        f"{ms(measured_s)}, error {percent(first.error_frac, signed=True)}"
    )


def _checked(
    name: str, plan: ReadyPlan, checks: dict[str, dict[str, Any]]
) -> Callable[[], tuple[Timeline, float]]:
    """A run whose numbers are checked; `checks` holds the outcome of the last one."""

    def run() -> tuple[Timeline, float]:
        timeline = plan.run()
        checks[name] = plan.check()
        return timeline, plan.core_share()

    return run
