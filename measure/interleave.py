"""Measuring several plans in turn on a machine whose speed drifts."""

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

if TYPE_CHECKING:
    from hw import SpeedProbe

STEADY_FRAC = 0.04
"""A run counts as disturbed when the machine's speed around it is off the plan's by more."""

EXTRA_ROUNDS = {"cpu": 1, "cuda": 6}
"""Rounds of runs in which disturbed ones get another chance, by kind of device."""

MIN_REPEATS = 2
"""Runs of every case, however little time is left."""

JUDGED_BYTES = 2**20
"""Copies of at least this size tell whether the link was steady during a run."""

LEFT_BEHIND_FRAC = 0.03
"""A machine whose median speed beside the first half of the runs is further off the plan's has left
the plans behind."""

LINK = "link"
"""Part of a machine whose link is real."""

Speed = dict[str, float]
"""For each part of the machine: time of its reference products / their time in the profile."""


@dataclass(frozen=True)
class InterleavedRuns:
    """Runs of some cases in turn.

    Args:
        runs: by case, each run with how far the machine's speed around it was off the plan's.
        beside: the machine's speed, median beside all runs.
    """

    runs: dict[str, list[tuple[float, Timeline]]]
    beside: Speed

    def least_disturbed(self, name: str, repeats: int) -> tuple[Timeline, ...]:
        least_disturbed = sorted(self.runs[name], key=lambda run: run[0])[:repeats]
        return tuple(timeline for _, timeline in least_disturbed)

    @property
    def deviations_frac(self) -> list[float]:
        return [off for some in self.runs.values() for off, _ in some]


def present_machine(
    hardware: HardwareProfile, probe: SpeedProbe, kind: str, samples: int
) -> tuple[HardwareProfile, Speed]:
    """The machine to plan for, and its speed by the reference products.

    A shared CPU slows down for minutes: plans are for a machine as slow as it is now. A GPU keeps
    its speed, and what others do to its link lasts for milliseconds: plans are for the profile, and
    the link is held to it.
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
    tell: Callable[[int], object],
    may_leave: bool = False,
    extra_rounds: int = 1,
    until_s: float = inf,
) -> InterleavedRuns | None:
    """Run every case `repeats` times, with reference products before and after each run.

    Runs around which the machine was not as fast as planned for are repeated, and so are runs
    during which a real link did not keep its own pace.

    Args:
        extra_rounds: rounds in which they are repeated.
        until_s: moment on `time.monotonic()` after which no round begins but the first
            `MIN_REPEATS`.
        tell: called with the number of each round, from 1.
        may_leave: give up half-way where the machine has left the plans behind.

    Returns:
        None where it gave up.
    """
    runs: dict[str, list[tuple[float, Timeline]]] = {name: [] for name in runners}
    samples: list[Speed] = []
    rounds = repeats + extra_rounds
    for number in range(rounds):
        if number >= MIN_REPEATS and monotonic() > until_s:
            break
        if number == rounds // 2 and may_leave and _left_behind(samples, planned_for):
            return None
        if all(sum(off <= STEADY_FRAC for off, _ in runs[name]) >= repeats for name in runners):
            break
        tell(number + 1)
        samples.append(probe.sample())
        for name, run in runners.items():
            if sum(off <= STEADY_FRAC for off, _ in runs[name]) < repeats:
                timeline = run()
                samples.append(probe.sample())
                off = max(_off_frac(sample, planned_for) for sample in samples[-2:])
                if LINK in planned_for:
                    off = max(off, lost_copy_frac(timeline))
                runs[name].append((off, timeline))
    return InterleavedRuns(runs, _medians(samples))


def lost_copy_frac(timeline: Timeline) -> float:
    """Part of the time of large copies to the device that the link lost against its own median.

    On a machine that others share, their traffic can halve the rate for some tens of milliseconds.
    """
    lost = []
    for at, task in enumerate(timeline.graph.tasks):
        seconds = timeline.end_s[at] - timeline.start_s[at]
        if task.lane == H2D and task.bytes >= JUDGED_BYTES and seconds > 0:
            lost.append((seconds / task.bytes, task.bytes))
    if not lost:
        return 0.0
    usual = median(pace for pace, _ in lost)
    total_s = sum(pace * n_bytes for pace, n_bytes in lost)
    return max(0.0, 1.0 - usual * sum(n_bytes for _, n_bytes in lost) / total_s)


def _medians(samples: Sequence[Speed]) -> Speed:
    return {part: median(sample[part] for sample in samples) for part in samples[0]}


def _left_behind(samples: Sequence[Speed], planned_for: Speed) -> bool:
    """Whether the machine has changed its speed since the plans were made."""
    beside = _medians(samples)
    return any(
        abs(beside[part] / planned_for[part] - 1.0) > LEFT_BEHIND_FRAC for part in planned_for
    )


def _off_frac(sample: Speed, planned_for: Speed) -> float:
    """How far the speed of device or link is off the one that was planned for."""
    ratios = {part: sample[part] / planned_for[part] for part in planned_for}
    link = abs(ratios.pop(LINK, 1.0) - 1.0)
    return max(link, abs(mean(ratios.values()) - 1.0))
