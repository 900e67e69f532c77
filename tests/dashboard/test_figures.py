"""The figures of a timeline against one small enough to check by hand."""

from dataclasses import replace

import pytest
from builders import make_plan

from dashboard.figures import (
    BREAKDOWN_COLOUR,
    OP_COLOUR,
    View,
    breakdown_bars,
    lane_use_bars,
    paired_lanes,
)
from dashboard.figures.lanes import FADED, MAX_SINGLE_BARS
from dashboard.figures.style import LATE_COLOUR, hatching, log_ticks, uncalibrated_spans
from planner.decode.lower import replicate
from sim import Task, TaskGraph, Timeline, Workload, find_hardware, find_model, simulate
from sim.cost.estimate import Estimate
from sim.graph.jobs import RestoreRequest
from sim.graph.tasks import LANE_OF_OP


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
    figure = paired_lanes(predicted, measured, View(step=1))
    attention, load = figure.data
    assert list(load.base) == pytest.approx([0, 0])
    assert list(load.x) == pytest.approx([4, 5])
    assert list(attention.base) == pytest.approx([4, 6])
    assert figure.layout.xaxis.title.text == "time since the first task of step 1 (ms)"


def test_layers_can_be_shown_alone_and_the_axis_says_so(predicted, measured):
    assert len(paired_lanes(predicted, measured, View(layers=(0, 0))).data) == 2
    empty = paired_lanes(predicted, measured, View(layers=(1, 3)))
    assert not empty.data
    title = empty.layout.xaxis.title.text
    assert title == "time since the first task of layers 1 to 3 (ms)"
    assert str(View(1, (2, 2))) == "the first task of step 1, layer 2"


def test_of_several_gpus_one_is_shown(graph, predicted):
    both = replicate(graph, 2)
    late = [t + 0.1 for t in predicted.start_s], [t + 0.1 for t in predicted.end_s]
    run = Timeline(both, (*predicted.start_s, *late[0]), (*predicted.end_s, *late[1]))
    one = paired_lanes(run, run, View(device=1))
    assert one.data[0].hovertext[0].startswith("<b>g1.s0.L0.attention</b>")
    assert list(one.data[0].base) == pytest.approx([104, 108] * 2)
    assert all(len(trace.x) == 4 for trace in one.data)


def test_hover_tells_the_batch_and_leaves_out_tokens_that_are_none(graph, predicted):
    first = replace(graph.tasks[0], op="load_weights", token_stop=0, batch=3)
    run = replace(predicted, graph=replace(graph, tasks=(first, *graph.tasks[1:])))
    load = next(trace for trace in paired_lanes(run, run).data if trace.name == "load_weights")
    assert load.hovertext[0].split("<br>")[1] == "layer 0, step 0, batch 3"


def test_hover_tells_size_rate_and_error(predicted, measured):
    attention, load = paired_lanes(predicted, measured).data
    assert load.hovertext[2].split("<br>") == [
        "<b>s0.L0.load_kv</b> (measured)",
        "layer 0, step 0, tokens 0 to 16",
        "4 MB at 0.8 GB/s",
        "predicted 4.000 ms, measured 5.000 ms, -20.0 %",
    ]
    assert "6 GFLOP at 2 TFLOP/s" in attention.hovertext[0]


def test_hover_tells_the_source_of_the_estimate(predicted, measured):
    estimates = [Estimate(1.0, "fitted", True)] * 3 + [Estimate(1.0, "measured", False)]
    attention, load = paired_lanes(predicted, measured, estimates=estimates).data
    assert load.hovertext[0].endswith("estimate from fitted figures")
    assert attention.hovertext[1].endswith("measured figures, outside the calibrated range")


def test_hover_of_a_task_without_time_divides_by_nothing(graph, predicted):
    instant = Timeline(graph, (0.0,) * 4, (0.0,) * 4)
    attention, _ = paired_lanes(predicted, instant).data
    assert "6 GFLOP at no time" in attention.hovertext[2]
    assert attention.hovertext[2].endswith("measured 0.000 ms")


def test_outline_tells_measured_tasks_that_are_notably_off(predicted, measured):
    attention, load = paired_lanes(predicted, measured).data
    assert list(load.marker.line.color)[2:] == [LATE_COLOUR] * 2, "5 ms for a predicted 4"
    assert LATE_COLOUR not in list(load.marker.line.color)[:2], "a prediction is never outlined"
    assert LATE_COLOUR not in attention.marker.line.color
    plain = paired_lanes(predicted, measured, outline_errors=False).data[1]
    assert LATE_COLOUR not in plain.marker.line.color


def test_what_is_off_the_critical_path_fades(graph):
    """The second load waits for nothing here, and 1 ms passes before the last task needs it."""
    run = Timeline(graph, (0.0, 0.004, 0.004, 0.008), (0.004, 0.008, 0.006, 0.011))
    attention, load = paired_lanes(run, run, critical_only=True).data
    assert list(load.marker.opacity) == [1.0, FADED] * 2
    assert list(attention.marker.opacity) == [1.0] * 4
    assert set(paired_lanes(run, run).data[1].marker.opacity) == {1.0}


