"""Leave-one-out errors of tables whose misses can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import machine

from kvoverlap.cli.table_errors import print_table_errors
from sim.machine.cross_validation import KINDS, leave_one_out
from sim.machine.curves import Curve, Grid, RaggedGrid
from sim.machine.links import Link
from sim.machine.prefill import Prefill, QueryHeads, Restore
from sim.machine.profile import Attention, AttentionTable, Elementwise, Gemm, GemmTable, KvHeads
from sim.machine.provenance import SourcedValue, TableErrors
from sim.machine.utilisation import UtilisationTable

STRAIGHT = Curve((1.0, 2.0, 4.0, 8.0), (3.0, 5.0, 9.0, 17.0))
BENT = Curve((10.0, 20.0, 30.0), (1.0, 4.0, 3.0))
"""Half way between 1 s and 3 s lie 2 s, where 4 s were measured."""


def with_gemm(*tables: GemmTable):
    return machine(gemm=Gemm("measured", 1e9, tables=tables))


def with_attention(grid: Grid):
    return machine(attention=Attention("measured", 1e9, (AttentionTable(8, 2, 64, grid),)))


def test_a_profile_without_tables_has_nothing_to_check():
    assert leave_one_out(machine()) == ()


@pytest.mark.parametrize(
    "curve", [Curve((5.0,), (1.0,)), Curve((5.0, 6.0), (1.0, 9.0))], ids=["one", "two"]
)
def test_end_points_are_not_checked(curve):
    assert leave_one_out(with_gemm(GemmTable(64, 32, curve))) == ()


def test_a_straight_line_predicts_each_of_its_points():
    (found,) = leave_one_out(with_gemm(GemmTable(64, 32, STRAIGHT)))
    assert (found.kind, found.points) == ("gemm", 2)
    assert found.max_abs_error_frac == pytest.approx(0.0, abs=1e-15)


def test_a_bend_is_missed_by_exactly_its_height():
    (found,) = leave_one_out(with_gemm(GemmTable(64, 32, BENT)))
    assert found == TableErrors("gemm", 1, 0.5, 0.5, 0.5, "n=64 k=32 m=20", -0.5)


def test_points_of_all_tables_of_a_kind_count_together():
    tables = GemmTable(8, 8, STRAIGHT), GemmTable(64, 32, BENT), GemmTable(9, 9, STRAIGHT)
    (found,) = leave_one_out(with_gemm(*tables))
    assert found.points == 5
    assert found.median_abs_error_frac == pytest.approx(0.0, abs=1e-15)
    assert found.max_abs_error_frac == 0.5
    assert found.worst == "n=64 k=32 m=20"


def test_nine_tenths_of_the_points_are_within_the_p90():
    work = tuple(map(float, range(1, 13)))
    seconds = tuple(2.0 if at == 6 else 1.0 for at in range(1, 13))
    (found,) = leave_one_out(with_gemm(GemmTable(8, 8, Curve(work, seconds))))
    assert found.points == 10
    # Before and behind the 2 s, 1.5 s are predicted for 1 s; in their place, 1 s.
    assert found.p90_abs_error_frac == 0.5
    assert found.median_abs_error_frac == 0.0
    gentle = tuple(1.1 if at == 6 else 1.0 for at in range(1, 13))
    (found,) = leave_one_out(with_gemm(GemmTable(8, 8, Curve(work, gentle))))
    assert found.p90_abs_error_frac == pytest.approx(0.05)
    assert found.max_abs_error_frac == pytest.approx(1 - 1 / 1.1)


def test_each_direction_of_the_link_and_the_element_wise_curve_are_kinds_of_their_own():
    bent, straight = (Link("measured", 1e9, curve=curve) for curve in (BENT, STRAIGHT))
    profile = machine(h2d=bent, d2h=straight, host=bent)
    profile = replace(profile, elementwise=Elementwise("measured", 1e9, BENT))
    found = leave_one_out(profile)
    assert [errors.kind for errors in found] == ["h2d", "d2h", "host", "elementwise"]
    assert [errors.points for errors in found] == [1, 2, 1, 1]
    assert [errors.max_abs_error_frac for errors in found] == [0.5, pytest.approx(0), 0.5, 0.5]
    assert found[0].worst == "20 bytes"


def test_a_grid_that_is_a_plane_predicts_its_points_along_both_axes():
    plane = Grid(
        (1.0, 2.0, 4.0),
        (10.0, 20.0, 50.0),
        tuple(tuple(b + 3 * c for c in (10.0, 20.0, 50.0)) for b in (1.0, 2.0, 4.0)),
    )
    (found,) = leave_one_out(with_attention(plane))
    assert (found.kind, found.points) == ("attention", 3 + 3)
    assert found.max_abs_error_frac == pytest.approx(0.0, abs=1e-15)


def test_a_grid_is_missed_along_context_by_its_row_and_along_batch_by_its_column():
    """Two batches, so only context has inner points: 2 s are predicted for 4 s, 4 s for 5 s."""
    rows = Grid((1.0, 2.0), (10.0, 20.0, 30.0), ((1.0, 4.0, 3.0), (3.0, 5.0, 5.0)))
    (found,) = leave_one_out(with_attention(rows))
    assert found.points == 2
    assert found.median_abs_error_frac == pytest.approx((0.5 + 0.2) / 2)
    assert found.worst == "heads=8/2x64 batch=1 context=20, along context"
    columns = Grid((1.0, 2.0, 5.0), (10.0, 20.0), ((1.0, 2.0), (4.0, 2.0), (9.0, 2.0)))
    (found,) = leave_one_out(with_attention(columns))
    # A quarter of the way from 1 s at batch 1 to 9 s at batch 5 lie 3 s, where 4 s were measured.
    assert found.points == 2
    assert found.worst == "heads=8/2x64 batch=2 context=10, along batch"
    assert found.worst_error_frac == -0.25
    assert found.median_abs_error_frac == 0.125


def with_utilisation(bits, *shapes):
    sizes = (100, 200, 400)
    table = UtilisationTable(bits, 1e12, 1e12, 0.0, (1, 2), sizes, (64,), shapes)
    return machine(gemm=Gemm("measured", 1e9, utilisation=(table,)))


def test_shapes_are_predicted_from_those_beside_them_half_way_on_a_logarithmic_axis():
    (found,) = leave_one_out(with_utilisation(16, "4000 4000", "6000 8000", "8000 8000"))
    assert (found.kind, found.points) == ("gemm", 2)
    assert found.median_abs_error_frac == pytest.approx((0.0 + 1 / 3) / 2)
    assert found.worst == "n=200 k=64 m=2, along n"
    assert found.worst_error_frac == pytest.approx(1 / 3)
    (found,) = leave_one_out(with_utilisation(8, "4000 0", "6000 8000", "8000 8000"))
    assert (found.kind, found.points) == ("gemm_8bit", 1)


def test_rows_of_a_shape_are_predicted_in_seconds():
    table = UtilisationTable(16, 1e12, 1e6, 0.0, (1, 2, 3), (64,), (64,), ("5000 5000 5000",))
    (found,) = leave_one_out(machine(gemm=Gemm("measured", 1e9, utilisation=(table,))))
    assert found.points == 1
    assert found.worst == "n=64 k=64 m=2, along m"
    assert found.max_abs_error_frac == pytest.approx(0.0, abs=1e-12)


def test_decode_attention_is_predicted_along_tokens_and_heads():
    fan = RaggedGrid(
        (1.0, 2.0, 3.0), (BENT, Curve((10.0,), (1.0,)), Curve((10.0, 20.0), (1.0, 1.0)))
    )
    (found,) = leave_one_out(
        machine(attention=Attention("measured", 1e9, heads=(KvHeads(64, fan),)))
    )
    assert (found.kind, found.points) == ("attention", 2)
    assert found.worst == "KV heads of 64: 1 at 20, along tokens"
    assert found.worst_error_frac == -0.5


def test_prefill_attention_is_predicted_by_roots_along_tokens():
    squares = Curve((10.0, 20.0, 40.0), (1.0, 4.0, 16.0))
    heads = QueryHeads(128, 4, RaggedGrid((4.0, 8.0), (squares, squares.scaled(2.0))))
    prefill = Prefill(
        SourcedValue("measured", 1e12), SourcedValue("datasheet", 0.0), heads=(heads,)
    )
    (found,) = leave_one_out(machine(restore=Restore(prefill)))
    assert (found.kind, found.points) == ("prefill", 2)
    assert found.max_abs_error_frac == pytest.approx(0.0, abs=1e-12)


def test_the_report_is_printed_kind_by_kind(capsys):
    print_table_errors(leave_one_out(with_gemm(GemmTable(64, 32, BENT))))
    text = capsys.readouterr().out
    assert "matrix products" in text
    assert "n=64 k=32 m=20 (-50.0 %)" in text
    assert "element-wise" not in text


def test_an_empty_report_is_one_sentence(capsys):
    print_table_errors(leave_one_out(machine()))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("nothing to check.")


def test_every_kind_has_a_name(capsys):
    print_table_errors([TableErrors(kind, 1, 0.0, 0.0, 0.0, "here", 0.0) for kind in KINDS])
    assert len(capsys.readouterr().out.splitlines()) == len(KINDS) + 2
