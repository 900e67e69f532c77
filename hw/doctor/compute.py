"""Matmul rates over time: steadiness, and a short burst against sustained work."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import torch

from hw.backends import Backend
from hw.doctor.check import Check, Durations, judged
from hw.doctor.lanes import Call, call_s, lengths_s, times_s
from sim.lanes import COMPUTE
from sim.units import ms, percent

MATMUL_SIZE = {"cpu": 512, "cuda": 8192}
MATMUL_DTYPE = {"cpu": torch.float32, "cuda": torch.float16}

SAMPLE_S = {"cpu": 0.01, "cuda": 0.005}
"""Length of one sample; shorter samples measure the launch as well."""

BURST_S = 0.02
"""Start of a series that counts as its burst: about the length of a profiler's sample."""

MAX_SPREAD_FRAC = 0.03
MAX_DRIFT_FRAC = 0.03
MAX_SLOWDOWN_FRAC = 0.05

Read = Callable[[], dict[str, Any]]
"""Reads the GPU's state; the result of a CPU is empty."""


@dataclass(frozen=True, slots=True)
class Matmul:
    """One `[n, n] x [n, n]` matmul of random operands.

    Args:
        call: launches it.
        flops: floating-point operations of one call.
        one_s: seconds of one call in a short burst.
    """

    call: Call
    flops: int
    one_s: float

    @classmethod
    def on(cls, backend: Backend) -> Matmul:
        """The doctor's matmul on a device, after a warm-up."""
        n, dtype = MATMUL_SIZE[backend.kind], MATMUL_DTYPE[backend.kind]
        a, b, out = (backend.device_empty((n, n), dtype) for _ in range(3))
        a.normal_()
        b.normal_()

        def call() -> None:
            torch.mm(a, b, out=out)

        return cls(call, 2 * n**3, call_s(backend, COMPUTE, call))


@dataclass(frozen=True, slots=True)
class Steadiness:
    """Spread and drift of equal samples.

    Args:
        median_s: seconds of one call in the median sample.
        spread_frac: 95th minus 5th percentile, over the median.
        drift_frac: median of the last third over that of the first third, minus 1.
        samples: how many there were.
    """

    median_s: float
    spread_frac: float
    drift_frac: float
    samples: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Steadiness:
        """Statistics of at least 6 samples in the order in which they were taken."""
        middle, third = median(seconds), len(seconds) // 3
        return cls(
            middle,
            spread_frac(seconds),
            median(seconds[-third:]) / median(seconds[:third]) - 1.0,
            len(seconds),
        )


def spread_frac(values: Sequence[float]) -> float:
    """95th minus 5th percentile, over the median; of at least two values."""
    percentiles = quantiles(values, n=20, method="inclusive")
    return (percentiles[-1] - percentiles[0]) / median(values)


def steadiness(backend: Backend, seconds: float, matmul: Matmul | None = None) -> Steadiness:
    """Repeat one matmul for about `seconds` and report how equal its times are."""
    matmul = matmul or Matmul.on(backend)
    calls = max(1, round(SAMPLE_S[backend.kind] / matmul.one_s))
    samples = max(6, round(seconds / (calls * matmul.one_s)))
    lengths = lengths_s(backend, COMPUTE, matmul.call, calls, samples)
    return Steadiness.of([length / calls for length in lengths])


def check_steadiness(backend: Backend, durations: Durations) -> Check:
    """Whether equal work takes equal time here."""
    matmul = Matmul.on(backend)
    return steadiness_check(steadiness(backend, durations.steady_s, matmul), matmul.flops)


def steadiness_check(found: Steadiness, flops: int) -> Check:
    """Judge a spread of at most 3 % and a drift of at most 3 % as passed."""
    measured = (
        f"matmul {ms(found.median_s)} ({flops / found.median_s / 1e12:.3g} TFLOP/s), spread "
        f"{percent(found.spread_frac)} (5th to 95th percentile of {found.samples} samples), drift "
        f"{percent(found.drift_frac, signed=True)} from first to last third"
    )
    advice = []
    if found.spread_frac > MAX_SPREAD_FRAC:
        advice.append("Results will be noisier: close other processes or raise --repeats.")
    if abs(found.drift_frac) > MAX_DRIFT_FRAC:
        advice.append("The speed drifts: let the machine warm up, or check its cooling.")
    return judged("steadiness", measured, advice)


@dataclass(frozen=True, slots=True)
class Sustained:
    """Matmul rates after a pause and after sustained work.

    Args:
        burst_flops_per_s: in the first 20 ms.
        sustained_flops_per_s: in the last third.
        before, during: `gpu_state` while idle and in the middle of the work; empty on a CPU.
    """

    burst_flops_per_s: float
    sustained_flops_per_s: float
    before: Mapping[str, Any]
    during: Mapping[str, Any]

    @property
    def slowdown_frac(self) -> float:
        """By how much sustained work is slower than the burst; negative if it is faster."""
        return 1.0 - self.sustained_flops_per_s / self.burst_flops_per_s


def sustained(
    backend: Backend, seconds: float, idle_s: float, read: Read = dict, matmul: Matmul | None = None
) -> Sustained:
    """Run matmuls back to back for about `seconds` after a pause.

    Args:
        read: reads the GPU's state before and in the middle of the work.
    """
    matmul = matmul or Matmul.on(backend)
    time.sleep(idle_s)
    before = read()
    during: dict[str, Any] = {}

    def look() -> None:
        time.sleep(seconds / 2)
        during.update(read())

    samples = max(6, round(seconds / matmul.one_s))
    times = times_s(backend, [(COMPUTE, matmul.call, 1)] * samples, look)
    lengths = [end_s - start_s for start_s, end_s in times]
    burst = [length for length, (_, end_s) in zip(lengths, times, strict=True) if end_s <= BURST_S]
    burst = burst if len(burst) >= 2 else lengths[:2]
    return Sustained(
        matmul.flops / median(burst),
        matmul.flops / median(lengths[-(len(lengths) // 3) :]),
        before,
        during,
    )


def sustained_check(found: Sustained) -> Check:
    """Judge sustained work at most 5 % slower than a burst as passed."""
    measured = (
        f"burst {found.burst_flops_per_s / 1e12:.3g} TFLOP/s, sustained "
        f"{found.sustained_flops_per_s / 1e12:.3g} TFLOP/s "
        f"({percent(-found.slowdown_frac, signed=True)})"
    )
    clocks = [state.get("sm_clock_mhz") for state in (found.before, found.during)]
    if any(clocks):
        idle, busy = (f"{clock} MHz" if clock else "not reported" for clock in clocks)
        measured += f"; SM clock {idle} idle, {busy} under load"
    advice = []
    if found.slowdown_frac > MAX_SLOWDOWN_FRAC:
        advice.append(
            "Rates sampled in short bursts are too high for long decodes here: run `kvoverlap "
            "validate` before you trust a profile."
        )
    return judged("sustained matmul", measured, advice)