@pytest.fixture
def crowded():
    """One 1 ms load, then 3,000 of 1 us: a thousandth of the whole each, too short to be seen."""
    tasks = [task("s0.L0.load_kv", "h2d", 0, 0, 8)]
    tasks += [task(f"s0.L{at}.load_x", "h2d", 0, at, 8) for at in range(1, 3001)]
    graph = TaskGraph("row", find_model("opt-125m"), Workload(1, 16, 1), 2, tuple(tasks))
    ends = [0.001, *(0.001 + 1e-6 * at for at in range(1, 3001))]
    return Timeline(graph, (0.0, *ends[:-1]), tuple(ends))


def test_tasks_too_short_to_be_seen_are_merged_and_keep_their_time(crowded):
    assert len(crowded.graph.tasks) > MAX_SINGLE_BARS
    load_x, load_kv = sorted(
        paired_lanes(crowded, crowded).data, key=lambda trace: trace.name, reverse=True
    )
    assert len(load_kv.x) == 2
    assert 2 * 400 < len(load_x.x) < 2 * 800, "about one bar for each pixel and a half"
    assert sum(load_x.x) == pytest.approx(2 * 3.0)
    assert "tasks</b> (predicted)" in load_x.hovertext[0]
    assert "choose a step or layers" in load_x.hovertext[0]


def test_few_tasks_are_never_merged(crowded):
    figure = paired_lanes(crowded, crowded, View(layers=(1, 1500)))
    assert len(figure.data[0].x) == 2 * 1500


def test_a_merged_bar_has_the_colour_of_what_takes_most_of_its_time(crowded):
    graph = crowded.graph
    mixed = tuple(
        replace(one, op="load_kv") if at % 3 == 2 else one for at, one in enumerate(graph.tasks)
    )
    run = Timeline(replace(graph, tasks=mixed), crowded.start_s, crowded.end_s)
    bars = {trace.name: trace for trace in paired_lanes(run, run).data}
    assert len(bars["load_x"].x) > 10 * len(bars["load_kv"].x)
    assert "load_x, " in bars["load_x"].hovertext[5]


def test_breakdown_adds_up_to_the_makespan_of_both_runs(predicted, measured):
    figure = breakdown_bars(predicted, measured)
    parts = {trace.name: list(trace.x) for trace in figure.data}
    assert list(parts) == list(BREAKDOWN_COLOUR)
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


def test_uses_of_a_lane_add_up_to_the_makespan(predicted, measured):
    figure = lane_use_bars(predicted, measured)
    names = dict(zip(figure.layout.yaxis.tickvals, figure.layout.yaxis.ticktext, strict=True))
    sums = dict.fromkeys(names.values(), 0.0)
    used = {}
    for trace in figure.data:
        for length, row in zip(trace.x, trace.y, strict=True):
            sums[names[row]] += length
            used[trace.name, names[row]] = length
    assert sums["compute predicted"] == sums["h2d predicted"] == pytest.approx(11)
    assert sums["compute measured"] == sums["h2d measured"] == pytest.approx(14)
    assert used["works", "compute measured"] == pytest.approx(6)
    assert used["waits for h2d", "compute predicted"] == pytest.approx(5)
    assert used["hand-over", "compute measured"] == pytest.approx(1)
    assert used["drained", "h2d measured"] == pytest.approx(4)
    assert figure.layout.xaxis.title.text == "time of the lane (ms)"


def test_every_operation_has_a_colour_of_its_own():
    assert set(OP_COLOUR) == set(LANE_OF_OP)
    assert len(set(OP_COLOUR.values())) == len(OP_COLOUR)


def test_hatching_reaches_half_way_to_calibrated_neighbours():
    x = [0, 10, 20, 30, 40]
    assert uncalibrated_spans(x, [False, True, True, False, False]) == [(0, 5), (25, 40)]
    assert uncalibrated_spans(x, [True] * 5) == []
    assert uncalibrated_spans([7], [False]) == [(7, 7)]


def test_hatching_draws_closed_rectangles():
    drawn = hatching([(0, 1, 2, 3), (4, 5, 6, 7)])
    assert list(drawn.x) == [0, 1, 1, 0, 0, None, 4, 5, 5, 4, 4, None]
    assert list(drawn.y[:5]) == [2, 2, 3, 3, 2]
    assert drawn.fillpattern.shape == "/"


def test_ticks_of_a_logarithmic_axis_are_round_and_inside():
    axis = log_ticks(180.0, 2200.0)
    assert axis["ticktext"] == ["200", "500", "1,000", "2,000"]
    assert axis["range"] == pytest.approx([2.2553, 3.3424], abs=1e-4)


def test_the_lanes_of_a_tier_have_rows_of_their_own():
    plan = make_plan(
        find_model("llama-3.1-8b"),
        find_hardware("h100"),
        RestoreRequest(prompt_tokens=2048, cached_tokens=2047, tier="ssd"),
        "two-ended",
    )
    run = simulate(plan.simulated_graph(), plan.hardware)
    names = {text for text in paired_lanes(run, run).layout.yaxis.ticktext if text}
    assert {text.split()[0] for text in names} == {"compute", "h2d", "disk"}
