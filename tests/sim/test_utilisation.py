"""Utilisation between, at and beyond the measured shapes, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import examples
from hypothesis import given
from hypothesis import strategies as st

from sim.errors import BadInput
from sim.machine.curves import Curve
from sim.machine.utilisation import UtilisationTable, roofline_s

# 1e12 FLOP/s and 1e9 bytes/s: [1, 100] x [100, 100] is bound by its 20,400 bytes.
TABLE = UtilisationTable(
    weight_bits=16,
    flops_per_s=1e12,
    bytes_per_s=1e9,
    floor_s=1e-6,
    m=(1, 10),
    n=(100, 400),
    k=(100, 1600),
    shapes=("5000 10000", "2500 5000", "4000 8000", ""),
)


@pytest.mark.parametrize(
    ("bits", "seconds"),
    [(16, (20_000 + 200 + 200) / 1e9), (8, (10_000 + 100 + 200) / 1e9)],
)
def test_a_roofline_reads_operands_in_their_bits_and_writes_sixteen(bits, seconds):
    assert roofline_s(1, 100, 100, bits, 1e12, 1e9) == pytest.approx(seconds)
    assert roofline_s(1, 100, 100, bits, 1e6, 1e9) == pytest.approx(2e4 / 1e6)


def test_a_measured_shape_is_read_back_exactly():
    curve, inside = TABLE.curve(100, 100)
    best = [TABLE.best_s(m, 100, 100) for m in (1, 10)]
    assert inside
    assert curve == Curve((1.0, 10.0), (best[0] / 0.5, best[1] / 1.0))
    assert TABLE.best_s(1, 100, 100) == pytest.approx(1e-6 + 20.4e-6)


def test_half_way_on_a_logarithmic_axis_the_shares_are_averaged():
    curve, inside = TABLE.curve(100, 400)  # 400 is half way from 100 to 1,600
    assert inside
    assert curve.seconds[0] == pytest.approx(TABLE.best_s(1, 100, 400) / 0.375)
    assert curve.seconds[1] == pytest.approx(TABLE.best_s(10, 100, 400) / 0.75)


def test_a_corner_that_was_not_measured_leaves_its_weight_to_the_others():
    curve, inside = TABLE.curve(200, 400)  # the middle of the cell, three corners of which count
    assert inside
    assert curve.seconds[0] == pytest.approx(TABLE.best_s(1, 200, 400) / ((0.5 + 0.25 + 0.4) / 3))


@pytest.mark.parametrize("shape", [(50, 100), (100, 99), (401, 100), (100, 10**6)])
def test_beyond_the_grid_the_edges_share_is_held(shape):
    curve, inside = TABLE.curve(*shape)
    n, k = min(max(shape[0], 100), 400), min(max(shape[1], 100), 1600)
    share = TABLE.best_s(1, n, k) / TABLE.curve(n, k)[0].seconds[0]
    assert not inside
    assert curve.seconds[0] == pytest.approx(TABLE.best_s(1, *shape) / share)


def test_a_shape_among_none_measured_has_the_share_of_the_nearest():
    curve, inside = TABLE.curve(400, 1600)
    assert not inside
    nearest = 0.25  # n is a factor of 4 from 100 x 1600, k one of 16 from 400 x 100
    assert curve.seconds[0] == pytest.approx(TABLE.best_s(1, 400, 1600) / nearest)


def test_rows_that_a_shape_was_not_measured_at_are_left_to_the_others():
    holed = replace(TABLE, shapes=("5000 0", "2500 5000", "4000 8000", ""))
    assert holed.curve(100, 100)[0].work == (1.0,)
    assert holed.curve(100, 400)[0].work == (1.0, 10.0)


def test_a_faster_device_keeps_its_shares():
    faster = TABLE.faster(flops=2.0, hbm=4.0)
    assert faster.shapes == TABLE.shapes
    assert faster.curve(100, 100)[0].seconds[0] == pytest.approx((1e-6 + 20.4e-6 / 4) / 0.5)


@examples(60)
@given(st.integers(1, 10**5), st.integers(1, 10**5))
def test_every_shape_lies_between_the_worst_and_the_best_share(n, k):
    curve, _ = TABLE.curve(n, k)
    for m, seconds in zip(curve.work, curve.seconds, strict=True):
        share = TABLE.best_s(int(m), n, k) / seconds
        assert 0.25 - 1e-9 <= share <= 1.0 + 1e-9


def test_one_size_of_an_axis_holds_everywhere():
    single = replace(TABLE, n=(1,), k=(1,), shapes=("5000 5000",))
    assert single.curve(1, 1)[1]
    curve, inside = single.curve(64, 64)
    assert not inside
    assert curve.seconds[0] == pytest.approx(single.best_s(1, 64, 64) * 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_bits": 4}, r"weight_bits\(=4\) must be 8 or 16"),
        ({"flops_per_s": 0.0}, r"flops_per_s\(=0.0\) must be > 0"),
        ({"floor_s": -1.0}, r"floor_s\(=-1.0\) must be in \[0, 1\)"),
        ({"m": (10, 1)}, "m must be whole numbers in rising order"),
        ({"n": (0, 400)}, "n must be whole numbers in rising order"),
        ({"k": (100, 10**400)}, "k must hold sizes of at most"),
        ({"shapes": ("5000 1234567", "", "", "")}, "numbers of at most 20000"),
        ({"k": ()}, "k must be whole numbers in rising order"),
        ({"shapes": ("5000 1",)}, "must hold 2 x 2 lines, not 1"),
        ({"shapes": ("5000", "", "", "")}, "must hold 2 whole numbers"),
        ({"shapes": ("5000 -1", "", "", "")}, "must hold 2 whole numbers"),
        ({"shapes": ("", "0 0", "", "")}, "one measured shape at least"),
    ],
)
def test_a_table_that_is_none_is_refused(changes, message):
    with pytest.raises(BadInput, match=message):
        replace(TABLE, **changes)
