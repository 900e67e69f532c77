"""Reading between, below and above measured samples."""

from __future__ import annotations

from math import inf, nan

import pytest
from builders import examples
from hypothesis import given
from hypothesis import strategies as st

from sim.errors import BadInput
from sim.machine.curves import Curve, Grid, RaggedGrid

CURVE = Curve((10.0, 20.0, 40.0), (1.0, 2.0, 6.0))
GRID = Grid((1.0, 2.0), (10.0, 30.0), ((1.0, 3.0), (2.0, 8.0)))


@pytest.mark.parametrize(
    ("work", "seconds"), [(10, 1.0), (15, 1.5), (20, 2.0), (25, 3.0), (30, 4.0), (40, 6.0)]
)
def test_inside_the_samples_the_time_is_interpolated_linearly(work, seconds):
    assert CURVE.at(work) == (seconds, True)


@pytest.mark.parametrize("work", [9.99, 5, 1, 0])
def test_below_the_samples_the_first_one_is_a_floor(work):
    assert CURVE.at(work) == (1.0, False)


@pytest.mark.parametrize(("work", "seconds"), [(80, 12.0), (60, 9.0), (400, 60.0)])
def test_above_the_samples_the_last_rate_is_held(work, seconds):
    assert CURVE.at(work) == (seconds, False)


def test_one_sample_is_a_floor_below_and_a_rate_above():
    curve = Curve((4.0,), (2.0,))
    assert [curve.at(work) for work in (1, 4, 8)] == [(2.0, False), (2.0, True), (4.0, False)]


@pytest.mark.parametrize(
    ("row", "column", "seconds", "inside"),
    [
        (1, 10, 1.0, True),
        (2, 30, 8.0, True),
        (1, 20, 2.0, True),
        (1.5, 10, 1.5, True),
        (1.5, 20, 3.5, True),
        (0.5, 20, 2.0, False),
        (1.5, 5, 1.5, False),
        (4, 10, 4.0, False),
        (1, 60, 6.0, False),
        (2, 60, 16.0, False),
        (4, 60, 32.0, False),
    ],
)
def test_a_grid_is_bilinear_inside_and_holds_the_rate_of_its_edge(row, column, seconds, inside):
    assert GRID.at(row, column) == (pytest.approx(seconds), inside)


def test_a_grid_of_one_row_reads_like_its_curve():
    grid = Grid((2.0,), CURVE.work, (CURVE.seconds,))
    assert grid.at(2, 25) == (3.0, True)
    assert grid.at(1, 25) == (3.0, False)
    assert grid.at(6, 25) == (9.0, False)


@given(st.floats(0.01, 200), st.floats(0.01, 200))
@examples(100)
def test_more_work_on_a_rising_curve_is_never_faster(one, other):
    less, more = sorted((one, other))
    assert CURVE.at(less)[0] <= CURVE.at(more)[0] * (1 + 1e-12)


@given(st.floats(0.01, 200))
@examples(100)
def test_only_the_sampled_range_counts_as_calibrated(work):
    assert CURVE.at(work)[1] == (10 <= work <= 40)


WRONG_AXES = [(), (0.0, 1.0), (-1.0, 1.0), (1.0, 1.0), (2.0, 1.0), (1.0, nan), (1.0, inf)]


@pytest.mark.parametrize("work", WRONG_AXES)
def test_work_must_be_positive_and_rising(work):
    with pytest.raises(BadInput, match="positive and strictly increasing"):
        Curve(work, (1.0,) * len(work))


@pytest.mark.parametrize(
    "seconds", [(1.0,), (1.0, 2.0, 3.0), (1.0, 0.0), (-1.0, 1.0), (1.0, float("nan"))]
)
def test_each_sample_needs_one_positive_time(seconds):
    with pytest.raises(BadInput, match="2 positive finite values"):
        Curve((1.0, 2.0), seconds)


def test_a_grid_needs_every_row_whole():
    with pytest.raises(BadInput, match="2 rows"):
        Grid((1.0, 2.0), (1.0,), ((1.0,),))
    with pytest.raises(BadInput, match="1 positive finite"):
        Grid((1.0, 2.0), (1.0,), ((1.0,), (1.0, 2.0)))
    with pytest.raises(BadInput, match="columns"):
        Grid((1.0, 2.0), (2.0, 1.0), ((1.0, 1.0), (1.0, 1.0)))


FAN = RaggedGrid(
    (1.0, 2.0, 4.0),
    (CURVE, Curve((10.0, 20.0), (3.0, 4.0)), Curve((10.0,), (7.0,))),
)
"""Long contexts were sampled for few rows only."""


@pytest.mark.parametrize(
    ("row", "column", "seconds", "inside"),
    [
        (1, 20, 2.0, True),
        (2, 15, 3.5, True),
        (1.5, 20, 3.0, True),
        (3, 10, 5.0, True),
        (1.5, 40, (6.0 + 8.0) / 2, False),
        (4, 20, 14.0, False),
        (8, 10, 14.0, False),
        (0.5, 10, 1.0, False),
    ],
)
def test_a_fan_is_read_along_both_axes_as_far_as_each_curve_goes(row, column, seconds, inside):
    assert FAN.at(row, column) == (seconds, inside)


def test_work_that_takes_longer_takes_longer_everywhere():
    assert CURVE.scaled(2.0).seconds == (2.0, 4.0, 12.0)
    assert FAN.scaled(0.5).at(1.5, 20) == (1.5, True)


def test_between_roots_a_square_is_read_exactly():
    squares = Curve((1.0, 3.0, 9.0), (1.0, 9.0, 81.0))
    assert squares.rooted().at(5)[0] ** 2 == pytest.approx(25.0)
    assert squares.rooted().at(18)[0] ** 2 == pytest.approx(18.0**2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [((1.0, 2.0), "curves must hold 2 curves"), ((0.0,), "rows"), ((), "rows")],
)
def test_a_fan_that_is_none_is_refused(rows, message):
    with pytest.raises(BadInput, match=message):
        RaggedGrid(rows, (CURVE,))
