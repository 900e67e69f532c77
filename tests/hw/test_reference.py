"""Kernels sampled relative to reference kernels, on machines whose speed is simulated."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from random import Random
from statistics import median

import pytest

from hw.calibrate.reference import RelativeSamples, bounding_part
from hw.calibrate.tables import Sampler

REFERENCE = ("gemm", 64, 32, 512)
KERNEL = ("gemm", 64, 32, 1024)


class Host:
    """A core that is slowed down by a factor of a list, each for some samples by chance."""

    def __init__(self, slowdowns: Sequence[float], mean_samples: float = 1.0) -> None:
        chance = Random(0)  # noqa: S311 - a schedule
        self.slowdowns = (
            slowdown
            for slowdown in cycle(slowdowns)
            for _ in range(1 + round(chance.expovariate(1 / mean_samples)))
        )

    def sampler(self, seconds: float) -> Sampler:
        return lambda: [seconds * next(self.slowdowns)]


@pytest.mark.parametrize(("mean_samples", "tolerance_frac"), [(4, 0.3), (20, 1e-9)])
def test_a_core_that_is_slowed_down_for_a_while_gives_the_times_of_a_free_one(
    mean_samples, tolerance_frac
):
    host = Host([1.7, 1.0], mean_samples)
    relative = RelativeSamples({"flops": {REFERENCE: host.sampler(0.010)}})
    for _ in range(9):
        relative.begin_pass()
        for factor in (1, 2, 4, 8, 16):
            relative.sample(("gemm", 64, 32, 512 * factor), host.sampler(0.010 * factor))
    for point, seconds in relative.samples().items():
        assert median(seconds) == pytest.approx(0.010 * int(point[-1]) / 512, tolerance_frac)


def test_a_host_that_is_slow_all_the_time_has_a_consistent_profile():
    """All times are of its slow core; the speed probe measures the same reference kernels."""
    host = Host([1.7])
    relative = RelativeSamples({"flops": {REFERENCE: host.sampler(0.010)}})
    relative.sample(KERNEL, host.sampler(0.020))
    assert relative.samples() == {REFERENCE: [0.017], KERNEL: [pytest.approx(0.034)]}


def test_kernels_change_their_speed_with_what_bounds_them():
    points = {
        ("gemm", 64, 32, 4): "hbm",
        ("gemm", 64, 32, 16): "flops",
        ("experts", 8, 2, 64, 32, 4): "hbm",
        ("experts", 8, 2, 64, 32, 64): "flops",
        ("attention", 4, 4, 16, 2, 256): "attention",
        ("prefill", 4, 4, 16, 1, 1): "flops",
        ("elementwise", 4096): "hbm",
        ("quantise", 8, 4096): "hbm",
        ("step",): "hbm",
    }
    assert {point: bounding_part(point) for point in points} == points
