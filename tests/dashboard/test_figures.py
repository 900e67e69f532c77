"""The figures of a timeline against one small enough to check by hand."""

from dataclasses import replace

import pytest
from builders import make_plan
from lane_bars import bars_of, times

from dashboard.figures import (
    BREAKDOWN_COLOUR,
    OP_COLOUR,
    NamedRun,
    View,
    breakdown_bars,
    lane_use_bars,
    lanes_of,
    paired_lanes,
)
from dashboard.figures.lane_chart import EARLY, FADED, LATE
from dashboard.figures.style import hatching, log_ticks, uncalibrated_spans
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


def test_each_lane_has_a_row_for_each_run_with_its_tasks_in_milliseconds(predicted, measured):
    chart = paired_lanes(predicted, measured)
    found = chart.document()
    assert [(row["lane"], row["source"]) for row in found["rows"]] == [
        ("compute", "predicted"),
        ("compute", "measured"),
        ("h2d", "predicted"),
        ("h2d", "measured"),
    ]
    assert times(chart, "load_kv") == [[0, 4, 0, 5], [4, 4, 5, 5]]
    assert times(chart, "attention") == [[4, 8, 5, 11], [3, 3, 3, 3]]
    assert [bar["row"] for bar in bars_of(chart)] == [
        *["compute predicted"] * 2,
        *["compute measured"] * 2,
        *["h2d predicted"] * 2,
        *["h2d measured"] * 2,
    ]
    kinds = {kind["name"]: kind["colour"] for kind in found["kinds"]}
    assert kinds == {name: OP_COLOUR[name] for name in ("attention", "load_kv")}
    assert found["axis"] == "time since the start of the run (ms)"
    assert found["ends"] == [
        {"source": "predicted", "ms": 11.0},
        {"source": "measured", "ms": 14.0},
    ]


def test_a_bar_knows_the_same_task_in_the_other_run(predicted, measured):
    found = bars_of(paired_lanes(predicted, measured))
    for at, bar in enumerate(found):
        partner = found[bar["partner"]]
        assert partner["name"] == bar["name"]
        assert partner["row"] != bar["row"]
        assert partner["partner"] == at
    alone = bars_of(lanes_of([NamedRun("", predicted)]))
    assert {bar["partner"] for bar in alone} == {-1}


def test_plans_of_other_graphs_are_joined_by_the_names_of_their_tasks(graph, predicted):
    tasks = [*graph.tasks[:3], replace(graph.tasks[3], id="s1.L0.mlp", op="mlp")]
    other = replace(predicted, graph=replace(graph, tasks=tuple(tasks)))
    found = bars_of(lanes_of([NamedRun("A", predicted), NamedRun("B", other)]))
    assert {bar["name"] for bar in found if bar["partner"] < 0} == {"s1.L0.mlp", "s1.L0.attention"}


def test_a_gap_knows_what_its_lane_waits_for(predicted, measured):
    """Measured: 5 ms until the first load is there; 3 ms wait for the second, 1 ms of nothing."""
    rows = {"compute measured": [], "h2d measured": [], "compute predicted": []}
    for bar in bars_of(paired_lanes(predicted, measured)):
        rows.setdefault(bar["row"], []).append((bar["cause"], bar["wait"], bar["pause"]))
    assert rows["compute predicted"] == [("load_kv of layer 0", 4, 0), ("load_kv of layer 0", 1, 0)]
    assert rows["compute measured"] == [("load_kv of layer 0", 5, 0), ("load_kv of layer 0", 2, 1)]
    assert rows["h2d measured"][0] == ("", 0, 0)


def test_a_cause_of_another_step_is_named_with_it(predicted):
    load = next(
        b for b in bars_of(lanes_of([NamedRun("", predicted)])) if b["name"] == "s1.L0.load_kv"
    )
    assert load["cause"] == "load_kv of layer 0 in step 0"


def test_gaps_add_up_to_the_idle_time_by_cause(predicted, measured):
    for source, run in (("predicted", predicted), ("measured", measured)):
        for lane in ("compute", "h2d"):
            found = [
                bar
                for bar in bars_of(paired_lanes(predicted, measured))
                if bar["row"] == f"{lane} {source}"
            ]
            idle = run.idle_by_cause(lane)
            drained = idle.pop("drained", 0.0)
            assert sum(bar["wait"] + bar["pause"] for bar in found) == pytest.approx(
                1e3 * sum(idle.values())
            )
            last = found[-1]["start"] + found[-1]["length"]
            assert run.makespan_s * 1e3 - last == pytest.approx(1e3 * drained)


