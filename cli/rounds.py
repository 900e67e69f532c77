"""Measuring several plans in turn on a machine whose speed drifts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import TYPE_CHECKING

from sim.timeline import Timeline

if TYPE_CHECKING:
    from hw import Pulse

STEADY_FRAC = 0.04
"""A run counts as disturbed when the machine's speed beside it is off by more from the plan's."""

EXTRA_ROUNDS = 1
"""Rounds of runs in which disturbed ones get another chance."""

LEFT_BEHIND_FRAC = 0.03
"""A machine whose median speed beside the first half of the runs is further off the plan's has left
the plans behind."""

Speed = dict[str, float]
"""For each part of the machine: time of its reference products / their time in the profile."""


@dataclass(frozen=True)
class Rounds:
    """Runs of some cases in turn.

    Args:
        runs: by case, each run with how far the machine's speed beside it was off the plan's.
        beside: the machine's speed, median beside all runs.
    """

    runs: dict[str, list[tuple[float, Timeline]]]
    beside: Speed

    def steadiest(self, name: str, repeats: int) -> tuple[Timeline, ...]:
        steadiest = sorted(self.runs[name], key=lambda run: run[0])[:repeats]
        return tuple(timeline for _, timeline in steadiest)

    @property
    def deviations_frac(self) -> list[float]:
        return [off for some in self.runs.values() for off, _ in some]


def run_in_turn(
    runners: Mapping[str, Callable[[], Timeline]],
    pulse: Pulse,
    planned_for: Speed,
    repeats: int,
    tell: Callable[[int], object],
    may_leave: bool = False,
) -> Rounds | None:
    """Run every case `repeats` times, with reference products before and after each run.

    Runs beside which the machine was not as fast as planned for are repeated in up to
    `EXTRA_ROUNDS` more rounds.

    Args:
        tell: called with the number of each round, from 1.
        may_leave: give up half-way where the machine has left the plans behind.

    Returns:
        None where it gave up.
    """
    runs: dict[str, list[tuple[float, Timeline]]] = {name: [] for name in runners}
    beats: list[Speed] = []
    rounds = repeats + EXTRA_ROUNDS
    for number in range(rounds):
        if number == rounds // 2 and may_leave and _left_behind(beats, planned_for):
            return None
        tell(number + 1)
        beats.append(pulse.beat())
        for name, run in runners.items():
            if sum(off <= STEADY_FRAC for off, _ in runs[name]) < repeats:
                timeline = run()
                beats.append(pulse.beat())
                off = max(_off_frac(beat, planned_for) for beat in beats[-2:])
                runs[name].append((off, timeline))
    return Rounds(runs, _medians(beats))


def _medians(beats: Sequence[Speed]) -> Speed:
    return {part: median(beat[part] for beat in beats) for part in beats[0]}


def _left_behind(beats: Sequence[Speed], planned_for: Speed) -> bool:
    """Whether the machine has changed its speed since the plans were made."""
    beside = _medians(beats)
    return any(
        abs(beside[part] / planned_for[part] - 1.0) > LEFT_BEHIND_FRAC for part in planned_for
    )


def _off_frac(beat: Speed, planned_for: Speed) -> float:
    """How far the machine's speed is off the one that was planned for."""
    return abs(mean(beat[part] / planned_for[part] for part in planned_for) - 1.0)
