"""The figures against a timeline small enough to check by hand."""

import pytest

from dashboard.figures import OP_COLOUR, PART_COLOUR, breakdown_bars, paired_lanes
from sim import Task, TaskGraph, Timeline, Workload, find_model
from sim.graph import LANE_OF_OP


def task(name, lane, step, layer, size, deps=()):
    op = name.rsplit(".", 1)[-1]
    n_bytes, flops = (0, size) if lane == "compute" else (size, 0)
    return Task(name, op, lane, step, layer, 0, 16, 0, n_bytes, flops, deps)


@pytest.fixture
def graph():
    """Two steps of one layer: load, attend."""
    tasks = (
        task("s0.L0.load_kv", "h2d", 0, 0, 4_000_000),
        task("s0.L0.attention", "compute", 0, 0, 6_000_000_000, ("s0.L0.load_kv",)),
        task("s1.L0.load_kv", "h2d", 1, 0, 4_000_000, ("s0.L0.load_kv",)),
        task("s1.L0.attention", "compute", 1, 0, 6_000_000_000, ("s1.L0.load_kv",)),
    )
    return TaskGraph("row", find_model("opt-125m"), Workload(1, 16, 2), 2, tasks)


@pytest.fixture
def predicted(graph):
    """4 ms exposed load, 3 ms compute over the second load, 1 ms exposed rest, 3 ms compute."""
    return Timeline(graph, (0.0, 0.004, 0.004, 0.008), (0.004, 0.007, 0.008, 0.011))


@pytest.fixture
def measured(graph):
    """As predicted with 5 ms loads, and 1 ms of nothing before the last task."""
    return Timeline(graph, (0.0, 0.005, 0.005, 0.011), (0.005, 0.008, 0.010, 0.014))


def test_one_trace_per_operation_with_both_runs(predicted, measured):
    figure = paired_lanes(predicted, measured)
    assert [trace.name for trace in figure.data] == ["attention", "load_kv"]
    attention, load = figure.data
    assert list(load.base) == pytest.approx([0, 4, 0, 5])
    assert list(load.x) == pytest.approx([4, 4, 5, 5])
    assert list(attention.base) == pytest.approx([4, 8, 5, 11])
    assert list(attention.x) == pytest.approx([3, 3, 3, 3])
    assert attention.orientation == "h"
    assert attention.marker.color == OP_COLOUR["attention"]


def test_rows_pair_prediction_and_measurement_of_a_lane(predicted, measured):
    figure = paired_lanes(predicted, measured)
    names = dict(zip(figure.layout.yaxis.tickvals, figure.layout.yaxis.ticktext, strict=True))
    assert list(names.values()) == [
        "compute predicted",
        "compute measured",
        "h2d predicted",
        "h2d measured",
    ]
    attention, load = figure.data
    assert [names[row] for row in attention.y] == ["compute predicted"] * 2 + [
        "compute measured"
    ] * 2
    assert [names[row] for row in load.y] == ["h2d predicted"] * 2 + ["h2d measured"] * 2
    top, bottom = figure.layout.yaxis.range
    assert top > max(names) > min(names) > bottom, "the first row is drawn at the top"


def test_axis_is_in_milliseconds_not_dates(predicted, measured):
    figure = paired_lanes(predicted, measured)
    assert figure.layout.xaxis.title.text == "time since the start of the run (ms)"
    assert figure.layout.xaxis.type is None
    assert max(
        start + length
        for trace in figure.data
        for start, length in zip(trace.base, trace.x, strict=True)
    ) == pytest.approx(measured.makespan_s * 1e3)


def test_a_step_is_counted_from_its_first_task_in_each_run(predicted, measured):
    figure = paired_lanes(predicted, measured, step=1)
    attention, load = figure.data
    assert list(load.base) == pytest.approx([0, 0])
    assert list(load.x) == pytest.approx([4, 5])
    assert list(attention.base) == pytest.approx([4, 6])
    assert figure.layout.xaxis.title.text == "time since the first task of step 1 (ms)"


def test_hover_tells_size_rate_and_error(predicted, measured):
    attention, load = paired_lanes(predicted, measured).data
    assert load.hovertext[2].split("<br>") == [
        "<b>s0.L0.load_kv</b> (measured)",
        "layer 0, step 0, tokens 0 to 16",
        "4 MB at 0.8 GB/s",
        "predicted 4.000 ms, measured 5.000 ms, -20.0 %",
    ]
    assert "6 GFLOP at 2 TFLOP/s" in attention.hovertext[0]


def test_hover_of_a_task_without_time_divides_by_nothing(graph, predicted):
    instant = Timeline(graph, (0.0,) * 4, (0.0,) * 4)
    attention, _ = paired_lanes(predicted, instant).data
    assert "6 GFLOP at no time" in attention.hovertext[2]
    assert attention.hovertext[2].endswith("measured 0.000 ms")


def test_breakdown_adds_up_to_the_makespan_of_both_runs(predicted, measured):
    figure = breakdown_bars(predicted, measured)
    parts = {trace.name: list(trace.x) for trace in figure.data}
    assert list(parts) == list(PART_COLOUR)
    assert parts["compute"] == pytest.approx([6, 6])
    assert parts["exposed copy"] == pytest.approx([5, 7])
    assert parts["idle"] == pytest.approx([0, 1])
    sums = [sum(values) for values in zip(*parts.values(), strict=True)]
    assert sums == pytest.approx([predicted.makespan_s * 1e3, measured.makespan_s * 1e3])
    assert figure.layout.barmode == "stack"
    assert figure.data[0].text[1] == "6.0 ms, 42.9 %"
    assert list(figure.layout.yaxis.ticktext) == ["predicted", "measured"]


def test_breakdown_of_an_empty_run_divides_by_nothing(graph, predicted):
    instant = Timeline(graph, (0.0,) * 4, (0.0,) * 4)
    assert breakdown_bars(predicted, instant).data[0].text[1] == "0 ms"


def test_every_operation_has_a_colour_of_its_own():
    assert set(OP_COLOUR) == set(LANE_OF_OP)
    assert len(set(OP_COLOUR.values())) == len(OP_COLOUR)
