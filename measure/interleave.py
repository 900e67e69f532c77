"""Measuring several plans in interleaved repeats on a machine whose speed changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf
from statistics import median
from time import monotonic
from typing import TYPE_CHECKING

from sim.graph.timeline import Timeline
from sim.lanes import H2D
from sim.machine.profile import HardwareProfile
from sim.progress import Progress

if TYPE_CHECKING:
    from hw import SpeedProbe

STEADY_FRAC = 0.1
"""A run is disturbed if its `disturbed_frac` is larger."""

UNEXPLAINED_FRAC = 0.2
"""About the fraction of the core time lost to others by which a run differs from its correction."""

EXTRA_REPEATS = 6
"""Most further repeats of plans that are not settled."""

MIN_REPEATS = 2
"""Runs of every plan, even after the time is over."""

JUDGED_BYTES = 2**20
"""Copies of at least this size show whether the link was steady during a run."""

LINK = "link"
"""Name of a real link among the parts of a machine."""

COPY = "copy"
"""Name of an emulated link among the parts of a machine."""

ATTENTION = "attention"
"""Name of a CPU's attention among the parts of a machine."""

Speed = dict[str, float]
"""For each part of the machine: time of its reference kernels or copy / that in the profile."""


@dataclass(frozen=True)
class MeasuredRun:
    """One run of a plan, with the machine's speed around it.

    Args:
        before, after: samples of the speed probe.
        core_share: fraction of the compute tasks' time in which they had their core.
    """

    timeline: Timeline
    before: Speed
    after: Speed
    core_share: float = 1.0

    @property
    def speed(self) -> Speed:
        """Mean of both samples; that of compute is divided by the share of the core."""
        means = {part: (one + self.after[part]) / 2 for part, one in self.before.items()}
        return means | {part: means[part] / self.core_share for part in _compute_parts(means)}

    @property
    def disturbed_frac(self) -> float:
        """How far the run may be off for reasons that no speed around it explains.

        The largest of: disagreement of both samples, the unexplained part of the lost core time,
        and, for a real link, its deviation from its own pace.
        """
        parts = _compute_parts(self.before)
        before, after = (sum(one[part] for part in parts) for one in (self.before, self.after))
        found = [abs(before / after - 1.0), UNEXPLAINED_FRAC * (1.0 - self.core_share)]
        if LINK in self.before:
            found += [abs(one[LINK] - 1.0) for one in (self.before, self.after)]
            found.append(lost_copy_frac(self.timeline))
        return max(found)


@dataclass(frozen=True)
class InterleavedRuns:
    """Interleaved runs of some plans, by name.

    Args:
        interrupted: the user pressed Ctrl-C, so `runs` has only the plans that ran until then.
    """

    runs: dict[str, list[MeasuredRun]]
    interrupted: bool = False

    def least_disturbed(self, name: str, repeats: int) -> list[MeasuredRun]:
        """The `repeats` runs of a plan with the smallest disturbances."""
        return sorted(self.runs[name], key=lambda run: run.disturbed_frac)[:repeats]

    @property
    def all_runs(self) -> list[MeasuredRun]:
        """Every run of every plan."""
        return [run for runs in self.runs.values() for run in runs]

    @property
    def speed(self) -> Speed:
        """Median of the samples after the runs."""
        samples = [run.after for run in self.all_runs]
        return {part: median(sample[part] for sample in samples) for part in samples[0]}


def present_machine(
    hardware: HardwareProfile, probe: SpeedProbe, kind: str, samples: int
) -> tuple[HardwareProfile, Speed]:
    """The machine to plan for, and its speed by the reference kernels.

    A shared CPU slows down for minutes: plans are for a machine as slow as it is now. A GPU keeps
    its speed, and other users disturb its link for milliseconds: plans are for the profile, and the
    link is compared with it.
    """
    drift = probe.drift(samples)
    if kind != "cpu":
        return hardware, {**drift, LINK: 1.0}
    return machine_at(hardware, {part: drift[part] for part in _compute_parts(drift)}), drift


def machine_at(hardware: HardwareProfile, speed: Speed) -> HardwareProfile:
    """The machine whose kernels and emulated copies take `speed` times as long as in its profile.

    Attention without a speed of its own changes as the other memory-bound kernels do. A real link
    keeps its own pace.
    """
    attention = hardware.attention
    for part in [part for part in ("flops", "hbm") if part in speed]:
        hardware = hardware.with_faster(part, 1 / speed[part])
    if ATTENTION in speed:
        hardware = replace(hardware, attention=attention.faster(1 / speed[ATTENTION]))
    return hardware.with_faster("link", 1 / speed[COPY]) if COPY in speed else hardware


def run_interleaved(
    runners: Mapping[str, Callable[[], tuple[Timeline, float]]],
    probe: SpeedProbe,
    repeats: int,
    progress: Progress,
    extra_repeats: int = 1,
    until_s: float = inf,
    finished: Callable[[str, MeasuredRun], None] = lambda *_: None,
    settled: Callable[[str], bool] = lambda _: True,
) -> InterleavedRuns:
    """Run every plan `repeats` times in turn, with the speed probe before and after each run.

    Plans that are not settled run again while the time allows.

    Args:
        runners: run a plan once; give its timeline and its share of the compute core.
        extra_repeats: most repeats of these plans.
        until_s: moment on `time.monotonic()` after which no run ends but the first `MIN_REPEATS`
            of each plan, as far as the time of its last run tells.
        finished: called after each run.
        settled: whether the runs of a plan, at least `repeats`, suffice.

    Raises:
        KeyboardInterrupt: before the first run ended.
    """
    runs: dict[str, list[MeasuredRun]] = {name: [] for name in runners}
    took_s: dict[str, float] = {}
    most = repeats + extra_repeats
    for number in range(most):
        now_s = monotonic()
        wanting = [
            name
            for name in runners
            if number < MIN_REPEATS
            or (now_s + took_s[name] <= until_s and (number < repeats or not settled(name)))
        ]
        if not wanting:
            break
        progress(f"round {number + 1}", number / most)
        try:
            after: Speed | None = None
            for name in wanting:
                begun_s = monotonic()
                if number >= MIN_REPEATS and begun_s + took_s[name] > until_s:
                    continue
                if after is None or not probe.keeps_speed:
                    before = probe.sample(before_run=True)
                else:
                    before = after
                timeline, core_share = runners[name]()
                after = probe.sample()
                took_s[name] = monotonic() - begun_s
                run = MeasuredRun(timeline, before, after, core_share)
                finished(name, run)  # before it counts: Ctrl-C leaves no run unjudged
                runs[name].append(run)
                before = after
        except KeyboardInterrupt:
            measured = {name: some for name, some in runs.items() if some}
            if not measured:
                raise
            return InterleavedRuns(measured, interrupted=True)
    return InterleavedRuns(runs)


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


def _compute_parts(speed: Speed) -> list[str]:
    return [part for part in speed if part not in (LINK, COPY)]