def test_a_step_is_counted_from_its_first_task_in_each_run(predicted, measured):
    chart = paired_lanes(predicted, measured, View(step=1))
    assert times(chart, "load_kv") == [[0, 0], [4, 5]]
    assert times(chart, "attention")[0] == [4, 6]
    assert chart.axis == "time since the first task of step 1 (ms)"


def test_layers_can_be_shown_alone_and_the_axis_says_so(predicted, measured):
    assert len(bars_of(paired_lanes(predicted, measured, View(layers=(0, 0))))) == 8
    empty = paired_lanes(predicted, measured, View(layers=(1, 3)))
    assert not bars_of(empty)
    assert empty.axis == "time since the first task of layers 1 to 3 (ms)"
    assert str(View(1, (2, 2))) == "the first task of step 1, layer 2"


def test_of_several_gpus_one_is_shown(graph, predicted):
    both = replicate(graph, 2)
    late = [t + 0.1 for t in predicted.start_s], [t + 0.1 for t in predicted.end_s]
    run = Timeline(both, (*predicted.start_s, *late[0]), (*predicted.end_s, *late[1]))
    one = paired_lanes(run, run, View(device=1))
    assert {bar["name"].split(".")[0] for bar in bars_of(one)} == {"g1"}
    assert times(one, "attention")[0] == pytest.approx([104, 108] * 2)


def test_a_bar_tells_its_place_size_and_estimate(graph, predicted):
    first = replace(graph.tasks[0], op="load_weights", token_stop=0, batch=3)
    run = replace(predicted, graph=replace(graph, tasks=(first, *graph.tasks[1:])))
    estimates = [Estimate(1.0, "fitted", True)] * 3 + [Estimate(1.0, "measured", False)]
    chart = lanes_of([NamedRun("", run, estimates)])
    attention, last, weights, load = bars_of(chart)
    assert weights["place"] == "layer 0, step 0, batch 3", "tokens that are none are left out"
    assert load["place"] == "layer 0, step 1, 16 tokens from 0"
    assert (load["size"], attention["size"]) == (4_000_000, 6_000_000_000)
    assert [row["unit"] for row in chart.document()["rows"]] == ["FLOP", "B"]
    assert attention["estimate"] == "fitted figures"
    assert last["estimate"] == "measured figures, outside the calibrated range"


def test_measured_tasks_that_are_notably_off_are_marked(predicted, measured):
    marks = {(b["row"], b["kind"]): b["flags"] for b in bars_of(paired_lanes(predicted, measured))}
    assert marks["h2d measured", "load_kv"] == LATE, "5 ms for a predicted 4"
    assert marks["h2d predicted", "load_kv"] == 0, "a prediction is never marked"
    assert marks["compute measured", "attention"] == 0
    swapped = bars_of(paired_lanes(measured, predicted))
    assert {bar["flags"] for bar in swapped if bar["kind"] == "load_kv"} == {0, EARLY}
    plain = bars_of(paired_lanes(predicted, measured, outline_errors=False))
    assert {bar["flags"] for bar in plain} == {0}


def test_what_is_off_the_critical_path_fades(graph):
    """The second load waits for nothing here, and 1 ms passes before the last task needs it."""
    run = Timeline(graph, (0.0, 0.004, 0.004, 0.008), (0.004, 0.008, 0.006, 0.011))
    found = bars_of(paired_lanes(run, run, critical_only=True))
    assert {bar["name"] for bar in found if bar["flags"] & FADED} == {"s1.L0.load_kv"}
    assert {bar["flags"] for bar in bars_of(paired_lanes(run, run))} == {0}


def test_the_data_of_many_tasks_is_small_and_made_fast():
    """10,000 tasks: all are sent, and names of a task are sent once for both runs."""
    size = 5_000
    tasks = []
    for at in range(size):
        name = f"s0.L{at}"
        tasks.append(task(f"{name}.load_kv", "h2d", 0, at, 8))
        tasks.append(task(f"{name}.attention", "compute", 0, at, 8, (f"{name}.load_kv",)))
    graph = TaskGraph("row", find_model("opt-125m"), Workload(1, 16, 1), 2, tuple(tasks))
    start = tuple(1e-3 * (at // 2 + at % 2) for at in range(2 * size))
    run = Timeline(graph, start, tuple(time + 1e-3 for time in start))
    chart = paired_lanes(run, run)
    assert len(chart) == 4 * size
    assert len(chart.encoded) < 120 * len(chart)


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
    names = {row.lane for row in paired_lanes(run, run).rows}
    assert {text.split()[0] for text in names} == {"compute", "h2d", "disk"}
