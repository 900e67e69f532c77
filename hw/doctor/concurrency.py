"""Whether copies in both directions and a matmul run at the same time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from hw.backends import Backend
from hw.doctor.check import Check, Durations, Status
from hw.doctor.compute import Matmul
from hw.doctor.copies import COPY_BYTES, CopyBuffers
from hw.doctor.lanes import SAMPLES, Call, burst_times_s, call_s, calls_in
from sim.lanes import COMPUTE, COPY_LANES
from sim.units import ms, percent

MIN_HIDDEN_FRAC = 0.75
"""Both directions at once slow each other by about 20 %, which leaves 0.85 to 0.9."""

NO_OVERLAP_FRAC = 0.25


@dataclass(frozen=True, slots=True)
class Overlap:
    """Times of equal bursts on three lanes, one after another and together.

    Args:
        uncontended_s: seconds of each lane's burst while the others are idle.
        together_s: seconds from the first start to the last end with all lanes busy.
    """

    uncontended_s: Mapping[str, float]
    together_s: float

    @property
    def longest_s(self) -> float:
        """The least that the three can take together."""
        return max(self.uncontended_s.values())

    @property
    def sum_s(self) -> float:
        """What the three take if nothing overlaps."""
        return sum(self.uncontended_s.values())

    @property
    def hidden_frac(self) -> float:
        """1 if the shorter bursts are hidden behind the longest, 0 if nothing overlaps."""
        return (self.sum_s - self.together_s) / (self.sum_s - self.longest_s)


def overlap(backend: Backend, seconds: float) -> Overlap:
    """Run a burst of about `seconds` on each lane, alone and together; medians of three."""
    buffers, matmul = CopyBuffers(backend), Matmul.on(backend)
    works: dict[str, Call] = {lane: buffers.copy(lane, COPY_BYTES[-1]) for lane in COPY_LANES}
    works[COMPUTE] = matmul.call
    bursts = {
        lane: (call, calls_in(seconds, call_s(backend, lane, call))) for lane, call in works.items()
    }
    alone: dict[str, list[float]] = {lane: [] for lane in bursts}
    together = []
    for _ in range(SAMPLES):
        for lane, burst in bursts.items():
            start_s, end_s = burst_times_s(backend, {lane: burst})[lane]
            alone[lane].append(end_s - start_s)
        times = burst_times_s(backend, bursts).values()
        together.append(max(end for _, end in times) - min(start for start, _ in times))
    return Overlap({lane: median(times) for lane, times in alone.items()}, median(together))


def check_overlap(backend: Backend, durations: Durations) -> Check:
    """Whether the lanes of this device overlap."""
    return overlap_check(overlap(backend, durations.overlap_s), backend.kind)


def overlap_check(found: Overlap, kind: str) -> Check:
    """Judge an overlap: passed from 75 % hidden on; failed below 25 % on a GPU."""
    alone = ", ".join(f"{lane} {ms(seconds)}" for lane, seconds in found.uncontended_s.items())
    measured = (
        f"together {ms(found.together_s)}; longest {ms(found.longest_s)}, sum {ms(found.sum_s)} "
        f"({alone}); {percent(found.hidden_frac)} hidden"
    )
    if found.hidden_frac >= MIN_HIDDEN_FRAC:
        return Check("overlap", "passed", measured)
    if kind == "cpu":
        advice = (
            "Unpaced copies and matmuls share this host's cores and memory: profile and run with "
            "a paced link (--link), whose copies mostly wait."
        )
        return Check("overlap", "warned", measured, advice)
    advice = (
        "Copies and kernels do not fully overlap: unset CUDA_LAUNCH_BLOCKING, set "
        "CUDA_DEVICE_MAX_CONNECTIONS=32, and stop other work on this GPU."
    )
    status: Status = "failed" if found.hidden_frac < NO_OVERLAP_FRAC else "warned"
    return Check("overlap", status, measured, advice)
