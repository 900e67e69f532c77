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


def test_a_load_leaves_its_fraction_and_the_whole_core_after_its_last_step():
    """Another process can take the core in any attempt, so one of five has to show the change."""
    tries = (shares_with_and_without_load() for _ in range(5))
    assert any(with_load < 0.5 and without_load > with_load for with_load, without_load in tries)


def shares_with_and_without_load() -> tuple[float, float]:
    """Fractions of a core that a thread gets during a load to 25 %, and after its end."""
    core, everywhere = compute_core(), os.sched_getaffinity(0)
    load = CompetingLoad(core, trace((0.0, 0.25), (0.4, 1.0)))
    os.sched_setaffinity(0, {core})
    try:
        begun_s = time.perf_counter()
        load.follow(begun_s)
        with_load = spin_until(begun_s + 0.35)
        time.sleep(0.1)
        return with_load, spin_until(begun_s + 0.7)
    finally:
        os.sched_setaffinity(0, everywhere)
        load.end()


def spin_until(until_s: float) -> float:
    """Fraction of its core that this thread gets while it polls the clock."""
    wall_s, worked_s = time.perf_counter(), time.thread_time()
    while time.perf_counter() < until_s:
        pass
    return (time.thread_time() - worked_s) / (time.perf_counter() - wall_s)
