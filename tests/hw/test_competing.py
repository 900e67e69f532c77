"""A load that competes for one core takes the part that it is told to."""

from __future__ import annotations

import os
import time

import pytest
from builders import examples
from hypothesis import given
from hypothesis import strategies as st

from hw.backends.cpu import compute_core
from hw.backends.cpu_contention import (
    MIN_FRAC,
    NICE_STEP,
    CompetingLoad,
    check_competition,
    competing_weights,
)
from sim.errors import BadInput
from sim.lanes import COMPUTE
from sim.machine.availability import Availability, Step


def trace(*steps: tuple[float, float]) -> Availability:
    return Availability(tuple(Step(at, ((COMPUTE, part),)) for at, part in steps))


@examples(100)
@given(frac=st.floats(MIN_FRAC, 1.0))
def test_weights_leave_nearly_the_fraction(frac):
    weights = [NICE_STEP**-nice for nice in competing_weights(frac)]
    assert all(0 <= nice <= 19 for nice in competing_weights(frac))
    assert 1 / (1 + sum(weights)) == pytest.approx(frac, abs=0.03)


@pytest.mark.parametrize(("frac", "nices"), [(1.0, []), (0.5, [0]), (0.25, [0, 0, 0])])
def test_equal_processes_leave_equal_parts(frac, nices):
    assert competing_weights(frac) == nices


@pytest.mark.parametrize("frac", [0.01, 1.5])
def test_what_no_load_can_take_is_refused(frac):
    with pytest.raises(BadInput, match=r"between 0\.05 and 1"):
        check_competition(trace((0.0, frac), (1.0, 1.0)))


def test_a_spinning_thread_keeps_its_share_and_has_all_again_behind_the_last_step():
    core, everywhere = compute_core(), os.sched_getaffinity(0)
    load = CompetingLoad(core, trace((0.0, 0.25), (0.4, 1.0)))
    os.sched_setaffinity(0, {core})
    try:
        begun_s = time.perf_counter()
        load.follow(begun_s)
        beside = spin_until(begun_s + 0.35)
        time.sleep(0.1)
        back_to_back = spin_until(begun_s + 0.7)
    finally:
        os.sched_setaffinity(0, everywhere)
        load.end()
    assert beside < 0.5  # a busy machine may leave less, never more
    assert back_to_back > beside


def spin_until(until_s: float) -> float:
    """Part of its core that this thread had while it did nothing but look at the clock."""
    wall_s, worked_s = time.perf_counter(), time.thread_time()
    while time.perf_counter() < until_s:
        pass
    return (time.thread_time() - worked_s) / (time.perf_counter() - wall_s)
