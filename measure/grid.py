"""A grid of plans, measured setting by setting: the loop behind `validate` and `record`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from math import inf
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from measure.interleave import (
    EXTRA_REPEATS,
    MIN_REPEATS,
    InterleavedRuns,
    Speed,
    present_machine,
    run_interleaved,
)
from measure.run import ReadyPlan
from planner import Plan
from sim.errors import KvOverlapError
from sim.graph.timeline import Timeline
from sim.machine.profile import HardwareProfile
from sim.progress import Part, Progress
from sim.results.accuracy import MEASURED, RecordedCase, loosest_tolerance_frac
from sim.results.compare import Comparison, compare
from sim.results.recording import Recording

if TYPE_CHECKING:
    from hw import SpeedProbe
    from hw.backends import Backend

MAX_REPLANS = 2
"""Times that a grid plans a setting again because the machine has drifted."""

GRACE_S = 10.0
"""How much later than its time a setting may end."""


T = TypeVar("T")


class OutOfTime(KvOverlapError):
    """A setting was stopped because its time was over."""


@dataclass(frozen=True)
class Case(ABC):
    """One plan of a grid with its measurement."""

    name: str
    plan: Plan
    measured: Recording
    predicted: Timeline
    comparison: Comparison

    def save(self, folder: Path) -> None:
        """Write the measurement and then the file that marks the case as complete."""
        self.measured.save(folder / MEASURED)
        tolerance_frac = loosest_tolerance_frac(self.measured)
        RecordedCase(self.plan.policy, tolerance_frac).save(folder)

    def to_dict(self) -> dict[str, Any]:
        facts = {"name": self.name, "policy": self.plan.policy}
        return {**facts, **self.job_facts(), **self.comparison.to_dict()}

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
        probe_samples: samples of the reference matmuls before the plans are made.
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

    A machine's speed drifts. Just before a setting is planned, reference matmuls show the machine's
    present speed, and the plans are for that speed. The runs of the plans are interleaved, with the
    matmuls before and after each run. Disturbed runs are repeated, and the least disturbed count.
    If the matmuls show half-way that the machine has drifted, the setting is planned and measured
    again.

    Args:
        until_s: moment on `time.monotonic()` after which no round of runs begins, except that every
            plan runs `MIN_REPEATS` times.
        replans_left: how often a setting may still be planned again.
    """

    repeats: int
    until_s: float = inf
    replans_left: int = field(default_factory=lambda: MAX_REPLANS)

    def measure_all(
        self,
        settings: Sequence[T],
        prepare: Callable[[T, Progress], AbstractContextManager[PreparedSetting]],
        progress: Progress,
    ) -> list[SettingResult]:
        """Measure one setting after another."""
        share = 1 / len(settings)
        results = []
        for number, setting in enumerate(settings):
            part = Part(progress, "", number * share, share)
            results.append(self.measure(partial(prepare, setting), part))
            if results[-1].runs.interrupted:
                raise KeyboardInterrupt
        return results

    def measure(self, prepare: PrepareSetting, progress: Progress) -> SettingResult:
        """Prepare one setting; plan, run and compare its cases.

        Raises:
            DoesNotFit: the setting needs more memory than the device has.
            WrongNumbers: a run differs from its reference.
            OutOfTime: the time does not allow the fewest repeats.
        """
        with prepare(progress) as setting:
            part = Part(progress, setting.title)
            result = self._measure_once(setting, part)
            while result is None:
                self.replans_left -= 1
                part("planning again: the machine has drifted")
                result = self._measure_once(setting, part)
            return result

    def _measure_once(self, setting: PreparedSetting, progress: Progress) -> SettingResult | None:
        """The cases of one setting; None if the machine drifted."""
        begun_s = monotonic()
        kind = setting.backend.kind
        progress("planning", 0.0)
        hardware, drift = present_machine(
            setting.hardware, setting.probe, kind, setting.probe_samples
        )
        plans = setting.plans(hardware)
        predicted = {name: plan.simulate() for name, plan in plans.items()}
        checks: dict[str, dict[str, Any]] = {}
        with setting.ready(predicted) as ready:
            progress("warming up")
            round_s = sum(one.warm_up(kind) for one in ready.values())
            again_s = monotonic() - begun_s + MIN_REPEATS * round_s
            self._check_time(MIN_REPEATS * round_s)
            runs = run_interleaved(
                {name: _checked(name, one, checks) for name, one in ready.items()},
                setting.probe,
                drift,
                self.repeats,
                progress,
                EXTRA_REPEATS[kind],
                self.until_s,
                self.until_s - again_s if self.replans_left > 0 else -inf,
            )
            if runs is None:
                return None
            environments = {name: one.environment() for name, one in ready.items()}
        cases = []
        for name in runs.runs:
            plan, timelines = plans[name], runs.least_disturbed(name, self.repeats)
            measured = Recording("measured", hardware, timelines, environments[name], checks[name])
            guess = Recording("predicted", hardware, (predicted[name],))
            comparison = compare(guess, measured)
            cases.append(setting.case_type(name, plan, measured, predicted[name], comparison))
        return SettingResult(setting.name, cases, drift, runs)

    def _check_time(self, needed_s: float) -> None:
        left_s = self.until_s - monotonic()
        if needed_s > left_s + GRACE_S:
            raise OutOfTime(
                f"{MIN_REPEATS} repeats of every case take about {needed_s:.0f} s and "
                f"{max(0.0, left_s):.0f} s are left."
            )


def _checked(
    name: str, plan: ReadyPlan, checks: dict[str, dict[str, Any]]
) -> Callable[[], Timeline]:
    """A run whose numbers are checked; `checks` holds the outcome of the last one."""

    def run() -> Timeline:
        timeline = plan.run()
        checks[name] = plan.check()
        return timeline

    return run
