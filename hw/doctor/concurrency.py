"""Whether copies in both directions and a matmul run at the same time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from hw.backends import Backend
from hw.doctor.check import Check, Durations, judged
from hw.doctor.compute import Matmul
from hw.doctor.copies import COPY_BYTES, CopyBuffers
from hw.doctor.lanes import SAMPLES, Call, call_s, calls_in, length_s, times_s
from sim.lanes import COMPUTE, COPY_LANES
from sim.units import ms, percent

MIN_HIDDEN_FRAC = 0.75
"""Both directions at once slow each other by about 20 %, which leaves 0.85 to 0.9."""

NO_OVERLAP_FRAC = 0.25

CPU_ADVICE = (
    "Unpaced copies and matmuls share this host's cores and memory: profile and run with "
    "a paced link (--link), whose copies mostly wait."
)
GPU_ADVICE = (
    "Copies and kernels do not fully overlap: unset CUDA_LAUNCH_BLOCKING, set "
    "CUDA_DEVICE_MAX_CONNECTIONS=32, and stop other work on this GPU."
)


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
        """Lower bound of `together_s`, reached if everything overlaps."""
        return max(self.uncontended_s.values())

    @property
    def sum_s(self) -> float:
        """Time of the three bursts if nothing overlaps."""
        return sum(self.uncontended_s.values())

    @property
    def hidden_frac(self) -> float:
        """1 if the shorter bursts are hidden behind the longest, 0 if nothing overlaps."""
        return (self.sum_s - self.together_s) / (self.sum_s - self.longest_s)


def overlap(backend: Backend, seconds: float) -> Overlap:
    """Times of a burst of about `seconds` on each lane, uncontended and together; medians."""
    buffers, matmul = CopyBuffers(backend, COPY_BYTES[-1]), Matmul.on(backend)
    works: dict[str, Call] = {lane: buffers.copy(lane, COPY_BYTES[-1]) for lane in COPY_LANES}
    works[COMPUTE] = matmul.call
    bursts = [
        (lane, call, calls_in(seconds, call_s(backend, lane, call))) for lane, call in works.items()
    ]
    uncontended: dict[str, list[float]] = {lane: [] for lane in works}
    together = []
    for _ in range(SAMPLES):
        for lane, call, calls in bursts:
            uncontended[lane].append(length_s(backend, lane, call, calls))
        times = times_s(backend, bursts)
        together.append(max(end for _, end in times) - min(start for start, _ in times))
    return Overlap({lane: median(times) for lane, times in uncontended.items()}, median(together))


def check_overlap(backend: Backend, durations: Durations) -> Check:
    """Whether the lanes of this device overlap."""
    return overlap_check(overlap(backend, durations.overlap_s), backend.kind)


def overlap_check(found: Overlap, kind: str) -> Check:
    """Judge an overlap: passed from 75 % hidden on; failed below 25 % on a GPU."""
    bursts = ", ".join(f"{lane} {ms(seconds)}" for lane, seconds in found.uncontended_s.items())
    measured = (
        f"together {ms(found.together_s)}; longest {ms(found.longest_s)}, sum {ms(found.sum_s)} "
        f"({bursts}); {percent(found.hidden_frac)} hidden"
    )
    advice = []
    if found.hidden_frac < MIN_HIDDEN_FRAC:
        advice.append(CPU_ADVICE if kind == "cpu" else GPU_ADVICE)
    failed = kind != "cpu" and found.hidden_frac < NO_OVERLAP_FRAC
    return judged("overlap", measured, advice, "failed" if failed else "warned")
