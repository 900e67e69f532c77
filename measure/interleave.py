"""Measuring several plans in interleaved repeats on a machine whose speed drifts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from statistics import mean, median
from time import monotonic
from typing import TYPE_CHECKING

from sim.graph.timeline import Timeline
from sim.lanes import H2D
from sim.machine.profile import HardwareProfile
from sim.progress import Progress

if TYPE_CHECKING:
    from hw import SpeedProbe

STEADY_FRAC = 0.04
"""A run is disturbed if the machine's speed just before or after it deviates by more than this from
the speed that was planned for."""

EXTRA_REPEATS = {"cpu": 1, "cuda": 6}
"""Repeats that only disturbed plans run, by kind of device."""

MIN_REPEATS = 2
"""Runs of every plan, even after the time is over."""

JUDGED_BYTES = 2**20
"""Copies of at least this size show whether the link was steady during a run."""

DRIFTED_FRAC = 0.03
"""The machine has drifted if its median speed in the first half of the repeats deviates by more
than this from the speed that was planned for."""

LINK = "link"
"""Name of a real link among the parts of a machine."""

Speed = dict[str, float]
"""For each part of the machine: time of its reference matmuls / their time in the profile."""


@dataclass(frozen=True)
class InterleavedRuns:
    """Interleaved runs of some plans.

    Args:
        runs: by name, each run with the machine's deviation from the planned speed around it.
        speed: the machine's median speed during all runs.
        interrupted: the user pressed Ctrl-C, so `runs` has only the plans that ran until then.
    """

    runs: dict[str, list[tuple[float, Timeline]]]
    speed: Speed
    interrupted: bool = False

    def least_disturbed(self, name: str, repeats: int) -> tuple[Timeline, ...]:
        """The `repeats` runs of a plan with the smallest deviations."""
        runs = sorted(self.runs[name], key=lambda run: run[0])[:repeats]
        return tuple(timeline for _, timeline in runs)

    @property
    def deviations_frac(self) -> list[float]:
        """The deviation of every run."""
        return [off for runs in self.runs.values() for off, _ in runs]


def present_machine(
    hardware: HardwareProfile, probe: SpeedProbe, kind: str, samples: int
) -> tuple[HardwareProfile, Speed]:
    """The machine to plan for, and its speed by the reference matmuls.

    A shared CPU slows down for minutes: plans are for a machine as slow as it is now. A GPU keeps
    its speed, and other users disturb its link for milliseconds: plans are for the profile, and the
    link is compared with it.
    """
    drift = probe.drift(samples)
    if kind != "cpu":
        return hardware, {**drift, LINK: 1.0}
    for part, ratio in drift.items():
        hardware = hardware.with_faster(part, 1 / ratio)
    return hardware, drift


def run_interleaved(
    runners: Mapping[str, Callable[[], Timeline]],
    probe: SpeedProbe,
    planned_for: Speed,
    repeats: int,
    progress: Progress,
    extra_repeats: int = 1,
    until_s: float = inf,
    replan_until_s: float = -inf,
) -> InterleavedRuns | None:
    """Run every plan `repeats` times in turn, with reference matmuls before and after each run.

    Disturbed runs are repeated. A run is disturbed if the machine's speed around it deviates from
    the planned one, or if a real link does not keep its own pace during it.

    Args:
        extra_repeats: repeats for the disturbed plans.
        until_s: moment on `time.monotonic()` after which no repeat begins but the first
            `MIN_REPEATS`.
        replan_until_s: moment on `time.monotonic()` until which it gives up half-way if the machine
            has drifted.

    Returns:
        None if it gave up.

    Raises:
        KeyboardInterrupt: before the first run ended.
    """
    runs: dict[str, list[tuple[float, Timeline]]] = {name: [] for name in runners}
    samples: list[Speed] = []
    most = repeats + extra_repeats
    for number in range(most):
        if number >= MIN_REPEATS and monotonic() > until_s:
            break
        half_way = number == most // 2 and samples and monotonic() < replan_until_s
        if half_way and _drifted(samples, planned_for):
            return None
        wanting = [
            name for name in runners if sum(off <= STEADY_FRAC for off, _ in runs[name]) < repeats
        ]
        if not wanting:
            break
        progress(f"round {number + 1}", number / most)
        try:
            samples.append(probe.sample())
            for name in wanting:
                timeline = runners[name]()
                samples.append(probe.sample())
                off = max(_deviation_frac(sample, planned_for) for sample in samples[-2:])
                if LINK in planned_for:
                    off = max(off, lost_copy_frac(timeline))
                runs[name].append((off, timeline))
        except KeyboardInterrupt:
            measured = {name: some for name, some in runs.items() if some}
            if not measured:
                raise
            return InterleavedRuns(measured, _medians(samples), interrupted=True)
    return InterleavedRuns(runs, _medians(samples))


def lost_copy_frac(timeline: Timeline) -> float:
    """Fraction of the time of large H2D copies that the link lost against its own median pace.

    On a shared machine, other traffic can halve the rate for some tens of milliseconds.
    """
    copies = []
    for at, task in enumerate(timeline.graph.tasks):
        seconds = timeline.end_s[at] - timeline.start_s[at]
        if task.lane == H2D and task.bytes >= JUDGED_BYTES and seconds > 0:
            copies.append((seconds / task.bytes, task.bytes))
    if not copies:
        return 0.0
    usual = median(pace for pace, _ in copies)
    total_s = sum(pace * n_bytes for pace, n_bytes in copies)
    return max(0.0, 1.0 - usual * sum(n_bytes for _, n_bytes in copies) / total_s)


def _medians(samples: Sequence[Speed]) -> Speed:
    return {part: median(sample[part] for sample in samples) for part in samples[0]}


def _drifted(samples: Sequence[Speed], planned_for: Speed) -> bool:
    """Whether the machine's speed has changed since the plans were made."""
    speed = _medians(samples)
    return any(abs(speed[part] / planned_for[part] - 1.0) > DRIFTED_FRAC for part in planned_for)


def _deviation_frac(sample: Speed, planned_for: Speed) -> float:
    """Deviation of the device's or the link's speed from the planned one."""
    ratios = {part: sample[part] / planned_for[part] for part in planned_for}
    link = abs(ratios.pop(LINK, 1.0) - 1.0)
    return max(link, abs(mean(ratios.values()) - 1.0))
