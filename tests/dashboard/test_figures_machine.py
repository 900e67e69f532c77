"""Calibration curves, residuals and accuracy figures against numbers made up by hand."""

from dataclasses import replace

import pandas as pd
import pytest
from builders import machine, make_plan, tiny_model

from dashboard.data.calibration import key_figures, subjects
from dashboard.data.residuals import measured_tasks, residual_table, spread_table
from dashboard.data.runs import case_of
from dashboard.figures import (
    errors_by_case,
    predicted_against_measured,
    rate_curves,
    residual_dots,
    sample_residuals,
)
from dashboard.figures.machine import MAX_DOTS
from dashboard.figures.style import ALERT_COLOUR
from sim import Recording, Timeline, Workload, simulate
from sim.machine.curves import Curve, Grid
from sim.machine.links import Link
from sim.machine.profile import AttentionTable, GemmTable
from sim.machine.provenance import Samples
from sim.results.accuracy import CaseAccuracy


@pytest.fixture
def sampled():
    """Copies at 1 GB/s up to 1 kB and 2 GB/s at 1 MB; one product, one attention shape."""
    base = machine(h2d=Link("measured", 2e9, curve=Curve((1e3, 1e6), (1e-6, 5e-4))))
    return replace(
        base,
        gemm=replace(base.gemm, tables=(GemmTable(8, 4, Curve((1.0, 10.0), (1e-3, 2e-3))),)),
        attention=replace(
            base.attention,
            tables=(AttentionTable(2, 2, 4, Grid((1.0, 2.0), (16.0,), ((1e-3,), (2e-3,)))),),
        ),
    )


def subject_named(profile, start):
    return next(one for one in subjects(profile) if one.name.startswith(start))


def test_every_kind_of_work_of_a_profile_can_be_drawn(sampled):
    assert [one.name for one in subjects(sampled)] == [
        "copies to the device (h2d)",
        "copies from the device (d2h)",
        "products, [rows, 4] x [4, 8]",
        "attention, 2 heads, 2 of KV, batch 1",
        "attention, 2 heads, 2 of KV, batch 2",
        "element-wise passes",
    ]
    for one in subjects(sampled):
        curve = one.curve(sampled, "this")
        assert len(curve.x) == len(curve.rate)
        assert min(curve.rate) > 0


