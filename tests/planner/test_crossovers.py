"""Crossovers and intervals of curves whose crossings are known."""

import pandas as pd
import pytest

from dashboard.text.crossovers import (
    ONE_RESOURCE,
    describe_intervals,
    describe_rates,
    intervals,
    policy_crossings,
)
from planner.crossovers import crossings

RATES = [1.0, 2.0, 4.0, 8.0, 16.0]


def table(**columns):
    return pd.DataFrame(
        {"gib_per_s": RATES, **{f"{k.replace('_', '-')}_s": v for k, v in columns.items()}}
    )


def test_curves_cross_where_powers_of_their_argument_are_equal():
    """8 / x and x / 2 meet at 4, which is no sample."""
    x = [1.0, 3.0, 9.0]
    falling, rising = [8 / at for at in x], [at / 2 for at in x]
    assert crossings(x, falling, rising) == [pytest.approx((4.0, 2.0))]
    assert crossings(x, rising, falling) == [pytest.approx((4.0, 2.0))]
    assert crossings(x, falling, [100.0] * 3) == []
    assert crossings(x, [1.0, 2.0, 3.0], [2.0, 3.0, 3.0]) == [pytest.approx((9.0, 3.0))]


def test_every_crossing_is_found():
    assert len(crossings(RATES, [1, 3, 1, 3, 1], [2, 2, 2, 2, 2])) == 4


@pytest.fixture
def points():
    return table(
        compute_only=[4.0] * 5,
        load_only=[16 / rate for rate in RATES],
        two_ended=[3.0, 3.0, 2.0, 2.0, 2.0],
        layer_wise=[6.0, None, 2.0, None, 0.5],
        joint=[3.0, None, 2.0, None, 0.5],
    )


def test_intervals_go_from_crossing_to_crossing(points):
    (below,) = intervals(points, "compute-only", "load-only")
    assert (below.low, below.high, str(below)) == (1, pytest.approx(4), "below 4 GiB/s")
    assert below.max_gain_frac == pytest.approx(3)
    (lost,) = intervals(points, ONE_RESOURCE, "two-ended")
    assert (lost.low, str(lost)) == (pytest.approx(8), "above 8 GiB/s")
    assert lost.max_gain_frac == pytest.approx(1.0), "twice as long at 16 GiB/s"


def test_rates_at_which_a_policy_was_not_planned_do_not_count(points):
    met = policy_crossings(points, "layer-wise", "two-ended")
    assert met == [pytest.approx((4.0, 2.0))]
    (faster,) = intervals(points, "layer-wise", "two-ended")
    assert str(faster) == "above 4 GiB/s"


def test_intervals_as_text():
    inside = table(compute_only=[1.0] * 5, load_only=[2, 2, 0.5, 2, 2])
    assert (
        describe_intervals(intervals(inside, "load-only", "compute-only"))
        == "from 2.83 to 5.66 GiB/s"
    )
    always = table(compute_only=[2.0] * 5, load_only=[1.0] * 5)
    assert describe_intervals(intervals(always, "load-only", "compute-only")) == "at every rate"
    assert intervals(always, "compute-only", "load-only") == []
    many = table(compute_only=[1, 3, 1, 3, 1], load_only=[2.0] * 5)
    assert describe_intervals(intervals(many, "compute-only", "load-only")) == (
        "in 3 intervals between 1 and 16 GiB/s"
    )


def test_what_the_curves_say(points):
    loading, lost, layers, joint = describe_rates(points)
    assert loading == "load-only is faster than compute-only above 4 GiB/s."
    assert lost == (
        "two-ended takes up to 100.0 % longer than the faster of these two above 8 GiB/s."
    )
    assert layers == "layer-wise is faster than two-ended above 4 GiB/s."
    assert joint == "joint gains most over two-ended at 16 GiB/s, where it is 4.00 x as fast."


def test_what_the_curves_say_where_nothing_crosses():
    flat = table(compute_only=[2.0] * 5, load_only=[3.0] * 5, two_ended=[1.0] * 5)
    assert describe_rates(flat) == [
        "compute-only is faster than load-only at every rate.",
        "two-ended is never slower than the faster of these two.",
    ]