def test_medians_lie_on_the_curve_that_is_read_between_them(sampled):
    curve = subject_named(sampled, "copies to").curve(sampled, "this")
    assert curve.point_x == (1e3, 1e6)
    assert curve.point_rate == pytest.approx((1.0, 2.0))
    assert curve.samples.empty
    assert (curve.x[0], curve.rate[0]) == pytest.approx((1e3, 1.0))
    assert (curve.x[-1], curve.rate[-1]) == pytest.approx((1e6, 2.0))
    assert 1.0 < curve.rate[len(curve.x) // 2] < 2.0


def test_rates_are_in_the_units_that_the_axis_names(sampled):
    product = subject_named(sampled, "products").curve(sampled, "this")
    assert product.point_rate == pytest.approx((64e-12 / 1e-3, 640e-12 / 2e-3))
    attention = subject_named(sampled, "attention, 2 heads, 2 of KV, batch 2")
    n_bytes = 2 * 16 * 2 * 2 * 4 * 2
    assert attention.curve(sampled, "this").point_rate == pytest.approx((n_bytes / 1e9 / 2e-3,))


def test_a_machine_without_samples_has_one_dashed_rate(sampled):
    subject = subject_named(sampled, "copies from")
    figure = rate_curves(subject, [subject.curve(sampled, "this")])
    (line,) = figure.data
    assert line.line.dash == "dash"
    assert line.name == "this, datasheet, one rate"
    assert list(line.y) == pytest.approx([0.1] * len(line.x))
    assert figure.layout.xaxis.title.text == "size (bytes)"
    assert figure.layout.yaxis.title.text == "rate (GB/s)"


def test_two_machines_far_apart_share_a_logarithmic_axis(sampled):
    subject = subject_named(sampled, "copies to")
    mine = subject.curve(sampled, "this")
    assert rate_curves(subject, [mine]).layout.yaxis.type is None
    theirs = subject.curve(machine(h2d=1e12), "other")
    figure = rate_curves(subject, [mine, theirs])
    assert figure.layout.yaxis.type == "log"
    assert [trace.name for trace in figure.data] == [
        "this, measured",
        "2 medians",
        "other, datasheet, one rate",
    ]


@pytest.fixture
def kept(sampled):
    """The same with samples of some tables; those of 1 MB copies spread from 4e-4 to 6e-4 s."""
    samples = (
        Samples(("link", "h2d", 1000), (1e-6, 1e-6, 1e-6)),
        Samples(("link", "h2d", 10**6), (4e-4, 5e-4, 6e-4)),
        Samples(("gemm", 8, 4, 10), (2e-3, 3e-3)),
        Samples(("gemm", 4, 8, 10), (9.0,)),
        Samples(("attention", 2, 2, 4, 2, 16), (1e-3,)),
        Samples(("gap",), (0.0, 1e-6)),
        Samples(("link", "d2h"), (1e-6,)),
    )
    return replace(sampled, samples=samples)


@pytest.mark.parametrize(
    ("work", "sizes", "rates", "residuals"),
    [
        ("copies to", [1e3] * 3 + [1e6] * 3, [1, 1, 1, 2.5, 2, 5 / 3], [0, 0, 0, -0.2, 0, 0.2]),
        ("products", [10, 10], [0.32e-6, 0.64e-6 / 3], [0, 0.5]),
        ("attention, 2 heads, 2 of KV, batch 2", [16], [1.024e-3 / 1], [-0.5]),
        ("copies from", [], [], []),
    ],
)
def test_samples_have_their_rate_and_their_distance_from_the_curve(
    kept, work, sizes, rates, residuals
):
    samples = subject_named(kept, work).curve(kept, "this").samples
    assert samples["x"].tolist() == sizes
    assert samples["rate"].tolist() == pytest.approx(rates)
    assert samples["residual_frac"].tolist() == pytest.approx(residuals)


def test_samples_lie_faint_under_the_curve_and_its_medians(kept):
    subject = subject_named(kept, "copies to")
    figure = rate_curves(subject, [subject.curve(kept, "this")])
    dots, curve, medians = figure.data
    assert [dots.name, curve.name, medians.name] == [
        "this, 6 samples",
        "this, measured",
        "2 medians",
    ]
    assert list(dots.y) == pytest.approx([1, 1, 1, 2.5, 2, 5 / 3])
    assert dots.marker.opacity < 0.5


def test_residuals_of_two_machines_are_drawn_with_their_spread_at_each_size(kept):
    subject = subject_named(kept, "copies to")
    curves = [subject.curve(kept, "this"), subject.curve(machine(), "no samples")]
    band, dots = sample_residuals(subject, curves).data
    assert list(dots.y) == pytest.approx([0, 0, 0, -20, 0, 20])
    assert list(band.x) == [1e3, 1e6, 1e6, 1e3], "there and back again"
    assert list(band.y) == pytest.approx([0, 16, -16, 0]), "linear between three samples"
    both = sample_residuals(subject, [curves[0], subject.curve(kept, "that")])
    assert [trace.name for trace in both.data] == [
        "this, 10th to 90th percentile",
        "this, 6 samples",
        "that, 10th to 90th percentile",
        "that, 6 samples",
    ]
    assert both.layout.yaxis.title.text == "sample / curve - 1 (%)"


def test_spread_of_every_table_with_samples_names_its_widest_size(kept):
    table = spread_table(kept).set_index("work")
    assert table.index.tolist() == [
        "copies to the device (h2d)",
        "products, [rows, 4] x [4, 8]",
        "attention, 2 heads, 2 of KV, batch 2",
    ]
    copies = table.loc["copies to the device (h2d)"]
    assert (copies["sizes"], copies["samples"], copies["widest at"]) == (2, 6, "1,000,000 bytes")
    assert copies["10th percentile (%)"] == pytest.approx(-10), "half-way between -20 and 0"
    assert copies["90th percentile (%)"] == pytest.approx(10)
    assert spread_table(machine()).empty


@pytest.fixture
def case():
    """A run in which everything took twice as long as the profile says."""
    hardware = machine(flops_per_s=1e7, h2d=2e6, d2h=2e6)
    plan = make_plan(tiny_model(), hardware, Workload(2, 32, 1), "fixed:16")
    guess = simulate(plan.lower(), hardware)
    slow = Timeline(
        guess.graph, tuple(2 * t for t in guess.start_s), tuple(2 * t for t in guess.end_s)
    )
    return case_of(Recording("measured", hardware, (slow,)), "fixed:16")


def test_residuals_of_tasks_that_took_twice_as_long_are_minus_half(case):
    tasks = measured_tasks([case])
    assert len(tasks) == len(case.graph.tasks)
    assert tasks["error_frac"].to_numpy() == pytest.approx([-0.5] * len(tasks))
    loads = tasks[tasks["subject"] == "h2d"]
    assert loads["rate"].to_numpy() == pytest.approx([1e-3] * len(loads)), "GB/s"
    products = tasks[tasks["subject"] == "recompute 16 8"]
    assert products["x"].to_numpy() == pytest.approx([32] * 2), "2 sequences of 16 tokens"
    assert set(tasks.loc[tasks["op"] == "mlp", "subject"]) == {""}, "several kernels in one task"


def test_residual_table_holds_every_operation_and_all_of_the_time(case):
    table = residual_table(measured_tasks([case]))
    assert set(table["operation"]) == {task.op for task in case.graph.tasks}
    assert table["part of all task time (%)"].sum() == pytest.approx(100)
    assert table["part of all task time (%)"].is_monotonic_decreasing
    assert table["median error (%)"].to_numpy() == pytest.approx([-50] * len(table))


def test_dots_of_residuals_are_in_per_cent_and_thinned(case):
    subject = subject_named(case.measured.hardware, "copies to")
    curves = [subject.curve(case.measured.hardware, "this")]
    tasks = measured_tasks([case])
    figure = residual_dots(subject, tasks[tasks["subject"] == "h2d"], curves)
    dots = figure.data[0]
    assert list(dots.y) == pytest.approx([-50] * len(dots.x))
    many = pd.concat([tasks] * 200, ignore_index=True)
    assert len(many) > MAX_DOTS
    shown = sum(len(trace.x) for trace in residual_dots(subject, many, curves).data)
    assert MAX_DOTS / 2 <= shown <= MAX_DOTS
    assert figure.layout.yaxis.title.text == "predicted / measured - 1 (%)"


def test_key_figures_name_their_units_and_sources(sampled):
    table = key_figures(sampled).set_index("figure")
    assert tuple(table.loc["link, h2d", ["value", "unit", "source"]]) == (2.0, "GB/s", "measured")
    assert table.loc["matrix products", "source"] == "datasheet"
    assert pd.isna(table.loc["weights, read", "value"])


def assessed(name, predicted_s, measured_s, policy="lp", passed=True, **changes):
    error = predicted_s / measured_s - 1
    figures = {
        "device": "cpu",
        "model": "tiny",
        "batch_size": 4,
        "prompt_tokens": 300,
        "gen_tokens": 2,
        "overlap_error_points": 0.0,
        "exposed_copy_error_s": 0.0,
        "tolerance_frac": 0.1,
        "spread_frac": 0.02,
        "teacher_forced_error_frac": 0.0,
        "naive_error_frac": -0.2,
        "reason": "",
    }
    return CaseAccuracy(
        name=name,
        policy=policy,
        predicted_makespan_s=predicted_s,
        measured_makespan_s=measured_s,
        makespan_error_frac=error,
        passed=passed,
        **{**figures, **changes},
    )


CASES = (
    assessed("a/one", 0.1, 0.1),
    assessed("a/two", 0.3, 0.2, "fixed:75", passed=False, tolerance_frac=0.2),
)


def test_scatter_has_a_dot_for_each_case_and_a_red_edge_where_it_failed():
    figure = predicted_against_measured(CASES)
    by_name = {trace.name: trace for trace in figure.data}
    assert list(by_name) == ["within 20.0 %", "predicted = measured", "lp", "fixed split"]
    assert (by_name["lp"].x[0], by_name["lp"].y[0]) == pytest.approx((100, 100))
    assert by_name["fixed split"].marker.line.color == (ALERT_COLOUR,)
    band = by_name["within 20.0 %"]
    assert band.y[0] == pytest.approx(0.8 * band.x[0])
    assert figure.layout.xaxis.range == figure.layout.yaxis.range
    assert figure.layout.xaxis.title.text == "measured makespan (ms)"


def test_error_of_each_case_stands_on_its_tolerance_beside_the_formula():
    tolerance, naive, ours = errors_by_case(CASES).data
    assert list(tolerance.base) == pytest.approx([-10, -20])
    assert list(tolerance.x) == pytest.approx([20, 40])
    assert list(naive.x) == pytest.approx([-20, -20])
    assert list(ours.x) == pytest.approx([0, 50])
    assert list(ours.error_x.array) == pytest.approx([1, 1]), "half the spread on each side"
    assert ours.marker.color[1] == ALERT_COLOUR
    assert list(errors_by_case(CASES).layout.yaxis.ticktext) == ["one", "two"]
